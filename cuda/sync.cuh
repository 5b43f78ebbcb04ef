// All memory ordering between blocks, and with the host. In: a task's waits and its counter. Out: "its inputs are
// visible", "its writes are visible", a fault record, or a step's proof. No other file may order memory between blocks.
//
// The pairing of tasks (PTX ISA, release and acquire patterns):
//   signal():        every write of the block -> block barrier -> RELEASE: red.release.gpu on the task's counter;
//   await_inputs():  ACQUIRE: ld.acquire.gpu on the same counter -> block barrier -> every read of the block.
// All producers of a counter add to it by read-modify-write, so a reader that sees the last value of that chain
// synchronises with every one of them. The barriers extend both ends from one thread to the block (causality order).
//
// The pairing of a direct step's end:
//   end_block():   every write of the block -> block barrier -> RELEASE and ACQUIRE: atom.acq_rel.gpu on the ledger;
//                  the block that counts itself last has seen all of them -> block barrier -> it reads the proof;
//   send_proof():  RELEASE: st.release.sys of the proof's first word, which the host loads with ACQUIRE. Every other
//                  word is one relaxed 64-bit store that carries its step's number: it is this step's or is not there.
#pragma once

#include "device_task.h"
#include "ptx.cuh"
#include "timeline.cuh"

namespace amk {

// Thread 0 sends signals and the release makes its warp wait for the block's writes, so another warp polls.
constexpr int kPollWarp = 1;
constexpr uint32_t kEagerPolls = 256;   // before the first sleep: most waits are over within a few microseconds
constexpr uint32_t kPollsPerLook = 64;  // polls between two looks at the abort flag
// Between two looks at the host's memory, some 2 ms: it answers one SM in 1.4 us, and 132 at a time in 141 us each (one
// H200), so blocks that asked every few microseconds stood still.
constexpr int64_t kLookClocks = int64_t{1} << 22;
constexpr uint32_t kPollSleepNs = 64;
constexpr uint32_t kLooksPerDeadline = 8;

// Claims the launch's only fault record. Plain stores: the host reads them after the kernel has ended.
__device__ inline void raise_fault(Ledger* ledger, FaultKind kind, int code, int task, int counter, uint32_t seen,
                                   uint32_t needed) {
  Fault& f = ledger->fault;
  if (atomicCAS(&f.abort, 0u, 1u) != 0) return;
  f.code = code;
  f.kind = kind;
  f.sm = static_cast<int32_t>(ptx::sm_id());
  f.task = task;
  f.counter = counter;
  f.seen = seen;
  f.needed = needed;
}

// Progress anywhere is progress: the sum of all counters moved. Time counts only in slices between two looks, so a
// machine that ran something else in between costs one slice and not a false alarm.
class Watchdog {
 public:
  // Warp-wide; false when nothing moved for the deadline.
  __device__ bool look(const MachineTables& m) {
    const uint64_t now = __shfl_sync(kWholeWarp, ptx::global_time_ns(), 0), slice = m.deadline_ns / kLooksPerDeadline;
    if (last_ns_ == 0) last_ns_ = now;
    if (now - last_ns_ < slice) return true;
    uint32_t sum = 0;
    for (uint32_t i = ptx::thread_id() % kWarpThreads; i < m.n_counters; i += kWarpThreads)
      sum += ptx::load_relaxed_gpu(m.counters + i);
    sum = __reduce_add_sync(kWholeWarp, sum);
    quiet_slices_ = sum != last_sum_ ? 0 : quiet_slices_ + 1;
    last_ns_ = now;
    last_sum_ = sum;
    return __all_sync(kWholeWarp, quiet_slices_ < kLooksPerDeadline);
  }

 private:
  uint64_t last_ns_ = 0;
  uint32_t last_sum_ = 0, quiet_slices_ = 0;
};

// One warp; lane i polls wait i. False: the launch is over, leave.
__device__ inline bool poll_waits(const DeviceTask& task, const MachineTables& m) {
  const int lane = ptx::thread_id() % kWarpThreads;
  const int counter = lane < task.n_waits ? task.wait_counter[lane] : 0;
  const uint32_t needed = lane < task.n_waits ? task.wait_threshold[lane] : 0;
  uint32_t seen = 0;
  Watchdog watchdog;
  int64_t looked = clock64();
  for (uint32_t polls = 1;; ++polls) {
    // ACQUIRE: pairs with the RELEASE in signal().
    if (seen < needed) seen = ptx::load_acquire_gpu(m.counters + counter);
    if (__all_sync(kWholeWarp, seen >= needed)) return true;
    if (polls < kEagerPolls) continue;
    __nanosleep(kPollSleepNs);
    if (polls % kPollsPerLook != 0) continue;
    if (ptx::load_relaxed_gpu(&m.ledger->fault.abort) != 0) return false;
    if (__any_sync(kWholeWarp, clock64() - looked < kLookClocks)) continue;
    looked = clock64();
    const bool cancelled = __any_sync(kWholeWarp, lane == 0 && ptx::load_relaxed_system(m.cancel) != 0);
    if (!cancelled && watchdog.look(m)) continue;
    const uint32_t stuck = __ballot_sync(kWholeWarp, seen < needed);
    if (lane == __ffs(stuck) - 1)
      raise_fault(m.ledger, cancelled ? FaultKind::kCancelled : FaultKind::kStuckWait, 1, task.task, counter, seen,
                  needed);
    return false;
  }
}

// Threads that run tasks, and their barrier: the producer warp behind them takes no part in it.
constexpr int kTaskBarrier = 1;
template <int kThreads>
__device__ __forceinline__ void block_sync() {
  ptx::barrier_sync(kTaskBarrier, kThreads);
}

class RingReader;
struct AngleTable;

// What an op sees of the machine: its task, its shared memory, the position.
struct TaskContext {
  const DeviceTask& task;  // in shared memory
  const MachineTables& machine;
  char* shared;           // [machine.task_bytes], free at the start of each task
  float* reduce_scratch;  // [kReduceScratch]
  int32_t pos;
  RingReader& ring;
  AngleTable& angles;

