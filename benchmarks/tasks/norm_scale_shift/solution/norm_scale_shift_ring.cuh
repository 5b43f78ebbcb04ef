// norm_scale_shift of many rows that share scale, shift and gate: the copy engine brings rows into a ring in shared
// memory and takes the results out of it, so that a block reads its modulation once and has rows on their way in both
// directions while it normalises one.
// In: NormOperands without weights, scale, shift and gate the same for all rows, batches that follow each other like
// rows, rows exactly as long as the plan; compute capability 9.0. Out: y and residual_out. A programmatic dependent
// launch.
#pragma once

#include <algorithm>

#include "norm_scale_shift.cuh"
#include "staging.cuh"

namespace amk::task {

// A block of kTeam threads holds a row, kVectors vectors each. stages: rows in the ring; resident: blocks per SM that
// registers are kept free for.
template <int kTeamOfPlan, int kVectorsOfPlan, int kStagesOfPlan, int kResidentOfPlan>
struct RingPlan {
  static constexpr int kTeam = kTeamOfPlan, kVectors = kVectorsOfPlan, kStages = kStagesOfPlan;
  static constexpr int kResident = kResidentOfPlan, kWarpsOfTeam = kTeam / kWarpThreads;
  static_assert(kTeam % kWarpThreads == 0 && kWarpsOfTeam > 1 && kStages > 1);
};

// How blocks share the rows. staying > 0: so many blocks on every SM, no more and where they fit no fewer, each take
// every grid-th row. Else each block takes rows_of_block that follow each other and is over: blocks come in the order
// of their rows, so at any time the device works in one stretch of memory, and a slow SM gets fewer of them. loads:
// what is read leaves L2 before (kStream) or like (kKeep) what is written.
struct Share {
  int staying = 0, rows_of_block = 0;
  Reuse loads = Reuse::kKeep;
};

template <class X, class M, bool kResidual, class Plan>
__global__ void __launch_bounds__(Plan::kTeam, Plan::kResident)
    norm_scale_shift_ring(const NormOperands o, int rows, const Share share) {
  constexpr int kPer = kPerVector<X>, kVectors = Plan::kVectors, kWarps = Plan::kWarpsOfTeam, kStages = Plan::kStages;
  constexpr int kColumns = Plan::kTeam * kVectors * kPer, kRowBytes = kColumns * static_cast<int>(sizeof(X));
  constexpr int kSlotBytes = (kResidual ? 2 : 1) * kRowBytes, kWarpBytes = kRowBytes / kWarps;
  constexpr float kOfWarp = kVectors * kWarpThreads * kPer, kPerColumn = 1.0f / kColumns;
  char* const ring = dynamic_shared();
  __shared__ Moments shared_moments[2][kWarps];
  __shared__ Arrival full[kStages];
  static_assert(sizeof shared_moments + sizeof full <= kMostStaticShared);
  const int thread = threadIdx.x, lane = thread % kWarpThreads, warp = thread / kWarpThreads;
  // A warp's part of a row is one piece of memory, which it stores by itself.
  const auto column = [&](int v) { return ((warp * kVectors + v) * kWarpThreads + lane) * kPer; };
  const auto at = [](const Rows& t, int index) { return static_cast<X*>(t.data) + index * t.row_stride; };
  const auto send_part = [&](X* row, const char* slot) {
    expose();
    __syncwarp();
    if (lane == 0) send(reinterpret_cast<char*>(row) + warp * kWarpBytes, slot + warp * kWarpBytes, kWarpBytes);
  };

  const bool stays = share.staying > 0;
  const int step = stays ? static_cast<int>(gridDim.x) : 1;
  int index = static_cast<int>(blockIdx.x) * (stays ? 1 : share.rows_of_block);
  const int end = stays ? rows : min(rows, index + share.rows_of_block);
  const auto request = [&](int stage, int of) {
    if (thread != 0 || of >= end) return;
    char* const slot = ring + stage * kSlotBytes;
    full[stage].expect(kSlotBytes);
    full[stage].request(slot, at(o.x, of), kRowBytes, share.loads == Reuse::kStream);
    if constexpr (kResidual)
      full[stage].request(slot + kRowBytes, at(o.residual, of), kRowBytes, share.loads == Reuse::kStream);
  };

  await_previous<Order::kDependent>();
  if (thread == 0) {
    for (int s = 0; s < kStages; ++s) full[s].init();
    for (int s = 0; s < kStages; ++s) request(s, index + s * step);
  }
  Run<M, kPer> scale[kVectors], shift[kVectors], gate[kResidual ? kVectors : 1]{};
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    scale[v].load(static_cast<const M*>(o.scale.data) + column(v));
    shift[v].load(static_cast<const M*>(o.shift.data) + column(v));
    if constexpr (kResidual) {
      if (o.has_gate) gate[v].load(static_cast<const M*>(o.gate.data) + column(v));
    }
  }
  __syncthreads();

