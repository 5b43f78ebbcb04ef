// Storage types: 16-byte vectors and single elements of f32, f16 and bf16, as f32 in registers.
// In and out: global memory. Activations are read from L2 (.cg: another SM may have written them in this launch), only
// weights go through ptx::load_weight. Rounding is to nearest even, once per store.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "amk.h"
#include "ptx.cuh"

namespace amk {

constexpr int kVectorBytes = AMK_VECTOR_BYTES;
template <class T>
constexpr int kPerVector = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) for a dtype that the law allowed; false for any other.
template <class F>
__device__ __forceinline__ bool with_dtype(int32_t dtype, F f) {
  switch (dtype) {
    case AMK_DTYPE_F32: return f(Type<float>{});
    case AMK_DTYPE_F16: return f(Type<__half>{});
    case AMK_DTYPE_BF16: return f(Type<__nv_bfloat16>{});
    default: return false;
  }
}

__device__ __forceinline__ float to_f32(float v) { return v; }
__device__ __forceinline__ float to_f32(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_f32(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T from_f32(float v);
template <>
__device__ __forceinline__ float from_f32<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_f32<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

template <class T>
__device__ __forceinline__ float load(const T* p) {
  return to_f32(__ldcg(p));
}
template <class T>
__device__ __forceinline__ void store(T* p, float v) {
  *p = from_f32<T>(v);
}
__device__ __forceinline__ uint4 load_vector(const void* p) { return __ldcg(static_cast<const uint4*>(p)); }

// One element of a type that is known at run time: its bits now, its value later. For code that is not worth a copy for
// each type.
struct AnyElement {
  uint32_t bits;
  __device__ __forceinline__ static AnyElement load(const void* base, int64_t at, int32_t dtype) {
    const bool is_f32 = dtype == AMK_DTYPE_F32;
    const char* p = static_cast<const char*>(base) + (at << (is_f32 ? 2 : 1));
    AnyElement e;
    if (is_f32) {
      e.bits = __ldcg(reinterpret_cast<const uint32_t*>(p));
    } else {
      e.bits = __ldcg(reinterpret_cast<const unsigned short*>(p));
    }
    return e;
  }
  __device__ __forceinline__ float value(int32_t dtype) const {
    if (dtype == AMK_DTYPE_F16) return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    return __uint_as_float(dtype == AMK_DTYPE_BF16 ? bits << 16 : bits);
  }
};
__device__ __forceinline__ float load_any(const void* base, int64_t at, int32_t dtype) {
  return AnyElement::load(base, at, dtype).value(dtype);
}
__device__ __forceinline__ void store_any(void* base, int64_t at, int32_t dtype, float v) {
  if (dtype == AMK_DTYPE_F32) {
    static_cast<float*>(base)[at] = v;
  } else {
    static_cast<unsigned short*>(base)[at] = dtype == AMK_DTYPE_BF16 ? __bfloat16_as_ushort(from_f32<__nv_bfloat16>(v))
                                                                     : __half_as_ushort(from_f32<__half>(v));
  }
}

// A pair of elements in one register, as two floats.
template <class T>
__device__ __forceinline__ float2 unpack_pair(uint32_t word);
template <>
__device__ __forceinline__ float2 unpack_pair<__nv_bfloat16>(uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
template <>
__device__ __forceinline__ float2 unpack_pair<__half>(uint32_t word) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}

// The other way round, rounded to nearest even.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float first, float second);
template <>
__device__ __forceinline__ uint32_t pack_pair<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack_pair<__half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class T>
__device__ __forceinline__ void unpack(uint4 v, float (&out)[kPerVector<T>]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      out[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack_pair<T>(words[i]);
      out[2 * i] = pair.x;
      out[2 * i + 1] = pair.y;
    }
  }
}

template <class T>
__device__ __forceinline__ uint4 pack(const float (&in)[kPerVector<T>]) {
  uint4 v;
  T* at = reinterpret_cast<T*>(&v);
#pragma unroll
  for (int i = 0; i < kPerVector<T>; ++i) at[i] = from_f32<T>(in[i]);
  return v;
}

__host__ __device__ constexpr int ceil_div_int(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up_int(int a, int b) { return ceil_div_int(a, b) * b; }

}  // namespace amk
