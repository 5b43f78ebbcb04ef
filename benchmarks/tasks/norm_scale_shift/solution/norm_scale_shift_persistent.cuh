// norm_scale_shift by blocks that stay for many rows: scale, shift and gate are read once per block, and the rows to
// come are on their way while one is normalised.
// In: NormOperands without weights, scale, shift and gate the same for all rows, batches that follow each other like
// rows, rows exactly as long as the plan; compute capability 9.0 for a ring. Out: y and residual_out.
#pragma once

#include <algorithm>

#include "norm_scale_shift.cuh"
#include "staging.cuh"

namespace amk::task {

// Where scale and shift stay: registers as they are stored, registers as f32 with 1 added to scale, shared memory.
enum class Stay { kPacked, kFloat, kShared };

// How a plan meets memory and its neighbours. loads, stores: hints, a ring's loads have none; waves: of as many blocks
// as are resident at once: with more than one a slow SM takes fewer blocks, and each reads the modulation anew.
struct Manner {
  Reuse loads = Reuse::kStream, stores = Reuse::kStream;
  Order order = Order::kPlain;
  int waves = 1;
};

// A team of kTeam threads holds a row, kVectors vectors each. stages: rows that a ring in shared memory takes from the
// copy engine; 0: one row ahead in registers. Teams of one warp share a block, kWarpsOfBlock of them, and their rows
// need no barrier.
template <int kTeamOfPlan, int kVectorsOfPlan, int kStagesOfPlan, Stay kStayOfPlan = Stay::kPacked,
          int kResidentOfPlan = 1, int kWarpsOfBlock = 8, Manner kMannerOfPlan = Manner{}>
struct PersistentPlan {
  static constexpr Manner kManner = kMannerOfPlan;
  static constexpr int kTeam = kTeamOfPlan, kVectors = kVectorsOfPlan, kStages = kStagesOfPlan;
  static constexpr int kResident = kResidentOfPlan;
  static constexpr Stay kStay = kStayOfPlan;
  static constexpr int kTeams = kTeam == kWarpThreads ? kWarpsOfBlock : 1, kThreads = kTeam * kTeams;
  static constexpr int kWarpsOfTeam = kTeam / kWarpThreads;
};

// A vector of modulation as it stays in registers: H is M, or float with `add` added.
template <class H, class M, int kPer>
__device__ __forceinline__ Run<H, kPer> hold(const M* p, float add) {
  Run<M, kPer> raw;
  raw.load(p);
  if constexpr (sizeof(H) == 2) {
    return raw;
  } else {
    float value[kPer];
    raw.unpack(value);
#pragma unroll
    for (int i = 0; i < kPer; ++i) value[i] += add;
    Run<H, kPer> out;
    out.pack(value);
    return out;
  }
}

template <class X, class M, bool kResidual, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kResident)
    norm_scale_shift_persistent(const NormOperands o, int rows) {
  constexpr int kPer = kPerVector<X>, kVectors = Plan::kVectors, kWarps = Plan::kWarpsOfTeam, kStages = Plan::kStages;
  constexpr int kTensors = kResidual ? 2 : 1, kHeld = Plan::kStay == Stay::kShared ? 1 : kVectors;
  constexpr bool kIsRing = kStages > 0, kIsShared = Plan::kStay == Stay::kShared;
  using H = std::conditional_t<Plan::kStay == Stay::kFloat, float, M>;
  constexpr float kAdded = sizeof(H) == 4 && !kIsShared ? 1.0f : 0.0f;
  char* const dynamic = dynamic_shared();
  __shared__ Moments shared_moments[2][kWarps];
  __shared__ Arrival full[Plan::kTeams][kIsRing ? kStages : 1];
  const int thread = threadIdx.x % Plan::kTeam, team = threadIdx.x / Plan::kTeam, warp = thread / kWarpThreads;
  constexpr int kColumns = Plan::kTeam * kVectors * kPer, kRowBytes = kColumns * static_cast<int>(sizeof(X));
  constexpr float kCount = kVectors * kWarpThreads * kPer, kPerColumn = 1.0f / kColumns;
  const auto column = [&](int v) { return (v * Plan::kTeam + thread) * kPer; };
  const auto at = [&](const Rows& t, int index) { return static_cast<X*>(t.data) + index * t.row_stride; };

  await_previous<Plan::kManner.order>();
  const Modulation* const modulations[] = {&o.scale, &o.shift, &o.gate};
  M* const shared_modulation = reinterpret_cast<M*>(dynamic);
  char* ring = dynamic;
  if constexpr (kIsShared) {
    constexpr int kPerCopy = kPerVector<M>;
#pragma unroll
    for (int m = 0; m < (kResidual ? 3 : 2); ++m) {
      for (int i = threadIdx.x * kPerCopy; i < kColumns; i += Plan::kThreads * kPerCopy) {
        Run<M, kPerCopy> run{};
        if (m < 2 || o.has_gate) run.load(static_cast<const M*>(modulations[m]->data) + i);
        run.store(shared_modulation + m * kColumns + i);
      }
    }
    ring += (kResidual ? 3 : 2) * kColumns * sizeof(M);
  }
  Run<H, kPer> scale[kHeld]{}, shift[kHeld]{};
  Run<M, kPer> gate[kResidual ? kHeld : 1]{};
  if constexpr (!kIsShared) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      scale[v] = hold<H, M, kPer>(static_cast<const M*>(o.scale.data) + column(v), kAdded);
      shift[v] = hold<H, M, kPer>(static_cast<const M*>(o.shift.data) + column(v), 0);
      if constexpr (kResidual) {
        if (o.has_gate) gate[v] = hold<M, M, kPer>(static_cast<const M*>(o.gate.data) + column(v), 0);
      }
    }
  }
  const auto modulation = [&](int m, int v, auto held) {
    if constexpr (kIsShared) {
      decltype(held) run;
      run.load(shared_modulation + m * kColumns + column(v));
      return run;
    } else {
      return held;
    }
  };

  const int step = gridDim.x * Plan::kTeams;
  int index = blockIdx.x * Plan::kTeams + team;
  ring += team * (kStages * kTensors) * kRowBytes;
  const auto request = [&](int stage, int of) {
    if (thread != 0 || of >= rows) return;
    full[team][stage].expect(kTensors * kRowBytes);
    char* to = ring + stage * kTensors * kRowBytes;
    full[team][stage].request(to, at(o.x, of), kRowBytes);
    if constexpr (kResidual) full[team][stage].request(to + kRowBytes, at(o.residual, of), kRowBytes);
  };
  Run<X, kPer> next[kTensors][kIsRing ? 1 : kVectors];
  const auto load_next = [&](int of) {
#pragma unroll
    for (int t = 0; t < kTensors; ++t) {
      const X* from = at(t == 0 ? o.x : o.residual, of);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        next[t][v].template load<Plan::kManner.loads>(from + column(v));
      }
    }
  };
  if constexpr (kIsRing) {
    if (thread == 0) {
      for (int s = 0; s < kStages; ++s) full[team][s].init();
    }
    __syncthreads();
    for (int s = 0; s < kStages; ++s) request(s, index + s * step);
  } else {
    if constexpr (kIsShared) __syncthreads();
    if (index < rows) load_next(index);
  }

  int half = 0, stage = 0;
  uint32_t parity = 0;
  for (; index < rows; index += step, half ^= 1) {
    float x[kVectors * kPer];
    if constexpr (kIsRing) full[team][stage].await(parity);
    X* out = kResidual ? at(o.residual_out, index) : nullptr;
    const char* slot = ring + stage * kTensors * kRowBytes;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Run<X, kPer> raw{}, before{};
      if constexpr (kIsRing) {
        raw.load(reinterpret_cast<const X*>(slot) + column(v));
        if constexpr (kResidual) before.load(reinterpret_cast<const X*>(slot + kRowBytes) + column(v));
      } else {
        raw = next[0][v];
        if constexpr (kResidual) before = next[1][v];
      }
      float part[kPer];
      raw.unpack(part);
      if constexpr (kResidual) {
        float sum[kPer], factor[kPer];
        before.unpack(sum);
        modulation(2, v, gate[kIsShared ? 0 : v]).unpack(factor);
#pragma unroll
        for (int i = 0; i < kPer; ++i) part[i] = o.has_gate ? fmaf(factor[i], part[i], sum[i]) : sum[i] + part[i];
        raw.pack(part);
        raw.template store<Plan::kManner.stores>(out + column(v));
      }
#pragma unroll
      for (int i = 0; i < kPer; ++i) x[v * kPer + i] = part[i];
    }
    if constexpr (!kIsRing) {
      if (index + step < rows) load_next(index + step);
    }

    float mean = 0, squares = 0;
    if (!o.is_rms) {
#pragma unroll
      for (int i = 0; i < kVectors * kPer; ++i) mean += x[i];
      mean = warp_sum(mean) * (1.0f / kCount);
    }
