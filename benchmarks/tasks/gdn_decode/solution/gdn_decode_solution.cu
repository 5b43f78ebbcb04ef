// The kernel of the library call, chosen as the library chooses it (cuda/gdn_launch.cuh).
// In: operands as problem.cuh reads them. Out: o and the new state, one launch.
#include "../problem.cuh"
#include "gdn_launch.cuh"

AMK_TASK_ENTRY(amk_task_gdn_decode_solution);
int32_t amk_task_gdn_decode_solution(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                                     int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                     void* stream) {
  amk_gdn_decode_t g;
  const int32_t refusal = gdn_decode::read_problem(inputs, n_inputs, scalars, n_scalars, outputs, n_outputs, g);
  if (refusal) return refusal;
  return amk::gdn_enqueue(g, static_cast<cudaStream_t>(stream));
}
