// ATTENTION_TILE of 16-bit types on the tensor cores: heads of 64 or 128 elements, up to 8 query heads per kv head.
// A tile is 8 cache rows; the warps take tiles in turn. For scores the query heads are rows 0 to 7 of A and the rows of
// a tile the columns of B; which elements of k an instruction takes does not matter as long as both sides take the
// same (ops/packing.h). A lane then has the scores of query head lane / 4 with two rows of each tile, which is where A
// of the second product wants the weights (Dao et al. 2022, arXiv:2205.14135). Rows 0 to 7 of that A are the weights
// rounded to T and rows 8 to 15 what the rounding lost, so the sum is that of weights twice as long.
// A warp makes its own copy of the query heads, and the first rows are in registers before the inputs are awaited: up
// to the merge of the warps there is no barrier.
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

// One kv head of a task.
template <class T, int kDim, int kWarps>
class MmaAttention {
 public:
  // This warp's share of the rows [first, end), which no task writes in this launch: the first are on their way. With
  // has_new one more row follows, which make_heads() makes. state: [kWarps][kStateHeads][kDim + kStatePad], where a
  // warp keeps its query heads until it publishes. new_row: key and value, 2 * kDim elements.
  __device__ MmaAttention(const TaskContext& c, float* state, uint4* new_row, int g, int first, int end, bool has_new)
      : state_(state + warp() * kStateHeads * (kDim + kStatePad)),
        query_(reinterpret_cast<uint4*>(state_)),
        new_row_(new_row),
        left_(end - first - warp() * kTileRows),
        has_new_(has_new) {
    const int64_t at = (int64_t{g} * c.params().K + first + warp() * kTileRows) * kDim;
    keys_ = c.in<T>(1) + at + quad() * kDim + lane_in_quad() * kElements;
    values_ = c.in<T>(2) + at + 2 * lane_in_quad() * kDim + quad() * kElements;
    load_keys();
    load_values();
  }

  // Query heads, normalised and turned as one_head() does where norms and angles are given, and the new row's key by
  // the warp whose tile it is in.
  __device__ __forceinline__ void make_heads(const TaskContext& c, const T* heads, const T* new_key, const T* new_value,
                                             const T* q_norm, const T* k_norm, const float2* turn) {
    const int group = c.params().n_heads / c.params().n_kv_heads;
    const bool makes_new = has_new_ && left_ >= 0 && left_ % kStride < kTileRows;
    T* const query = reinterpret_cast<T*>(query_);
    Pairs q_weight{}, k_weight{}, key{};
    uint4 value{};
    if (q_norm) q_weight.load(q_norm);
    if (makes_new) {
      key.load(new_key);
      if (k_norm) k_weight.load(k_norm);
      if (lane() < kRowVectors) value = load_vector(new_value + lane() * kElements);
    }
    for (int first = 0; first < group; first += kHeadsAhead) {
      Pairs head[kHeadsAhead];
#pragma unroll
      for (int h = 0; h < kHeadsAhead; ++h)
        if (first + h < group) head[h].load(heads + (first + h) * kDim);
#pragma unroll
      for (int h = 0; h < kHeadsAhead; ++h) {
        if (first + h >= group) break;  // a row of A without a head has any values and is never stored
        head[h].turn(c, q_norm, q_weight, turn);
        head[h].store([&](int e) {
          return query +
                 ((e / kUnitElements * kWarpThreads + (first + h) * kQuadLanes + e % kUnitElements / kElements) *
                      kElements +
                  e % kElements);
        });
      }
    }
    if (makes_new) {
      key.turn(c, k_norm, k_weight, turn);
      key.store([&](int e) { return reinterpret_cast<T*>(new_row_) + e; });
      if (lane() < kRowVectors) new_row_[kRowVectors + lane()] = value;
    }
    __syncwarp();
  }

