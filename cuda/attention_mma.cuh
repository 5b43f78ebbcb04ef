// ATTENTION_TILE of 16-bit types on the tensor cores: heads of 64 or 128 elements, up to 8 query heads per kv head.
// A tile is 8 cache rows; the warps take tiles in turn. For scores the query heads are rows 0 to 7 of A and the rows of
// a tile the columns of B; which elements of k an instruction takes does not matter as long as both sides take the
// same (ops/packing.h). A lane then has the scores of query head lane / 4 with two rows of each tile, which is where A
// of the second product wants the weights (Dao et al. 2022, arXiv:2205.14135). Rows 0 to 7 of that A are the weights
// rounded to T and rows 8 to 15 what the rounding lost, so the sum is that of weights twice as long.
// The first rows are on their way to registers before the inputs are awaited. Behind them a warp makes a head of this
// step in shared memory, and a barrier later all warps have the query heads; the new row takes its place in its tile.
#pragma once

#include "attention_parts.cuh"
#include "mma.cuh"
#include "ops/packing.h"
#include "rope.cuh"

namespace amk {

constexpr int kTileRows = 8, kQuadLanes = 4;  // a quad of lanes shares a query head

// The law asks for no alignment of heads and of their norms.
template <class T>
__device__ __forceinline__ bool are_vectors(const TaskContext& c) {
  const auto address = [&](const void* at) { return reinterpret_cast<uintptr_t>(at); };
  uintptr_t all = address(c.in<T>(0) + c.params().m_off);
  if (c.task.norm_slot >= 0) all |= address(c.task.in[c.task.norm_slot]);
  if (c.task.k_norm_slot >= 0) all |= address(c.task.in[c.task.k_norm_slot]);
  return all % kVectorBytes == 0;
}

// A kv head's heads of this step in shared memory: its query heads, then its new key and its new value.
template <class T, int kDim>
struct StepHeads {
  static constexpr int kStride = kDim + kHeadPad;

  // One warp, one head: normalised and turned as one_head() does where norm and angles are given. All loads in one
  // trip.
  __device__ __forceinline__ static void make(const TaskContext& c, const T* src, const T* norm, const float2* turn,
                                              T* out) {
    constexpr int kLanes = kDim / 4;  // each with two pairs of neighbours, half a head apart; other lanes repeat them
    const int lane = ptx::thread_id() % kWarpThreads, at = lane % kLanes * 2;
    uint32_t words[2], weights[2]{};
#pragma unroll
    for (int i = 0; i < 2; ++i) words[i] = __ldcg(reinterpret_cast<const uint32_t*>(src + at + i * (kDim / 2)));
    if (norm) {
#pragma unroll
      for (int i = 0; i < 2; ++i) weights[i] = __ldcg(reinterpret_cast<const uint32_t*>(norm + at + i * (kDim / 2)));
    }
    if (turn) {
      float2 x[2] = {unpack_pair<T>(words[0]), unpack_pair<T>(words[1])};
      if (norm) {
        float sum = fmaf(x[0].x, x[0].x, x[0].y * x[0].y) + fmaf(x[1].x, x[1].x, x[1].y * x[1].y);
#pragma unroll
        for (int mask = 1; mask < kLanes; mask *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, mask);
        const float factor = rms_scale(sum, kDim, c.params().eps), plus = norm_plus(c.params());
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 w = unpack_pair<T>(weights[i]);
          x[i] = unpack_pair<T>(pack_pair<T>(x[i].x * factor * (w.x + plus), x[i].y * factor * (w.y + plus)));
        }
      }
      const float2 first = turn[at], second = turn[at + 1];
      words[0] = pack_pair<T>(x[0].x * first.x - x[1].x * first.y, x[0].y * second.x - x[1].y * second.y);
      words[1] = pack_pair<T>(x[1].x * first.x + x[0].x * first.y, x[1].y * second.x + x[0].y * second.y);
    }
    if (lane >= kLanes) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) *reinterpret_cast<uint32_t*>(out + at + i * (kDim / 2)) = words[i];
  }
};

// One kv head of a task.
template <class T, int kDim, int kWarps>
class MmaAttention {
 public:
  // This warp's share of the rows [first, end), which no task writes in this launch: the first are on their way to
  // registers. has_new: row `end` is the one that this step adds.
  __device__ __forceinline__ MmaAttention(const TaskContext& c, int g, int first, int end, bool has_new)
      : left_(end - first - warp() * kTileRows), has_new_(has_new) {
    const int64_t at = (int64_t{g} * c.params().K + first + warp() * kTileRows) * kDim;
    keys_ = c.in<T>(1) + at + quad() * kDim + lane_in_quad() * kElements;
    values_ = c.in<T>(2) + at + 2 * lane_in_quad() * kDim + quad() * kElements;
    load_keys();
    load_values();
  }

