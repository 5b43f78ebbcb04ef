// Ops that fail or dawdle on purpose, for the fault tests alone: compiled only where AMK_TEST_FAULTS is defined, which
// the library never is.
#pragma once

#include "sync.cuh"
#include "test_ops.h"

namespace amk {

#ifdef AMK_TEST_FAULTS
// True where op is one of them and ran.
template <int kThreads>
__device__ bool run_test_op(const TaskContext& c) {
  if (c.task.op == kTestLoopForever) {
    while (ptx::load_relaxed_system(c.machine.cancel) != 2) __nanosleep(1000);
  } else if (c.task.op == kTestIllegalAddress) {
    *reinterpret_cast<volatile int*>(uintptr_t{1} << 20) = 1;
  } else if (c.task.op == kTestPause) {  // after its inputs: it may not run before
    if (!c.await_inputs<kThreads>()) return false;
    for (const uint64_t begin = ptx::global_time_ns(); ptx::global_time_ns() - begin < kTestPauseNs;) __nanosleep(1000);
  } else if (c.task.op == kTestVanish) {
    if (!c.await_inputs<kThreads>()) return false;
    ptx::end_thread();
  } else {
    return c.task.op == kTestSkipSignal;
  }
  return true;
}
__device__ inline bool signals(const DeviceTask& task) { return task.op != kTestSkipSignal; }
#else
template <int kThreads>
__device__ __forceinline__ bool run_test_op(const TaskContext&) {
  return false;
}
__device__ __forceinline__ bool signals(const DeviceTask&) { return true; }
#endif

}  // namespace amk
