// The law on the CPU, one value head after the other, in f32 with a fixed order of summation: what a GPU is compared
// with, and what runs where there is none.
#include <cmath>

#include "gdn/gdn.h"
#include "vm/ref_number.h"

namespace amk {
namespace {

constexpr int kDim = kGdnHeadDim;

template <class T>
void widen_strided(const void* base, int64_t at, int64_t stride, float* out) {
  const T* p = static_cast<const T*>(base) + at;
  for (int i = 0; i < kDim; ++i) out[i] = to_f32(p[i * stride]);
}

float element(const void* base, int64_t at, int32_t dtype) {
  float value = 0;
  with_storage(dtype, [&](auto type) { value = to_f32(static_cast<const decltype(type)*>(base)[at]); });
  return value;
}

void l2_normalise(float* x) {
  const float norm = std::sqrt(dot(x, x, kDim) + kGdnNormEps);
  for (int i = 0; i < kDim; ++i) x[i] /= norm;
}

double softplus(double x) { return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

template <class T>
void one_head(const amk_gdn_decode_t& g, int64_t batch, int64_t head) {
  const int64_t key_head = head / (g.value_heads / g.key_heads);
  float q[kDim], k[kDim], v[kDim], row[kDim];
  widen_strided<T>(g.q, batch * g.q_stride[0] + key_head * g.q_stride[1], g.q_stride[2], q);
  widen_strided<T>(g.k, batch * g.k_stride[0] + key_head * g.k_stride[1], g.k_stride[2], k);
  widen_strided<T>(g.v, batch * g.v_stride[0] + head * g.v_stride[1], g.v_stride[2], v);
  if (g.l2norm) {
    l2_normalise(q);
    l2_normalise(k);
  }
  const double a = element(g.a, batch * g.a_stride[0] + head * g.a_stride[1], g.gate_dtype);
  const double b = element(g.b, batch * g.b_stride[0] + head * g.b_stride[1], g.gate_dtype);
  const double a_log = static_cast<const float*>(g.a_log)[head], dt_bias = element(g.dt_bias, head, g.bias_dtype);
  const float decay = static_cast<float>(std::exp(-std::exp(a_log) * softplus(a + dt_bias)));
  const float beta = static_cast<float>(1.0 / (1.0 + std::exp(-b)));

  const float* in = static_cast<const float*>(g.state_in) + batch * g.state_in_stride[0] + head * g.state_in_stride[1];
  float* next = static_cast<float*>(g.state_out) + batch * g.state_out_stride[0] + head * g.state_out_stride[1];
  T* out = static_cast<T*>(g.out) + batch * g.out_stride[0] + head * g.out_stride[1];
  for (int r = 0; r < kDim; ++r) {
    for (int i = 0; i < kDim; ++i) row[i] = decay * in[r * g.state_in_stride[2] + i];
    const float delta = beta * (v[r] - dot(row, k, kDim));
    for (int i = 0; i < kDim; ++i) row[i] += delta * k[i];
    store(out + r * g.out_stride[2], g.scale * dot(row, q, kDim));
    for (int i = 0; i < kDim; ++i) next[r * g.state_out_stride[2] + i] = row[i];
  }
}

}  // namespace

void gdn_decode_on_host(const amk_gdn_decode_t& g) {
  with_storage(g.dtype, [&](auto type) {
    for (int64_t batch = 0; batch < g.batch; ++batch)
      for (int64_t head = 0; head < g.value_heads; ++head) one_head<decltype(type)>(g, batch, head);
  });
}

}  // namespace amk
