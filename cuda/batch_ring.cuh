// The ring of weights (ring.cuh) as tasks of several tokens read it. Which warp a slot belongs to is said anew for each
// panel of a task: slot k of a panel is stream k % streams, of one warp or of two that share it. A warp that waits for
// a slot by parity must not be a lap behind: inside a panel a place of the ring belongs to one stream, and where the
// streams change there is a barrier of the block.
// Ordering: as in ring.cuh; `empty` takes kSlotReleases arrivals, which the readers of a slot share out.
#pragma once

#include "ops/batch_slots.h"
#include "ring.cuh"

namespace amk {

constexpr int kSlotReleases = 2 * kWarpThreads;

class BatchRing {
 public:
  struct Place {
    int slot;
    uint32_t parity;
  };

  __device__ BatchRing(const char* slots, RingBarriers& barriers, int n_slots)
      : slots_(slots), barriers_(barriers), n_slots_(n_slots) {}

  // Of slot `index` < kBatchWarps of the panel that begins.
  __device__ __forceinline__ Place at(int index) const { return behind({head_, parity_}, index); }
  // `step` <= kBatchWarps slots on.
  __device__ __forceinline__ Place behind(Place p, int step) const {
    p.slot += step;
    if (p.slot >= n_slots_) {
      p.slot -= n_slots_;
      p.parity ^= 1;
    }
    return p;
  }
  // Waits until the slot is full.
  __device__ __forceinline__ const char* wait(Place p) const {
    while (!ptx::mbarrier_try_wait(barriers_.full + p.slot, p.parity)) {
    }
    return slots_ + p.slot * barriers_.slot_bytes;
  }
  // By every lane of each of the slot's `readers` warps, after its reads.
  template <int kReaders>
  __device__ __forceinline__ void release(Place p) const {
    ptx::mbarrier_arrive(barriers_.empty + p.slot, kSlotReleases / kWarpThreads / kReaders);
  }
  // The panel that just ended had `slots` slots.
  __device__ void finish(int slots) {
    const int end = head_ + slots;
    parity_ ^= end / n_slots_ & 1;
    head_ = end % n_slots_;
  }

 private:
  const char* slots_;
  RingBarriers& barriers_;
  const int n_slots_;
  int head_ = 0;  // the place of the next panel's first slot
  uint32_t parity_ = 0;
};

}  // namespace amk
