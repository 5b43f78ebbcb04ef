/* amk_task_harness.h - how the entries of libamk_tasks are found, called and timed. C99; read by cffi between the
 * amk-cdef marks, after amk_task.h.
 *
 * Every call that can fail returns 0 or an amk_status of amk.h, with a sentence in amk_harness_last_error()
 * (thread-local). One harness holds one device and one stream, and is used from one thread at a time. It judges
 * nothing: it moves bytes, launches and reads the clock of the device. What passes over host memory needs no device,
 * and may be called from several threads at once.
 */
#ifndef AMK_TASK_HARNESS_H
#define AMK_TASK_HARNESS_H

#include <stddef.h>

#include "amk_task.h"

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* amk-cdef-begin */

#define AMK_HARNESS_VERSION 3
#define AMK_HARNESS_NAME_BYTES 512

/* ---- what the library holds -------------------------------------------------------------------------------- */

int32_t amk_harness_version(void);
/* JSON: version, nvcc, flags, architectures, and per task the command line and source hashes of both sides. */
const char* amk_tasks_build_info(void);
/* `side` is "baseline" or "solution"; NULL where there is no such task or side. */
amk_task_fn* amk_tasks_entry(const char* task, const char* side);
/* Ways of copying input 0 to output 0, equal byte counts, multiples of 16: the ceiling. `name` may be NULL. NULL past
 * the last. */
amk_task_fn* amk_tasks_copy(int32_t index, const char** name);
const char* amk_harness_last_error(void);

/* ---- a device ---------------------------------------------------------------------------------------------- */

typedef struct amk_harness_device_t {
  char name[AMK_HARNESS_NAME_BYTES];
  char uuid[64]; /* as NVML writes it */
  int32_t compute_major, compute_minor;
  int32_t sm_count;
  int32_t runtime_version, driver_version;
  int64_t l2_bytes, memory_bytes;
} amk_harness_device_t;

int32_t amk_harness_device_count(int32_t* count);
int32_t amk_harness_device(int32_t index, amk_harness_device_t* out); /* creates no context */

typedef struct amk_harness amk_harness;
int32_t amk_harness_create(int32_t index, amk_harness** out);
void amk_harness_destroy(amk_harness* harness);

int32_t amk_harness_allocate(amk_harness* harness, int64_t nbytes, void** out); /* 256-byte aligned */
int32_t amk_harness_free(amk_harness* harness, void* memory);
/* Host to device, device to host and device to device, finished on return. */
int32_t amk_harness_upload(amk_harness* harness, void* to, const void* from, int64_t nbytes);
int32_t amk_harness_download(amk_harness* harness, void* to, const void* from, int64_t nbytes);
int32_t amk_harness_move(amk_harness* harness, void* to, const void* from, int64_t nbytes);
int32_t amk_harness_fill(amk_harness* harness, void* to, int32_t byte, int64_t nbytes);
/* Page-locked host memory of the harness, at least `nbytes`, which the bus reads and writes at its own speed. There is
 * one: an upload of a megabyte or more passes through it; a call that asks for more frees it and makes another, and
 * amk_harness_destroy frees the last. Never while the stream is held back. */
int32_t amk_harness_staging(amk_harness* harness, int64_t nbytes, void** out);

/* ---- calls ------------------------------------------------------------------------------------------------- */

/* One set of operands of one entry. The tables are read during the call that gets them, and not kept. */
typedef struct amk_harness_call_t {
  amk_task_fn* entry;
  const amk_task_tensor_t* inputs;
  const double* scalars;
  const amk_task_tensor_t* outputs;
  int32_t n_inputs, n_scalars, n_outputs, pad;
} amk_harness_call_t;

/* Calls the entry once and waits. What the entry returned is in `status`; the return value is the harness's own. */
int32_t amk_harness_run(amk_harness* harness, const amk_harness_call_t* call, int32_t* status);
/* Calls the entry while the stream is held back, waits `settle_ms`, copies `nbytes` at `watched` to `seen`, and lets
 * the stream go on: what changed meanwhile came from another stream. `was_held` is 0 when the entry waited for the
 * stream, which it must not: the stream was then let go after two seconds. */
