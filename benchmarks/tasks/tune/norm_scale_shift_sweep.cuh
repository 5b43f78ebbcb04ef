// Candidate of norm_scale_shift: a warp takes a row after the other out of shared memory, where the copy engine put it,
// and reads it there twice, so that neither the row nor scale, shift and gate take registers, and no barrier is wider
// than a warp. Measured by amk_tune_norm_scale_shift, dispatched nowhere.
// In: NormOperands without weights, x of two bytes, scale, shift and gate the same for all rows, batches that follow
// each other like rows, rows exactly as long as the plan; compute capability 9.0. Out: y and residual_out.
#pragma once

#include "../norm_scale_shift/solution/norm_scale_shift_persistent.cuh"

namespace amk::task {

// warps: of a block; vectors: of 16 bytes per lane, so a row has 32 * vectors; stages: rows of a warp in shared memory.
template <int kWarpsOfPlan, int kVectorsOfPlan, int kStagesOfPlan, int kResidentOfPlan = 1,
          Order kOrderOfPlan = Order::kPlain>
struct SweepPlan {
  static constexpr int kWarps = kWarpsOfPlan, kVectors = kVectorsOfPlan, kStages = kStagesOfPlan;
  static constexpr int kResident = kResidentOfPlan, kThreads = kWarps * kWarpThreads;
  static constexpr Order kOrder = kOrderOfPlan;
};

// What a block keeps: scale + 1, shift and gate in f32, each vector's floats as runs of four, [run][lane], so that a
// warp's reads of one run follow each other.
constexpr int kOfRun = 4;
template <bool kResidual, class Plan>
constexpr int kSweepKeptBytes = (kResidual ? 3 : 2) * Plan::kVectors * kWarpThreads * 8 * 4;

// The moments come from one pass: sums of x - p and of its square, p being the row's first value. Of n values none is
// further from their mean than sqrt(n) deviations, so cancellation costs at most n * 2^-24 of the variance.
template <class X, class M, bool kResidual, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kResident)
    norm_scale_shift_sweep(const NormOperands o, int rows) {
  constexpr int kPer = kPerVector<X>, kVectors = Plan::kVectors, kStages = Plan::kStages, kRuns = kPer / kOfRun;
  constexpr int kTensors = kResidual ? 2 : 1, kColumns = kWarpThreads * kVectors * kPer;
  constexpr int kRowBytes = kColumns * static_cast<int>(sizeof(X)), kSlotBytes = kTensors * kRowBytes;
  constexpr float kPerColumn = 1.0f / kColumns;
  static_assert(sizeof(X) == 2);
  __shared__ Arrival full[Plan::kWarps][kStages];
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
  float4* const kept = reinterpret_cast<float4*>(dynamic_shared());
  char* const ring = dynamic_shared() + kSweepKeptBytes<kResidual, Plan> + warp * kStages * kSlotBytes;
  const auto at = [&](const Rows& t, int index) { return static_cast<X*>(t.data) + index * t.row_stride; };
  const int step = gridDim.x * Plan::kWarps;
  int index = blockIdx.x + gridDim.x * warp;  // a block's share of the rows differs from another's by one at most

  const auto request = [&](int stage, int of) {
    if (lane != 0 || of >= rows) return;
    char* const to = ring + stage * kSlotBytes;
    full[warp][stage].expect(kSlotBytes);
    full[warp][stage].request(to, at(o.x, of), kRowBytes);
    if constexpr (kResidual) full[warp][stage].request(to + kRowBytes, at(o.residual, of), kRowBytes);
  };
  if (lane == 0) {
    for (int s = 0; s < kStages; ++s) full[warp][s].init();
  }
  __syncwarp();
  await_previous<Plan::kOrder>();
  for (int s = 0; s < kStages; ++s) request(s, index + s * step);

  const Modulation* const modulations[] = {&o.scale, &o.shift, &o.gate};
#pragma unroll
  for (int m = 0; m < (kResidual ? 3 : 2); ++m) {
    const bool is_there = m < 2 || o.has_gate;
    for (int i = threadIdx.x; i < kVectors * kWarpThreads; i += Plan::kThreads) {
      Run<M, kPer> run{};
      if (is_there) run.load(static_cast<const M*>(modulations[m]->data) + i * kPer);
      float value[kPer];
      run.unpack(value);
      const float added = m == 0 || !is_there ? 1.0f : 0.0f;
#pragma unroll
      for (int r = 0; r < kRuns; ++r) {
        const float* f = value + r * kOfRun;
        kept[((m * kVectors + i / kWarpThreads) * kRuns + r) * kWarpThreads + i % kWarpThreads] = {
            f[0] + added, f[1] + added, f[2] + added, f[3] + added};
      }
    }
  }
  __syncthreads();

  const auto load_kept = [&](int m, int v, float (&out)[kPer]) {
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const float4 f = kept[((m * kVectors + v) * kRuns + r) * kWarpThreads + lane];
      out[r * kOfRun] = f.x;
      out[r * kOfRun + 1] = f.y;
      out[r * kOfRun + 2] = f.z;
      out[r * kOfRun + 3] = f.w;
    }
  };
  int stage = 0;
  uint32_t parity = 0;
  for (; index < rows; index += step) {
    const X* const slot = reinterpret_cast<const X*>(ring + stage * kSlotBytes);
    const auto load_row = [&](int v, float (&out)[kPer]) {
      Run<X, kPer> raw;
      raw.load(slot + (v * kWarpThreads + lane) * kPer);
      raw.unpack(out);
      if constexpr (kResidual) {
        float before[kPer], gate[kPer];
        raw.load(slot + kColumns + (v * kWarpThreads + lane) * kPer);
        raw.unpack(before);
        load_kept(2, v, gate);
#pragma unroll
        for (int i = 0; i < kPer; ++i) out[i] = fmaf(gate[i], out[i], before[i]);
      }
    };
    full[warp][stage].await(parity);
    float pivot = 0;
    if (!o.is_rms) {
      pivot = to_f32(slot[0]);
      if constexpr (kResidual) pivot = fmaf(kept[2 * kVectors * kRuns * kWarpThreads].x, pivot, to_f32(slot[kColumns]));
    }
    X* const out = kResidual ? at(o.residual_out, index) : nullptr;
    float sum[2]{}, squares[2]{};
#pragma unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float x[kPer];
      load_row(v, x);
      if constexpr (kResidual) {
        Run<X, kPer> rounded;
        rounded.pack(x);
        rounded.template store<Reuse::kStream>(out + (v * kWarpThreads + lane) * kPer);
      }
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const float away = x[i] - pivot;
        sum[i % 2] += away;
        squares[i % 2] = fmaf(away, away, squares[i % 2]);
      }
    }
    const float away = o.is_rms ? 0.0f : warp_sum(sum[0] + sum[1]) * kPerColumn;
    const float variance = fmaxf(fmaf(-away, away, warp_sum(squares[0] + squares[1]) * kPerColumn), 0.0f);
    const float reciprocal = rsqrtf(variance + o.eps), offset = -(pivot + away) * reciprocal;
    __syncwarp();  // so that the row is read again instead of being kept in registers
    X* const y = at(o.y, index);