#pragma unroll
    for (int i = 0; i < kVectors * kPer; ++i) {
      const float away = x[i] - mean;
      squares = fmaf(away, away, squares);
    }
    Moments moments{mean, warp_sum(squares), kCount, 0};
    if constexpr (kWarps > 1) {
      if (thread % kWarpThreads == 0) shared_moments[half][warp] = moments;
      __syncthreads();
      moments = combine<kWarps>(shared_moments[half], kPerColumn);
    } else {
      __syncwarp();
    }
    if constexpr (kIsRing) {
      // The team has the row in registers: its slot is free.
      request(stage, index + kStages * step);
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }

    const float reciprocal = rsqrtf(moments.squares * kPerColumn + o.eps), offset_of_all = -moments.mean * reciprocal;
    X* y = at(o.y, index);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float factor[kPer], offset[kPer], value[kPer];
      modulation(0, v, scale[kIsShared ? 0 : v]).unpack(factor);
      modulation(1, v, shift[kIsShared ? 0 : v]).unpack(offset);
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        value[i] = fmaf(x[v * kPer + i], reciprocal, offset_of_all);
        value[i] = fmaf(value[i], kAdded == 1.0f ? factor[i] : 1.0f + factor[i], offset[i]);
      }
      Run<X, kPer> result;
      result.pack(value);
      result.template store<Plan::kManner.stores>(y + column(v));
    }
  }
}

