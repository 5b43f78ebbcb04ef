// The machine: block b runs queue b, task by task: fetch, wait, run, signal.
// In: MachineTables. Out: the tasks' writes, counters at their producers, the ledger. One launch is one step.
#pragma once

#include "dispatch.cuh"

namespace amk {

// Task records are fetched this many tasks ahead: a load takes 1-2 us while weights stream, some tasks less.
constexpr int kRecordRing = 4;
constexpr int kRecordVectors = sizeof(DeviceTask) / kVectorBytes;
static_assert(kRecordVectors <= kWarpThreads, "one warp fetches a record");

class TaskQueue {
 public:
  __device__ TaskQueue(DeviceTask* ring, const MachineTables& m)
      : ring_(ring), records_(m.tasks), next_(m.queue_start[blockIdx.x]), end_(m.queue_start[blockIdx.x + 1]) {
    fetched_ = next_;
    for (int i = 0; i < kRecordRing - 1; ++i) fetch();
    ready();
  }
  __device__ bool empty() const { return next_ == end_; }
  __device__ const DeviceTask& front() const { return ring_[next_ % kRecordRing]; }
  // The slot that this overwrites held the task before front().
  __device__ void fetch() {
    if (threadIdx.x < kRecordVectors && fetched_ < end_)
      ptx::copy_async_16(reinterpret_cast<uint4*>(ring_ + fetched_ % kRecordRing) + threadIdx.x,
                         reinterpret_cast<const uint4*>(records_ + fetched_) + threadIdx.x);
    ++fetched_;
    ptx::copy_async_commit();
  }
  // The record behind front() has arrived in this thread; a barrier must follow before another reads it.
  __device__ void arrived() { ptx::copy_async_wait<kRecordRing - 2>(); }
  __device__ void pop() { ++next_; }

 private:
  __device__ void ready() {
    arrived();
    __syncthreads();
  }
  DeviceTask* ring_;
  const DeviceTask* records_;
  uint32_t next_, end_, fetched_;
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1) megakernel(const MachineTables machine) {
  extern __shared__ __align__(128) char shared[];
  __shared__ DeviceTask ring[kRecordRing];
  __shared__ float reduce_scratch[kReduceScratch];
  const int32_t pos = machine.scalars->pos;

  uint32_t done = 0;
  for (TaskQueue queue(ring, machine); !queue.empty(); queue.pop(), ++done) {
    queue.fetch();
    const DeviceTask& task = queue.front();
    if (!run_op<kThreads>({task, machine, shared, reduce_scratch, pos})) return;
    queue.arrived();
    if (signals(task)) signal(task, machine);
  }

  // The completion proof (K4).
  if (threadIdx.x == 0) {
    atomicAdd(&machine.ledger->tasks_done, done);
    if (blockIdx.x == 0) machine.ledger->nonce = machine.scalars->nonce;
  }
}

}  // namespace amk
