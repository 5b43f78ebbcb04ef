// What every form of ATTENTION_TILE shares: its rows, what it keeps in shared memory, what it leaves.
// In: a task and the position; the warps' states. Out: a range of rows; part_o and part_ml, or heads with DIRECT.
#pragma once

#include <cfloat>

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
// States of the warps; behind them this step's query heads of a kv head, its new key and its new value; the angles.
__host__ __device__ constexpr int64_t attention_state_bytes(const amk_params_t& p, int element_bytes, int threads) {
  const int heads = attention_is_mma(p, element_bytes)
                        ? kStateHeads
                        : attention_pass_heads(p.n_heads / p.n_kv_heads, p.head_dim * element_bytes);
  return (int64_t{threads / kWarpThreads} * heads * (p.head_dim + kStatePad) * 4 + kVectorBytes - 1) / kVectorBytes *
         kVectorBytes;
}
// From one head to the next in shared memory. The padding lets the tensor cores' form read two heads without a
// conflict.
constexpr int kHeadPad = 32;
__host__ __device__ constexpr int64_t attention_heads_bytes(const amk_params_t& p, int element_bytes) {
  const int pad = attention_is_mma(p, element_bytes) ? kHeadPad : 0;
  return (int64_t{p.n_heads / p.n_kv_heads} + 2) * (p.head_dim + pad) * element_bytes;
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

// Weight of a partial whose maximum is m, seen from the common maximum; 0 for one that saw no row, also where none did.
// No branch: one per exponential would keep the exponentials of a lane apart.
__device__ __forceinline__ float merge_weight(float m, float common) { return expf(m - fmaxf(common, -FLT_MAX)); }

// Floats lie in the order of their bits as signed integers once those of negative ones are flipped: one instruction
// instead of five shuffles.
__device__ __forceinline__ float warp_max(float v) {
  const auto flip = [](int bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
  return __int_as_float(flip(__reduce_max_sync(kWholeWarp, flip(__float_as_int(v)))));
}

// Adds the warps' states up: part_o and part_ml of `heads` query heads from `head`, or those heads. An element to a
// lane, and one exponential a lane: lane i has the weight of warp i's state.
template <int kThreads>
__device__ __forceinline__ void merge_warps(const TaskContext& c, const float* state, int pass_heads, int head,
                                            int heads) {
  constexpr int kWarps = kThreads / kWarpThreads;
  const amk_params_t& p = c.params();
  const int dim = p.head_dim, stride = dim + kStatePad, pieces = ceil_div_int(dim, kWarpThreads);
  const int lane = ptx::thread_id() % kWarpThreads;
  for (int i = ptx::thread_id() / kWarpThreads; i < heads * pieces; i += kWarps) {
    const int h = heads == 1 ? 0 : i / pieces, d = (i - h * pieces) * kWarpThreads + lane;
    const auto state_of = [&](int warp) { return state + (warp * pass_heads + h) * stride; };
    float outs[kWarps], o = 0, l = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) outs[w] = d < dim ? state_of(w)[d] : 0.0f;
    const float2 ml =
        lane < kWarps ? *reinterpret_cast<const float2*>(state_of(lane) + dim) : float2{minus_infinity(), 0};
    const float common = warp_max(ml.x), weight = merge_weight(ml.x, common), weighted_l = weight * ml.y;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      l += __shfl_sync(kWholeWarp, weighted_l, w);
      o = fmaf(__shfl_sync(kWholeWarp, weight, w), outs[w], o);
    }
    if (p.flags & AMK_FLAG_DIRECT) {
      if (d < dim) store_any(c.task.out[0], (int64_t{head} + h) * dim + d, c.task.out_dtype, o / l);
      continue;
    }
    const int64_t part = (int64_t{head} + h) * p.M + p.dim;
    if (d < dim) c.out<float>(0)[part * dim + d] = o;
    if (d == 0) *reinterpret_cast<float2*>(c.out<float>(1) + part * 2) = {common, l};
  }
}

// The partials of a split without a row: one of several, so never with DIRECT.
template <int kThreads>
__device__ void write_empty(const TaskContext& c) {
  const amk_params_t& p = c.params();
  const int group = p.n_heads / p.n_kv_heads, dim = p.head_dim;
  for (int i = ptx::thread_id(); i < p.N_tile * group * dim; i += kThreads) {
    const int64_t part = (int64_t{p.n_off} * group + i / dim) * p.M + p.dim;
    c.out<float>(0)[part * dim + i % dim] = 0;
    if (i % dim == 0) *reinterpret_cast<float2*>(c.out<float>(1) + part * 2) = {minus_infinity(), 0};
  }
}

}  // namespace amk
