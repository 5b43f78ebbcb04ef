/* amk_task.h - what the two sides of a kernel task export, and nothing else. C99, C++ and CUDA.
 *
 * A task NAME exports amk_task_NAME_baseline and amk_task_NAME_solution, both of type amk_task_fn, declared with
 * AMK_TASK_ENTRY. Destination-passing: inputs, scalars, outputs last, stream. Between the amk-cdef marks only
 * "#define NAME number" is allowed: cffi reads this text too.
 */
#ifndef AMK_TASK_H
#define AMK_TASK_H

#include <stdint.h>

#ifdef __cplusplus
#define AMK_TASK_ENTRY(name) extern "C" __attribute__((visibility("default"))) amk_task_fn name
#else
#define AMK_TASK_ENTRY(name) extern __attribute__((visibility("default"))) amk_task_fn name
#endif

/* amk-cdef-begin */

#define AMK_TASK_MAX_RANK 4
#define AMK_TASK_MAX_OPERANDS 16
#define AMK_TASK_DTYPE_I64 64 /* beside the amk_dtype of amk.h, which has no 64-bit integer: positions */

/* Borrowed device memory. Strides in elements, any layout, 0 where broadcast. An absent optional operand has data NULL
 * and rank 0. */
typedef struct amk_task_tensor_t {
  void* data;
  int32_t dtype; /* amk_dtype of amk.h, or AMK_TASK_DTYPE_I64 */
  int32_t rank;
  int64_t shape[AMK_TASK_MAX_RANK];
  int64_t stride[AMK_TASK_MAX_RANK];
} amk_task_tensor_t;

/* Enqueues on `stream` (a cudaStream_t) only, never synchronises, allocates nothing, keeps nothing between calls.
 * 0; the negative amk_status of what it refuses, with nothing enqueued (AMK_ERR_UNSUPPORTED, AMK_ERR_INVALID_ARGUMENT);
 * or the positive cudaError_t of a launch. An in-place operand is passed as an output that holds data, not as an input.
 */
typedef int32_t amk_task_fn(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars, int32_t n_scalars,
                            const amk_task_tensor_t* outputs, int32_t n_outputs, void* stream);

/* amk-cdef-end */

#endif /* AMK_TASK_H */
