// f32 <-> bf16 and f16 as bit patterns: round to nearest, ties to even; infinities and NaN stay what they are.
// In and out: plain words. Branch-free on the widening side and without branches that matter on the other, so that
// loops over them vectorise; needs no hardware support and gives the same bits everywhere.
#pragma once

#include <bit>
#include <cstdint>

namespace amk {

inline float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t f32_to_bf16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  const uint32_t quiet_nan = u >> 16 | 0x40;  // rounding a NaN's low bits could carry it to infinity or to zero
  return static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
}

inline float f16_to_f32(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fffu;
  // The f16 fields moved into f32 places are the value times 2^-112, subnormals included; the product is exact.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude > 0x7bff ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | special | (bits & 0x8000u) << 16);
}

inline uint16_t f32_to_f16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value), magnitude = u & 0x7fffffff, sign = u >> 16 & 0x8000;
  // Normal results: rebias the exponent (127 -> 15) and round at bit 13. 65520 and above carry into infinity.
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Below 2^-14: floats in [0.5, 1) are 2^-24 apart, one f16 subnormal step, so the addition rounds for us.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  const uint32_t infinite = magnitude > 0x7f800000 ? 0x7e00 | (magnitude >> 13 & 0x3ff) : 0x7c00;
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  return static_cast<uint16_t>(sign | (magnitude >= 0x47800000 ? infinite : finite));
}

}  // namespace amk
