// The device's half of a timeline: thread 0 of the tasks reads the SM's clock. Compiled to nothing without AMK_TIMED.
#pragma once

#include "ptx.cuh"
#include "timeline.h"

namespace amk {

#ifdef AMK_TIMED
constexpr bool kTimed = true;
#else
constexpr bool kTimed = false;
#endif

// Thread 0's alone.
__device__ __forceinline__ TaskClocks& task_clocks() {
  __shared__ TaskClocks clocks;
  return clocks;
}
__device__ __forceinline__ uint64_t sm_clock() { return static_cast<uint64_t>(clock64()); }

// A task without waits is ready when it begins.
__device__ __forceinline__ void mark_start() {
  if constexpr (kTimed) {
    if (ptx::thread_id() == 0) task_clocks().start = task_clocks().ready = sm_clock();
  }
}
__device__ __forceinline__ void mark_ready() {
  if constexpr (kTimed) {
    if (ptx::thread_id() == 0) task_clocks().ready = sm_clock();
  }
}
__device__ __forceinline__ void mark_finish(TaskClocks* out) {
  if constexpr (kTimed) {
    if (ptx::thread_id() == 0) *out = {task_clocks().start, task_clocks().ready, sm_clock()};
  }
}
__device__ __forceinline__ void mark_block(BlockClocks* out, bool ends) {
  if constexpr (kTimed) {
    if (ptx::thread_id() != 0) return;
    (ends ? out->ns_end : out->ns_begin) = ptx::global_time_ns();
    (ends ? out->sm_end : out->sm_begin) = sm_clock();
  }
}

}  // namespace amk
