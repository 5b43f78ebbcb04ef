// The machine: block b runs queue b, task by task: fetch, wait, run, signal. The last warps of a block are the
// producer, which keeps the ring of weights full; the warps before it are the block of the tasks. In: MachineTables.
// Out: the tasks' writes, counters at their producers, the ledger, or all of them told to the host. One launch is one
// step, of one token or of several.
#pragma once

#include "batch_dispatch.cuh"
#include "dispatch.cuh"

namespace amk {

// Task records are fetched this many tasks ahead: a load takes 1-2 us while weights stream, some tasks less.
constexpr int kRecordRing = 4;

template <int kThreads, class Record>
class TaskQueue {
 public:
  __device__ TaskQueue(Record* ring, const MachineTables& m)
      : ring_(ring),
        records_(static_cast<const Record*>(m.tasks)),
        next_(m.queue_start[blockIdx.x]),
        end_(m.queue_start[blockIdx.x + 1]) {
    for (int i = 0; i < kRecordRing - 1; ++i) fetch(next_ + i);
    ptx::copy_async_wait<kRecordRing - 2>();
    block_sync<kThreads>();
  }
  __device__ bool empty() const { return next_ == end_; }
  __device__ Record& front() const { return ring_[next_ % kRecordRing]; }
  // The slot that this overwrites held the task before front().
  __device__ void fetch() { fetch(next_ + kRecordRing - 1); }
  // The record behind front() has arrived in this thread; a barrier must follow before another reads it. An op has
  // awaited its own copies.
  __device__ void arrived() { ptx::copy_async_wait<kRecordRing - 3>(); }
  __device__ void pop() { ++next_; }
  __device__ uint32_t index() const { return next_; }  // of front() in queue order

 private:
  static constexpr int kRecordVectors = sizeof(Record) / kVectorBytes;
  static_assert(kRecordVectors <= kWarpThreads, "one warp fetches a record");

  __device__ void fetch(uint32_t task) {
    if (ptx::thread_id() < kRecordVectors && task < end_)
      ptx::copy_async_16(reinterpret_cast<uint4*>(ring_ + task % kRecordRing) + ptx::thread_id(),
                         reinterpret_cast<const uint4*>(records_ + task) + ptx::thread_id());
    ptx::copy_async_commit();
  }

  Record* ring_;
  const Record* records_;
  uint32_t next_, end_;
};

// A record says which family of ops its task belongs to.
template <int kThreads>
__device__ __forceinline__ bool run_task(const TaskContext& c, DeviceTask&, BatchRing&) {
  return run_op<kThreads>(c);
}
template <int kThreads>
__device__ __forceinline__ bool run_task(const TaskContext& c, BatchTask& record, BatchRing& slots) {
  return run_batch_op<kThreads>({c, record, slots});
}

// The warps of the tasks: how many of them signalled, or -1 where the launch is over before the queue is. One of the
// rings is in use.
template <int kThreads, class Record>
__device__ __forceinline__ int32_t run_tasks(const MachineTables& machine, Record* records, float* reduce_scratch,
                                             char* shared, RingReader& ring, BatchRing& batch_ring,
                                             AngleTable& angles) {
  const int32_t pos = machine.scalars ? machine.scalars->pos : machine.direct.scalars.pos;
  put_tokens(machine);
  TaskQueue<kThreads, Record> queue(records, machine);
  for (; !queue.empty(); queue.pop()) {
    mark_start();
    Record& task = queue.front();
    if (!run_task<kThreads>({task, machine, shared, reduce_scratch, pos, ring, angles}, task, batch_ring)) return -1;
    queue.arrived();
    if (signals(task)) signal<kThreads>(task, machine);
    mark_finish(machine.task_clocks + queue.index());
    queue.fetch();  // last: an op that awaits copies of its own does not wait for this one
  }
  return static_cast<int32_t>(queue.index() - machine.queue_start[blockIdx.x]);
}

// Registers of a thread, by role: at most as many in all as the block starts with.
constexpr int kTaskRegisters = 232, kProducerRegisters = 40;

// kBatched: the kernel of tasks of several tokens (batch.cuh), which reads BatchTasks.
template <int kThreads, bool kHasTimeline, bool kBatched>
__global__ void __launch_bounds__(kThreads + kProducerThreads, 1)
    megakernel(const __grid_constant__ MachineTables machine) {
  extern __shared__ __align__(128) char shared[];  // the ring, then what a task may use
  using Record = std::conditional_t<kBatched, BatchTask, DeviceTask>;
  __shared__ Record records[kRecordRing];
  __shared__ float reduce_scratch[kReduceScratch];
  __shared__ RingBarriers barriers;
  __shared__ AngleTable angles;
  constexpr int kWarps = kThreads / kWarpThreads;
  static_assert(kHasTimeline == kTimed, "the name of the kernel says what it is");
  static_assert(kThreads == 256, "registers are dealt for 8 warps and the producer's 4");
  static_assert(kWarps == RingReader::kWarps, "a slot belongs to a warp");
  const int slots = machine.ring_slots;
  if (ptx::thread_id() == 0) {
    barriers.init(slots, machine.ring_slot_bytes, kBatched ? kSlotReleases : kWarpThreads);
    angles.of = nullptr;
  }
  __syncthreads();

  if (ptx::thread_id() >= kThreads) {
    ptx::give_registers<kProducerRegisters>();
    if (ptx::thread_id() == kThreads && slots > 0) {
      const uint32_t* start = machine.stream_start + blockIdx.x;
      Producer(shared, barriers, slots, machine.ring_window, machine.ring_slot_bytes, machine.ring_pace)
          .run(machine.streams + start[0], machine.streams + start[1]);
    }
  } else {
    ptx::take_registers<kTaskRegisters>();
    RingReader ring(shared, barriers, slots);
    char* behind = shared + slots * machine.ring_slot_bytes;
    mark_block(machine.block_clocks + blockIdx.x, false);
    BatchRing batch_ring(shared, barriers, slots);
    const int32_t done = run_tasks<kThreads>(machine, records, reduce_scratch, behind, ring, batch_ring, angles);
    mark_block(machine.block_clocks + blockIdx.x, true);
    if (done < 0) barriers.stop = 1;
    end_block<kThreads>(machine, done);  // the completion proof (K4)
  }
}

}  // namespace amk
