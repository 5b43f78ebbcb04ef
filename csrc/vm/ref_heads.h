// One head turned by its position, for every op of the reference machine that turns heads.
// In: a head in its storage type T. Out: its numbers as T would hold them, in f32.
#pragma once

#include "vm/ref_number.h"
#include "vm/ref_ops.h"

namespace amk {

// cos and sin of pos * inv_freq[i], interleaved, in Scratch::kAngles. The angle is a product of doubles: in f32 it
// would be off by whole radians at positions of a long context.
inline const float* head_angles(const OpCall& c, const uint8_t* inv_freq, int32_t head_dim, int32_t pos) {
  const float* f = reinterpret_cast<const float*>(inv_freq);
  float* out = c.scratch.floats(Scratch::kAngles, head_dim);
  for (int32_t i = 0; i < head_dim / 2; ++i) {
    const double angle = static_cast<double>(pos) * static_cast<double>(f[i]);
    out[2 * i] = static_cast<float>(std::cos(angle));
    out[2 * i + 1] = static_cast<float>(std::sin(angle));
  }
  return out;
}

// Normalised and rounded, then turned and rounded; norm and turn may be null.
template <class T>
void make_head(const OpCall& c, const T* src, const T* norm, const float* turn, float* x) {
  const int32_t dim = c.params().head_dim, half = dim / 2;
  widen(src, dim, x);
  if (norm) rms_normalise(x, norm, dim, c.params().eps, c.norm_plus());
  if (!turn) return;
  for (int32_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half], cosine = turn[2 * i], sine = turn[2 * i + 1];
    x[i] = round_to<T>(a * cosine - b * sine);
    x[i + half] = round_to<T>(b * cosine + a * sine);
  }
}

}  // namespace amk
