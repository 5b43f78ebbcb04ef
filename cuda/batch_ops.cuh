// The other ops of several tokens: a thread takes an element of a token, a warp a head of a token or a token's logits.
#pragma once

#include "batch.cuh"
#include "elementwise.cuh"
#include "embed.cuh"
#include "rope.cuh"
#include "sample.cuh"

namespace amk {

// f(t, i) for the N_tile columns i of each token.
template <int kThreads, class F>
__device__ __forceinline__ void each_element(const BatchContext& c, F f) {
  const int count = c.params().N_tile, all = c.tokens() * count;
  for (int i = threadIdx.x; i < all; i += kThreads) f(i / count, c.params().n_off + i % count);
}

// ADD, MUL and SILU_MUL: out = f(a, b), in place where the program says so.
template <int kThreads, class F>
__device__ __forceinline__ bool batch_pairs(const BatchContext& c, F f) {
  if (!c.template await_inputs<kThreads>()) return false;
  const bool is_silu = c.task.op == AMK_OP_SILU_MUL;
  const int32_t dtype = c.task.dtype;
  each_element<kThreads>(c, [&](int t, int n) {
    const int64_t a = int64_t{t} * c.record.in_width + n;
    const float x = load_any(c.in<char>(0), a, dtype);
    const float y = is_silu ? load_any(c.in<char>(0), a + c.params().N, dtype)
                            : load_any(c.in<char>(1), int64_t{t} * c.record.other_width + n, dtype);
    store_any(c.out<char>(0), int64_t{t} * c.record.out_width + n, dtype, f(x, y));
  });
  return true;
}

// Any dtype of whole bytes, bits unchanged.
template <int kThreads>
__device__ __forceinline__ bool batch_copy(const BatchContext& c) {
  if (!c.template await_inputs<kThreads>()) return false;
  const auto move = [&](auto word) {
    using Word = decltype(word);
    each_element<kThreads>(c, [&](int t, int n) {
      c.out_row<Word>(t)[n] = __ldcg(c.in_row<Word>(t) + c.params().m_off + (n - c.params().n_off));
    });
    return true;
  };
  switch (c.task.dtype) {
    case AMK_DTYPE_F32:
    case AMK_DTYPE_I32: return move(uint32_t{});
    case AMK_DTYPE_F16:
    case AMK_DTYPE_BF16: return move(static_cast<unsigned short>(0));
    default: return move(static_cast<unsigned char>(0));
  }
}

template <int kThreads>
__device__ __forceinline__ bool batch_embed(const BatchContext& c) {
  const amk_params_t& p = c.params();
  if (!c.template await_inputs<kThreads>()) return false;
  for (int t = 0; t < c.tokens(); ++t) {
    const int32_t token = __ldcg(c.in<int32_t>(0) + t);
    if (token >= 0 && token < p.vocab) continue;
    if (threadIdx.x == 0)
      raise_fault(c.machine.ledger, FaultKind::kBadToken, 1, c.task.task, -1, static_cast<uint32_t>(token),
                  static_cast<uint32_t>(p.vocab));
    return false;
  }
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Packing packing = static_cast<Packing>(c.task.packing);
    each_element<kThreads>(c, [&](int t, int k) {
      const int32_t token = __ldcg(c.in<int32_t>(0) + t);
      const int64_t at =
          packing == Packing::kPlain
              ? int64_t{token} * p.hidden + k
              : packed_vector(packing, p.vocab, p.hidden / kPerVector<T>, token, k / kPerVector<T>) * kPerVector<T> +
                    k % kPerVector<T>;
      c.out_row<T>(t)[k] = __ldcg(c.in<T>(1) + at);
    });
    return true;
  });
}

__host__ __device__ constexpr int batch_rope_shared_bytes(const amk_params_t& p, int tokens) {
  return tokens * rope_shared_bytes(p);
}

// turn: [tokens][head_dim / 2] of (cos, sin).
template <int kThreads>
__device__ __forceinline__ void batch_angles(const BatchContext& c, const float* inv_freq, float2* turn) {
  const int half = c.params().head_dim / 2;
  for (int i = threadIdx.x; i < c.tokens() * half; i += kThreads)
    turn[i] = cos_sin(static_cast<double>(c.pos + i / half) * static_cast<double>(load(inv_freq + i % half)));
}

