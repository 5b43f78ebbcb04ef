// The baseline of norm_scale_shift: what a framework without fusion runs. One kernel each for residual + gate * x, the
// norm, * (1 + scale), + shift. Between them the values are rounded to the storage type and live in residual_out and in
// y themselves, so nothing else is needed as scratch: after the norm, y is changed in place.
#include <type_traits>

#include "launch.cuh"
#include "row_sums.cuh"
#include "row_vectors.cuh"

#include "../operands.h"

namespace amk::task {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t row_offset(const Rows& t, int batch, int row) {
  return batch * t.batch_stride + row * t.row_stride;
}
__device__ __forceinline__ int64_t row_offset(const Modulation& t, int batch, int row) {
  return batch * t.batch_stride + row / t.rows_per_frame * t.frame_stride;
}

// kCount neighbouring elements of a row from element i on: as vectors, or one by one.
template <class T, int kCount>
__device__ __forceinline__ void load_run(const T* row, int64_t stride, int i, float (&out)[kCount]) {
  if constexpr (kCount == 1) {
    out[0] = to_f32(row[i * stride]);
  } else {
    Run<T, kCount> run;
    run.load(row + i);
    run.unpack(out);
  }
}
template <class T, int kCount>
__device__ __forceinline__ void store_run(T* row, int64_t stride, int i, const float (&in)[kCount]) {
  if constexpr (kCount == 1) {
    row[i * stride] = from_f32<T>(in[0]);
  } else {
    Run<T, kCount> run;
    run.pack(in);
    run.store(row + i);
  }
}

enum class Step { kAddGated, kScale, kShift };

// A block takes a row. out = in + m * x, in * (1 + m), or in + m; m absent: in + x.
template <class X, class M, Step kStep, int kCount>
__global__ void __launch_bounds__(kThreads)
    elementwise(const Rows in, const Rows x, const Modulation m, const Rows out, int rows, int columns) {
  const int batch = blockIdx.x / rows, row = blockIdx.x - batch * rows;
  const X* in_row = static_cast<const X*>(in.data) + row_offset(in, batch, row);
  const X* x_row = static_cast<const X*>(x.data) + row_offset(x, batch, row);
  const M* m_row = static_cast<const M*>(m.data) + (m.data ? row_offset(m, batch, row) : 0);
  X* out_row = static_cast<X*>(out.data) + row_offset(out, batch, row);
  for (int i = threadIdx.x * kCount; i < columns; i += kThreads * kCount) {
    float a[kCount], b[kCount]{}, factor[kCount];
    load_run(in_row, in.stride, i, a);
    if constexpr (kStep == Step::kAddGated) load_run(x_row, x.stride, i, b);
#pragma unroll
    for (int j = 0; j < kCount; ++j) factor[j] = 1.0f;
    if (m.data) load_run(m_row, m.stride, i, factor);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if constexpr (kStep == Step::kAddGated) a[j] += factor[j] * b[j];
      if constexpr (kStep == Step::kScale) a[j] *= 1.0f + factor[j];
      if constexpr (kStep == Step::kShift) a[j] += factor[j];
    }
    store_run(out_row, out.stride, i, a);
  }
}

// A block takes a row: mean, variance, result; the second and third time the row comes from the cache.
template <class X, class A, int kCount>
__global__ void __launch_bounds__(kThreads) norm(const Rows in, const Rows out, const NormOperands o) {
  __shared__ float scratch[2][kThreads / kWarpThreads];
  const int batch = blockIdx.x / o.rows, row = blockIdx.x - batch * o.rows;
  const X* in_row = static_cast<const X*>(in.data) + row_offset(in, batch, row);
  X* out_row = static_cast<X*>(out.data) + row_offset(out, batch, row);
  const auto for_runs = [&](auto f) {
    for (int i = threadIdx.x * kCount; i < o.columns; i += kThreads * kCount) {
      float x[kCount];
      load_run(in_row, in.stride, i, x);
      f(i, x);
    }
  };
  float mean = 0, squares = 0;
  if (!o.is_rms) {
    for_runs([&](int, const float (&x)[kCount]) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) mean += x[j];
    });
    mean = block_sum<kThreads>(mean, scratch[0]) / static_cast<float>(o.columns);
  }
  for_runs([&](int, const float (&x)[kCount]) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) squares = fmaf(x[j] - mean, x[j] - mean, squares);
  });
  const float scale = rsqrtf(block_sum<kThreads>(squares, scratch[1]) / static_cast<float>(o.columns) + o.eps);
  for_runs([&](int i, float (&x)[kCount]) {
    float weight[kCount], bias[kCount]{};
#pragma unroll
    for (int j = 0; j < kCount; ++j) weight[j] = 1.0f;
    if (o.weight) load_run(static_cast<const A*>(o.weight), o.weight_stride, i, weight);
    if (o.bias) load_run(static_cast<const A*>(o.bias), o.bias_stride, i, bias);
#pragma unroll
    for (int j = 0; j < kCount; ++j) x[j] = (x[j] - mean) * scale * weight[j] + bias[j];
    store_run(out_row, out.stride, i, x);
  });
}

template <class X, class M, int kCount>
int32_t run(const NormOperands& o, void* stream) {
  const int64_t blocks = int64_t{o.batches} * o.rows;
  const auto step = [&](auto kernel, const Rows& in, const Modulation& m, const Rows& out) {
    return launch(Order::kPlain, kernel, blocks, kThreads, stream, in, o.x, m, out, o.rows, o.columns);
  };
  int32_t status = 0;
  if (o.has_residual) status = step(elementwise<X, M, Step::kAddGated, kCount>, o.residual, o.gate, o.residual_out);
  const Rows& in = o.has_residual ? o.residual_out : o.x;
  if (status == 0) {
    const auto kernel = o.affine_dtype == AMK_DTYPE_F32 ? norm<X, float, kCount> : norm<X, X, kCount>;
    status = launch(Order::kPlain, kernel, blocks, kThreads, stream, in, o.y, o);
  }
  if (status == 0) status = step(elementwise<X, M, Step::kScale, kCount>, o.y, o.scale, o.y);
  if (status == 0) status = step(elementwise<X, M, Step::kShift, kCount>, o.y, o.shift, o.y);
  return status;
}

}  // namespace
}  // namespace amk::task

AMK_TASK_ENTRY(amk_task_norm_scale_shift_baseline);

int32_t amk_task_norm_scale_shift_baseline(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                                           int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                           void* stream) {
  using namespace amk;
  using namespace amk::task;
  const auto run_as = [&](const NormOperands& o, auto x, auto modulation) {
    using X = typename decltype(x)::type;
    using M = typename decltype(modulation)::type;
    return o.is_vector ? run<X, M, kPerVector<X>>(o, stream) : run<X, M, 1>(o, stream);
  };
  return with_operands(inputs, n_inputs, scalars, n_scalars, outputs, n_outputs, run_as);
}
