// CAUSAL_CONV, GDN_DECODE, GATED_RMSNORM, SIGMOID_MUL: a layer of linear attention, and the gate behind full attention.
// A state is read before the inputs are awaited: within a launch only this task touches it, so it is what the last step
// left. It is read past L1, where another SM's step would not show, and written in place, each element by the thread
// that read it.
#pragma once

#include "elementwise.cuh"
#include "gdn.cuh"
#include "reduce.cuh"
#include "tile_io.cuh"

namespace amk {

// ---- CAUSAL_CONV: a channel per thread ----

struct ConvChannel {
  float tap[AMK_MAX_CONV_WIDTH], old[AMK_MAX_CONV_WIDTH - 1];
};
template <class T>
__device__ __forceinline__ ConvChannel load_channel(const TaskContext& c, int i) {
  const int width = c.params().K;
  const int64_t channel = c.params().n_off + i;
  const T *tap = c.in<T>(1) + channel * width, *old = c.in<T>(2) + channel * (width - 1);
  ConvChannel out;
#pragma unroll
  for (int j = 0; j < AMK_MAX_CONV_WIDTH; ++j) {
    const bool exists = i < c.params().N_tile && j < width;
    out.tap[j] = exists ? load(tap + j) : 0.0f;
    if (j + 1 < AMK_MAX_CONV_WIDTH) out.old[j] = exists && j + 1 < width ? load(old + j) : 0.0f;
  }
  return out;
}

template <int kThreads>
__device__ bool causal_conv(const TaskContext& c) {
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const amk_params_t& p = c.params();
    const int thread = static_cast<int>(threadIdx.x), kept = p.K - 1;
    ConvChannel channel = load_channel<T>(c, thread);
    if (!c.await_inputs<kThreads>()) return false;
    for (int i = thread; i < p.N_tile; i += kThreads) {
      if (i != thread) channel = load_channel<T>(c, i);
      const float x = load(c.in<T>(0) + p.m_off + p.n_off + i);
      T* state = c.out<T>(1) + (int64_t{p.n_off} + i) * kept;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < AMK_MAX_CONV_WIDTH; ++j) {
        if (j < AMK_MAX_CONV_WIDTH - 1 && j < kept) sum = fmaf(channel.tap[j], channel.old[j], sum);
        if (j == kept) sum = fmaf(channel.tap[j], x, sum);
        if (j > 0 && j < AMK_MAX_CONV_WIDTH - 1 && j < kept) store(state + j - 1, channel.old[j]);
      }
      store(state + kept - 1, x);
      store(c.out<T>(0) + p.n_off + i, silu(sum));
    }
    return true;
  });
}

// ---- GDN_DECODE: the block takes a head at a time, all of its rows at once ----

template <int kThreads>
class GdnHead {
  static constexpr int kWarps = kThreads / kWarpThreads, kLanes = 8;
  static constexpr int kSets = kGdnMaxDim / (kWarps * kWarpThreads / kLanes);
  using Owner = GdnOwner<kLanes, kSets>;
  static_assert(kSets * kWarps * Owner::kSide == kGdnMaxDim, "a pass covers the largest head");

 public:
  __device__ GdnHead(const TaskContext& c, int h) : c_(c), head_(c.params().n_off + h) {}

  __device__ __forceinline__ void load_state() {
    each_piece([&](int r, int p, int64_t at) {
      state_[r][p] = __ldcg(reinterpret_cast<const float4*>(c_.template in<float>(4) + at));
    });
  }
  // Behind the wait.
  template <class T>
  __device__ __forceinline__ void load_vectors() {
    const amk_params_t& p = c_.params();
    const int key_head = head_ / (p.n_heads / p.n_kv_heads), dim = p.head_dim;
    const T *qkv = c_.template in<T>(0), *ba = c_.template in<T>(1) + p.m_off + head_;
    const T *q = qkv + key_head * dim, *k = q + p.n_kv_heads * dim, *v = qkv + (2 * p.n_kv_heads + head_) * dim;
    b_ = load(ba);
    a_ = load(ba + p.n_heads);
#pragma unroll
    for (int i = 0; i < Owner::kPieces; ++i) {
      const int e = Owner::lane_element() + Owner::piece_element(i);
      if (e < dim) {
        k_[i] = load_quad(k + e);
        q_[i] = load_quad(q + e);
      }
    }
#pragma unroll
    for (int r = 0; r < kSets; ++r) v_[r] = row(r) < dim ? load(v + row(r)) : 0.0f;
  }
  __device__ __forceinline__ void step() {
    const amk_params_t& p = c_.params();
    GdnFactors f = gdn_vector_factors<kLanes>(k_, q_, p.scale, p.flags & AMK_FLAG_L2_NORM, p.eps);
    f.decay = gdn_decay(load(c_.template in<float>(2) + head_), a_, load(c_.template in<float>(3) + head_));
    f.beta = gdn_beta(b_);
    gdn_step<Owner, kSets>(state_, k_, q_, f, v_, o_);
    each_piece(
        [&](int r, int i, int64_t at) { *reinterpret_cast<float4*>(c_.template out<float>(1) + at) = state_[r][i]; });
  }
  template <class T>
  __device__ __forceinline__ void store_out() const {
    T* out = c_.template out<T>(0) + int64_t{head_} * c_.params().head_dim;
    if (!Owner::is_first_lane()) return;
#pragma unroll
    for (int r = 0; r < kSets; ++r)
      if (row(r) < c_.params().head_dim) store(out + row(r), o_[r]);
  }

