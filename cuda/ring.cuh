// The ring of weights (ops/ring.h): one producer warp fills it, the warps that run tasks empty it.
// In: the block's StreamTasks. Out: Fragments, in queue order. Weights are immutable during a launch, so the producer
// waits for no counter: it runs ahead across tasks and their dependencies as far as slots are free. It keeps at most
// `window` copies on their way, because whatever is asked for beyond what the memory needs to stay busy only delays
// everybody else's loads.
// Ordering: `full` is completed by the copy engine's bytes and acquired by try_wait; `empty` is arrived at by every
// lane of the slot's warp after its reads, and the producer's wait for it orders those reads before the next copy.
#pragma once

#include "ops/ring.h"
#include "sync.cuh"

namespace amk {

// 16 bytes per lane and unit: what ops/packing.h says a slot holds.
struct SlotFragment {
  uint4 v[kSlotUnits];
};

// In static shared memory.
struct RingBarriers {
  uint64_t full[kMaxRingSlots], empty[kMaxRingSlots];
  uint32_t stop;   // the tasks have ended early: copy no more
  int slot_bytes;  // from one slot to the next: here, as a register of it would live through every op

  // One thread, before the block's first barrier. releases: arrivals that empty a slot.
  __device__ void init(int slots, int bytes_apart, int releases = kWarpThreads) {
    for (int i = 0; i < slots; ++i) {
      ptx::mbarrier_init(full + i, 1);
      ptx::mbarrier_init(empty + i, static_cast<uint32_t>(releases));
    }
    stop = 0;
    slot_bytes = bytes_apart;
    ptx::fence_mbarrier_init();
  }
};

// A warp's place in the ring. Every warp of the tasks has one, and all go through the same tasks.
class RingReader {
 public:
  static constexpr int kWarps = 8;  // that run tasks

  __device__ RingReader(const char* slots, RingBarriers& barriers, int n_slots)
      : slots_(slots), barriers_(barriers), n_slots_(n_slots), slot_(warp()) {}

  // The first slot of the next task that is this warp's: slot i of a launch is warp i % warps'.
  __device__ int first_slot() const {
    const int mine = warp() - next_owner_;
    return mine < 0 ? mine + kWarps : mine;
  }
  // Moves this warp's next slot into registers and hands the slot back.
  __device__ __forceinline__ void take(SlotFragment& f) {
    take(f, [](const char*) {});
  }
  // read_more(slot) reads what a slot holds besides, before it is handed back.
  template <class ReadMore>
  __device__ __forceinline__ void take(SlotFragment& f, ReadMore read_more) {
    while (!ptx::mbarrier_try_wait(barriers_.full + slot_, parity_)) {
    }
    const char* first = slots_ + slot_ * barriers_.slot_bytes;
    const uint4* at = reinterpret_cast<const uint4*>(first) + ptx::thread_id() % kWarpThreads;
#pragma unroll
    for (int u = 0; u < kSlotUnits; ++u) f.v[u] = at[u * kUnitVectors];
    read_more(first);
    ptx::mbarrier_arrive(barriers_.empty + slot_);
    slot_ += kWarps;
    if (slot_ >= n_slots_) {
      slot_ -= n_slots_;
      parity_ ^= 1;
    }
  }
  // The task that just ended had `slots` slots.
  __device__ void advance(int slots) { next_owner_ = (next_owner_ + slots) % kWarps; }

 private:
  __device__ static int warp() { return ptx::thread_id() / kWarpThreads; }

  const char* slots_;
  RingBarriers& barriers_;
  const int n_slots_;
  int slot_, next_owner_ = 0;
  uint32_t parity_ = 0;
};

// One lane fills the ring until the queue's last task has its weights, or the tasks end early.
class Producer {
 public:
  __device__ Producer(char* slots, RingBarriers& barriers, int n_slots, int window, int slot_bytes)
      : slots_(slots), barriers_(barriers), n_slots_(n_slots), window_(window), slot_bytes_(slot_bytes) {}

  __device__ void run(const StreamTask* task, const StreamTask* end) {
    if (task == end) return;
    StreamTask next = *task;
    while (task != end) {
      const StreamTask now = next;
      if (++task != end) next = *task;  // on its way while this one is copied
      const char* from = now.weights;
      for (int g = 0; g < now.groups; ++g) {
        for (int c = 0; c < now.chunks; ++c) {
          const uint32_t nbytes = static_cast<uint32_t>(c + 1 < now.chunks ? now.chunk_bytes : now.tail_bytes);
          if (!copy(from, nbytes)) return drain();
          from += nbytes;
        }
      }
    }
    drain();
  }

 private:
  struct Cursor {
    int slot = 0;
    uint32_t parity = 0;
    __device__ void advance(int n_slots) {
      if (++slot != n_slots) return;
      slot = 0;
      parity ^= 1;
    }
  };

  __device__ bool copy(const char* from, uint32_t nbytes) {
    if (is_reused_ && !wait(barriers_.empty + at_.slot, at_.parity ^ 1)) return false;
    if (in_flight_ == window_) {
      if (!wait(barriers_.full + oldest_.slot, oldest_.parity)) return false;
      oldest_.advance(n_slots_);
      --in_flight_;
    }
    // Before every copy: besides stopping at once, the look keeps slots that become free together from being asked for
    // in one burst, in front of the activations (docs/performance.md: 1.4 % of 1B on an H100).
    if (is_stopped()) return false;
    ptx::mbarrier_arrive_expect(barriers_.full + at_.slot, nbytes);
    ptx::bulk_copy(slots_ + at_.slot * slot_bytes_, from, nbytes, barriers_.full + at_.slot);
    ++in_flight_;
    at_.advance(n_slots_);
    is_reused_ |= at_.slot == 0;
    return true;
  }
  __device__ bool wait(const uint64_t* barrier, uint32_t parity) {
    while (!ptx::mbarrier_try_wait(barrier, parity))
      if (is_stopped()) return false;
    return true;
  }
  __device__ bool is_stopped() const { return *static_cast<volatile uint32_t*>(&barriers_.stop); }
  // Shared memory must not go while the copy engine writes to it.
  __device__ void drain() {
    for (; in_flight_ > 0; --in_flight_, oldest_.advance(n_slots_))
      while (!ptx::mbarrier_try_wait(barriers_.full + oldest_.slot, oldest_.parity)) {
      }
  }

  char* slots_;
  RingBarriers& barriers_;
  const int n_slots_, window_, slot_bytes_;  // slot_bytes: from one slot to the next
  Cursor at_, oldest_;                       // the next slot to fill; the oldest copy that is not known to have arrived
  int in_flight_ = 0;
  bool is_reused_ = false;
};

}  // namespace amk