  __device__ __forceinline__ void rows(float scale) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) o_[n][0] = o_[n][1] = o_[n][2] = o_[n][3] = 0;
    while (left_ + has_new_ > 0) {
      if (has_new_ && left_ < kTiles * kStride) put_new();
      float s[kTiles][2];
      scores(scale, left_ + has_new_, s);
      left_ -= kTiles * kStride;
      if (left_ > 0) {
        keys_ += kTiles * kStride * kDim;
        load_keys();
      }
      weigh(s);
      add_values(s);
      if (left_ > 0) {
        values_ += kTiles * kStride * kDim;
        load_values();
      }
    }
  }

  // Heads from `head`: outputs, the maximum and the sum behind them.
  __device__ __forceinline__ void publish(int head) {
    const int h = quad() - head;
    float sum = l_;
#pragma unroll
    for (int mask = 1; mask < kQuadLanes; mask *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, mask);
    __syncwarp();  // the query heads were where the states go
    if (h < 0 || h >= kStateHeads) return;
    float* at = state_ + h * (kDim + kStatePad);
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
  static constexpr int kHeadsAhead = 4;                // in registers at a time
  static constexpr int kRowVectors = kDim / kElements;
  static constexpr int kTiles = 2 * 128 / kDim;  // of a step: as many as the registers hold, two per product
  static_assert(kTiles % 2 == 0 && kDim % 64 == 0);
  static_assert(kUnits * kWarpThreads * kVectorBytes <= kStateHeads * (kDim + kStatePad) * 4, "the query heads' place");

  static constexpr int kStride = kWarps * kTileRows;  // rows from one tile of a warp to its next

  __device__ static int warp() { return threadIdx.x / kWarpThreads; }
  __device__ static int lane() { return threadIdx.x % kWarpThreads; }
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
  // The row behind the cached ones, where it is in a tile of this step.
  __device__ __forceinline__ void put_new() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (quad() + t * kStride == left_) {
#pragma unroll
        for (int u = 0; u < kUnits; ++u) k_[t][u] = new_row_[u * kQuadLanes + lane_in_quad()];
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (2 * lane_in_quad() + r + t * kStride != left_) continue;
#pragma unroll
        for (int j = 0; j < kVectors; ++j) v_[t][r][j] = new_row_[kRowVectors + quad() + j * 8];
      }
    }
  }

  // A head in the registers of a warp: elements kPairs * lane + i, and those half a head behind, which they turn with.
  struct Pairs {
    static constexpr int kPairs = kDim / 2 / kWarpThreads;
    float low[kPairs], high[kPairs];

    __device__ __forceinline__ void load(const T* src) {
      load_half(src + kPairs * lane(), low);
      load_half(src + kDim / 2 + kPairs * lane(), high);
    }
    __device__ __forceinline__ static void load_half(const T* src, float (&x)[kPairs]) {
      static_assert(kPairs == 1 || kPairs == 2);
      if constexpr (kPairs == 2) {
        const float2 pair = unpack_pair<T>(__ldcg(reinterpret_cast<const uint32_t*>(src)));
        x[0] = pair.x;
        x[1] = pair.y;
      } else {
        x[0] = amk::load(src);
      }
    }
    __device__ __forceinline__ void turn(const TaskContext& c, bool has_norm, const Pairs& weight,
                                         const float2* angles) {
      if (has_norm) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) sum += low[i] * low[i] + high[i] * high[i];
        const float factor = rms_scale(warp_sum(sum), kDim, c.params().eps), plus = norm_plus(c.params());
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          low[i] = to_f32(from_f32<T>(low[i] * factor * (weight.low[i] + plus)));
          high[i] = to_f32(from_f32<T>(high[i] * factor * (weight.high[i] + plus)));
        }
      }
      if (!angles) return;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float2 cs = angles[kPairs * lane() + i];
        const float x = low[i], y = high[i];
        low[i] = x * cs.x - y * cs.y;
        high[i] = y * cs.x + x * cs.y;
      }
    }
    // at(e): where element e goes.
    template <class At>
    __device__ __forceinline__ void store(At at) const {
      store_half(at(kPairs * lane()), low);
      store_half(at(kDim / 2 + kPairs * lane()), high);
    }
    __device__ __forceinline__ static void store_half(T* to, const float (&x)[kPairs]) {
      if constexpr (kPairs == 2) {
        *reinterpret_cast<uint32_t*>(to) = pack_pair<T>(x[0], x[1]);
      } else {
        *to = from_f32<T>(x[0]);
      }
    }
  };

  // s[t][e]: of row 2 * (lane % 4) + e of tile t; minus infinity where there is none of `left` rows.
  __device__ __forceinline__ void scores(float scale, int left, float (&s)[kTiles][2]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float a[4] = {}, b[4] = {};
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint4 q = query_[u * kWarpThreads + lane()];
        multiply_add<T>(a, q.x, q.y, k_[t][u].x, k_[t][u].y);
        multiply_add<T>(b, q.z, q.w, k_[t][u].z, k_[t][u].w);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e)
        s[t][e] = 2 * lane_in_quad() + e + t * kStride < left ? (a[e] + b[e]) * scale : minus_infinity();
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
    m_ = largest;
    l_ *= shrink;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o_[n][i] *= shrink;
    }
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
  __device__ __forceinline__ void add_values(const float (&p)[kTiles][2]) {
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
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

  float* const state_;       // of this warp
  uint4* const query_;       // fragments, one per unit and lane
  uint4* const new_row_;     // key, value
  const T *keys_, *values_;  // this lane's of the step that was last asked for
  int left_;                 // rows from this warp's next tile to the end
  const int has_new_;        // one more row behind them
  uint4 k_[kTiles][kUnits], v_[kTiles][2][kVectors];
  float o_[kDim / 8][4];
  float m_ = minus_infinity(), l_ = 0;  // l_: of this lane's rows
};