// Blocks that are resident at once and share `all` rows most evenly. Memory is the bound, so a round of twice the rows
// takes twice the time: what counts is rounds * blocks per SM.
inline int blocks_for(int all, int processors, int resident) {
  int best = std::max(1, resident);
  for (int n = best - 1; 2 * n >= resident && n > 0; --n) {
    if (n * ceil_div_int(all, n * processors) < best * ceil_div_int(all, best * processors)) best = n;
  }
  return best * processors;
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
int32_t launch_persistent(const NormOperands& o, void* stream) {
  if (o.columns != Plan::kTeam * Plan::kVectors * kPerVector<X> || !is_same_for_all_rows(o)) return AMK_ERR_UNSUPPORTED;
  const auto kernel = norm_scale_shift_persistent<X, M, kResidual, Plan>;
  const int rows = o.batches * o.rows, all = ceil_div_int(rows, Plan::kTeams);
  const int ring = Plan::kTeams * Plan::kStages * (kResidual ? 2 : 1) * o.columns * static_cast<int>(sizeof(X));
  const int kept = Plan::kStay == Stay::kShared ? (kResidual ? 3 : 2) * o.columns * static_cast<int>(sizeof(M)) : 0;
  Room room;
  if (const int32_t status = find_room(kernel, Plan::kThreads, ring + kept, &room)) return status;
  const int blocks = std::min(all, Plan::kManner.waves * blocks_for(all, room.processors, room.resident));
  return launch_with(Plan::kManner.order, kernel, blocks, Plan::kThreads, ring + kept, stream, o, rows);
}

}  // namespace amk::task
