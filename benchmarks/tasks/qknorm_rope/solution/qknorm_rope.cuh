// RMS norm of every head of q and k (Zhang & Sennrich 2019, arXiv:1910.07467), then the rotary embedding (Su et al.
// 2021, arXiv:2104.09864), in one kernel and in place.
// In: QkOperands. Out: q and k. A position outside the cache makes its token NaN: nothing outside the cache is read.
// Eight lanes take a head: lane l holds vectors l, l + 8, ... of 16 bytes, so both halves of a head, and both members
// of every pair, lie in one lane. All loads of a thread are issued before the first sum. f32 inside, one rounding.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "row_sums.cuh"
#include "row_vectors.cuh"

// After the storage types, which its dispatch names.
#include "../operands.h"

namespace amk::task {

// Where a token's cosines and sines are read: at its position, so only when that has come; or at first at the row of
// its own number, on their way together with its position, and again at its position if that is another.
enum class Turn { kKnown, kGuessed };

// What is chosen by measurement. threads: of a block; heads: that a group of eight lanes has in flight at once;
// resident: blocks per SM that registers are kept free for.
template <int kThreadsOfPlan, int kHeadsOfPlan, int kResidentOfPlan = 1, Reuse kReuseOfPlan = Reuse::kKeep,
          Order kOrderOfPlan = Order::kPlain, Turn kTurnOfPlan = Turn::kKnown, Reuse kStoresOfPlan = kReuseOfPlan>
struct QkPlan {
  static constexpr Turn kTurn = kTurnOfPlan;
  static constexpr int kResident = kResidentOfPlan;
  static constexpr int kThreads = kThreadsOfPlan, kHeads = kHeadsOfPlan;
  static constexpr Reuse kLoads = kReuseOfPlan, kStores = kStoresOfPlan;
  static constexpr Order kOrder = kOrderOfPlan;
};

constexpr int kLanes = 8, kPerLane = kHeadDim / kLanes;
constexpr float kNotANumber = __builtin_nanf("");

// The 8 cosines (or sines) that belong to a lane's elements, in the order of its pairs.
template <class T, bool kInterleaved>
__device__ __forceinline__ void load_turn(const float* row, int lane, float (&out)[kPerLane / 2]) {
  constexpr int kPer = kPerVector<T>, kVectors = kPerLane / kPer;
  constexpr int kRuns = kInterleaved ? kVectors : kVectors / 2, kCount = kPerLane / 2 / kRuns;
#pragma unroll
  for (int v = 0; v < kRuns; ++v) {
    Run<float, kCount> run;
    run.load(row + (v * kLanes + lane) * kCount);
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[v * kCount + i] = __uint_as_float(run.word[i]);
  }
}

// x: a lane's 16 elements in the order of its vectors, normalised; turned in place.
template <bool kInterleaved>
__device__ __forceinline__ void turn(float (&x)[kPerLane], const float (&cosine)[kPerLane / 2],
                                     const float (&sine)[kPerLane / 2]) {
#pragma unroll
  for (int i = 0; i < kPerLane / 2; ++i) {
    const int first = kInterleaved ? 2 * i : i, second = kInterleaved ? 2 * i + 1 : i + kPerLane / 2;
    const float a = x[first], b = x[second];
    x[first] = a * cosine[i] - b * sine[i];
    x[second] = b * cosine[i] + a * sine[i];
  }
}

// A lane's vectors of a head: normalised, turned and rounded in place. Every lane of the warp takes part.
template <bool kInterleaved, class T, int kPer, int kVectors>
__device__ __forceinline__ void finish_head(Run<T, kPer> (&vectors)[kVectors], const Run<T, kPer> (&weight)[kVectors],
                                            const float (&cosine)[kPerLane / 2], const float (&sine)[kPerLane / 2],
                                            bool is_known, float eps) {
  float x[kPerLane], sum = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float part[kPer];
    vectors[v].unpack(part);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      x[v * kPer + i] = part[i];
      sum = fmaf(part[i], part[i], sum);
    }
  }
  const float scale = is_known ? rsqrtf(warp_sum<kLanes>(sum) * (1.0f / kHeadDim) + eps) : kNotANumber;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float w[kPer];
    weight[v].unpack(w);
#pragma unroll
    for (int i = 0; i < kPer; ++i) x[v * kPer + i] *= scale * w[i];
  }
  turn<kInterleaved>(x, cosine, sine);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float part[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) part[i] = x[v * kPer + i];
    vectors[v].pack(part);
  }
}