template <class T, int kDim, int kThreads>
__device__ bool attend_mma(const TaskContext& c, RowRange range) {
  constexpr int kWarps = kThreads / kWarpThreads;
  const amk_params_t& p = c.params();
  const int group = p.n_heads / p.n_kv_heads;
  float* state = reinterpret_cast<float*>(c.shared);
  uint4* new_row = reinterpret_cast<uint4*>(c.shared + attention_state_bytes(p, sizeof(T), kThreads));
  const TaskAngles angles(c, c.task.rope_slot,
                          reinterpret_cast<float2*>(new_row + 2 * kDim * sizeof(T) / kVectorBytes));
  const bool is_raw = angles.turn;
  const T* q_norm = c.task.norm_slot < 0 ? nullptr : c.in<T>(c.task.norm_slot);
  const T* k_norm = c.task.k_norm_slot < 0 ? nullptr : c.in<T>(c.task.k_norm_slot);
  if (q_norm && threadIdx.x < 2 * kDim * sizeof(T) / kLineBytes) {
    const int line = threadIdx.x * kLineBytes, bytes = kDim * sizeof(T);
    ptx::prefetch_l2(line < bytes ? reinterpret_cast<const char*>(q_norm) + line
                                  : reinterpret_cast<const char*>(k_norm) + (line - bytes));
  }
  angles.make_early<kThreads>(c);
  const bool has_new = range.first <= c.pos && c.pos < range.end;  // then it is the last
  const int64_t at = c.pos;
  for (int g = p.n_off; g < p.n_off + p.N_tile; ++g) {
    MmaAttention<T, kDim, kWarps> pass(c, state, new_row, g, range.first, min(range.end, c.pos), has_new);
    if (g == p.n_off) {
      if (!c.template await_inputs<kThreads>()) return false;
      angles.finish<kThreads>(c);
    }
    if (g > p.n_off) block_sync<kThreads>();  // the last states have been read
    const T *x = c.in<T>(0) + p.m_off, *new_key, *new_value;
    if (is_raw) {
      new_key = x + (p.n_heads + g) * kDim;
      new_value = x + (p.n_heads + p.n_kv_heads + g) * kDim;
    } else {
      new_key = c.in<T>(1) + (int64_t{g} * p.K + at) * kDim;
      new_value = c.in<T>(2) + (int64_t{g} * p.K + at) * kDim;
    }
    pass.make_heads(c, x + int64_t{g} * group * kDim, new_key, new_value, q_norm, k_norm, angles.turn);
    pass.rows(p.scale);
    for (int h = 0; h < group; h += kStateHeads) {
      if (h > 0) block_sync<kThreads>();
      pass.publish(h);
      block_sync<kThreads>();
      merge_warps<kThreads, kDim>(c, state, kStateHeads, g * group + h, min(kStateHeads, group - h));
    }
  }
  return true;
}

}  // namespace amk
