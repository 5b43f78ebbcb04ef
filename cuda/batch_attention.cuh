// ATTENTION_TILE and ATTENTION_COMBINE of several tokens. The query rows of a kv head are those of its heads for every
// token; row i is token i / group. All cache rows, this step's too, come from the caches; a row's query sees those up
// to its own position. On the tensor cores (16-bit types, heads of 64 or 128): a warp takes 16 query rows and every
// n-th block of 16 cache rows, so the queries and what they have summed stay in registers. Scores are Q K^T with the
// cache rows as columns of B; as they lie in the accumulators they are rows of A for the product with V (Dao 2023,
// FlashAttention-2, arXiv:2307.08691), whose columns are paired from two cache rows each. States of warps with the same
// queries are merged in a tree, the same every run. Otherwise a warp takes a query row and goes through its cache rows
// one after the other.
#pragma once

#include "attention.cuh"
#include "batch.cuh"
#include "mma.cuh"

namespace amk {

constexpr int kBlockRows = 16, kTileQueries = 16;
constexpr int kColumnGroup = 64;                         // of V: 8 to a lane in 8 column tiles
constexpr int kColumnTiles = kColumnGroup / kGroupRows;  // of one column group
constexpr int kPublishers = kBatchWarps / 2;             // warps that hand over their state at a time
constexpr int kPublishedVectors = kColumnTiles + 1;      // of a lane: the sums of a column group, maxima and sums
constexpr int kMaxPlainElements = kMaxHeadRowBytes / 2 / kWarpThreads;  // of a query row, per lane

__host__ __device__ constexpr bool is_tensor_head(int head_dim, int element_bytes) {
  return element_bytes == 2 && (head_dim == kColumnGroup || head_dim == 2 * kColumnGroup);
}
__host__ constexpr int64_t batch_attention_shared_bytes(const amk_params_t& p, int element_bytes) {
  return is_tensor_head(p.head_dim, element_bytes)
             ? int64_t{kPublishers} * kPublishedVectors * kWarpThreads * kVectorBytes
             : 0;
}

// Where the partial of a query row goes: its index in part_ml and, times head_dim, in part_o.
__device__ __forceinline__ int64_t part_index(const amk_params_t& p, int g, int query) {
  const int group = p.n_heads / p.n_kv_heads;
  return (int64_t{query / group} * p.n_heads + g * group + query % group) * p.M + p.dim;
}
template <class T>
__device__ __forceinline__ const T* query_row(const BatchContext& c, int g, int query) {
  const amk_params_t& p = c.params();
  const int group = p.n_heads / p.n_kv_heads;
  return c.in_row<T>(query / group) + p.m_off + (int64_t{g} * group + query % group) * p.head_dim;
}

// One warp: 16 query rows of a kv head. This lane has rows lane / 4 and lane / 4 + 8.
template <class T, int kDim>
class TileAttention {
 public:
  static constexpr int kUnits = kDim / kUnitElements, kGroups = kDim / kColumnGroup, kHalves = 2;

  // Query rows from `first`; `queries` exist.
  __device__ __forceinline__ TileAttention(const BatchContext& c, int g, int first, int queries) : p_(c.params()) {
    const int group = p_.n_heads / p_.n_kv_heads;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const int query = first + row(h);
      const bool exists = query < queries;
      end_[h] = exists ? c.pos + query / group + 1 : 0;
      const uint4* at = reinterpret_cast<const uint4*>(query_row<T>(c, g, min(query, queries - 1))) + quarter();
#pragma unroll
      for (int u = 0; u < kUnits; ++u) query_[h][u] = load_vector(at + u * kUnitRowVectors);
      m_[h] = minus_infinity();
    }
  }

  // Blocks first, first + stride, ... of the split's rows; k, v: row 0 of the kv head in the caches. Behind the split's
  // end its last row stands in, with a weight of zero.
  __device__ __forceinline__ void rows(const T* k, const T* v, RowRange range, int first, int stride) {
    for (int base = range.first + first * kBlockRows; base < range.end; base += stride * kBlockRows) {
      uint4 keys[2][kUnits], values[4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = min(base + j * kGroupRows + lane() / kUnitRowVectors, range.end - 1);
        const uint4* from = reinterpret_cast<const uint4*>(k + int64_t{at} * kDim) + quarter();
#pragma unroll
        for (int u = 0; u < kUnits; ++u) keys[j][u] = load_vector(from + u * kUnitRowVectors);
      }
      load_values(values, v, base, range, 0);
      float s[2][4] = {};
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint4 a = query_[0][u], b = query_[1][u];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          multiply_add_two<T>(s[j], a.x, b.x, a.y, b.y, keys[j][u].x, keys[j][u].y);
          multiply_add_two<T>(s[j], a.z, b.z, a.w, b.w, keys[j][u].z, keys[j][u].w);
        }
      }
      float shrink[kHalves];
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        float largest = m_[h];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int at = base + j * kGroupRows + 2 * quarter() + i;
            float& score = s[j][2 * h + i];
            score = at < range.end && at < end_[h] ? score * p_.scale : minus_infinity();
            largest = fmaxf(largest, score);
          }
        }
