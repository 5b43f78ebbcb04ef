// Storage types as C++ types, and the sums that every op shares.
// In: f32, bf16, f16 in memory. Out: f32 in registers, rounded once on the way back.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/error.h"
#include "base/half.h"

namespace amk {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

struct I8 {  // symmetric: -128 counts as -127 (amk.h)
  int8_t bits;
};

inline float to_f32(float v) { return v; }
inline float to_f32(I8 v) { return v.bits == -128 ? -127.0f : static_cast<float>(v.bits); }
inline float to_f32(Bf16 v) { return bf16_to_f32(v.bits); }
inline float to_f32(F16 v) { return f16_to_f32(v.bits); }

inline void store(float* at, float v) { *at = v; }
inline void store(Bf16* at, float v) { at->bits = f32_to_bf16(v); }
inline void store(F16* at, float v) { at->bits = f32_to_f16(v); }

template <class T>
float round_to(float v) {
  T stored;
  store(&stored, v);
  return to_f32(stored);
}

template <class T>
void widen(const T* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = to_f32(in[i]);
}

// Calls f(T{}) for the storage type of a dtype that op_check allowed.
template <class F>
void with_storage(int32_t dtype, F f) {
  switch (dtype) {
    case AMK_DTYPE_F32: return f(float{});
    case AMK_DTYPE_BF16: return f(Bf16{});
    case AMK_DTYPE_F16: return f(F16{});
    default: throw Error(AMK_ERR_INTERNAL, text("dtype %d reached an op that computes", dtype));
  }
}

// sum_k w[k] * x[k] in 16 lanes that are added as a tree: the order is part of the result, and it is the same whatever
// vectors the compiler makes of it.
template <class T>
float dot(const T* w, const float* x, int64_t count) {
  constexpr int kLanes = 16;
  float lane[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes)
    for (int l = 0; l < kLanes; ++l) lane[l] += to_f32(w[k + l]) * x[k + l];
  for (int l = 0; k + l < count; ++l) lane[l] += to_f32(w[k + l]) * x[k + l];
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  return lane[0];
}

// exp in double, rounded to f32 once: then it hardly depends on the C library.
inline float exp_f32(float v) { return static_cast<float>(std::exp(static_cast<double>(v))); }
inline float silu(float v) { return v / (1.0f + exp_f32(-v)); }

// x[j] * weight[j] / sqrt(mean(x^2) + eps), each value rounded to T, in place. A weight is what is stored plus `plus`:
// 1 where NORM_PLUS_ONE is flagged, else 0.
template <class T>
void rms_normalise(float* x, const T* weight, int64_t count, float eps, float plus) {
  const float scale = 1.0f / std::sqrt(dot(x, x, count) / static_cast<float>(count) + eps);
  for (int64_t j = 0; j < count; ++j) x[j] = round_to<T>(x[j] * scale * (to_f32(weight[j]) + plus));
}

}  // namespace amk
