// Runs of elements of a storage type in registers, and how they cross between registers and global memory.
// In and out: global memory, 16 bytes at a time where the caller checked the alignment. Rounding is to nearest even,
// once per store.
#pragma once

#include "tile_io.cuh"

namespace amk::task {

// How an access treats the caches: kKeep for what is read again, kStream for what is touched once.
enum class Reuse { kKeep, kStream };

template <Reuse kReuse>
__device__ __forceinline__ uint4 load16(const void* p) {
  const uint4* at = static_cast<const uint4*>(p);
  if constexpr (kReuse == Reuse::kStream) return __ldcs(at);
  return *at;
}
template <Reuse kReuse>
__device__ __forceinline__ void store16(void* p, uint4 v) {
  uint4* at = static_cast<uint4*>(p);
  if constexpr (kReuse == Reuse::kStream) {
    __stcs(at, v);
  } else {
    *at = v;
  }
}

// Two rounded elements in one register: one conversion instruction, where two single ones would take three.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack_pair<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// kCount elements of type T as they lie in memory: 8, 16 or 32 bytes. Held packed until they are used.
template <class T, int kCount>
struct Run {
  static constexpr int kWords = kCount * static_cast<int>(sizeof(T)) / 4;
  static_assert(kWords == 2 || kWords % 4 == 0);
  uint32_t word[kWords];

  template <Reuse kReuse = Reuse::kKeep>
  __device__ __forceinline__ void load(const T* p) {
    if constexpr (kWords == 2) {
      const uint2* at = reinterpret_cast<const uint2*>(p);
      uint2 v;
      if constexpr (kReuse == Reuse::kStream) {
        v = __ldcs(at);
      } else {
        v = *at;
      }
      word[0] = v.x;
      word[1] = v.y;
    } else {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 v = load16<kReuse>(p + i * kPerVector<T>);
        word[4 * i] = v.x;
        word[4 * i + 1] = v.y;
        word[4 * i + 2] = v.z;
        word[4 * i + 3] = v.w;
      }
    }
  }
  template <Reuse kReuse = Reuse::kKeep>
  __device__ __forceinline__ void store(T* p) const {
    if constexpr (kWords == 2) {
      const uint2 v{word[0], word[1]};
      if constexpr (kReuse == Reuse::kStream) {
        __stcs(reinterpret_cast<uint2*>(p), v);
      } else {
        *reinterpret_cast<uint2*>(p) = v;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i)
        store16<kReuse>(p + i * kPerVector<T>, {word[4 * i], word[4 * i + 1], word[4 * i + 2], word[4 * i + 3]});
    }
  }
  __device__ __forceinline__ void unpack(float (&out)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 4) {
        out[i] = __uint_as_float(word[i]);
      } else {
        const float2 pair = unpack_pair<T>(word[i]);
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
      }
    }
  }
  __device__ __forceinline__ void pack(const float (&in)[kCount]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 4) {
        word[i] = __float_as_uint(in[i]);
      } else {
        word[i] = pack_pair<T>(in[2 * i], in[2 * i + 1]);
      }
    }
  }
};

}  // namespace amk::task