#pragma unroll
        for (int mask = kUnitRowVectors / 2; mask > 0; mask /= 2)
          largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, mask));
        shrink[h] = merge_weight(m_[h], largest);
        m_[h] = largest;
        l_[h] *= shrink[h];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            s[j][2 * h + i] = merge_weight(s[j][2 * h + i], largest);
            l_[h] += s[j][2 * h + i];
          }
        }
      }
      const uint32_t a0 = pack_pair<T>(s[0][0], s[0][1]), a1 = pack_pair<T>(s[0][2], s[0][3]),
                     a2 = pack_pair<T>(s[1][0], s[1][1]), a3 = pack_pair<T>(s[1][2], s[1][3]);
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          float (&o)[4] = o_[i][n];
#pragma unroll
          for (int e = 0; e < 4; ++e) o[e] *= shrink[e / 2];
          multiply_add_two<T>(o, a0, a1, a2, a3, column(values[0], values[1], n), column(values[2], values[3], n));
        }
        if (i + 1 == kGroups) continue;
        __syncwarp();  // not all columns at once: there are no registers for them
        load_values(values, v, base, range, i + 1);
      }
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int mask = kUnitRowVectors / 2; mask > 0; mask /= 2) l_[h] += __shfl_xor_sync(kWholeWarp, l_[h], mask);
    }
  }

  // Column group i of the sums with maxima and sums of exponentials, to or from a place of a warp's lanes.
  __device__ __forceinline__ void publish(float4* place, int i) const {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
      place[n * kWarpThreads + lane()] = {o_[i][n][0], o_[i][n][1], o_[i][n][2], o_[i][n][3]};
    place[kColumnTiles * kWarpThreads + lane()] = {m_[0], m_[1], l_[0], l_[1]};
  }
  __device__ __forceinline__ void merge(const float4* place, int i) {
    const float4 state = place[kColumnTiles * kWarpThreads + lane()];
    const float m[kHalves] = {state.x, state.y}, l[kHalves] = {state.z, state.w};
    float mine[kHalves], other[kHalves], common[kHalves];
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      common[h] = fmaxf(m_[h], m[h]);
      mine[h] = merge_weight(m_[h], common[h]);
      other[h] = merge_weight(m[h], common[h]);
    }
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const float4 o = place[n * kWarpThreads + lane()];
      const float theirs[4] = {o.x, o.y, o.z, o.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) o_[i][n][e] = o_[i][n][e] * mine[e / 2] + theirs[e] * other[e / 2];
    }
    if (i + 1 < kGroups) return;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      l_[h] = l_[h] * mine[h] + l[h] * other[h];
      m_[h] = common[h];
    }
  }

  __device__ __forceinline__ void store(const BatchContext& c, int g, int first, int queries) const {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const int query = first + row(h);
      if (query >= queries) continue;
      const int64_t part = part_index(p_, g, query);
      float* out = c.out<float>(0) + part * kDim;
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {  // accumulator column 2q + e holds columns 8 * (2q + e) + n of V
          float4* at = reinterpret_cast<float4*>(out + i * kColumnGroup + (2 * quarter() + e) * kColumnTiles);
#pragma unroll
          for (int n = 0; n < kColumnTiles; n += 4)
            at[n / 4] = {o_[i][n][2 * h + e], o_[i][n + 1][2 * h + e], o_[i][n + 2][2 * h + e],
                         o_[i][n + 3][2 * h + e]};
        }
      }
      if (quarter() == 0) *reinterpret_cast<float2*>(c.out<float>(1) + part * 2) = {m_[h], l_[h]};
    }
  }

 private:
  __device__ static int lane() { return threadIdx.x % kWarpThreads; }
  __device__ static int quarter() { return lane() % kUnitRowVectors; }
  __device__ static int row(int half) { return lane() / kUnitRowVectors + half * kGroupRows; }
  // Column group i of cache rows 2q, 2q + 1, 2q + 8 and 2q + 9 of a block, q being the lane's quarter.
  __device__ static __forceinline__ void load_values(uint4 (&values)[4], const T* v, int base, RowRange range, int i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = min(base + 2 * quarter() + j % 2 + j / 2 * kGroupRows, range.end - 1);
      const uint4* from = reinterpret_cast<const uint4*>(v + int64_t{at} * kDim) + lane() / kUnitRowVectors;
      values[j] = load_vector(from + i * kColumnTiles);
    }
  }
  // Element n of two cache rows, side by side.
  __device__ static __forceinline__ uint32_t column(uint4 low, uint4 high, int n) {
    const uint32_t a = n < 2 ? low.x : n < 4 ? low.y : n < 6 ? low.z : low.w;
    const uint32_t b = n < 2 ? high.x : n < 4 ? high.y : n < 6 ? high.z : high.w;
    return __byte_perm(a, b, n % 2 ? 0x7632 : 0x5410);
  }

  const amk_params_t& p_;
  int end_[kHalves];  // cache rows that the query sees
  uint4 query_[kHalves][kUnits];
  float o_[kGroups][kColumnTiles][4] = {}, m_[kHalves], l_[kHalves] = {};
};

