// The plain sequence: y = gate * x, then y = residual + y. Two kernels, one element per thread, each result rounded.
// In: operands as problem.cuh reads them. Out: y; the product passes through it.
#include <algorithm>

#include "../problem.cuh"
#include "launch.cuh"
#include "tile_io.cuh"

namespace residual_gate_add {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 30;

// Element (b, s, d) of an operand, with the row taken apart once per thread.
template <class T>
__device__ __forceinline__ T* at(const void* base, const int64_t (&step)[3], int64_t b, int64_t s, int64_t d) {
  return static_cast<T*>(const_cast<void*>(base)) + b * step[0] + s * step[1] + d * step[2];
}

template <class T, class G>
__global__ void __launch_bounds__(kThreads) multiply(const Problem p) {
  const int64_t row_blocks = (p.width + kThreads - 1) / kThreads;
  for (int64_t i = blockIdx.x; i < p.batch * p.rows * row_blocks; i += gridDim.x) {
    const int64_t row = i / row_blocks, d = (i - row * row_blocks) * kThreads + threadIdx.x;
    const int64_t b = row / p.rows, s = row - b * p.rows;
    if (d >= p.width) continue;
    const float gate = amk::load(at<G>(p.gate, p.gate_step, b, s / p.frame_rows, d));
    amk::store(at<T>(p.y, p.y_step, b, s, d), gate * amk::load(at<T>(p.x, p.x_step, b, s, d)));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) add(const Problem p) {
  const int64_t row_blocks = (p.width + kThreads - 1) / kThreads;
  for (int64_t i = blockIdx.x; i < p.batch * p.rows * row_blocks; i += gridDim.x) {
    const int64_t row = i / row_blocks, d = (i - row * row_blocks) * kThreads + threadIdx.x;
    const int64_t b = row / p.rows, s = row - b * p.rows;
    if (d >= p.width) continue;
    T* const y = at<T>(p.y, p.y_step, b, s, d);
    amk::store(y, amk::load(at<T>(p.residual, p.residual_step, b, s, d)) + amk::load(y));
  }
}

template <class T, class G>
int32_t run(const Problem& p, void* stream) {
  const int64_t blocks = std::min(p.batch * p.rows * ((p.width + kThreads - 1) / kThreads), kMaxBlocks);
  const auto order = amk::task::Order::kPlain;
  const int32_t status = amk::task::launch(order, multiply<T, G>, blocks, kThreads, stream, p);
  return status ? status : amk::task::launch(order, add<T>, blocks, kThreads, stream, p);
}

}  // namespace
}  // namespace residual_gate_add

AMK_TASK_ENTRY(amk_task_residual_gate_add_baseline);
int32_t amk_task_residual_gate_add_baseline(const amk_task_tensor_t* inputs, int32_t n_inputs, const double*,
                                            int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                            void* stream) {
  const auto run_as = [&](const residual_gate_add::Problem& p, auto type, auto gate_type) {
    return residual_gate_add::run<typename decltype(type)::type, typename decltype(gate_type)::type>(p, stream);
  };
  return residual_gate_add::with_problem(inputs, n_inputs, n_scalars, outputs, n_outputs, run_as);
}