#pragma unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float x[kPer], scale[kPer], shift[kPer];
      load_row(v, x);
      load_kept(0, v, scale);
      load_kept(1, v, shift);
#pragma unroll
      for (int i = 0; i < kPer; ++i) x[i] = fmaf(fmaf(x[i], reciprocal, offset), scale[i], shift[i]);
      Run<X, kPer> result;
      result.pack(x);
      result.template store<Reuse::kStream>(y + (v * kWarpThreads + lane) * kPer);
    }
    __syncwarp();
    request(stage, index + kStages * step);
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

// grid: most blocks of the launch, or 0: those that are resident at once. More of them are placed as others end, which
// evens out SMs of unequal speed.
template <class X, class M, bool kResidual, class Plan>
int32_t launch_sweep(const NormOperands& o, int grid, void* stream) {
  if (o.columns != kWarpThreads * Plan::kVectors * kPerVector<X>) return AMK_ERR_UNSUPPORTED;
  if (!is_same_for_all_rows(o)) return AMK_ERR_UNSUPPORTED;
  const auto kernel = norm_scale_shift_sweep<X, M, kResidual, Plan>;
  const int rows = o.batches * o.rows, row_bytes = o.columns * static_cast<int>(sizeof(X));
  const int shared = kSweepKeptBytes<kResidual, Plan> + Plan::kWarps * Plan::kStages * (kResidual ? 2 : 1) * row_bytes;
  Room room;
  if (const int32_t status = find_room(kernel, Plan::kThreads, shared, &room)) return status;
  const int most = grid > 0 ? grid : room.resident * room.processors;
  const int blocks = std::min(most, ceil_div_int(rows, Plan::kWarps));
  return launch_with(Plan::kOrder, kernel, blocks, Plan::kThreads, shared, stream, o, rows);
}

}  // namespace amk::task