// One kv head. Warps share the tiles of query rows out, and where there are fewer tiles than warps, the cache rows too.
template <class T, int kDim, int kThreads>
__device__ __forceinline__ void attend_tiles(const BatchContext& c, int g, RowRange range) {
  const amk_params_t& p = c.params();
  const int queries = c.tokens() * (p.n_heads / p.n_kv_heads), tiles = ceil_div_int(queries, kTileQueries);
  const int warp = threadIdx.x / kWarpThreads;
  int abreast = 1;  // tiles at a time: a power of two
  while (abreast < tiles && abreast < kBatchWarps) abreast *= 2;
  const int slices = kBatchWarps / abreast, slice = warp / abreast;
  const int64_t cache_at = int64_t{g} * p.K * kDim;
  float4* shared = reinterpret_cast<float4*>(c.shared);
  const auto place = [&](int giver) {
    return shared + (giver * abreast + warp % abreast) * kPublishedVectors * kWarpThreads;
  };
  for (int tile = warp % abreast; tile - warp % abreast < tiles; tile += abreast) {
    TileAttention<T, kDim> attention(c, g, tile * kTileQueries, queries);
    if (tile < tiles) attention.rows(c.in<T>(1) + cache_at, c.in<T>(2) + cache_at, range, slice, slices);
    for (int half = slices / 2; half > 0; half /= 2) {
#pragma unroll
      for (int i = 0; i < TileAttention<T, kDim>::kGroups; ++i) {
        if (slice >= half && slice < 2 * half) attention.publish(place(slice - half), i);
        block_sync<kThreads>();
        if (slice < half) attention.merge(place(slice), i);
        block_sync<kThreads>();  // the places are free again
      }
    }
    if (slice == 0) attention.store(c, g, tile * kTileQueries, queries);
  }
}

// One kv head, a query row to a warp.
template <int kThreads>
__device__ __forceinline__ void attend_rows(const BatchContext& c, int g, RowRange range) {
  const amk_params_t& p = c.params();
  const int group = p.n_heads / p.n_kv_heads, dim = p.head_dim, dtype = c.task.dtype;
  const int lane = threadIdx.x % kWarpThreads;
  for (int i = threadIdx.x / kWarpThreads; i < c.tokens() * group; i += kThreads / kWarpThreads) {
    const int64_t x = int64_t{i / group} * c.record.in_width + p.m_off + (int64_t{g} * group + i % group) * dim;
    float query[kMaxPlainElements], o[kMaxPlainElements] = {}, m = minus_infinity(), l = 0;
#pragma unroll
    for (int e = 0; e < kMaxPlainElements; ++e) {
      const int d = lane + e * kWarpThreads;
      query[e] = d < dim ? load_any(c.in<char>(0), x + d, dtype) : 0.0f;
    }
    const int end = min(range.end, c.pos + i / group + 1);
    for (int row = range.first; row < end; ++row) {
      const int64_t at = (int64_t{g} * p.K + row) * dim;
      float score = 0, value[kMaxPlainElements];
#pragma unroll
      for (int e = 0; e < kMaxPlainElements; ++e) {
        const int d = lane + e * kWarpThreads;
        if (d < dim) score = fmaf(query[e], load_any(c.in<char>(1), at + d, dtype), score);
        value[e] = d < dim ? load_any(c.in<char>(2), at + d, dtype) : 0.0f;
      }
      score = warp_sum(score) * p.scale;
      const float largest = fmaxf(m, score), shrink = merge_weight(m, largest), weight = merge_weight(score, largest);
      m = largest;
      l = l * shrink + weight;
#pragma unroll
      for (int e = 0; e < kMaxPlainElements; ++e) o[e] = fmaf(weight, value[e], o[e] * shrink);
    }
    const int64_t part = part_index(p, g, i);
#pragma unroll
    for (int e = 0; e < kMaxPlainElements; ++e) {
      const int d = lane + e * kWarpThreads;
      if (d < dim) c.out<float>(0)[part * dim + d] = o[e];
    }
    if (lane == 0) *reinterpret_cast<float2*>(c.out<float>(1) + part * 2) = {m, l};
  }
}

