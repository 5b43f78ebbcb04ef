// CAUSAL_CONV, GDN_DECODE, GATED_RMSNORM, SIGMOID_MUL: a layer of linear attention, and the gate behind full attention.
// A state is read before the inputs are awaited: within a launch only this task touches it, so it is what the last step
// left. It is read past L1, where another SM's step would not show, and written in place, each element by the thread
// that read it. These ops move few bytes, so there is one copy of each for all types: the kernel's own code has to be
// fetched too.
#pragma once

#include "gdn.cuh"
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
  __device__ __forceinline__ void step() {
    const amk_params_t& p = c_.params();
    const int dim = p.head_dim, dtype = c_.task.dtype, key_head = head_ / (p.n_heads / p.n_kv_heads);
    const char *qkv = c_.template in<char>(0), *ba = c_.template in<char>(1);
    const int64_t v_at = (2 * int64_t{p.n_kv_heads} + head_) * dim;
    const AnyElement b = AnyElement::load(ba, int64_t{p.m_off} + head_, dtype),
                     a = AnyElement::load(ba, int64_t{p.m_off} + p.n_heads + head_, dtype);
    float4 k[Owner::kPieces]{}, q[Owner::kPieces]{};
    load_vector(qkv, int64_t{key_head} * dim, q);
    load_vector(qkv, (int64_t{p.n_kv_heads} + key_head) * dim, k);
    const int own_row = row(Owner::own_set());
    const float v = own_row < dim ? load_any(qkv, v_at + own_row, dtype) : 0.0f;
    GdnFactors f = gdn_vector_factors<kLanes>(k, q, p.scale, p.flags & AMK_FLAG_L2_NORM, p.eps);
    f.decay = gdn_decay(amk::load(c_.template in<float>(2) + head_), a.value(dtype),
                        amk::load(c_.template in<float>(3) + head_));
    f.beta = gdn_beta(b.value(dtype));
    const float o = gdn_step<Owner>(state_, k, q, f, v);
    each_piece(
        [&](int r, int i, int64_t at) { *reinterpret_cast<float4*>(c_.template out<float>(1) + at) = state_[r][i]; });
    if (Owner::has_output() && own_row < dim)
      store_any(c_.template out<char>(0), int64_t{head_} * dim + own_row, dtype, o);
  }

 private:
  __device__ static int row(int r) {
    return static_cast<int>(ptx::thread_id()) / kWarpThreads * Owner::kRowsPerWarp + Owner::lane_row() +
           Owner::set_row(r);
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
  // This lane's pieces of dim elements from `at` on.
  __device__ __forceinline__ void load_vector(const char* base, int64_t at, float4 (&out)[Owner::kPieces]) const {
    const int dtype = c_.task.dtype;
    const bool is_f32 = dtype == AMK_DTYPE_F32;
    const char* lane = base + ((at + Owner::lane_element()) << (is_f32 ? 2 : 1));
#pragma unroll
    for (int i = 0; i < Owner::kPieces; ++i) {
      if (Owner::lane_element() + Owner::piece_element(i) >= c_.params().head_dim) continue;
      if (is_f32) {
        out[i] = __ldcg(reinterpret_cast<const float4*>(lane) + Owner::piece_element(i) / 4);
      } else {
        const uint2 raw = __ldcg(reinterpret_cast<const uint2*>(lane) + Owner::piece_element(i) / 4);
        const bool is_bf16 = dtype == AMK_DTYPE_BF16;
        const float2 low = is_bf16 ? unpack_pair<__nv_bfloat16>(raw.x) : unpack_pair<__half>(raw.x),
                     high = is_bf16 ? unpack_pair<__nv_bfloat16>(raw.y) : unpack_pair<__half>(raw.y);
        out[i] = {low.x, low.y, high.x, high.y};
      }
    }
  }

  const TaskContext& c_;
  const int head_;
  float4 state_[kSets][Owner::kPieces]{};  // zero where there is nothing: behind the end of a smaller head
};

template <int kThreads>
__device__ bool gdn_decode(const TaskContext& c) {
#pragma unroll 1
  for (int h = 0; h < c.params().N_tile; ++h) {
    GdnHead<kThreads> head(c, h);
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