  // heads: StepHeads of `group` query heads.
  __device__ __forceinline__ void rows(const T* heads, int group, float scale) {
    constexpr int kHead = StepHeads<T, kDim>::kStride;
    const auto vectors_of = [&](int head) { return reinterpret_cast<const uint4*>(heads + head * kHead); };
    const uint4* query = vectors_of(min(quad(), group - 1)) + lane_in_quad();  // behind the last head it is repeated
    const uint4 *new_key = vectors_of(group) + lane_in_quad(), *new_value = vectors_of(group + 1) + quad();
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) o_[n][0] = o_[n][1] = o_[n][2] = o_[n][3] = 0;
    const int added = has_new_ ? 1 : 0;
    while (left_ + added > 0) {
      const int left = left_, tile = left / kStride, row = left % kStride;  // where a new row would be
      const bool takes_new = has_new_ && tile < kTiles && row < kTileRows;
      if (takes_new) take_key(new_key, tile, row);
      float s[kTiles][2];
      scores(query, scale, left + added, s);
      left_ -= kTiles * kStride;
      if (left_ + added > 0) {
        keys_ += kTiles * kStride * kDim;
        load_keys();
      }
      weigh(s);
      if (takes_new) take_value(new_value, tile, row);
      add_values(s, left + added);
      if (left_ + added > 0) {
        values_ += kTiles * kStride * kDim;
        load_values();
      }
    }
  }

  // Heads from `head`: outputs, the maximum and the sum behind them.
  // state: [kWarps][kStateHeads][kDim + kStatePad].
  __device__ __forceinline__ void publish(float* state, int head) {
    const int h = quad() - head;
    float sum = l_;
#pragma unroll
    for (int mask = 1; mask < kQuadLanes; mask *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, mask);
    if (h < 0 || h >= kStateHeads) return;
    float* at = state + (warp() * kStateHeads + h) * (kDim + kStatePad);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float4* to = reinterpret_cast<float4*>(at + (2 * lane_in_quad() + e + j * 8) * kElements);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto sum_of = [&](int t) { return o_[j * 8 + half * 4 + t][e] + o_[j * 8 + half * 4 + t][2 + e]; };
          to[half] = {sum_of(0), sum_of(1), sum_of(2), sum_of(3)};
        }
      }
    }
    if (lane_in_quad() == 0) {
      at[kDim] = m_;
      at[kDim + 1] = sum;
    }
  }

 private:
  static constexpr int kElements = 8;                  // of a 16-byte vector
  static constexpr int kUnits = kDim / kUnitElements;  // vectors of a key that a lane holds
  static constexpr int kVectors = kDim / 64;           // of a value
  static constexpr int kTiles = 2 * 128 / kDim;        // of a step: as many as the registers hold, two per product
  static_assert(kTiles % 2 == 0 && kDim % 64 == 0);
  static constexpr int kStride = kWarps * kTileRows;  // rows from one tile of a warp to its next

  __device__ static int warp() { return ptx::thread_id() / kWarpThreads; }
  __device__ static int lane() { return ptx::thread_id() % kWarpThreads; }
  __device__ static int quad() { return lane() / kQuadLanes; }
  __device__ static int lane_in_quad() { return lane() % kQuadLanes; }

  // Zero where there is no row: its weight is zero, and zero times anything else may be NaN.
  __device__ static uint4 load_row(bool exists, const T* at) { return exists ? load_vector(at) : uint4{}; }
  __device__ __forceinline__ void load_keys() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
        k_[t][u] = load_row(quad() + t * kStride < left_, keys_ + t * kStride * kDim + u * kUnitElements);
    }
  }
  __device__ __forceinline__ void load_values() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int j = 0; j < kVectors; ++j)
          v_[t][r][j] = load_row(2 * lane_in_quad() + r + t * kStride < left_,
                                 values_ + (t * kStride + r) * kDim + j * 8 * kElements);
      }
    }
  }
  // The new row is row `row` of tile `tile` of a step: its key, and behind the scores its value.
  __device__ __forceinline__ void take_key(const uint4* key, int tile, int row) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (t != tile || quad() != row) continue;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) k_[t][u] = key[u * kQuadLanes];
    }
  }
  __device__ __forceinline__ void take_value(const uint4* value, int tile, int row) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (t != tile || 2 * lane_in_quad() + r != row) continue;
