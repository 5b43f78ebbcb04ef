// The solution of qknorm_rope: which kernel which operands get. docs/dispatch.md has the table.
#include "qknorm_rope.cuh"

namespace amk::task {
namespace {

// Both read the cache at the row of the token's own number together with the position, and again where that is another.
// Up to so many tokens the launch is shorter than the latency of memory: one head at once. Both in
// launches that overlap the end of the one before.
constexpr int kFewTokens = 512;
using FewPlan = QkPlan<192, 1, 1, Reuse::kStream, Order::kDependent, Turn::kGuessed>;
// More: small blocks, of which as many are resident as two heads per thread leave registers for. f32 has twice as many.
template <class T>
using ManyPlan = QkPlan<96, 2, sizeof(T) == 4 ? 4 : 8, Reuse::kStream, Order::kDependent, Turn::kGuessed>;

int32_t run(const QkOperands& o, void* stream) {
  return with_types(o, [&](auto type, auto position, auto interleaved) {
    using T = typename decltype(type)::type;
    using P = typename decltype(position)::type;
    constexpr bool kInterleaved = decltype(interleaved)::value;
    if (!o.is_vector) return launch_elements<T, P, kInterleaved>(o, stream);
    if (o.tokens <= kFewTokens) return launch_rows<T, P, kInterleaved, FewPlan>(o, 0, stream);
    return launch_rows<T, P, kInterleaved, ManyPlan<T>>(o, 0, stream);
  });
}

}  // namespace
}  // namespace amk::task

AMK_TASK_ENTRY(amk_task_qknorm_rope_solution);

int32_t amk_task_qknorm_rope_solution(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                                      int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                      void* stream) {
  amk::task::QkOperands operands;
  const int32_t status = amk::task::read_operands(inputs, n_inputs, scalars, n_scalars, outputs, n_outputs, &operands);
  return status != AMK_OK ? status : amk::task::run(operands, stream);
}
