// Candidates of amk_tune_qknorm_rope behind the task's entry: the one that kernels_on_cpu_candidate names.
#include "../../benchmarks/tasks/tune/qknorm_rope_ring.cuh"

extern "C" __attribute__((visibility("default"))) int kernels_on_cpu_candidate;
int kernels_on_cpu_candidate = 0;

AMK_TASK_ENTRY(amk_task_qknorm_rope_candidate);

int32_t amk_task_qknorm_rope_candidate(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                                       int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                       void* stream) {
  using namespace amk::task;
  QkOperands o;
  if (const int32_t status = read_operands(inputs, n_inputs, scalars, n_scalars, outputs, n_outputs, &o)) return status;
  if (!o.is_vector) return AMK_ERR_UNSUPPORTED;
  return with_types(o, [&](auto type, auto position, auto interleaved) {
    using T = typename decltype(type)::type;
    using P = typename decltype(position)::type;
    constexpr bool kInterleaved = decltype(interleaved)::value;
    const auto rows = [&](auto plan) { return launch_rows<T, P, kInterleaved, decltype(plan)>(o, 0, stream); };
    const auto ring = [&](auto plan) { return launch_ring<T, P, kInterleaved, decltype(plan)>(o, 0, stream); };
    constexpr auto kStream = Reuse::kStream;
    switch (kernels_on_cpu_candidate) {
      case 0: return rows(QkPlan<192, 2, 1, kStream, Order::kPlain, Turn::kGuessed>{});
      case 1: return rows(QkPlan<32, 1, 1, kStream, Order::kDependent, Turn::kGuessed>{});
      case 2: return ring(RingPlan<192, 2, 3>{});
      case 3: return ring(RingPlan<192, 3, 3>{});
      case 4: return ring(RingPlan<128, 1, 4>{});
      default: return rows(QkPlan<160, 1, 1, kStream, Order::kPlain, Turn::kGuessed, Reuse::kKeep>{});
    }
  });
}
