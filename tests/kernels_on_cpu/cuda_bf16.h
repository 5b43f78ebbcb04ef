// Stands in for CUDA's header of the same name: storage and conversions of bf16.
#pragma once

#include "base/half.h"
#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline float __bfloat162float(__nv_bfloat16 v) { return amk::bf16_to_f32(v.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return {amk::f32_to_bf16(v)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
