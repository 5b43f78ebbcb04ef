// ATTENTION_TILE of 16-bit types on the tensor cores: heads of 64 or 128 elements, up to 8 query heads per kv head.
// A tile is 8 cache rows; the warps take tiles in turn. For scores the query heads are rows 0 to 7 of A and the rows of
// a tile the columns of B; which elements of k an instruction takes does not matter as long as both sides take the
// same (ops/packing.h). A lane then has the scores of query head lane / 4 with two rows of each tile, which is where A
// of the second product wants the weights (Dao et al. 2022, arXiv:2205.14135). Rows 0 to 7 of that A are the weights
// rounded to T and rows 8 to 15 what the rounding lost, so the sum is that of weights twice as long.
// A lane makes its own part of the query heads, and the first rows are in registers before the inputs are awaited: up
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
  // This warp's share of the rows [first, end), which no task writes in this launch: the first are on their way, keys
  // to registers, values to L2. state: [kWarps][kStateHeads][kDim + kStatePad], where a warp keeps its query heads
  // until it publishes.
  __device__ MmaAttention(const TaskContext& c, float* state, int g, int first, int end)
      : state_(state + warp() * kStateHeads * (kDim + kStatePad)),
        query_(reinterpret_cast<uint4*>(state_) + lane()),
        left_(end - first - warp() * kTileRows) {
    const int64_t at = (int64_t{g} * c.params().K + first + warp() * kTileRows) * kDim;
    keys_ = c.in<T>(1) + at + quad() * kDim + lane_in_quad() * kElements;
    values_ = c.in<T>(2) + at + 2 * lane_in_quad() * kDim + quad() * kElements;
    load_keys();
    fetch_values();
  }

  // Query heads, normalised and turned as one_head() does where norms and angles are given. `new_key` and `new_value`:
  // of one more row for this warp, or null; it waits at `new_row`, as registers are short.
  __device__ __forceinline__ void make_heads(const TaskContext& c, const T* heads, const T* new_key, const T* new_value,
                                             const T* q_norm, const T* k_norm, const float2* turn, uint4* new_row) {
    const int group = c.params().n_heads / c.params().n_kv_heads;
    new_row_ = new_key ? new_row : nullptr;
    // Rows of A behind the last head repeat it and are never stored. All loads in one trip.
    uint4 query[kUnits], q_weight[kUnits]{}, key[kUnits]{}, k_weight[kUnits]{}, value{};
    load_head(heads + min(quad(), group - 1) * kDim, query);
    if (q_norm) load_head(q_norm, q_weight);
    if (new_key) {
      load_head(new_key, key);
      if (k_norm) load_head(k_norm, k_weight);
      if (lane() < kRowVectors) value = load_vector(new_value + lane() * kElements);
    }
    if (turn) turn_head(c, q_norm, q_weight, turn, query);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) query_[u * kWarpThreads] = query[u];
    if (!new_key) return;
    if (turn) turn_head(c, k_norm, k_weight, turn, key);
    if (lane() < kRowVectors) new_row[kRowVectors + lane()] = value;
    if (quad() == 0) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) new_row[u * kQuadLanes + lane()] = key[u];
    }
    __syncwarp();
  }

  __device__ __forceinline__ void rows(float scale) {
    load_values();
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) o_[n][0] = o_[n][1] = o_[n][2] = o_[n][3] = 0;
    while (left_ > 0 || new_row_) {
      const bool is_new = left_ <= 0;
      if (is_new) take_new();
      float s[kTiles][2];
      scores(scale, is_new ? 1 : left_, s);
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
  __device__ __forceinline__ void fetch_values() const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (2 * lane_in_quad() + r + t * kStride >= left_) continue;
#pragma unroll
        for (int j = 0; j < kVectors; ++j) ptx::prefetch_l2(values_ + (t * kStride + r) * kDim + j * 8 * kElements);
      }
    }
  }
  // The new row is row 0 of tile 0.
  __device__ __forceinline__ void take_new() {
    const bool is_first = lane_in_quad() == 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) k_[0][u] = new_row_[u * kQuadLanes + lane_in_quad()];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      v_[0][0][j] = is_first ? new_row_[kRowVectors + quad() + j * 8] : uint4{};
      v_[0][1][j] = uint4{};
    }
    new_row_ = nullptr;
  }

  // Lane l: elements 32u + 8 * (l % 4) ... + 7 of the head that its quad was given.
  __device__ __forceinline__ static void load_head(const T* src, uint4 (&f)[kUnits]) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) f[u] = load_vector(src + u * kUnitElements + lane_in_quad() * kElements);
  }
  __device__ __forceinline__ static void turn_head(const TaskContext& c, bool has_norm, const uint4 (&norm)[kUnits],
                                                   const float2* turn, uint4 (&f)[kUnits]) {
    float factor = 1, plus = 0;
    if (has_norm) {
      float sum = 0;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        float x[kElements];
        unpack<T>(f[u], x);
#pragma unroll
        for (int e = 0; e < kElements; ++e) sum = fmaf(x[e], x[e], sum);
        ptx::forget(f[u]);  // else the unpacked elements would be kept, in twice the registers
      }
#pragma unroll
      for (int mask = 1; mask < kQuadLanes; mask *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, mask);
      factor = rms_scale(sum, kDim, c.params().eps);
      plus = norm_plus(c.params());
    }
