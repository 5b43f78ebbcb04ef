// Stands in for CUDA's header of the same name: storage and conversions of f16.
#pragma once

#include "base/half.h"
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};
inline __half __ushort_as_half(unsigned short v) { return {v}; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline float __half2float(__half v) { return amk::f16_to_f32(v.bits); }
inline __half __float2half_rn(float v) { return {amk::f32_to_f16(v)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
