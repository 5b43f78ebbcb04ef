// The ring of weights (ops/ring.h): one producer warp fills it, the warps that run tasks empty it.
// In: the block's StreamTasks. Out: Fragments, in queue order. Weights are immutable during a launch, so the producer
// waits for no counter: it runs ahead across tasks and their dependencies as far as slots are free. It keeps at most
// `window` copies on their way, because whatever is asked for beyond what the memory needs to stay busy only delays
// everybody else's loads.
// Ordering: `full` is completed by the copy engine's bytes and acquired by try_wait; `empty` is arrived at by every
// lane of the slot's warp after its reads, and the producer's wait for it orders those reads before the next copy.
#pragma once

#include <cstddef>

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
// Its loop is short on purpose: what it takes for a copy is the least time between two copies of an SM, and a memory
// that serves an SM's share of 8 KB in 234 ns (H200) waits for a loop of 240.
// It keeps a pace, because copies that are asked for faster than the memory serves them only queue, in front of what
// the tasks load, store and poll (docs/performance.md, "The producer's loop and its pace").
class Producer {
 public:
  // pace: clocks of the SM for a byte, at least.
  __device__ Producer(char* slots, RingBarriers& barriers, int n_slots, int window, int slot_bytes, float pace)
      : slots_(ptx::pinned_shared_address(slots)),
        full_(ptx::pinned_shared_address(barriers.full)),
        full_end_(full_ + n_slots * kBarrierBytes),
        stop_(ptx::pinned_shared_address(&barriers.stop)),
        window_(window),
        slot_bytes_(slot_bytes),
        pace_(pace),
        room_(window),
        due_(static_cast<uint32_t>(clock())),
        slot_(slots_),
        at_{full_},
        oldest_{full_} {}

  __device__ void run(const StreamTask* task, const StreamTask* end) {
    if (task == end) return;
    StreamTask next = *task;
    while (task != end) {
      const StreamTask now = next;
      if (++task != end) next = *task;  // on its way while this one is copied
      const char* from = now.weights;
      const int32_t chunk_clocks = clocks_of(now.chunk_bytes), tail_clocks = clocks_of(now.tail_bytes);
      int chunk = now.chunks;  // of a group, until its last
#pragma unroll 1
      for (int left = now.groups * now.chunks; left > 0; --left) {
        const bool is_tail = --chunk == 0;
        if (is_tail) chunk = now.chunks;
        const auto nbytes = static_cast<uint32_t>(is_tail ? now.tail_bytes : now.chunk_bytes);
        if (!copy(from, nbytes, is_tail ? tail_clocks : chunk_clocks)) return drain();
        from += nbytes;
      }
    }
    drain();
  }

 private:
  static constexpr uint32_t kBarrierBytes = sizeof(uint64_t);
  static constexpr uint32_t kFullToEmpty = offsetof(RingBarriers, empty) - offsetof(RingBarriers, full);
  struct Cursor {
    uint32_t barrier;  // the address of its slot's `full`
    uint32_t parity = 0;
  };

  __device__ __forceinline__ int32_t clocks_of(int32_t nbytes) const {
    return static_cast<int32_t>(pace_ * static_cast<float>(nbytes));
  }
  __device__ __forceinline__ bool copy(const char* from, uint32_t nbytes, int32_t clocks) {
    // In the first lap this is the parity of the phase before a barrier's first, which counts as complete.
    if (!wait(at_.barrier + kFullToEmpty, at_.parity ^ 1)) return false;
    if (room_ == 0) {
      if (!wait(oldest_.barrier, oldest_.parity)) return false;
      advance(oldest_);
    } else {
      --room_;
    }
    keep_pace(clocks);
    ptx::mbarrier_arrive_expect(at_.barrier, nbytes);
    ptx::bulk_copy(slot_, from, nbytes, at_.barrier);
    slot_ += slot_bytes_;
    if (advance(at_)) slot_ = slots_;
    return true;
  }
  // Whether a new lap begins.
  __device__ __forceinline__ bool advance(Cursor& c) {
    c.barrier += kBarrierBytes;
    if (c.barrier != full_end_) return false;
    c.barrier = full_;
    c.parity ^= 1;
    return true;
  }
  // A copy that is late may be made up for by the next one, not by more of them.
  __device__ __forceinline__ void keep_pace(int32_t clocks) {
    const auto now = static_cast<uint32_t>(clock());
    int32_t early = static_cast<int32_t>(due_ - now);
    if (early > kLongestPace) early = -clocks;  // a wait so long that the clock, of 2 s, seems to have gone back
    if (early > 0) __nanosleep(early / kClocksPerNs);
    due_ = early <= -clocks ? now : due_ + clocks;
  }
  static constexpr int kClocksPerNs = 2;  // nearly, on an H100 or H200: a sleep ends early or late, due_ keeps count
  __device__ __forceinline__ bool wait(uint32_t barrier, uint32_t parity) {
    while (!ptx::mbarrier_try_wait(barrier, parity))
      if (ptx::load_shared(stop_)) return false;
    return true;
  }
  // Shared memory must not go while the copy engine writes to it.
  __device__ void drain() {
    for (; room_ < window_; ++room_, advance(oldest_))
      while (!ptx::mbarrier_try_wait(oldest_.barrier, oldest_.parity)) {
      }
  }

  const uint32_t slots_, full_, full_end_, stop_;  // addresses in shared memory
  const int window_, slot_bytes_;                  // slot_bytes: from one slot to the next
  const float pace_;
  int room_;            // copies that may still be sent on their way
  uint32_t due_;        // the clock from which on the next copy may be asked for
  uint32_t slot_;       // where it goes
  Cursor at_, oldest_;  // the next slot to fill; the oldest copy that is not known to have arrived
};

}  // namespace amk
