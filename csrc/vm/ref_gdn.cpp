// CAUSAL_CONV, GDN_DECODE, GATED_RMSNORM, SIGMOID_MUL: linear attention by the gated delta rule (Yang et al. 2024,
// arXiv:2412.06464) with the short convolution before it and the gated norm behind it, and the gate of full attention.
// A state is replaced row by row, each read before it is written.
#include <algorithm>
#include <cmath>

#include "vm/ref_number.h"
#include "vm/ref_ops.h"

namespace amk {
namespace {

float sigmoid(float v) { return 1.0f / (1.0f + exp_f32(-v)); }

// log(1 + exp(v)) in double and rounded once; exp never overflows.
float softplus(float v) {
  const double x = v;
  return static_cast<float>(std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))));
}

template <class T>
void causal_conv(const OpCall& c) {
  const amk_params_t& p = c.params();
  const T* x = reinterpret_cast<const T*>(c.in[0]) + p.m_off;
  const T* weight = reinterpret_cast<const T*>(c.in[1]);
  T* state = reinterpret_cast<T*>(c.out[1]);
  T* y = reinterpret_cast<T*>(c.out[0]);
  const int64_t kept = p.K - 1;
  for (int64_t i = p.n_off; i < int64_t{p.n_off} + p.N_tile; ++i) {
    const T* tap = weight + i * p.K;
    T* old = state + i * kept;
    float sum = 0;
    for (int64_t j = 0; j < kept; ++j) sum += to_f32(tap[j]) * to_f32(old[j]);
    sum += to_f32(tap[kept]) * to_f32(x[i]);
    store(y + i, silu(sum));
    for (int64_t j = 0; j + 1 < kept; ++j) old[j] = old[j + 1];
    old[kept - 1] = x[i];
  }
}

// A head of q or k in f32, divided by its length where flagged.
template <class T>
void widen_head(const amk_params_t& p, const T* src, float* out) {
  widen(src, p.head_dim, out);
  if (!(p.flags & AMK_FLAG_L2_NORM)) return;
  const float scale = 1.0f / std::sqrt(dot(out, out, p.head_dim) + p.eps);
  for (int32_t i = 0; i < p.head_dim; ++i) out[i] *= scale;
}

template <class T>
void gdn_decode(const OpCall& c) {
  const amk_params_t& p = c.params();
  const int64_t dim = p.head_dim, group = p.n_heads / p.n_kv_heads;
  const T* qkv = reinterpret_cast<const T*>(c.in[0]);
  const T* ba = reinterpret_cast<const T*>(c.in[1]) + p.m_off;
  const float* a_log = reinterpret_cast<const float*>(c.in[2]);
  const float* dt_bias = reinterpret_cast<const float*>(c.in[3]);
  T* out = reinterpret_cast<T*>(c.out[0]);
  float* state = reinterpret_cast<float*>(c.out[1]);
  float* q = c.scratch.floats(Scratch::kQuery, dim);
  float* k = c.scratch.floats(Scratch::kX, dim);
  for (int64_t h = p.n_off; h < int64_t{p.n_off} + p.N_tile; ++h) {
    widen_head(p, qkv + h / group * dim, q);
    widen_head(p, qkv + (p.n_kv_heads + h / group) * dim, k);
    const T* v = qkv + (2 * int64_t{p.n_kv_heads} + h) * dim;
    const float decay = exp_f32(-exp_f32(a_log[h]) * softplus(to_f32(ba[p.n_heads + h]) + dt_bias[h]));
    const float beta = sigmoid(to_f32(ba[h]));
    for (int64_t i = 0; i < dim; ++i) {
      float* row = state + (h * dim + i) * dim;
      for (int64_t j = 0; j < dim; ++j) row[j] *= decay;
      const float delta = beta * (to_f32(v[i]) - dot(row, k, dim));
      for (int64_t j = 0; j < dim; ++j) row[j] += delta * k[j];
      store(out + h * dim + i, p.scale * dot(row, q, dim));
    }
  }
}

template <class T>
void gated_rmsnorm(const OpCall& c) {
  const amk_params_t& p = c.params();
  const int64_t dim = p.head_dim;
  const T* weight = reinterpret_cast<const T*>(c.in[2]);
  float* x = c.scratch.floats(Scratch::kX, dim);
  for (int64_t h = p.n_off; h < int64_t{p.n_off} + p.N_tile; ++h) {
    const T* z = reinterpret_cast<const T*>(c.in[1]) + p.m_off + h * dim;
    T* out = reinterpret_cast<T*>(c.out[0]) + h * dim;
    widen(reinterpret_cast<const T*>(c.in[0]) + h * dim, dim, x);
    const float scale = 1.0f / std::sqrt(dot(x, x, dim) / static_cast<float>(dim) + p.eps);
    for (int64_t j = 0; j < dim; ++j) store(out + j, x[j] * scale * to_f32(weight[j]) * silu(to_f32(z[j])));
  }
}

}  // namespace

void ref_causal_conv(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) { causal_conv<T>(c); });
}

void ref_gdn_decode(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) { gdn_decode<T>(c); });
}

void ref_gated_rmsnorm(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) { gated_rmsnorm<T>(c); });
}

void ref_sigmoid_mul(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) {
    const amk_params_t& p = c.params();
    const T* a = reinterpret_cast<const T*>(c.in[0]) + p.n_off;
    const T* b = reinterpret_cast<const T*>(c.in[1]) + p.m_off + p.n_off;
    T* out = reinterpret_cast<T*>(c.out[0]) + p.n_off;
    for (int32_t i = 0; i < p.N_tile; ++i) store(out + i, to_f32(a[i]) * sigmoid(to_f32(b[i])));
  });
}

}  // namespace amk