int32_t amk_harness_run_held(amk_harness* harness, const amk_harness_call_t* call, int32_t settle_ms,
                             const void* watched, void* seen, int64_t nbytes, int32_t* status, int32_t* was_held);

/* ---- timing ------------------------------------------------------------------------------------------------ */

/* `n_calls` calls, `rounds` times over in their order, captured in one graph. REJECTED where an entry refuses, or puts
 * nothing on the stream. */
typedef struct amk_harness_graph amk_harness_graph;
int32_t amk_harness_graph_create(amk_harness* harness, const amk_harness_call_t* calls, int32_t n_calls, int32_t rounds,
                                 amk_harness_graph** out);
void amk_harness_graph_destroy(amk_harness_graph* graph);
/* Launches it `replays` times back to back; microseconds of all of them together, by events around them. The device is
 * kept busy by a kernel before the first event until all is enqueued, so that no gap of the host's is timed. */
int32_t amk_harness_graph_time(amk_harness_graph* graph, int32_t replays, double* us);

/* A kernel that the graph launches, and the code that the device runs for it. */
typedef struct amk_harness_kernel_t {
  char name[AMK_HARNESS_NAME_BYTES]; /* mangled */
  int32_t binary_version;            /* 90: machine code for sm_90* */
  int32_t registers, local_bytes;
  int32_t launches;          /* nodes of the graph that are this kernel */
  int32_t grid[3], block[3]; /* of the first of them */
} amk_harness_kernel_t;
/* The different kernels of the graph; a node that is none is named "(memcpy)", "(memset)" or "(other)". `count` is how
 * many there are, also where `room` is less. */
int32_t amk_harness_graph_kernels(amk_harness_graph* graph, amk_harness_kernel_t* out, int32_t room, int32_t* count);

/* ---- passes over host memory --------------------------------------------------------------------------------- */
/* On all cores of the calling thread's affinity where the operand is large. The memory is the caller's, is not kept,
 * and may overlap only where it is read. The same operands give the same bits, whatever the number of cores. */

/* What lies at `got` against what it should be. Values are compared in float64, each operation rounded once. */
typedef struct amk_harness_judgement_t {
  double largest;           /* |got - want| where both are finite; 0 where there is none */
  int64_t outside;          /* elements for which |got - want| <= atol + rtol * |want| does not hold; a NaN is */
  int64_t zeros_outside;    /* elements that a zero in their place would miss: |want| > atol + rtol * |want| */
  int64_t unwritten;        /* all bytes 0xFF; of integers only where `want` is another number than that */
  int64_t first_non_finite; /* index of the first element that is NaN or infinite where `want` is finite; or -1 */
  int64_t first_non_finite_oracle; /* index of the first `want` that is NaN or infinite; or -1 */
} amk_harness_judgement_t;
/* `count` elements without gaps; dtype: amk_dtype F32, F16, BF16, I32, U8, or AMK_TASK_DTYPE_I64, else
 * INVALID_ARGUMENT. `got` is aligned to its element. */
int32_t amk_harness_judge(const void* got, int32_t dtype, const double* want, int64_t count, double atol, double rtol,
                          amk_harness_judgement_t* out);
/* Bytes that differ. */
int32_t amk_harness_count_different(const void* one, const void* other, int64_t nbytes, int64_t* count);
/* Rounded to nearest even; every NaN becomes 0x7FC0. */
int32_t amk_harness_to_bf16(const float* from, uint16_t* to, int64_t count);
int32_t amk_harness_from_bf16(const uint16_t* from, float* to, int64_t count);
/* What this process frees from now on it keeps for what it allocates next (mallopt of glibc): on a virtual machine,
 * memory that was never touched costs far more than anything that is then done with it. For the whole process. */
int32_t amk_harness_keep_freed_memory(void);

/* amk-cdef-end */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif /* AMK_TASK_HARNESS_H */