#pragma unroll
        for (int j = 0; j < kVectors; ++j) v_[t][r][j] = value[j * 8];
      }
    }
  }

  // Whether tile `first` or the next has one of `left` rows; a step has some.
  __device__ __forceinline__ static bool has_tiles(int first, int left) { return first == 0 || first * kStride < left; }

  // s[t][e]: of row 2 * (lane % 4) + e of tile t; minus infinity where there is none of `left` rows.
  __device__ __forceinline__ void scores(const uint4* query, float scale, int left, float (&s)[kTiles][2]) const {
#pragma unroll
    for (int first = 0; first < kTiles; first += 2) {
      if (!has_tiles(first, left)) {
        s[first][0] = s[first][1] = s[first + 1][0] = s[first + 1][1] = minus_infinity();
        continue;
      }
#pragma unroll
      for (int t = first; t < first + 2; ++t) {
        float a[4] = {}, b[4] = {};
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          const uint4 q = query[u * kQuadLanes];
          multiply_add<T>(a, q.x, q.y, k_[t][u].x, k_[t][u].y);
          multiply_add<T>(b, q.z, q.w, k_[t][u].z, k_[t][u].w);
        }
#pragma unroll
        for (int e = 0; e < 2; ++e)
          s[t][e] = 2 * lane_in_quad() + e + t * kStride < left ? (a[e] + b[e]) * scale : minus_infinity();
      }
    }
  }

  // Scores to weights, seen from the largest score so far; what is there already shrinks to it.
  __device__ __forceinline__ void weigh(float (&s)[kTiles][2]) {
    float largest = m_;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) largest = fmaxf(largest, fmaxf(s[t][0], s[t][1]));
#pragma unroll
    for (int mask = 1; mask < kQuadLanes; mask *= 2)
      largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, mask));
    const float shrink = merge_weight(m_, largest);
    if (__any_sync(kWholeWarp, m_ < largest && l_ != 0)) {  // there is nothing to shrink in the first step
      l_ *= shrink;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o_[n][i] *= shrink;
      }
    }
    m_ = largest;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        s[t][e] = merge_weight(s[t][e], largest);
        l_ += s[t][e];
      }
    }
  }

  __device__ __forceinline__ static uint32_t word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
  }
  // Column n of B is element t of vector n: so a lane ends with two whole vectors of its head.
  __device__ __forceinline__ void add_values(const float (&p)[kTiles][2], int left) {
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      if (!has_tiles(t, left)) continue;
      uint32_t high[2], low[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        high[i] = pack_pair<T>(p[t + i][0], p[t + i][1]);
        const float2 kept = unpack_pair<T>(high[i]);
        low[i] = pack_pair<T>(p[t + i][0] - kept.x, p[t + i][1] - kept.y);
      }
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          const uint32_t halves = e % 2 ? 0x7632 : 0x5410;
          const uint32_t b0 = __byte_perm(word(v_[t][0][j], e / 2), word(v_[t][1][j], e / 2), halves);
          const uint32_t b1 = __byte_perm(word(v_[t + 1][0][j], e / 2), word(v_[t + 1][1][j], e / 2), halves);
          multiply_add_two<T>(o_[j * 8 + e], high[0], low[0], high[1], low[1], b0, b1);
        }
      }
    }
  }

  const T *keys_, *values_;  // this lane's of the step that was last asked for
  int left_;                 // cached rows from this warp's next tile to the end
  bool has_new_;
  uint4 k_[kTiles][kUnits], v_[kTiles][2][kVectors];
  float o_[kDim / 8][4];
  float m_ = minus_infinity(), l_ = 0;  // l_: of this lane's rows
};

