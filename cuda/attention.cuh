// ATTENTION_TILE and ATTENTION_COMBINE: a softmax over the cache in T splits that are merged afterwards (Milakov &
// Gimelshein 2018, arXiv:1805.02867; Dao et al., flash-decoding).
// Lanes form groups of `row_lanes`, and a group takes one cache row at a time, several rows in flight; every group
// keeps its own running maximum, sum and output for all query heads of the pass, so a row is read once. States are
// merged in a fixed order: groups of a warp by butterflies, then warp 0, 1, 2, ...
// 16-bit heads of 64 and 128 elements take attention_mma.cuh; this form takes all others.
// Rows below the position do not change in this launch: their way into L2 starts before the inputs are awaited. The
// query heads pass through shared memory, where ROPE turns them; row `pos` then comes from there too.
#pragma once

#include "attention_mma.cuh"

namespace amk {

// Rows in flight per group of lanes: what the registers of a thread hold beside the heads' states.
__host__ __device__ constexpr int attention_rows_ahead(int threads, int vectors) {
  return vectors > 1 || threads > 256 ? 1 : 4;
}
__host__ constexpr int64_t attention_shared_bytes(const amk_params_t& p, int element_bytes, int threads) {
  return attention_state_bytes(p, element_bytes, threads) + attention_heads_bytes(p, element_bytes) +
         rope_shared_bytes(p);
}

// One warp's pass over its rows of one kv head for kHeads query heads. kVectors: 16-byte vectors per lane and row.
template <class T, int kHeads, int kVectors, int kThreads>
struct AttentionPass {
  static constexpr int kRowsAhead = attention_rows_ahead(kThreads, kVectors);
  static constexpr int kElems = kVectors * kPerVector<T>;
  uint4 query[kHeads][kVectors];
  float o[kHeads][kElems], m[kHeads], l[kHeads];
  int row_vectors, row_lanes, lane_in_row;

  // A row of the cache, or one in shared memory.
  __device__ void load_cached(const T* row, bool inside, uint4 (&v)[kVectors]) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = lane_in_row + i * row_lanes;
      v[i] = inside && at < row_vectors ? load_vector(reinterpret_cast<const uint4*>(row) + at) : uint4{};
    }
  }
  __device__ void load_shared(const T* row, uint4 (&v)[kVectors]) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = lane_in_row + i * row_lanes;
      v[i] = at < row_vectors ? reinterpret_cast<const uint4*>(row)[at] : uint4{};
    }
  }
  __device__ static void unpack_row(const uint4 (&v)[kVectors], float (&out)[kElems]) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float e[kPerVector<T>];
      unpack<T>(v[i], e);
