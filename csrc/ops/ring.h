// The ring of weights in a block's shared memory: its geometry, and which tasks it feeds. A producer warp walks the
// block's queue ahead of the tasks and copies the packed weights of its matrix-vector tiles into slots, in the order in
// which they are multiplied; slot i belongs to warp i % warps for good, which is why a ring has whole stages of one
// slot per warp: a warp that waits for a slot by parity is the one that emptied it.
// In: a launch. Out: sizes. What a slot holds says ops/packing.h.
#pragma once

#include "ops/packing.h"

namespace amk {

constexpr int kSlotUnits = 16;
constexpr int kSlotBytes = kSlotUnits * kUnitBytes;            // 8 KB: 8 rows of 512 elements
constexpr int kSlotRowVectors = kSlotUnits * kUnitRowVectors;  // vectors of one row in a slot
constexpr int kMaxRingStages = 8, kMaxRingSlots = 64;

// The copy engine that fills a ring came with compute capability 9.0; for older targets weights are loaded directly.
constexpr bool has_ring(const amk_launch_t& launch, const amk_target_t& target) {
  return launch.cpasync == 1 && target.cc_major >= 9;
}

constexpr int64_t ring_stage_bytes(int warps) { return int64_t{warps} * kSlotBytes; }

// Stages that fit into smem_bytes beside task_bytes, at most as many as the launch asks for (0: all that fit).
constexpr int ring_stages(const amk_launch_t& launch, int warps, int64_t smem_bytes, int64_t task_bytes) {
  const int64_t room = (smem_bytes - task_bytes) / ring_stage_bytes(warps), cap = kMaxRingSlots / warps;
  const int64_t fit = room < cap ? room : cap;
  return static_cast<int>(launch.cpa_stages && launch.cpa_stages < fit ? launch.cpa_stages : fit);
}

}  // namespace amk