// out_head(t, h): where head h of token t goes.
template <class T, int kThreads, class OutHead>
__device__ __forceinline__ bool batch_turn_heads(const BatchContext& c, int rope_slot, int heads, OutHead out_head) {
  const amk_params_t& p = c.params();
  const int dim = p.head_dim;
  float2* turn = rope_slot < 0 ? nullptr : reinterpret_cast<float2*>(c.shared);
  const bool angles_early = turn && c.is_early(rope_slot);
  if (angles_early) batch_angles<kThreads>(c, c.in<float>(rope_slot), turn);
  if (!c.template await_inputs<kThreads>()) return false;
  if (turn && !angles_early) {
    batch_angles<kThreads>(c, c.in<float>(rope_slot), turn);
    block_sync<kThreads>();
  }
  const T* norm = c.task.norm_slot < 0 ? nullptr : c.in<T>(c.task.norm_slot);
  for (int i = threadIdx.x / kWarpThreads; i < c.tokens() * heads; i += kThreads / kWarpThreads) {
    const int t = i / heads, h = i % heads;
    const T* head = c.in_row<T>(t) + p.m_off + int64_t{h} * dim;
    const float2* angle = turn ? turn + t * (dim / 2) : nullptr;
    is_small_head(dim) ? small_head(c, head, norm, angle, out_head(t, h))
                       : one_head(c, head, norm, angle, out_head(t, h));
  }
  return true;
}

// ROPE, and KV_APPEND into rows pos + t of the cache.
template <int kThreads>
__device__ __forceinline__ bool batch_heads(const BatchContext& c) {
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const amk_params_t& p = c.params();
    const bool is_append = c.task.op == AMK_OP_KV_APPEND;
    return batch_turn_heads<T, kThreads>(
        c, is_append ? c.task.rope_slot : 1, is_append ? p.N_tile : p.n_heads, [&](int t, int h) {
          return is_append ? c.out<T>(0) + ((int64_t{p.n_off} + h) * p.K + c.pos + t) * p.head_dim
                           : c.out_row<T>(t) + p.n_off + int64_t{h} * p.head_dim;
        });
  });
}

// A warp takes a token: the best of `count` elements, element(i) for i < count.
template <class Element>
__device__ __forceinline__ Best warp_best(int count, Element element) {
  Best mine = no_element();
#pragma unroll 4
  for (int i = threadIdx.x % kWarpThreads; i < count; i += kWarpThreads) mine = better(mine, element(i));
#pragma unroll
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2)
    mine = better(mine, {__shfl_xor_sync(kWholeWarp, mine.value, mask), __shfl_xor_sync(kWholeWarp, mine.index, mask)});
  return mine;
}

template <int kThreads>
__device__ __forceinline__ bool batch_argmax(const BatchContext& c) {
  const amk_params_t& p = c.params();
  if (!c.template await_inputs<kThreads>()) return false;
  for (int t = threadIdx.x / kWarpThreads; t < c.tokens(); t += kThreads / kWarpThreads) {
    const float* logits = c.in_row<float>(t) + p.n_off;
    const Best best = warp_best(p.N_tile, [&](int i) {
      const float v = load(logits + i);
      return Best{v, isnan(v) ? -1 : p.n_off + i};
    });
    if (threadIdx.x % kWarpThreads != 0) continue;
    const int64_t at = int64_t{t} * p.M + p.dim;
    c.out<float>(0)[at] = best.index < 0 ? __int_as_float(0x7fc00000) : best.value;
    c.out<int32_t>(1)[at] = best.index;
  }
  return true;
}

template <int kThreads>
__device__ __forceinline__ bool batch_argmax_combine(const BatchContext& c) {
  const amk_params_t& p = c.params();
  if (!c.template await_inputs<kThreads>()) return false;
  for (int t = threadIdx.x / kWarpThreads; t < c.tokens(); t += kThreads / kWarpThreads) {
    const int64_t first = int64_t{t} * p.M;
    const Best best = warp_best(
        p.M, [&](int i) { return Best{load(c.in<float>(0) + first + i), __ldcg(c.in<int32_t>(1) + first + i)}; });
    if (threadIdx.x % kWarpThreads == 0) c.out<int32_t>(0)[t] = best.index;
  }
  return true;
}

}  // namespace amk
