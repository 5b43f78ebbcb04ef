// Rings of norm_scale_shift behind the task's entry, for rows of 3,072 columns of two bytes and however few of them:
// the one that kernels_on_cpu_candidate names.
#include "../../benchmarks/tasks/norm_scale_shift/solution/norm_scale_shift_ring.cuh"

extern "C" __attribute__((visibility("default"))) int kernels_on_cpu_candidate;
int kernels_on_cpu_candidate = 0;

namespace amk::task {
namespace {

template <class X, class M, bool kResidual>
int32_t run(const NormOperands& o, void* stream) {
  if constexpr (sizeof(X) != 2) {
    return AMK_ERR_UNSUPPORTED;
  } else {
    const auto ring = [&](auto plan, const Share& share) {
      return launch_ring<X, M, kResidual, decltype(plan)>(o, share, stream);
    };
    switch (kernels_on_cpu_candidate) {
      case 0: return ring(RingPlan<128, 3, 4, 4>{}, {.staying = 4, .loads = Reuse::kStream});
      case 1: return ring(RingPlan<128, 3, 3, 4>{}, {.staying = 1});
      case 2: return ring(RingPlan<192, 2, 2, 1>{}, {.staying = 2});
      case 3: return ring(RingPlan<128, 3, 4, 4>{}, {.rows_of_block = 4});
      case 4: return ring(RingPlan<128, 3, 3, 4>{}, {.rows_of_block = 2});
      default: return ring(RingPlan<96, 4, 3, 1>{}, {.rows_of_block = 7, .loads = Reuse::kStream});
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
