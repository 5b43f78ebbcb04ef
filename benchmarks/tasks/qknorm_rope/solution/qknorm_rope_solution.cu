// The solution of qknorm_rope: which kernel which operands get. docs/dispatch.md has the table.
#include "qknorm_rope.cuh"

namespace amk::task {
namespace {

// Up to so many tokens the launch is shorter than the latency of memory, so heads are spread over as many SMs as
// possible: eight per block, in a launch that overlaps the end of the one before it.
constexpr int kFewTokens = 64;
using FewPlan = QkPlan<64, 1, 1, Reuse::kKeep, Order::kDependent>;
constexpr int kSomeTokens = 512;
using SomePlan = QkPlan<192, 1, 1, Reuse::kStream>;
// More: 32 or 48 heads per block, whichever leaves fewer lanes without a head.
using By32Plan = QkPlan<128, 2, 1, Reuse::kStream>;
using By48Plan = QkPlan<192, 2, 1, Reuse::kStream>;

int32_t run(const QkOperands& o, void* stream) {
  return with_types(o, [&](auto type, auto position, auto interleaved) {
    using T = typename decltype(type)::type;
    using P = typename decltype(position)::type;
    constexpr bool kInterleaved = decltype(interleaved)::value;
    if (!o.is_vector) return launch_elements<T, P, kInterleaved>(o, stream);
    const int heads = o.q.count + o.k.count;
    if (o.tokens <= kFewTokens) return launch_rows<T, P, kInterleaved, FewPlan>(o, 0, stream);
    if (o.tokens <= kSomeTokens) return launch_rows<T, P, kInterleaved, SomePlan>(o, 0, stream);
    if (round_up_int(heads, 48) < round_up_int(heads, 32))
      return launch_rows<T, P, kInterleaved, By48Plan>(o, 0, stream);
    return launch_rows<T, P, kInterleaved, By32Plan>(o, 0, stream);
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