  int half = 0, stage = 0, before = -1;
  uint32_t parity = 0;
  for (; index < end; index += step, half ^= 1) {
    char* const slot = ring + stage * kSlotBytes;
    X* const x_slot = reinterpret_cast<X*>(slot);
    full[stage].await(parity);
    float x[kVectors * kPer];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Run<X, kPer> raw;
      raw.load(x_slot + column(v));
      float part[kPer];
      raw.unpack(part);
      if constexpr (kResidual) {
        float sum[kPer], factor[kPer];
        raw.load(x_slot + kColumns + column(v));
        raw.unpack(sum);
        gate[v].unpack(factor);
#pragma unroll
        for (int i = 0; i < kPer; ++i) part[i] = o.has_gate ? fmaf(factor[i], part[i], sum[i]) : sum[i] + part[i];
        raw.pack(part);
        raw.store(x_slot + kColumns + column(v));
      }
#pragma unroll
      for (int i = 0; i < kPer; ++i) x[v * kPer + i] = part[i];
    }
    if constexpr (kResidual) {
      if (lane == 0) await_sent();
      send_part(at(o.residual_out, index), slot + kRowBytes);
    }

    float mean = 0, squares = 0;
    if (!o.is_rms) {
#pragma unroll
      for (int i = 0; i < kVectors * kPer; ++i) mean += x[i];
      mean = warp_sum(mean) * (1.0f / kOfWarp);
    }
#pragma unroll
    for (int i = 0; i < kVectors * kPer; ++i) {
      const float away = x[i] - mean;
      squares = fmaf(away, away, squares);
    }
    squares = warp_sum(squares);
    if constexpr (!kResidual) {
      if (lane == 0) await_sent();
    }
    if (lane == 0) shared_moments[half][warp] = {mean, squares, kOfWarp, 0};
    __syncthreads();
    // Every warp's part of the row before has been read out of its slot: it is free.
    if (before >= 0) request(before, index + (kStages - 1) * step);
    before = stage;
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }

    const Moments moments = combine<kWarps>(shared_moments[half], kPerColumn);
    const float reciprocal = rsqrtf(moments.squares * kPerColumn + o.eps), offset_of_all = -moments.mean * reciprocal;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float factor[kPer], offset[kPer], value[kPer];
      scale[v].unpack(factor);
      shift[v].unpack(offset);
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        value[i] = fmaf(x[v * kPer + i], reciprocal, offset_of_all);
        value[i] = fmaf(value[i], 1.0f + factor[i], offset[i]);
      }
      Run<X, kPer> result;
      result.pack(value);
      result.store(x_slot + column(v));
    }
    send_part(at(o.y, index), slot);
  }
  if (lane == 0) await_sent();
}

// Whether scale, shift and gate are the same for all rows, and batches follow each other like rows.
inline bool is_same_for_all_rows(const NormOperands& o) {
  for (const Modulation* t : {&o.scale, &o.shift, &o.gate}) {
    if (t->frame_stride != 0 || (t->batch_stride != 0 && o.batches > 1)) return false;
  }
  for (const Rows* t : {&o.x, &o.residual, &o.y, &o.residual_out}) {
    if (o.batches > 1 && t->data && t->batch_stride != o.rows * t->row_stride) return false;
  }
  return true;
}

template <class X, class M, bool kResidual, class Plan>
int32_t launch_ring(const NormOperands& o, const Share& share, void* stream) {
  if (o.columns != Plan::kTeam * Plan::kVectors * kPerVector<X> || !is_same_for_all_rows(o)) return AMK_ERR_UNSUPPORTED;
  const auto kernel = norm_scale_shift_ring<X, M, kResidual, Plan>;
  const int rows = o.batches * o.rows;
  int shared = Plan::kStages * (kResidual ? 2 : 1) * o.columns * static_cast<int>(sizeof(X));
  Room room;
  if (const int32_t status = find_room(kernel, Plan::kTeam, shared, &room)) return status;
  if (share.staying > 0 && room.resident > share.staying) {
    if (const int32_t status = find_share_of_shared(share.staying, shared, &shared)) return status;
    if (const int32_t status = find_room(kernel, Plan::kTeam, shared, &room)) return status;
  }
  const int blocks = share.staying > 0 ? std::min(rows, room.processors * std::min(share.staying, room.resident))
                                       : ceil_div_int(rows, share.rows_of_block);
  return launch_with(Order::kDependent, kernel, blocks, Plan::kTeam, shared, stream, o, rows, share);
}

}  // namespace amk::task
