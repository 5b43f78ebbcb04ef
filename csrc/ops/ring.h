// The ring of weights in a block's shared memory: its geometry, and which tasks it feeds. A producer warp walks the
// block's queue ahead of the tasks and copies the packed weights of its matrix-vector tiles into slots, in the order in
// which they are multiplied; the i-th copy is warp i % warps'. A warp waits for a copy by parity, so the copy a lap
// before it must have arrived by then: in a ring of whole stages, of one place per warp, the same warp has read it; in
// any ring of as many places as may be on their way and one per warp besides, the producer has waited for it. In: a
// launch. Out: sizes. What a slot holds says ops/packing.h.
#pragma once

#include "ops/packing.h"

namespace amk {

constexpr int kSlotUnits = 16;
constexpr int kSlotBytes = kSlotUnits * kUnitBytes;            // 8 KB: 8 rows of 512 elements
constexpr int kSlotRowVectors = kSlotUnits * kUnitRowVectors;  // vectors of one row in a slot
constexpr int kMaxRingStages = 8, kMaxRingSlots = 64;

// A slot of a quantised matrix brings its scales behind its 8 KB (ops/packing_int8.h).
constexpr int kInt8ScaleRoom = 256;  // of the smallest group
constexpr bool is_int8_group(int32_t group) { return group == AMK_MIN_WEIGHT_GROUP || group == AMK_MAX_WEIGHT_GROUP; }
AMK_HOST_DEVICE constexpr int int8_scale_bytes(int32_t group) { return kInt8ScaleRoom * AMK_MIN_WEIGHT_GROUP / group; }
// Bytes from one slot of a ring to the next: room for the longest slot that these tasks may ask for. Total: tasks may
// hold anything.
template <class Tasks>
constexpr int ring_slot_bytes(const Tasks& tasks) {
  int room = 0;
  for (const amk_instruction_t& t : tasks) {
    const bool is_int8 = t.op == AMK_OP_GEMV_TILE && t.params.qdtype == AMK_DTYPE_I8 && is_int8_group(t.params.group);
    if (is_int8 && int8_scale_bytes(t.params.group) > room) room = int8_scale_bytes(t.params.group);
  }
  return kSlotBytes + room;
}

// The copy engine that fills a ring came with compute capability 9.0; for older targets weights are loaded directly.
constexpr bool has_ring(const amk_launch_t& launch, const amk_target_t& target) {
  return launch.cpasync == 1 && target.cc_major >= 9;
}

constexpr int64_t ring_stage_bytes(int warps, int slot_bytes = kSlotBytes) { return int64_t{warps} * slot_bytes; }

// Stages that fit into smem_bytes beside task_bytes, at most as many as the launch asks for (0: all that fit).
constexpr int ring_stages(const amk_launch_t& launch, int warps, int64_t smem_bytes, int64_t task_bytes,
                          int slot_bytes = kSlotBytes) {
  const int64_t room = (smem_bytes - task_bytes) / ring_stage_bytes(warps, slot_bytes), cap = kMaxRingSlots / warps;
  const int64_t fit = room < cap ? room : cap;
  return static_cast<int>(launch.cpa_stages && launch.cpa_stages < fit ? launch.cpa_stages : fit);
}
// Slots of a ring for one token: its stages', and where the launch asks for no number of stages all that fit.
constexpr int ring_slots(const amk_launch_t& launch, int warps, int64_t smem_bytes, int64_t task_bytes,
                         int slot_bytes = kSlotBytes) {
  const int stages = ring_stages(launch, warps, smem_bytes, task_bytes, slot_bytes);
  const int64_t room = (smem_bytes - task_bytes) / slot_bytes, fit = room < kMaxRingSlots ? room : kMaxRingSlots;
  const bool is_any = launch.cpa_stages == 0 && launch.pipelining_depth + warps <= fit;
  return is_any ? static_cast<int>(fit) : stages * warps;
}

}  // namespace amk
