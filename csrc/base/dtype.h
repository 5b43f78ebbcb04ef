// Sizes of the storage types.
#pragma once

#include <cstdint>

#include "amk.h"

namespace amk {

constexpr int kDtypeCount = 10;

// Bits per element, 0 for a number that names no dtype.
constexpr int dtype_bits(int32_t dtype) {
  constexpr int kBits[kDtypeCount] = {32, 16, 16, 8, 8, 32, 8, 4, 8, 8};
  static_assert(AMK_DTYPE_BOOL + 1 == kDtypeCount, "a dtype was added: give it its width here");
  return dtype >= 0 && dtype < kDtypeCount ? kBits[dtype] : 0;
}

constexpr const char* dtype_name(int32_t dtype) {
  constexpr const char* kNames[kDtypeCount] = {"f32", "f16", "bf16", "f8e4m3", "f8e5m2",
                                               "i32", "i8",  "i4",   "u8",     "bool"};
  return dtype >= 0 && dtype < kDtypeCount ? kNames[dtype] : "unknown dtype";
}

// The types activations and weights of today's ops may have.
constexpr bool is_compute_dtype(int32_t dtype) {
  return dtype == AMK_DTYPE_F32 || dtype == AMK_DTYPE_F16 || dtype == AMK_DTYPE_BF16;
}

// Bytes of numel elements; numel >= 0 and numel * 32 must fit (checked by the caller through V2).
constexpr int64_t storage_bytes(int32_t dtype, int64_t numel) { return (numel * dtype_bits(dtype) + 7) / 8; }

}  // namespace amk