#pragma unroll
      for (int j = 0; j < kPerVector<T>; ++j) out[i * kPerVector<T> + j] = e[j];
    }
  }

  // q: in shared memory. heads <= kHeads of them exist; the others repeat the last and are never stored.
  __device__ void begin(const T* q, int heads, int dim, int vectors) {
    row_vectors = vectors;
    row_lanes = 1;
    while (row_lanes < vectors && row_lanes < kWarpThreads) row_lanes *= 2;
    lane_in_row = ptx::thread_id() % row_lanes;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      load_shared(q + min(h, heads - 1) * dim, query[h]);
      m[h] = minus_infinity();
      l[h] = 0;
#pragma unroll
      for (int e = 0; e < kElems; ++e) o[h][e] = 0;
    }
  }

  // k, v: the kv head's first row in the caches. With has_new the last warp also takes new_k and new_v, as it has the
  // fewest other rows.
  __device__ void rows(const T* k, const T* v, RowRange range, const T* new_k, const T* new_v, bool has_new, int dim,
                       float scale, int warp, int warps) {
    const int slots = kWarpThreads / row_lanes, slot = ptx::thread_id() % kWarpThreads / row_lanes;
    const int stride = warps * slots;
    bool takes_new = has_new && warp == warps - 1;
    for (int base = range.first + warp * slots; base < range.end || takes_new; base += kRowsAhead * stride) {
      uint4 keys[kRowsAhead][kVectors]{}, values[kRowsAhead][kVectors]{};
      int row = base + slot, end = range.end;
      if (base < range.end) {
#pragma unroll
        for (int u = 0; u < kRowsAhead; ++u)
          load_cached(k + int64_t{row + u * stride} * dim, row + u * stride < end, keys[u]);
#pragma unroll
        for (int u = 0; u < kRowsAhead; ++u)
          load_cached(v + int64_t{row + u * stride} * dim, row + u * stride < end, values[u]);
      } else {  // one row, for the first group of lanes
        load_shared(new_k, keys[0]);
        load_shared(new_v, values[0]);
        row = slot;
        end = 1;
        takes_new = false;
      }
      float s[kRowsAhead][kHeads];
      lane_scores(keys, s);
      // All rows and heads at each level: their shuffles overlap.
      for (int mask = row_lanes / 2; mask > 0; mask /= 2) {
#pragma unroll
        for (int u = 0; u < kRowsAhead; ++u) {
#pragma unroll
          for (int h = 0; h < kHeads; ++h) s[u][h] += __shfl_xor_sync(kWholeWarp, s[u][h], mask);
        }
      }
#pragma unroll
      for (int u = 0; u < kRowsAhead; ++u) {
        const bool inside = row + u * stride < end;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) s[u][h] = inside ? s[u][h] * scale : minus_infinity();
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float largest = m[h];
#pragma unroll
        for (int u = 0; u < kRowsAhead; ++u) largest = fmaxf(largest, s[u][h]);
        const float shrink = merge_weight(m[h], largest);
        l[h] *= shrink;
#pragma unroll
        for (int e = 0; e < kElems; ++e) o[h][e] *= shrink;
        m[h] = largest;
#pragma unroll
        for (int u = 0; u < kRowsAhead; ++u) {
          s[u][h] = merge_weight(s[u][h], largest);
          l[h] += s[u][h];
        }
      }
#pragma unroll
      for (int u = 0; u < kRowsAhead; ++u) {
        float e[kElems];
        unpack_row(values[u], e);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
#pragma unroll
          for (int i = 0; i < kElems; ++i) o[h][i] = fmaf(s[u][h], e[i], o[h][i]);
        }
      }
    }
  }

  // This lane's part of the products of rows and queries.
  __device__ void lane_scores(const uint4 (&keys)[kRowsAhead][kVectors], float (&s)[kRowsAhead][kHeads]) const {
    float k[kRowsAhead][kElems];
#pragma unroll
    for (int u = 0; u < kRowsAhead; ++u) unpack_row(keys[u], k[u]);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float q[kElems];
      unpack_row(query[h], q);
#pragma unroll
      for (int u = 0; u < kRowsAhead; ++u) {
        float sum[2] = {};
#pragma unroll
        for (int i = 0; i < kElems; ++i) sum[i & 1] = fmaf(q[i], k[u][i], sum[i & 1]);
        s[u][h] = sum[0] + sum[1];
      }
    }
  }

  // All groups of the warp end with the same state.
  __device__ void merge_groups() {
    float common[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) common[h] = m[h];
    for (int mask = row_lanes; mask < kWarpThreads; mask *= 2) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) common[h] = fmaxf(common[h], __shfl_xor_sync(kWholeWarp, common[h], mask));
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float weight = merge_weight(m[h], common[h]);
      m[h] = common[h];
      l[h] *= weight;
#pragma unroll
      for (int e = 0; e < kElems; ++e) o[h][e] *= weight;
    }
    for (int mask = row_lanes; mask < kWarpThreads; mask *= 2) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        l[h] += __shfl_xor_sync(kWholeWarp, l[h], mask);
#pragma unroll
        for (int e = 0; e < kElems; ++e) o[h][e] += __shfl_xor_sync(kWholeWarp, o[h][e], mask);
      }
    }
  }

  // state: [warps][kHeads][dim + kStatePad], maximum and sum behind the output.
  __device__ void publish(float* state, int dim, int warp) const {
    if (ptx::thread_id() % kWarpThreads >= row_lanes) return;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float* at = state + (warp * kHeads + h) * (dim + kStatePad);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int vector = lane_in_row + i * row_lanes;
        if (vector >= row_vectors) continue;
#pragma unroll
        for (int e = 0; e < kPerVector<T>; ++e) at[vector * kPerVector<T> + e] = o[h][i * kPerVector<T> + e];
      }
      if (lane_in_row == 0) {
        at[dim] = m[h];
        at[dim + 1] = l[h];
      }
    }
  }
};

// This step's heads in shared memory: the query heads of one kv head; with ROPE its new key and value too.
template <class T>
struct NewHeads {
  T *query, *key, *value;
  TaskAngles angles;

