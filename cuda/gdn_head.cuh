// A head of GDN_DECODE, by all threads of the tasks at once.
// In: a task (Context: what an op sees of it), a head's number in it. Out: the head's new state, where the old one lay,
// and its o. Nothing else of the machine is needed, so that a test can run it.
#pragma once

#include "gdn.cuh"

namespace amk {

template <int kThreads, class Context>
class GdnHead {
  static constexpr int kWarps = kThreads / kWarpThreads, kLanes = 8;
  static constexpr int kSets = kGdnMaxDim / (kWarps * kWarpThreads / kLanes);
  using Owner = GdnOwner<kLanes, kSets>;
  static_assert(kSets * kWarps * Owner::kSide == kGdnMaxDim, "a pass covers the largest head");

 public:
  __device__ GdnHead(const Context& c, int h) : c_(c), head_(c.params().n_off + h) {}

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

  const Context& c_;
  const int head_;
  float4 state_[kSets][Owner::kPieces]{};  // zero where there is nothing: behind the end of a smaller head
};

}  // namespace amk