// A block takes a token's heads [part * kGroups * kHeads, ...), q before k. blocks: tokens * parts of them in all.
template <class T, class P, bool kInterleaved, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kResident)
    qknorm_rope_rows(const QkOperands o, int parts, int pieces) {
  constexpr int kPer = kPerVector<T>, kVectors = kPerLane / kPer, kGroups = Plan::kThreads / kLanes;
  await_previous<Plan::kOrder>();
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  for (int piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const int token = piece / parts, first = (piece - token * parts) * kGroups * Plan::kHeads + group;
    const int64_t position = static_cast<const P*>(o.positions)[token * o.position_stride];
    float cosine[kPerLane / 2], sine[kPerLane / 2];
    const auto load_turn_at = [&](int64_t at) {
      load_turn<T, kInterleaved>(o.cache + at * o.cache_row_stride, lane, cosine);
      load_turn<T, kInterleaved>(o.cache + at * o.cache_row_stride + kHalf, lane, sine);
    };
    const int64_t guess = token < o.cache_rows ? token : 0;
    if constexpr (Plan::kTurn == Turn::kGuessed) load_turn_at(guess);
    T* row[Plan::kHeads];
    Run<T, kPer> raw[Plan::kHeads][kVectors], weight[Plan::kHeads][kVectors];
#pragma unroll
    for (int u = 0; u < Plan::kHeads; ++u) {
      const int index = first + u * kGroups;
      const bool is_q = index < o.q.count;
      const int64_t token_stride = is_q ? o.q.token_stride : o.k.token_stride;
      const int64_t head_stride = is_q ? o.q.head_stride : o.k.head_stride;
      const int head = is_q ? index : index - o.q.count;
      const T* weights = static_cast<const T*>(is_q ? o.q.weight : o.k.weight);
      row[u] = static_cast<T*>(is_q ? o.q.data : o.k.data) + token * token_stride + head * head_stride;
      if (index >= o.q.count + o.k.count) row[u] = nullptr;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        raw[u][v] = {};
        if (row[u]) raw[u][v].template load<Plan::kLoads>(row[u] + (v * kLanes + lane) * kPer);
        weight[u][v].load(weights + (v * kLanes + lane) * kPer);
      }
    }
    const bool is_known = position >= 0 && position < o.cache_rows;
    const int64_t turn_row = is_known ? position : 0;
    if (Plan::kTurn == Turn::kKnown || turn_row != guess) load_turn_at(turn_row);
#pragma unroll
    for (int u = 0; u < Plan::kHeads; ++u) {
      finish_head<kInterleaved>(raw[u], weight[u], cosine, sine, is_known, o.eps);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (row[u]) raw[u][v].template store<Plan::kStores>(row[u] + (v * kLanes + lane) * kPer);
      }
    }
  }
}

// grid: most blocks of the launch, or 0: one for each piece.
template <class T, class P, bool kInterleaved, class Plan>
int32_t launch_rows(const QkOperands& o, int grid, void* stream) {
  constexpr int kHeadsPerBlock = Plan::kThreads / kLanes * Plan::kHeads;
  const int parts = ceil_div_int(o.q.count + o.k.count, kHeadsPerBlock), pieces = o.tokens * parts;
  const int blocks = grid > 0 && grid < pieces ? grid : pieces;
  return launch(Plan::kOrder, qknorm_rope_rows<T, P, kInterleaved, Plan>, blocks, Plan::kThreads, stream, o, parts,
                pieces);
}

// Any strides, element by element: a warp takes a head, a lane two of its pairs. Correct, not fast.
constexpr int kElementThreads = 128;
template <class T, class P, bool kInterleaved>
__global__ void __launch_bounds__(kElementThreads) qknorm_rope_elements(const QkOperands o) {
  constexpr int kPairs = kHalf / kWarpThreads, kWarps = kElementThreads / kWarpThreads;
  const int lane = threadIdx.x % kWarpThreads, heads = o.q.count + o.k.count;
  const int index = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
  if (index >= o.tokens * heads) return;
  const int token = index / heads, slot = index - token * heads;
  const Heads side = slot < o.q.count ? o.q : o.k;
  const int head = slot < o.q.count ? slot : slot - o.q.count;
  T* row = static_cast<T*>(side.data) + token * side.token_stride + head * side.head_stride;
  const T* weight = static_cast<const T*>(side.weight);
  const int64_t position = static_cast<const P*>(o.positions)[token * o.position_stride];
  const bool is_known = position >= 0 && position < o.cache_rows;
  const float* cached = o.cache + (is_known ? position : 0) * o.cache_row_stride;
  float a[kPairs], b[kPairs], sum = 0;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + j * kWarpThreads, at_a = kInterleaved ? 2 * i : i, at_b = kInterleaved ? 2 * i + 1 : i + kHalf;
    a[j] = to_f32(row[at_a * side.stride]);
    b[j] = to_f32(row[at_b * side.stride]);
    sum = fmaf(a[j], a[j], fmaf(b[j], b[j], sum));
  }
  const float scale = is_known ? rsqrtf(warp_sum(sum) * (1.0f / kHeadDim) + o.eps) : kNotANumber;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + j * kWarpThreads, at_a = kInterleaved ? 2 * i : i, at_b = kInterleaved ? 2 * i + 1 : i + kHalf;
    const float x = a[j] * scale * to_f32(weight[at_a * side.weight_stride]);
    const float y = b[j] * scale * to_f32(weight[at_b * side.weight_stride]);
    const float cosine = cached[i * o.cache_stride], sine = cached[(i + kHalf) * o.cache_stride];
    row[at_a * side.stride] = from_f32<T>(x * cosine - y * sine);
    row[at_b * side.stride] = from_f32<T>(y * cosine + x * sine);
  }
}

template <class T, class P, bool kInterleaved>
int32_t launch_elements(const QkOperands& o, void* stream) {
  const int rows = o.tokens * (o.q.count + o.k.count);
  return launch(Order::kPlain, qknorm_rope_elements<T, P, kInterleaved>,
                ceil_div_int(rows, kElementThreads / kWarpThreads), kElementThreads, stream, o);
}

}  // namespace amk::task