  __device__ NewHeads(const TaskContext& c, char* at)
      : query(reinterpret_cast<T*>(at)),
        key(query + c.params().n_heads / c.params().n_kv_heads * c.params().head_dim),
        value(key + c.params().head_dim),
        angles(c, c.task.rope_slot, reinterpret_cast<float2*>(value + c.params().head_dim)) {}
  // A warp takes a head. Behind a barrier after which the angles are there; ends with one.
  template <int kThreads>
  __device__ __forceinline__ void make(const TaskContext& c, int g) const {
    const amk_params_t& p = c.params();
    const int group = p.n_heads / p.n_kv_heads, dim = p.head_dim, heads = angles.turn ? group + 2 : group;
    const T* x = c.in<T>(0) + p.m_off;
    for (int i = ptx::thread_id() / kWarpThreads; i < heads; i += kThreads / kWarpThreads) {
      const bool is_key = i == group, is_value = i > group;
      const int head = is_value ? p.n_heads + p.n_kv_heads + g : is_key ? p.n_heads + g : g * group + i;
      const int slot = is_value ? -1 : is_key ? c.task.k_norm_slot : c.task.norm_slot;
      const T *src = x + int64_t{head} * dim, *norm = slot < 0 ? nullptr : c.in<T>(slot);
      const float2* angle = is_value ? nullptr : angles.turn;
      is_small_head(dim) ? small_head(c, src, norm, angle, query + i * dim)
                         : one_head(c, src, norm, angle, query + i * dim);
    }
    block_sync<kThreads>();
  }
};

template <class T, int kHeads, int kVectors, int kThreads>
__device__ void attend(const TaskContext& c, const NewHeads<T>& fresh, int g, RowRange range) {
  const amk_params_t& p = c.params();
  const int group = p.n_heads / p.n_kv_heads, dim = p.head_dim, warp = ptx::thread_id() / kWarpThreads;
  const int vectors = dim * static_cast<int>(sizeof(T)) / kVectorBytes;
  const bool is_raw = fresh.angles.turn, has_new = is_raw && range.first <= c.pos && c.pos < range.end;
  const RowRange cached = {range.first, is_raw ? min(range.end, c.pos) : range.end};
  float* state = reinterpret_cast<float*>(c.shared);
  const int64_t cache_at = int64_t{g} * p.K * dim;
  for (int h = 0; h < group; h += kHeads) {
    const int head = g * group + h, heads = min(kHeads, group - h);
    AttentionPass<T, kHeads, kVectors, kThreads> pass;
    pass.begin(fresh.query + h * dim, heads, dim, vectors);
    pass.rows(c.in<T>(1) + cache_at, c.in<T>(2) + cache_at, cached, fresh.key, fresh.value, has_new, dim, p.scale, warp,
              kThreads / kWarpThreads);
    pass.merge_groups();
    pass.publish(state, dim, warp);
    block_sync<kThreads>();
    merge_warps<kThreads>(c, state, kHeads, head, heads);
    block_sync<kThreads>();
  }
}

template <class T, int kThreads>
__device__ void prefetch_history(const TaskContext& c, RowRange range) {
  const amk_params_t& p = c.params();
  const int64_t row_bytes = p.head_dim * int64_t{sizeof(T)};
  const int64_t bytes = (min(range.end, c.pos) - range.first) * row_bytes;
  for (int g = p.n_off; g < p.n_off + p.N_tile; ++g) {
    const int64_t at = (int64_t{g} * p.K + range.first) * row_bytes;
    for (int64_t b = ptx::thread_id() * kLineBytes; b < bytes; b += kThreads * kLineBytes) {
      ptx::prefetch_l2(c.in<char>(1) + at + b);
      ptx::prefetch_l2(c.in<char>(2) + at + b);
    }
  }
}