template <int kThreads>
__device__ __forceinline__ bool batch_attention(const BatchContext& c) {
  const amk_params_t& p = c.params();
  const RowRange range = split_rows(p, c.pos + c.tokens() - 1);
  with_dtype(c.task.dtype, [&](auto type) {
    prefetch_history<typename decltype(type)::type, kThreads>(c, range);
    return true;
  });
  if (!c.template await_inputs<kThreads>()) return false;
  for (int g = p.n_off; g < p.n_off + p.N_tile; ++g) {
    const bool is_f16 = c.task.dtype == AMK_DTYPE_F16;
    if (!is_tensor_head(p.head_dim, c.task.dtype == AMK_DTYPE_F32 ? 4 : 2)) {
      attend_rows<kThreads>(c, g, range);
    } else if (p.head_dim == kColumnGroup) {
      is_f16 ? attend_tiles<__half, kColumnGroup, kThreads>(c, g, range)
             : attend_tiles<__nv_bfloat16, kColumnGroup, kThreads>(c, g, range);
    } else {
      is_f16 ? attend_tiles<__half, 2 * kColumnGroup, kThreads>(c, g, range)
             : attend_tiles<__nv_bfloat16, 2 * kColumnGroup, kThreads>(c, g, range);
    }
  }
  return true;
}

// A thread takes four elements of a head of a token, kSplitsAhead splits in flight.
template <int kThreads>
__device__ __forceinline__ bool batch_attention_combine(const BatchContext& c) {
  constexpr int kSplitsAhead = 8, kElements = 4;
  const amk_params_t& p = c.params();
  if (!c.template await_inputs<kThreads>()) return false;
  const int dim = p.head_dim, splits = p.M, quads = dim / kElements, per_token = p.N_tile * quads;
  for (int i = threadIdx.x; i < c.tokens() * per_token; i += kThreads) {
    const int t = i / per_token, head = p.n_off + i % per_token / quads, d = i % quads * kElements;
    const int64_t part = (int64_t{t} * p.n_heads + head) * splits;
    const float2* ml = reinterpret_cast<const float2*>(c.in<float>(1)) + part;
    const float* o = c.in<float>(0) + part * dim + d;
    float m = minus_infinity(), sum = 0, all[kElements] = {};
    for (int first = 0; first < splits; first += kSplitsAhead) {
      float2 states[kSplitsAhead];
      float4 outs[kSplitsAhead];
#pragma unroll
      for (int u = 0; u < kSplitsAhead; ++u) {
        const int split = min(first + u, splits - 1);  // behind the last one it stands in, with a weight of zero
        states[u] = __ldcg(ml + split);
        if (first + u >= splits) states[u] = {minus_infinity(), 0};
        outs[u] = __ldcg(reinterpret_cast<const float4*>(o + int64_t{split} * dim));
      }
      float common = m;
#pragma unroll
      for (int u = 0; u < kSplitsAhead; ++u) common = fmaxf(common, states[u].x);
      const float shrink = merge_weight(m, common);
      m = common;
      sum *= shrink;
#pragma unroll
      for (int e = 0; e < kElements; ++e) all[e] *= shrink;
#pragma unroll
      for (int u = 0; u < kSplitsAhead; ++u) {
        const float weight = merge_weight(states[u].x, common);
        sum = fmaf(weight, states[u].y, sum);
        all[0] = fmaf(weight, outs[u].x, all[0]);
        all[1] = fmaf(weight, outs[u].y, all[1]);
        all[2] = fmaf(weight, outs[u].z, all[2]);
        all[3] = fmaf(weight, outs[u].w, all[3]);
      }
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      store_any(c.out<char>(0), int64_t{t} * c.record.out_width + int64_t{head} * dim + d + e, c.task.out_dtype,
                all[e] / sum);
  }
  return true;
}

}  // namespace amk