#pragma unroll
    for (int u = 0; u < kUnits / 2; ++u) {
      constexpr int kHalf = kUnits / 2;
      float x[2][kElements];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        unpack<T>(f[u + i * kHalf], x[i]);
        if (!has_norm) continue;
        float w[kElements];
        unpack<T>(norm[u + i * kHalf], w);
#pragma unroll
        for (int e = 0; e < kElements; ++e) x[i][e] = to_f32(from_f32<T>(x[i][e] * factor * (w[e] + plus)));
      }
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const float2 cs = turn[u * kUnitElements + lane_in_quad() * kElements + e];
        const float low = x[0][e], high = x[1][e];
        x[0][e] = low * cs.x - high * cs.y;
        x[1][e] = high * cs.x + low * cs.y;
      }
      f[u] = pack<T>(x[0]);
      f[u + kHalf] = pack<T>(x[1]);
    }
  }

  // s[t][e]: of row 2 * (lane % 4) + e of tile t; minus infinity where there is none of `left` rows.
  __device__ __forceinline__ void scores(float scale, int left, float (&s)[kTiles][2]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float a[4] = {}, b[4] = {};
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint4 q = query_[u * kWarpThreads];
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
  uint4* const query_;       // fragments, one per lane and unit
  const T *keys_, *values_;  // this lane's of the step that was last asked for
  int left_;                 // rows from this warp's next tile to the end
  uint4 k_[kTiles][kUnits], v_[kTiles][2][kVectors];
  float o_[kDim / 8][4];
  float m_ = minus_infinity(), l_ = 0;  // l_: of this lane's rows
  const uint4* new_row_ = nullptr;      // its key and its value
};

template <class T, int kDim, int kThreads>
__device__ bool attend_mma(const TaskContext& c, RowRange range) {
  constexpr int kWarps = kThreads / kWarpThreads;
  const amk_params_t& p = c.params();
  const int group = p.n_heads / p.n_kv_heads, warp = threadIdx.x / kWarpThreads;
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
  // The row at the position is the last warp's, which has the fewest others.
  const bool takes_new = range.first <= c.pos && c.pos < range.end && warp == kWarps - 1;
  const int64_t at = c.pos;
  for (int g = p.n_off; g < p.n_off + p.N_tile; ++g) {
    MmaAttention<T, kDim, kWarps> pass(c, state, g, range.first, min(range.end, c.pos));
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
    pass.make_heads(c, x + int64_t{g} * group * kDim, takes_new ? new_key : nullptr, new_value, q_norm, k_norm,
                    angles.turn, new_row);
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