  __device__ const amk_params_t& params() const { return task.params; }
  template <class T>
  __device__ const T* in(int slot) const {
    return static_cast<const T*>(task.in[slot]);
  }
  template <class T>
  __device__ T* out(int slot) const {
    return static_cast<T*>(task.out[slot]);
  }
  __device__ bool is_early(int slot) const { return task.early >> slot & 1; }

  // Called once by every op, by all threads, before its first access to anything but early inputs and shared memory.
  // False: the launch is over; return at once.
  template <int kThreads>
  __device__ __forceinline__ bool await_inputs() const {
    const bool polls = ptx::thread_id() / kWarpThreads == kPollWarp && task.n_waits > 0;
    const bool gave_up = polls && !poll_waits(task, machine);
    const bool any_gave_up = ptx::barrier_or(kTaskBarrier, kThreads, gave_up);
    mark_ready();
    return !any_gave_up;
  }
};

// All threads of the tasks, after the op's last write.
template <int kThreads>
__device__ __forceinline__ void signal(const DeviceTask& task, const MachineTables& m) {
  uint32_t* counter = m.counters + task.out_counter;  // read here: behind the barrier the record may be overwritten
  block_sync<kThreads>();
  // RELEASE: pairs with the ACQUIRE in poll_waits().
  if (ptx::thread_id() == 0) ptx::add_release_gpu(counter, 1);
}

__device__ __forceinline__ uint64_t step_number(const MachineTables& m) {
  return m.direct.proof ? m.direct.scalars.nonce : m.scalars->nonce;
}

// Before the first task, by all threads; a barrier must follow. Every block writes the same, for its own tasks to read.
__device__ __forceinline__ void put_tokens(const MachineTables& m) {
  if (static_cast<int32_t>(ptx::thread_id()) < m.direct.n_tokens)
    ptx::store_relaxed_gpu(reinterpret_cast<uint32_t*>(m.direct.token_home + ptx::thread_id()),
                           static_cast<uint32_t>(m.direct.tokens[ptx::thread_id()]));
}

// The last block alone: nobody else is there to read what it clears.
template <int kThreads>
__device__ __forceinline__ void send_proof(const MachineTables& m) {
  uint32_t* const ledger = reinterpret_cast<uint32_t*>(m.ledger);
  const uint32_t* const choices = reinterpret_cast<const uint32_t*>(m.direct.choices);
  const uint32_t n = kLedgerWords + m.n_counters, all = n + static_cast<uint32_t>(m.direct.n_choices);
  const uint64_t tag = m.direct.scalars.nonce << 32;
  for (uint32_t i = ptx::thread_id(); i < all; i += kThreads) {
    const uint64_t word = tag | ptx::load_relaxed_gpu(i < n ? ledger + i : choices + (i - n));
    i == 0 ? ptx::store_release_system(m.direct.proof, word) : ptx::store_relaxed_system(m.direct.proof + i, word);
    if (i < n) ledger[i] = 0;
  }
}

// All threads of the tasks, once. done: tasks that signalled, or -1 where the block gave up. The thread's number is
// read anew, as what is kept for here lives through every task: without it the kernel of several tokens spills.
template <int kThreads>
__device__ __forceinline__ void end_block(const MachineTables& m, int32_t done) {
  block_sync<kThreads>();
  bool is_last = false;
  if (ptx::thread_id() == 0) {
    if (blockIdx.x == 0 && done >= 0) m.ledger->nonce = step_number(m);
    const uint64_t before = ptx::add_acquire_release_gpu(reinterpret_cast<uint64_t*>(&m.ledger->tasks_done),
                                                         uint64_t{1} << 32 | static_cast<uint32_t>(max(done, 0)));
    is_last = before >> 32 == gridDim.x - 1;
  }
  if (m.direct.proof && ptx::barrier_or(kTaskBarrier, kThreads, is_last)) send_proof<kThreads>(m);
}

}  // namespace amk
