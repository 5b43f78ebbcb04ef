// The plain sequence, three kernels over the state: S = g S; S = S + beta (v - S k) k^T; o = scale * S q.
// In: operands as problem.cuh reads them. Out: o and the new state. S k of a row stays in the warp that updates the
// row: an entry allocates nothing. Each kernel works out for itself what it needs of gates and norms.
#include "../problem.cuh"
#include "device_task.h"
#include "launch.cuh"
#include "tile_io.cuh"

namespace gdn_decode {
namespace {

constexpr int kThreads = 256, kRowsPerBlock = kThreads / amk::kWarpThreads, kDim = amk::kGdnHeadDim;
constexpr int kPerLane = kDim / amk::kWarpThreads, kBlocksPerHead = kDim / kRowsPerBlock;

__device__ float any(const void* base, int64_t at, int32_t dtype) {
  switch (dtype) {
    case AMK_DTYPE_F32: return amk::load(static_cast<const float*>(base) + at);
    case AMK_DTYPE_F16: return amk::load(static_cast<const __half*>(base) + at);
    default: return amk::load(static_cast<const __nv_bfloat16*>(base) + at);
  }
}

__device__ float warp_sum(float v) {
  for (int mask = amk::kWarpThreads / 2; mask > 0; mask /= 2) v += __shfl_xor_sync(amk::kWholeWarp, v, mask);
  return v;
}

// Row of a warp: [batch, value head, row].
struct Row {
  int batch, head, key_head, row, lane;
  __device__ explicit Row(const amk_gdn_decode_t& g)
      : batch(blockIdx.x / kBlocksPerHead / g.value_heads),
        head(blockIdx.x / kBlocksPerHead % g.value_heads),
        key_head(head / (g.value_heads / g.key_heads)),
        row(blockIdx.x % kBlocksPerHead * kRowsPerBlock + threadIdx.x / amk::kWarpThreads),
        lane(threadIdx.x % amk::kWarpThreads) {}
  __device__ int64_t at(const int64_t (&stride)[3]) const {
    return batch * stride[0] + head * stride[1] + row * stride[2];
  }
};

// This lane's elements of q or k, l2-normalised where asked.
__device__ void read_vector(const amk_gdn_decode_t& g, const void* base, const int64_t (&stride)[3], const Row& r,
                            float (&out)[kPerLane]) {
  float sum = 0;
  for (int i = 0; i < kPerLane; ++i) {
    out[i] =
        any(base, r.batch * stride[0] + r.key_head * stride[1] + (r.lane + i * amk::kWarpThreads) * stride[2], g.dtype);
    sum += out[i] * out[i];
  }
  if (!g.l2norm) return;
  const float norm = sqrtf(warp_sum(sum) + amk::kGdnNormEps);
  for (int i = 0; i < kPerLane; ++i) out[i] /= norm;
}

__global__ void __launch_bounds__(kThreads) decay(const __grid_constant__ amk_gdn_decode_t g) {
  const Row r(g);
  const float a = any(g.a, r.batch * g.a_stride[0] + r.head * g.a_stride[1], g.gate_dtype);
  const float x = a + any(g.dt_bias, r.head, g.bias_dtype);
  const float softplus = x > 20.0f ? x : log1pf(expf(x));
  const float factor = expf(-expf(static_cast<const float*>(g.a_log)[r.head]) * softplus);
  const float* from = static_cast<const float*>(g.state_in) + r.at(g.state_in_stride);
  float* to = static_cast<float*>(g.state_out) + r.at(g.state_out_stride);
  for (int i = r.lane; i < kDim; i += amk::kWarpThreads) to[i] = factor * from[i];
}

__global__ void __launch_bounds__(kThreads) update(const __grid_constant__ amk_gdn_decode_t g) {
  const Row r(g);
  const float b = any(g.b, r.batch * g.b_stride[0] + r.head * g.b_stride[1], g.gate_dtype);
  const float beta = 1.0f / (1.0f + expf(-b));
  float k[kPerLane], sum = 0;
  read_vector(g, g.k, g.k_stride, r, k);
  float* state = static_cast<float*>(g.state_out) + r.at(g.state_out_stride);
  for (int i = 0; i < kPerLane; ++i) sum += state[r.lane + i * amk::kWarpThreads] * k[i];
  const float v = any(g.v, r.at(g.v_stride), g.dtype), delta = beta * (v - warp_sum(sum));
  for (int i = 0; i < kPerLane; ++i) state[r.lane + i * amk::kWarpThreads] += delta * k[i];
}

template <class T>
__global__ void __launch_bounds__(kThreads) read_out(const __grid_constant__ amk_gdn_decode_t g) {
  const Row r(g);
  float q[kPerLane], sum = 0;
  read_vector(g, g.q, g.q_stride, r, q);
  const float* state = static_cast<const float*>(g.state_out) + r.at(g.state_out_stride);
  for (int i = 0; i < kPerLane; ++i) sum += state[r.lane + i * amk::kWarpThreads] * q[i];
  sum = warp_sum(sum);
  if (r.lane == 0) amk::store(static_cast<T*>(g.out) + r.at(g.out_stride), g.scale * sum);
}

}  // namespace
}  // namespace gdn_decode

AMK_TASK_ENTRY(amk_task_gdn_decode_baseline);
int32_t amk_task_gdn_decode_baseline(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                                     int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                     void* stream) {
  using namespace gdn_decode;
  amk_gdn_decode_t g;
  const int32_t refusal = read_problem(inputs, n_inputs, scalars, n_scalars, outputs, n_outputs, g);
  if (refusal) return refusal;
  const int64_t blocks = int64_t{kBlocksPerHead} * g.value_heads * g.batch;
  const auto run = [&](void (*kernel)(amk_gdn_decode_t)) {
    return amk::task::launch(amk::task::Order::kPlain, kernel, blocks, kThreads, stream, g);
  };
  if (const int32_t status = run(decay)) return status;
  if (const int32_t status = run(update)) return status;
  switch (g.dtype) {
    case AMK_DTYPE_F32: return run(read_out<float>);
    case AMK_DTYPE_F16: return run(read_out<__half>);
    default: return run(read_out<__nv_bfloat16>);
  }
}
