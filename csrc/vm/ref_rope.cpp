// ROPE and KV_APPEND: a head is normalised where flagged, rounded, turned by its position, rounded, stored.
#include "vm/ref_number.h"
#include "vm/ref_ops.h"

namespace amk {
namespace {

// cos and sin of pos * inv_freq[i], interleaved. The angle is a product of doubles: in f32 it would be off by whole
// radians at positions of a long context.
const float* angles(const OpCall& c, const uint8_t* inv_freq, int32_t head_dim) {
  const float* f = reinterpret_cast<const float*>(inv_freq);
  float* out = c.scratch.floats(Scratch::kAngles, head_dim);
  for (int32_t i = 0; i < head_dim / 2; ++i) {
    const double angle = static_cast<double>(c.pos) * static_cast<double>(f[i]);
    out[2 * i] = static_cast<float>(std::cos(angle));
    out[2 * i + 1] = static_cast<float>(std::sin(angle));
  }
  return out;
}

// One head from src to out; norm and turn may be null.
template <class T>
void one_head(const OpCall& c, const T* src, const T* norm, const float* turn, T* out) {
  const int32_t dim = c.params().head_dim, half = dim / 2;
  float* x = c.scratch.floats(Scratch::kX, dim);
  widen(src, dim, x);
  if (norm) rms_normalise(x, norm, dim, c.params().eps);
  if (!turn) {
    for (int32_t i = 0; i < dim; ++i) store(out + i, x[i]);
    return;
  }
  for (int32_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half], cosine = turn[2 * i], sine = turn[2 * i + 1];
    store(out + i, a * cosine - b * sine);
    store(out + i + half, b * cosine + a * sine);
  }
}

}  // namespace

void ref_rope(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) {
    const amk_params_t& p = c.params();
    const int norm_slot = flag_slots(c.view.task).norm;
    const T* norm = norm_slot < 0 ? nullptr : reinterpret_cast<const T*>(c.in[norm_slot]);
    const float* turn = angles(c, c.in[1], p.head_dim);
    const T* src = reinterpret_cast<const T*>(c.in[0]) + p.m_off;
    T* out = reinterpret_cast<T*>(c.out[0]) + p.n_off;
    for (int64_t h = 0; h < p.n_heads; ++h) one_head(c, src + h * p.head_dim, norm, turn, out + h * p.head_dim);
  });
}

void ref_kv_append(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) {
    const amk_params_t& p = c.params();
    const FlagSlots slots = flag_slots(c.view.task);
    const T* norm = slots.norm < 0 ? nullptr : reinterpret_cast<const T*>(c.in[slots.norm]);
    const float* turn = slots.rope < 0 ? nullptr : angles(c, c.in[slots.rope], p.head_dim);
    const T* src = reinterpret_cast<const T*>(c.in[0]) + p.m_off;
    T* cache = reinterpret_cast<T*>(c.out[0]);
    for (int64_t i = 0; i < p.N_tile; ++i)
      one_head(c, src + i * p.head_dim, norm, turn, cache + ((p.n_off + i) * p.K + c.pos) * p.head_dim);
  });
}

}  // namespace amk
