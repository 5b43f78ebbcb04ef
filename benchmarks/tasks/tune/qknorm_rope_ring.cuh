// Candidate of qknorm_rope: warps that stay, each for the same heads of many tokens. A lane's own vectors of the tokens
// to come are on their way into its own slots of shared memory (stage_vector), so a ring needs no barrier and no
// register. Measured by amk_tune_qknorm_rope, dispatched nowhere. In: QkOperands that may be read 16 bytes at a time.
// Out: q and k.
#pragma once

#include "../qknorm_rope/solution/qknorm_rope.cuh"
#include "staging.cuh"

namespace amk::task {

// threads: of a block; heads: of a group of eight lanes, per token; stages: tokens of a warp that are on their way or
// at work; resident: blocks per SM that registers are kept free for.
template <int kThreadsOfPlan, int kHeadsOfPlan, int kStagesOfPlan, int kResidentOfPlan = 1,
          Reuse kReuseOfPlan = Reuse::kStream, Order kOrderOfPlan = Order::kPlain>
struct RingPlan {
  static constexpr int kThreads = kThreadsOfPlan, kHeads = kHeadsOfPlan, kStages = kStagesOfPlan;
  static constexpr int kResident = kResidentOfPlan, kWarps = kThreads / kWarpThreads;
  static constexpr Reuse kReuse = kReuseOfPlan;
  static constexpr Order kOrder = kOrderOfPlan;
  static constexpr int kHeadsOfWarp = kWarpThreads / kLanes * kHeads;
};

// Warp w takes heads [w % parts * kHeadsOfWarp, ...) of tokens w / parts, w / parts + step, ...
template <class T, class P, bool kInterleaved, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kResident)
    qknorm_rope_ring(const QkOperands o, int parts, int step) {
  constexpr int kPer = kPerVector<T>, kVectors = kPerLane / kPer, kHeads = Plan::kHeads, kStages = Plan::kStages;
  uint4* const slots = reinterpret_cast<uint4*>(dynamic_shared());  // [stage][head][vector][thread]
  const int lane = threadIdx.x % kLanes, group = threadIdx.x % kWarpThreads / kLanes;
  const int warp = blockIdx.x * Plan::kWarps + threadIdx.x / kWarpThreads;
  await_previous<Plan::kOrder>();
  if (warp >= parts * step) return;
  int token = warp / parts;
  const int first = (warp - token * parts) * Plan::kHeadsOfWarp + group;
  T* base[kHeads];  // of token 0
  bool is_q[kHeads];
  Run<T, kPer> weight[kHeads][kVectors];
#pragma unroll
  for (int u = 0; u < kHeads; ++u) {
    const int index = first + u * (kWarpThreads / kLanes);
    is_q[u] = index < o.q.count;
    const int head = is_q[u] ? index : index - o.q.count;
    const T* weights = static_cast<const T*>(is_q[u] ? o.q.weight : o.k.weight);
    base[u] = static_cast<T*>(is_q[u] ? o.q.data : o.k.data) + head * (is_q[u] ? o.q.head_stride : o.k.head_stride);
    if (index >= o.q.count + o.k.count) base[u] = nullptr;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) weight[u][v].load(weights + (v * kLanes + lane) * kPer);
  }
  const auto row = [&](int u, int of) { return base[u] + of * (is_q[u] ? o.q.token_stride : o.k.token_stride); };
  const auto slot = [&](int stage, int u, int v) {
    return slots + ((stage * kHeads + u) * kVectors + v) * Plan::kThreads + threadIdx.x;
  };
  const auto request = [&](int stage, int of) {
    if (of < o.tokens) {
#pragma unroll
      for (int u = 0; u < kHeads; ++u) {
        if (!base[u]) continue;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) stage_vector(slot(stage, u, v), row(u, of) + (v * kLanes + lane) * kPer);
      }
    }
    end_group();
  };
  const auto position_of = [&](int of) -> int64_t {
    return of < o.tokens ? static_cast<const P*>(o.positions)[of * o.position_stride] : 0;
  };
  const auto is_known = [&](int64_t position) { return position >= 0 && position < o.cache_rows; };
  float cosine[kPerLane / 2], sine[kPerLane / 2], next_cosine[kPerLane / 2], next_sine[kPerLane / 2];
  const auto load_turn_at = [&](int64_t position, float (&c)[kPerLane / 2], float (&s)[kPerLane / 2]) {
    const float* cached = o.cache + (is_known(position) ? position : 0) * o.cache_row_stride;
    load_turn<T, kInterleaved>(cached, lane, c);
    load_turn<T, kInterleaved>(cached + kHalf, lane, s);
  };

  int64_t position = position_of(token), next_position = position_of(token + step);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) request(s, token + s * step);
  load_turn_at(position, cosine, sine);
  int stage = 0;
  for (; token < o.tokens; token += step) {
    request(stage == 0 ? kStages - 1 : stage - 1, token + (kStages - 1) * step);
    const int64_t after_next = position_of(token + 2 * step);
    load_turn_at(next_position, next_cosine, next_sine);
    await_groups<kStages - 1>();
#pragma unroll
    for (int u = 0; u < kHeads; ++u) {
      Run<T, kPer> vectors[kVectors];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        vectors[v] = {};
        if (base[u]) vectors[v].load(reinterpret_cast<const T*>(slot(stage, u, v)));
      }
      finish_head<kInterleaved>(vectors, weight[u], cosine, sine, is_known(position), o.eps);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (base[u]) vectors[v].template store<Plan::kReuse>(row(u, token) + (v * kLanes + lane) * kPer);
      }
    }
#pragma unroll
    for (int i = 0; i < kPerLane / 2; ++i) {
      cosine[i] = next_cosine[i];
      sine[i] = next_sine[i];
    }
    position = next_position;
    next_position = after_next;
    if (++stage == kStages) stage = 0;
  }
}

// grid: most blocks of the launch, or 0: of those that are resident, as many as share the tokens most evenly.
template <class T, class P, bool kInterleaved, class Plan>
int32_t launch_ring(const QkOperands& o, int grid, void* stream) {
  const auto kernel = qknorm_rope_ring<T, P, kInterleaved, Plan>;
  const int parts = ceil_div_int(o.q.count + o.k.count, Plan::kHeadsOfWarp);
  const int shared = Plan::kStages * Plan::kHeads * (kPerLane / kPerVector<T>)*Plan::kThreads * kVectorBytes;
  Room room;
  if (const int32_t status = find_room(kernel, Plan::kThreads, shared, &room)) return status;
  const auto steps = [&](int n) { return n * room.processors * Plan::kWarps / parts; };
  const auto slots = [&](int n) { return int64_t{steps(n)} * ceil_div_int(o.tokens, steps(n)); };
  int best = grid > 0 && grid / room.processors < room.resident ? grid / room.processors : room.resident;
  if (steps(best) < 1) return AMK_ERR_UNSUPPORTED;
  for (int n = best - 1; grid == 0 && 2 * n >= room.resident && steps(n) > 0; --n) {
    if (slots(n) < slots(best)) best = n;
  }
  const int step = steps(best) < o.tokens ? steps(best) : o.tokens;
  return launch_with(Plan::kOrder, kernel, ceil_div_int(step * parts, Plan::kWarps), Plan::kThreads, shared, stream, o,
                     parts, step);
}

}  // namespace amk::task
