// What every form of ATTENTION_TILE shares: its rows, what it keeps in shared memory, its partials.
// In: a task and the position; the warps' states. Out: a range of rows; part_o and part_ml.
#pragma once

#include "sync.cuh"
#include "tile_io.cuh"

namespace amk {

constexpr int kLineBytes = 128;
constexpr int kMaxHeadRowBytes = 2 * kWarpThreads * kVectorBytes;  // the widest cache row: f32 D=256, bf16 D=512
__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

// The tensor cores take these heads (attention_mma.cuh).
constexpr int kMaxMmaGroup = 8;
__host__ __device__ constexpr bool attention_is_mma(const amk_params_t& p, int element_bytes) {
  return element_bytes == 2 && (p.head_dim == 64 || p.head_dim == 128) && p.n_heads / p.n_kv_heads <= kMaxMmaGroup;
}

// A warp's state of a query head: its output, then its maximum and its sum, in whole vectors.
constexpr int kStatePad = 4;
constexpr int kStateHeads = 4;  // of the tensor cores' form, published at a time
// Query heads that one pass of the other form serves, by the registers of a thread; wide rows leave room for one.
__host__ __device__ constexpr int attention_pass_heads(int group, int row_bytes) {
  return group > 1 && row_bytes <= kWarpThreads * kVectorBytes ? 2 : 1;
}
// States of the warps; behind them this step's query heads of a kv head, its new key and its new value, or the norms
// of queries and keys; the angles.
__host__ __device__ constexpr int64_t attention_state_bytes(const amk_params_t& p, int element_bytes, int threads) {
  const int heads = attention_is_mma(p, element_bytes)
                        ? kStateHeads
                        : attention_pass_heads(p.n_heads / p.n_kv_heads, p.head_dim * element_bytes);
  return (int64_t{threads / kWarpThreads} * heads * (p.head_dim + kStatePad) * 4 + kVectorBytes - 1) / kVectorBytes *
         kVectorBytes;
}
struct RowRange {
  int first, end;
};

// The rows of split `dim` at a position, as the law of ATTENTION_TILE cuts them.
__device__ __forceinline__ RowRange split_rows(const amk_params_t& p, int pos) {
  const int rows = pos + 1;
  const int64_t blocks = (rows + int64_t{p.M_tile} - 1) / p.M_tile;
  const auto start = [&](int64_t d) {
    const int64_t at = blocks * d / p.M * p.M_tile;
    return static_cast<int>(at < rows ? at : rows);
  };
  return {start(p.dim), start(int64_t{p.dim} + 1)};
}

// Weight of a partial whose maximum is m, seen from the common maximum; 0 for one that saw no row.
__device__ __forceinline__ float merge_weight(float m, float common) {
  return m == minus_infinity() ? 0.0f : expf(m - common);
}

// Adds the warps' states up: part_o and part_ml of `heads` query heads from `head`.
// kDim: of a head where it is known, or 0.
template <int kThreads, int kDim>
__device__ void merge_warps(const TaskContext& c, const float* state, int pass_heads, int head, int heads) {
  const amk_params_t& p = c.params();
  const int dim = kDim ? kDim : p.head_dim, stride = dim + kStatePad;
  for (int i = threadIdx.x; i < heads * dim; i += kThreads) {
    const int h = i / dim, d = i % dim;
    float common = minus_infinity(), sum = 0, o = 0;
    for (int w = 0; w < kThreads / kWarpThreads; ++w)
      common = fmaxf(common, state[(w * pass_heads + h) * stride + dim]);
    for (int w = 0; w < kThreads / kWarpThreads; ++w) {
      const float* at = state + (w * pass_heads + h) * stride;
      const float weight = merge_weight(at[dim], common);
      sum = fmaf(weight, at[dim + 1], sum);
      o = fmaf(weight, at[d], o);
    }
    const int64_t part = (int64_t{head} + h) * p.M + p.dim;
    c.out<float>(0)[part * dim + d] = o;
    if (d == 0) *reinterpret_cast<float2*>(c.out<float>(1) + part * 2) = {common, sum};
  }
}

// The partials of a split without a row.
template <int kThreads>
__device__ void write_empty(const TaskContext& c) {
  const amk_params_t& p = c.params();
  const int group = p.n_heads / p.n_kv_heads, dim = p.head_dim;
  for (int i = threadIdx.x; i < p.N_tile * group * dim; i += kThreads) {
    const int64_t part = (int64_t{p.n_off} * group + i / dim) * p.M + p.dim;
    c.out<float>(0)[part * dim + i % dim] = 0;
    if (i % dim == 0) *reinterpret_cast<float2*>(c.out<float>(1) + part * 2) = {minus_infinity(), 0};
  }
}

}  // namespace amk