// Adds the warps' states up: part_o and part_ml of up to kStateHeads query heads from `head`, or those heads. A warp
// takes 64 elements of a head, so no warp has two turns.
template <class T, int kThreads, int kDim>
__device__ __forceinline__ void merge_states(const TaskContext& c, const float* state, int head, int heads) {
  constexpr int kWarps = kThreads / kWarpThreads, kPieces = kDim / 64, kStride = kDim + kStatePad;
  static_assert(kStateHeads * kPieces <= kWarps);
  const int warp = ptx::thread_id() / kWarpThreads, lane = ptx::thread_id() % kWarpThreads;
  const int h = warp / kPieces, d = warp % kPieces * 64 + 2 * lane;
  if (h >= heads) return;
  const auto state_of = [&](int w) { return state + (w * kStateHeads + h) * kStride; };
  const float2 ml =
      lane < kWarps ? *reinterpret_cast<const float2*>(state_of(lane) + kDim) : float2{minus_infinity(), 0};
  float2 outs[kWarps], o = {0, 0};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) outs[w] = *reinterpret_cast<const float2*>(state_of(w) + d);
  const float common = warp_max(ml.x), weight = merge_weight(ml.x, common), weighted_l = weight * ml.y;
  float l = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float of_w = __shfl_sync(kWholeWarp, weight, w);
    o = {fmaf(of_w, outs[w].x, o.x), fmaf(of_w, outs[w].y, o.y)};
    l += __shfl_sync(kWholeWarp, weighted_l, w);
  }
  if (c.params().flags & AMK_FLAG_DIRECT) {
    *reinterpret_cast<uint32_t*>(c.out<T>(0) + (int64_t{head} + h) * kDim + d) = pack_pair<T>(o.x / l, o.y / l);
    return;
  }
  const int64_t part = (int64_t{head} + h) * c.params().M + c.params().dim;
  *reinterpret_cast<float2*>(c.out<float>(0) + part * kDim + d) = o;
  if (d == 0) *reinterpret_cast<float2*>(c.out<float>(1) + part * 2) = {common, l};
}

template <class T, int kDim, int kThreads>
__device__ bool attend_mma(const TaskContext& c, RowRange range) {
  using Heads = StepHeads<T, kDim>;
  constexpr int kWarps = kThreads / kWarpThreads;
  const amk_params_t& p = c.params();
  const int group = p.n_heads / p.n_kv_heads, warp = ptx::thread_id() / kWarpThreads;
  float* state = reinterpret_cast<float*>(c.shared);
  T* heads = reinterpret_cast<T*>(c.shared + attention_state_bytes(p, sizeof(T), kThreads));
  const TaskAngles angles(c, c.task.rope_slot, reinterpret_cast<float2*>(heads + (group + 2) * Heads::kStride));
  const bool is_raw = angles.turn;
  const T* q_norm = c.task.norm_slot < 0 ? nullptr : c.in<T>(c.task.norm_slot);
  const T* k_norm = c.task.k_norm_slot < 0 ? nullptr : c.in<T>(c.task.k_norm_slot);
  if (q_norm && ptx::thread_id() < 2 * kDim * sizeof(T) / kLineBytes) {
    const int line = ptx::thread_id() * kLineBytes, bytes = kDim * sizeof(T);
    ptx::prefetch_l2(line < bytes ? reinterpret_cast<const char*>(q_norm) + line
                                  : reinterpret_cast<const char*>(k_norm) + (line - bytes));
  }
  angles.make_early<kThreads>(c);
  const bool has_new = range.first <= c.pos && c.pos < range.end;
  for (int g = p.n_off; g < p.n_off + p.N_tile; ++g) {
    // Of the task's heads number i: query heads, then the new row, which without ROPE lies in the caches.
    const auto source_of = [&](int i) -> const T* {
      const T* x = c.in<T>(0) + p.m_off;
      if (i < group) return x + (int64_t{g} * group + i) * kDim;
      if (!is_raw) return c.in<T>(i - group + 1) + (int64_t{g} * p.K + c.pos) * kDim;
      return x + (p.n_heads + (i - group) * p.n_kv_heads + g) * int64_t{kDim};
    };
    const T* source = source_of(warp);
    MmaAttention<T, kDim, kWarps> pass(c, g, range.first, min(range.end, c.pos), has_new);
    if (g == p.n_off) {
      if (!c.template await_inputs<kThreads>()) return false;
      angles.finish<kThreads>(c);
    }
    for (int i = warp; i < group + (has_new ? 2 : 0); i += kWarps) {
      Heads::make(c, i == warp ? source : source_of(i),
                  i < group    ? q_norm
                  : i == group ? k_norm
                               : nullptr,
                  i <= group ? angles.turn : nullptr, heads + i * Heads::kStride);
    }
    block_sync<kThreads>();  // heads are there, and the last states have been read
    pass.rows(heads, group, p.scale);
    for (int h = 0; h < group; h += kStateHeads) {
      if (h > 0) block_sync<kThreads>();
      pass.publish(state, h);
      block_sync<kThreads>();
      merge_states<T, kThreads, kDim>(c, state, g * group + h, min(kStateHeads, group - h));
    }
  }
  return true;
}

}  // namespace amk