 private:
  __device__ static int row(int r) {
    return static_cast<int>(threadIdx.x) / kWarpThreads * Owner::kRowsPerWarp + Owner::lane_row() + Owner::set_row(r);
  }
  template <class F>
  __device__ __forceinline__ void each_piece(F f) {
    const int dim = c_.params().head_dim;
    const int64_t head_at = int64_t{head_} * dim * dim + Owner::lane_element();
#pragma unroll
    for (int r = 0; r < kSets; ++r) {
#pragma unroll
      for (int p = 0; p < Owner::kPieces; ++p)
        if (row(r) < dim && Owner::lane_element() + Owner::piece_element(p) < dim)
          f(r, p, head_at + row(r) * dim + Owner::piece_element(p));
    }
  }
  template <class T>
  __device__ static float4 load_quad(const T* p) {
    if constexpr (sizeof(T) == 4) {
      return __ldcg(reinterpret_cast<const float4*>(p));
    } else {
      const uint2 raw = __ldcg(reinterpret_cast<const uint2*>(p));
      const float2 low = unpack_pair<T>(raw.x), high = unpack_pair<T>(raw.y);
      return {low.x, low.y, high.x, high.y};
    }
  }

  const TaskContext& c_;
  const int head_;
  // Zero where there is nothing: rows and elements behind the end of a smaller head.
  float4 state_[kSets][Owner::kPieces]{}, k_[Owner::kPieces]{}, q_[Owner::kPieces]{};
  float v_[kSets]{}, o_[kSets]{}, a_ = 0, b_ = 0;
};

template <int kThreads>
__device__ bool gdn_decode(const TaskContext& c) {
  for (int h = 0; h < c.params().N_tile; ++h) {
    GdnHead<kThreads> head(c, h);
    head.load_state();
    if (h == 0 && !c.await_inputs<kThreads>()) return false;
    with_dtype(c.task.dtype, [&](auto type) {
      head.template load_vectors<typename decltype(type)::type>();
      return true;
    });
    head.step();
    with_dtype(c.task.dtype, [&](auto type) {
      head.template store_out<typename decltype(type)::type>();
      return true;
    });
  }
  return true;
}

// ---- GATED_RMSNORM: a warp takes a head ----

template <int kThreads>
__device__ bool gated_rmsnorm(const TaskContext& c) {
  if (!c.await_inputs<kThreads>()) return false;
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kHeld = kGdnMaxDim / kWarpThreads;  // elements of a head per lane that are read once
    const amk_params_t& p = c.params();
    const int lane = threadIdx.x % kWarpThreads, dim = p.head_dim;
    const T* weight = c.in<T>(2);
    for (int h = threadIdx.x / kWarpThreads; h < p.N_tile; h += kThreads / kWarpThreads) {
      const int64_t at = (int64_t{p.n_off} + h) * dim;
      const T *x = c.in<T>(0) + at, *z = c.in<T>(1) + p.m_off + at;
      T* out = c.out<T>(0) + at;
      float held[kHeld], gate[kHeld], sum = 0;
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int i = lane + j * kWarpThreads;
        held[j] = i < dim ? load(x + i) : 0.0f;
        gate[j] = i < dim ? load(z + i) : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kHeld; ++j) sum = fmaf(held[j], held[j], sum);
      for (int i = lane + kGdnMaxDim; i < dim; i += kWarpThreads) {
        const float v = load(x + i);
        sum = fmaf(v, v, sum);
      }
      const float scale = rms_scale(warp_sum(sum), dim, p.eps);
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int i = lane + j * kWarpThreads;
        if (i < dim) store(out + i, held[j] * scale * load(weight + i) * silu(gate[j]));
      }
      for (int i = lane + kGdnMaxDim; i < dim; i += kWarpThreads)
        store(out + i, load(x + i) * scale * load(weight + i) * silu(load(z + i)));
    }
    return true;
  });
}

// ---- SIGMOID_MUL ----

template <int kThreads>
__device__ bool sigmoid_mul(const TaskContext& c) {
  return elementwise<kThreads>(c, [&](auto type, int i) {
    using T = typename decltype(type)::type;
    const int at = c.params().n_off + i;
    return load(c.in<T>(0) + at) / (1.0f + expf(-load(c.in<T>(1) + c.params().m_off + at)));
  });
}

}  // namespace amk
