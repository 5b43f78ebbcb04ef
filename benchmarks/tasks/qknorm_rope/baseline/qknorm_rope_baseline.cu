// The baseline of qknorm_rope: what a framework without fusion runs. Four kernels in place, each of which reads and
// writes its operand once: RMS norm of q, of k, rotary embedding of q, of k. Between them the values are rounded to the
// storage type and live in q and k themselves, so nothing else is needed as scratch.
#include <type_traits>

#include "launch.cuh"
#include "row_sums.cuh"
#include "row_vectors.cuh"

#include "../operands.h"

namespace amk::task {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpThreads, kOfLane = kHeadDim / kWarpThreads;

// A lane's four neighbouring elements of a head.
template <class T, bool kVector>
__device__ __forceinline__ void load_four(const T* row, int64_t stride, int lane, float (&out)[kOfLane]) {
  if constexpr (!kVector) {
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) out[i] = to_f32(row[(lane * kOfLane + i) * stride]);
  } else {
    Run<T, kOfLane> run;
    run.load(row + lane * kOfLane);
    run.unpack(out);
  }
}
template <class T, bool kVector>
__device__ __forceinline__ void store_four(T* row, int64_t stride, int lane, const float (&in)[kOfLane]) {
  if constexpr (!kVector) {
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) row[(lane * kOfLane + i) * stride] = from_f32<T>(in[i]);
  } else {
    Run<T, kOfLane> run;
    run.pack(in);
    run.store(row + lane * kOfLane);
  }
}

// A warp takes a head.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads) norm_heads(const Heads side, int tokens, float eps) {
  const int lane = threadIdx.x % kWarpThreads, index = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
  if (index >= tokens * side.count) return;
  const int token = index / side.count, head = index - token * side.count;
  T* row = static_cast<T*>(side.data) + token * side.token_stride + head * side.head_stride;
  float x[kOfLane], w[kOfLane], sum = 0;
  load_four<T, kVector>(row, side.stride, lane, x);
  load_four<T, kVector>(static_cast<const T*>(side.weight), side.weight_stride, lane, w);
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) sum = fmaf(x[i], x[i], sum);
  const float scale = rsqrtf(warp_sum(sum) * (1.0f / kHeadDim) + eps);
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) x[i] *= scale * w[i];
  store_four<T, kVector>(row, side.stride, lane, x);
}

// A warp takes a head; the partner of an element is 64 away, in the lane 16 away, or beside it.
template <class T, class P, bool kInterleaved, bool kVector>
__global__ void __launch_bounds__(kThreads) turn_heads(const Heads side, const QkOperands o) {
  const int lane = threadIdx.x % kWarpThreads, index = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
  if (index >= o.tokens * side.count) return;
  const int token = index / side.count, head = index - token * side.count;
  T* row = static_cast<T*>(side.data) + token * side.token_stride + head * side.head_stride;
  const int64_t position = static_cast<const P*>(o.positions)[token * o.position_stride];
  const bool is_known = position >= 0 && position < o.cache_rows;
  const float* cached = o.cache + (is_known ? position : 0) * o.cache_row_stride;
  float x[kOfLane], y[kOfLane];
  load_four<T, kVector>(row, side.stride, lane, x);
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) {
    const int element = lane * kOfLane + i, pair = kInterleaved ? element / 2 : element % kHalf;
    const bool is_first = kInterleaved ? element % 2 == 0 : element < kHalf;
    const float partner = kInterleaved ? x[i ^ 1] : __shfl_xor_sync(kWholeWarp, x[i], kWarpThreads / 2);
    const float cosine = is_known ? cached[pair * o.cache_stride] : __builtin_nanf("");
    const float sine = cached[(pair + kHalf) * o.cache_stride];
    y[i] = is_first ? x[i] * cosine - partner * sine : x[i] * cosine + partner * sine;
  }
  store_four<T, kVector>(row, side.stride, lane, y);
}

template <class T, class P, bool kInterleaved, bool kVector>
int32_t run_as(const QkOperands& o, void* stream) {
  int32_t status = 0;
  for (const Heads* side : {&o.q, &o.k}) {
    const int blocks = ceil_div_int(o.tokens * side->count, kWarps);
    if (status == 0)
      status = launch(Order::kPlain, norm_heads<T, kVector>, blocks, kThreads, stream, *side, o.tokens, o.eps);
  }
  for (const Heads* side : {&o.q, &o.k}) {
    const int blocks = ceil_div_int(o.tokens * side->count, kWarps);
    if (status == 0)
      status = launch(Order::kPlain, turn_heads<T, P, kInterleaved, kVector>, blocks, kThreads, stream, *side, o);
  }
  return status;
}

}  // namespace
}  // namespace amk::task

AMK_TASK_ENTRY(amk_task_qknorm_rope_baseline);

int32_t amk_task_qknorm_rope_baseline(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                                      int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                      void* stream) {
  using namespace amk::task;
  QkOperands operands;
  const int32_t status = read_operands(inputs, n_inputs, scalars, n_scalars, outputs, n_outputs, &operands);
  if (status != AMK_OK) return status;
  return with_types(operands, [&](auto type, auto position, auto interleaved) {
    using T = typename decltype(type)::type;
    using P = typename decltype(position)::type;
    constexpr bool kInterleaved = decltype(interleaved)::value;
    return operands.is_vector ? run_as<T, P, kInterleaved, true>(operands, stream)
                              : run_as<T, P, kInterleaved, false>(operands, stream);
  });
}
