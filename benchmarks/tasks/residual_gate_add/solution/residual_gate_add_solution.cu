// The solution of residual_gate_add: which kernel which operands get. docs/dispatch.md has the table.
#include "residual_gate_add.cuh"

namespace residual_gate_add {
namespace {

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % AMK_VECTOR_BYTES == 0; }

// Whether rows can be taken as vectors of `per` elements.
bool has_vector_rows(const Problem& p, const void* base, const int64_t (&step)[3], int per) {
  return is_aligned(base) && (step[2] == 1 || p.width == 1) && (p.rows == 1 || step[1] % per == 0) &&
         (p.batch == 1 || step[0] % per == 0);
}

bool is_contiguous(const Problem& p, const int64_t (&step)[3]) {
  return (p.width == 1 || step[2] == 1) && (p.rows == 1 || step[1] == p.width) &&
         (p.batch == 1 || step[0] == p.rows * p.width);
}

Gate kind_of_gate(const Problem& p) {
  if (!is_aligned(p.gate)) return Gate::kStrided;
  if (p.frame_rows == 1 && is_contiguous(p, p.gate_step)) return Gate::kWhole;
  const bool same_row = (p.gate_step[0] == 0 || p.batch == 1) && (p.gate_step[1] == 0 || p.rows == p.frame_rows);
  return same_row && p.gate_step[2] == 1 ? Gate::kRow : Gate::kStrided;
}

template <class T>
bool has_vector_rows(const Problem& p) {
  return p.width % kPer<T> == 0 && has_vector_rows(p, p.residual, p.residual_step, kPer<T>) &&
         has_vector_rows(p, p.x, p.x_step, kPer<T>) && has_vector_rows(p, p.y, p.y_step, kPer<T>);
}

// Whether residual, x and y are one run of vectors each, fewer than an index can count, and the gate is one or a row.
template <class T>
bool is_one_run(const Problem& p) {
  return has_vector_rows<T>(p) && kind_of_gate(p) != Gate::kStrided && is_contiguous(p, p.residual_step) &&
         is_contiguous(p, p.x_step) && is_contiguous(p, p.y_step) &&
         p.batch * p.rows * (p.width / kPer<T>) < int64_t{1} << 31;
}

// One vector per thread, so that what is read and written at one time lies close together, in launches that overlap.
using Plan = GatePlan<128, 1, Reuse::kKeep, Reuse::kKeep, Order::kDependent>;

template <class T, class G>
int32_t dispatch(const Problem& p, void* stream) {
  if (is_one_run<T>(p)) {
    return kind_of_gate(p) == Gate::kWhole ? launch_contiguous<T, G, Gate::kWhole, Plan>(p, stream)
                                           : launch_contiguous<T, G, Gate::kRow, Plan>(p, stream);
  }
  const bool vector_gate = p.gate_step[2] == 1 && p.gate_step[0] % kPer<T> == 0 && p.gate_step[1] % kPer<T> == 0;
  const bool is_vectors = has_vector_rows<T>(p) && is_aligned(p.gate) && (p.gate_step[2] == 0 || vector_gate);
  return is_vectors ? launch_strided<T, G>(p, stream) : launch_single<T, G>(p, stream);
}

}  // namespace
}  // namespace residual_gate_add

AMK_TASK_ENTRY(amk_task_residual_gate_add_solution);
int32_t amk_task_residual_gate_add_solution(const amk_task_tensor_t* inputs, int32_t n_inputs, const double*,
                                            int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                            void* stream) {
  const auto run_as = [&](const residual_gate_add::Problem& p, auto type, auto gate_type) {
    return residual_gate_add::dispatch<typename decltype(type)::type, typename decltype(gate_type)::type>(p, stream);
  };
  return residual_gate_add::with_problem(inputs, n_inputs, n_scalars, outputs, n_outputs, run_as);
}
