// Candidates of amk_tune_residual_gate_add behind the task's entry, for operands that are contiguous as a whole: the
// one that kernels_on_cpu_candidate names.
#include "../../benchmarks/tasks/residual_gate_add/solution/residual_gate_add_solution.cu"

extern "C" __attribute__((visibility("default"))) int kernels_on_cpu_candidate;
int kernels_on_cpu_candidate = 0;

namespace residual_gate_add {
namespace {

template <class T, class G>
int32_t run(const Problem& p, void* stream) {
  if (!is_one_run<T>(p)) return AMK_ERR_UNSUPPORTED;
  const auto with = [&](auto plan) {
    using Chosen = decltype(plan);
    return kind_of_gate(p) == Gate::kWhole ? launch_contiguous<T, G, Gate::kWhole, Chosen>(p, stream)
                                           : launch_contiguous<T, G, Gate::kRow, Chosen>(p, stream);
  };
  constexpr auto kKeep = Reuse::kKeep, kStream = Reuse::kStream;
  switch (kernels_on_cpu_candidate) {
    case 0: return with(GatePlan<64>{});
    case 1: return with(GatePlan<128, 1, kKeep, kStream, Order::kDependent>{});
    case 2: return with(GatePlan<256, 2, kStream, kKeep>{});
    default: return with(GatePlan<512, 4, kStream, kStream>{});
  }
}

}  // namespace
}  // namespace residual_gate_add

AMK_TASK_ENTRY(amk_task_residual_gate_add_candidate);

int32_t amk_task_residual_gate_add_candidate(const amk_task_tensor_t* inputs, int32_t n_inputs, const double*,
                                             int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                             void* stream) {
  const auto run_as = [&](const residual_gate_add::Problem& p, auto type, auto gate_type) {
    return residual_gate_add::run<typename decltype(type)::type, typename decltype(gate_type)::type>(p, stream);
  };
  return residual_gate_add::with_problem(inputs, n_inputs, n_scalars, outputs, n_outputs, run_as);
}
