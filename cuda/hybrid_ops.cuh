// CAUSAL_CONV, GDN_DECODE, GATED_RMSNORM, SIGMOID_MUL: a layer of linear attention, and the gate behind full attention.
// A state is read before the inputs are awaited: within a launch only this task touches it, so it is what the last step
// left. It is read past L1, where another SM's step would not show, and written in place, each element by the thread
// that read it. These ops move few bytes, so there is one copy of each for all types: the kernel's own code has to be
// fetched too.
#pragma once

#include "gdn_head.cuh"
#include "reduce.cuh"
#include "tile_io.cuh"

namespace amk {

__device__ __forceinline__ float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

// ---- CAUSAL_CONV: a channel per thread ----

struct ConvChannel {
  AnyElement tap[AMK_MAX_CONV_WIDTH], old[AMK_MAX_CONV_WIDTH];  // old[j]: what the state has at j
};
__device__ __forceinline__ ConvChannel load_channel(const TaskContext& c, int i) {
  const int width = c.params().K;
  const int64_t channel = c.params().n_off + i;
  ConvChannel out{};
#pragma unroll
  for (int j = 0; j < AMK_MAX_CONV_WIDTH; ++j) {
    if (i >= c.params().N_tile || j >= width) continue;
    out.tap[j] = AnyElement::load(c.in<char>(1), channel * width + j, c.task.dtype);
    if (j + 1 < width) out.old[j] = AnyElement::load(c.in<char>(2), channel * (width - 1) + j, c.task.dtype);
  }
  return out;
}

template <int kThreads>
__device__ bool causal_conv(const TaskContext& c) {
  const amk_params_t& p = c.params();
  const int dtype = c.task.dtype, kept = p.K - 1;
  ConvChannel channel{};
#pragma unroll 1
  for (int i = static_cast<int>(ptx::thread_id()), first = i; first == i || i < p.N_tile; i += kThreads) {
    channel = load_channel(c, i);
    if (i == first && !c.await_inputs<kThreads>()) return false;
    if (i >= p.N_tile) break;
    const float x = load_any(c.in<char>(0), int64_t{p.m_off} + p.n_off + i, dtype);
    const int64_t at = (int64_t{p.n_off} + i) * kept;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < AMK_MAX_CONV_WIDTH; ++j) {
      if (j > kept) break;
      const float v = j == kept ? x : channel.old[j].value(dtype);
      sum = fmaf(channel.tap[j].value(dtype), v, sum);
      if (j > 0) store_any(c.out<char>(1), at + j - 1, dtype, v);
    }
    store_any(c.out<char>(0), int64_t{p.n_off} + i, dtype, sum * sigmoid(sum));
  }
  return true;
}

// ---- GDN_DECODE: the block takes a head at a time, all of its rows at once ----

template <int kThreads>
__device__ bool gdn_decode(const TaskContext& c) {
#pragma unroll 1
  for (int h = 0; h < c.params().N_tile; ++h) {
    GdnHead<kThreads, TaskContext> head(c, h);
    head.load_state();
    if (h == 0 && !c.await_inputs<kThreads>()) return false;
    head.step();
  }
  return true;
}

// ---- GATED_RMSNORM: a warp takes a head, of at most kGdnMaxDim elements ----

template <int kThreads>
__device__ bool gated_rmsnorm(const TaskContext& c) {
  constexpr int kPerLane = kGdnMaxDim / kWarpThreads;
  const amk_params_t& p = c.params();
  const int lane = ptx::thread_id() % kWarpThreads, dim = p.head_dim, dtype = c.task.dtype;
  if (!c.await_inputs<kThreads>()) return false;
#pragma unroll 1
  for (int h = ptx::thread_id() / kWarpThreads; h < p.N_tile; h += kThreads / kWarpThreads) {
    const int64_t at = (int64_t{p.n_off} + h) * dim + lane;
    AnyElement x[kPerLane]{}, z[kPerLane]{}, weight[kPerLane]{};
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int i = j * kWarpThreads;
      if (lane + i >= dim) continue;
      x[j] = AnyElement::load(c.in<char>(0), at + i, dtype);
      z[j] = AnyElement::load(c.in<char>(1), p.m_off + at + i, dtype);
      weight[j] = AnyElement::load(c.in<char>(2), lane + i, dtype);
    }
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) sum = fmaf(x[j].value(dtype), x[j].value(dtype), sum);
    const float scale = rms_scale(warp_sum(sum), dim, p.eps);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int i = j * kWarpThreads;
      if (lane + i >= dim) continue;
      const float gate = z[j].value(dtype);
      store_any(c.out<char>(0), at + i, dtype,
                x[j].value(dtype) * scale * weight[j].value(dtype) * (gate * sigmoid(gate)));
    }
  }
  return true;
}

// ---- SIGMOID_MUL ----

template <int kThreads>
__device__ bool sigmoid_mul(const TaskContext& c) {
  const amk_params_t& p = c.params();
  const int dtype = c.task.dtype;
  if (!c.await_inputs<kThreads>()) return false;
#pragma unroll 1
  for (int i = ptx::thread_id(); i < p.N_tile; i += kThreads) {
    const int64_t at = int64_t{p.n_off} + i;
    const float a = load_any(c.in<char>(0), at, dtype), b = load_any(c.in<char>(1), p.m_off + at, dtype);
    store_any(c.out<char>(0), at, dtype, a * sigmoid(b));
  }
  return true;
}

}  // namespace amk