template <int kThreads>
__device__ __forceinline__ bool attention(const TaskContext& c) {
  const amk_params_t& p = c.params();
  const RowRange range = split_rows(p, c.pos);
  if (range.first >= range.end) {
    if (!c.await_inputs<kThreads>()) return false;
    write_empty<kThreads>(c);
    return true;
  }
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2) {
      if (attention_is_mma(p, sizeof(T)) && are_vectors<T>(c))
        return p.head_dim == 64 ? attend_mma<T, 64, kThreads>(c, range) : attend_mma<T, 128, kThreads>(c, range);
    }
    prefetch_history<T, kThreads>(c, range);
    const NewHeads<T> fresh(c, c.shared + attention_state_bytes(p, sizeof(T), kThreads));
    fresh.angles.template make_early<kThreads>(c);
    if (!c.await_inputs<kThreads>()) return false;
    fresh.angles.template finish<kThreads>(c);
    const int row_bytes = p.head_dim * static_cast<int>(sizeof(T));
    for (int g = p.n_off; g < p.n_off + p.N_tile; ++g) {
      fresh.template make<kThreads>(c, g);
      if (row_bytes > kWarpThreads * kVectorBytes) {
        attend<T, 1, kMaxHeadRowBytes / (kWarpThreads * kVectorBytes), kThreads>(c, fresh, g, range);
      } else if (p.n_heads > p.n_kv_heads) {
        attend<T, 2, 1, kThreads>(c, fresh, g, range);
      } else {
        attend<T, 1, 1, kThreads>(c, fresh, g, range);
      }
    }
    return true;
  });
}

// What the splits of a head add up to, an element to a lane; either half of a warp takes half of the splits.
struct CombinedSplits {
  static constexpr int kElements = kWarpThreads / 2;  // of a warp
  float m = minus_infinity(), l = 0, o = 0;

  // `left` splits from ml and part on, at most 2 * kAhead of them. ml: this lane's; part: this lane's element.
  template <int kAhead>
  __device__ __forceinline__ void add(const float2* ml, const float* part, int left, int dim) {
    const int share = (min(left, 2 * kAhead) + 1) / 2, first = ptx::thread_id() % kWarpThreads / kElements * share;
    // All in one trip. Every load is made, so that none waits for a predicate: behind the last split it is that one's.
    float outs[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) outs[u] = __ldcg(part + min(first + u, left - 1) * dim);
    const float2 mine =
        static_cast<int>(ptx::thread_id() % kWarpThreads) < left ? __ldcg(ml) : float2{minus_infinity(), 0};
    const float common = fmaxf(m, warp_max(mine.x)), shrink = merge_weight(m, common);
    const float weight = merge_weight(mine.x, common), weighted_l = weight * mine.y;
    m = common;
    l *= shrink;
    o *= shrink;
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const float w = __shfl_sync(kWholeWarp, weight, first + u), w_l = __shfl_sync(kWholeWarp, weighted_l, first + u);
      const bool is_mine = u < share && first + u < left;
      o = is_mine ? fmaf(w, outs[u], o) : o;
      l = is_mine ? l + w_l : l;
    }
  }
  __device__ __forceinline__ float result() const {
    const float all_o = o + __shfl_xor_sync(kWholeWarp, o, kElements);
    return all_o / (l + __shfl_xor_sync(kWholeWarp, l, kElements));
  }
};

// Heads [n_off, n_off + N_tile). One code for all types: only the store differs.
template <int kThreads>
__device__ __forceinline__ bool attention_combine(const TaskContext& c) {
  constexpr int kElements = CombinedSplits::kElements, kFew = 16;
  const amk_params_t& p = c.params();
  const int dim = p.head_dim, splits = p.M, pieces = ceil_div_int(dim, kElements),
            lane = ptx::thread_id() % kWarpThreads;
  const int warp = ptx::thread_id() / kWarpThreads;
  struct Item {
    int64_t head;
    int element;
    const float2* ml;
    const float* part;
  };
  const auto item_of = [&](int i) {
    const int h = p.N_tile == 1 ? 0 : i / pieces, d = (i - h * pieces) * kElements + lane % kElements;
    const int64_t head = p.n_off + h;
    return Item{head, d, reinterpret_cast<const float2*>(c.in<float>(1)) + head * splits + lane,
                c.in<float>(0) + head * splits * dim + min(d, dim - 1)};
  };
  Item item = item_of(warp);
  if (!c.await_inputs<kThreads>()) return false;
  for (int i = warp; i < p.N_tile * pieces; i += kThreads / kWarpThreads) {
    if (i != warp) item = item_of(i);
    CombinedSplits all;
    if (splits <= kFew) {
      all.add<kFew / 2>(item.ml, item.part, splits, dim);
    } else {
      for (int at = 0; at < splits; at += kWarpThreads)
        all.add<kWarpThreads / 2>(item.ml + at, item.part + int64_t{at} * dim, splits - at, dim);
    }
    const float result = all.result();
    if (item.element < dim && lane < kElements)
      store_any(c.task.out[0], item.head * dim + item.element, c.task.out_dtype, result);
  }
  return true;
}

}  // namespace amk
