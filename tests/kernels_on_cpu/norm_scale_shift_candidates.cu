// Candidates of amk_tune_norm_scale_shift behind the task's entry, for rows of 3,072 columns of two bytes: the one that
// kernels_on_cpu_candidate names.
#include "../../benchmarks/tasks/tune/norm_scale_shift_sweep.cuh"

extern "C" __attribute__((visibility("default"))) int kernels_on_cpu_candidate;
int kernels_on_cpu_candidate = 0;

namespace amk::task {
namespace {

template <class X, class M, bool kResidual>
int32_t run(const NormOperands& o, void* stream) {
  if constexpr (sizeof(X) != 2) {
    return AMK_ERR_UNSUPPORTED;
  } else {
    const auto sweep = [&](auto plan) { return launch_sweep<X, M, kResidual, decltype(plan)>(o, 0, stream); };
    const auto stay = [&](auto plan) { return launch_persistent<X, M, kResidual, decltype(plan)>(o, stream); };
    switch (kernels_on_cpu_candidate) {
      case 0: return sweep(SweepPlan<3, 12, 2>{});
      case 1: return sweep(SweepPlan<4, 12, 1>{});
      case 2: return stay(PersistentPlan<128, 3, 3, Stay::kFloat>{});
      case 3: return stay(PersistentPlan<192, 2, 4, Stay::kPacked>{});
      case 4: return stay(PersistentPlan<32, 12, 2, Stay::kShared, 1, 4>{});
      case 5: return stay(PersistentPlan<192, 2, 0, Stay::kPacked>{});
      case 6:
        return stay(PersistentPlan<128, 3, 3, Stay::kPacked, 1, 8, Manner{.order = Order::kDependent, .waves = 4}>{});
      default:
        return stay(
            PersistentPlan<96, 4, 0, Stay::kPacked, 1, 8, Manner{Reuse::kKeep, Reuse::kKeep, Order::kPlain, 2}>{});
    }
  }
}

}  // namespace
}  // namespace amk::task

AMK_TASK_ENTRY(amk_task_norm_scale_shift_candidate);

int32_t amk_task_norm_scale_shift_candidate(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                                            int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                            void* stream) {
  using namespace amk::task;
  const auto run_as = [&](const NormOperands& o, auto x, auto modulation) {
    using X = typename decltype(x)::type;
    using M = typename decltype(modulation)::type;
    if (!o.is_vector || o.weight) return int32_t{AMK_ERR_UNSUPPORTED};
    return o.has_residual ? run<X, M, true>(o, stream) : run<X, M, false>(o, stream);
  };
  return with_operands(inputs, n_inputs, scalars, n_scalars, outputs, n_outputs, run_as);
}
