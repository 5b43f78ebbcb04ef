// Products of 16-bit types on the tensor cores: mma.m16n8k16 by type. In: fragments. Out: 32-bit sums.
#pragma once

#include "tile_io.cuh"

namespace amk {

// c += A B; a0 and a2: of row lane / 4 of A, a1 and a3: of the row 8 behind it.
template <class T>
__device__ __forceinline__ void multiply_add_two(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                 uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    ptx::mma_f16(c, a0, a1, a2, a3, b0, b1);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    ptx::mma_bf16(c, a0, a1, a2, a3, b0, b1);
  }
}
// c += A B where rows 8 to 15 of A are zero.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], uint32_t x0, uint32_t x1, uint32_t w0, uint32_t w1) {
  multiply_add_two<T>(c, x0, 0, x1, 0, w0, w1);
}

}  // namespace amk
