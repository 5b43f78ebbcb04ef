// bf16 and f16 conversions: all 65,536 patterns each way, and every rounding border against exact arithmetic.
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "check.h"

namespace {

float from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

// Value of an f16 pattern from its definition.
double f16_value(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 0x3ff;
  const double sign = h & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

struct Format {
  uint16_t (*narrow)(float);
  float (*widen)(uint16_t);
  uint16_t infinity;
};
const Format kBf16 = {amk::f32_to_bf16, amk::bf16_to_f32, 0x7f80};
const Format kF16 = {amk::f32_to_f16, amk::f16_to_f32, 0x7c00};

// For each pair of neighbours: the middle goes to the even one, a hair to either side to the nearer one.
void check_borders(const Format& f) {
  for (uint32_t low = 0; low < f.infinity; ++low) {
    const double a = f.widen(static_cast<uint16_t>(low));
    // The step above the largest finite number is where infinity would be if the exponent went on.
    const double b = low + 1u < f.infinity ? static_cast<double>(f.widen(static_cast<uint16_t>(low + 1)))
                                           : 2 * a - f.widen(static_cast<uint16_t>(low - 1));
    const float middle = static_cast<float>((a + b) / 2);
    if (static_cast<double>(middle) != (a + b) / 2) continue;  // below f32's own subnormals
    const uint16_t even = static_cast<uint16_t>(low % 2 == 0 ? low : low + 1);
    CHECK_EQ(f.narrow(middle), even);
    CHECK_EQ(f.narrow(std::nextafterf(middle, 0.0f)), static_cast<uint16_t>(low));
    CHECK_EQ(f.narrow(std::nextafterf(middle, INFINITY)), static_cast<uint16_t>(low + 1));
    CHECK_EQ(f.narrow(-middle), even | 0x8000);
  }
}

void check_round_trip(const Format& f) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t h = static_cast<uint16_t>(bits);
    const float wide = f.widen(h);
    if ((h & 0x7fff) > f.infinity) {
      CHECK(std::isnan(wide));
      CHECK((f.narrow(wide) & 0x7fff) > f.infinity);
      CHECK_EQ(f.narrow(wide) & 0x8000, h & 0x8000);
    } else {
      CHECK_EQ(f.narrow(wide), h);
    }
  }
}

}  // namespace

TEST(f16_patterns_have_their_defined_values) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double want = f16_value(static_cast<uint16_t>(bits)), got = amk::f16_to_f32(static_cast<uint16_t>(bits));
    CHECK(std::isnan(want) ? std::isnan(got) : want == got && std::signbit(want) == std::signbit(got));
  }
}

TEST(bf16_patterns_are_the_upper_half_of_f32) {
  for (uint32_t bits = 0; bits < 65536; ++bits)
    CHECK_EQ(std::bit_cast<uint32_t>(amk::bf16_to_f32(static_cast<uint16_t>(bits))), bits << 16);
}

TEST(round_trips) {
  check_round_trip(kBf16);
  check_round_trip(kF16);
}

TEST(round_to_nearest_even) {
  check_borders(kBf16);
  check_borders(kF16);
}

TEST(nan_and_infinity_are_kept) {
  for (const Format& f : {kBf16, kF16}) {
    CHECK_EQ(f.narrow(INFINITY), f.infinity);
    CHECK_EQ(f.narrow(-INFINITY), f.infinity | 0x8000);
    // NaNs whose payload sits only in the bits that are cut off, or that a rounding carry would wrap.
    for (uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x7fc00000u}) {
      CHECK((f.narrow(from_bits(nan)) & 0x7fff) > f.infinity);
      CHECK_EQ(f.narrow(from_bits(nan)) >> 15, static_cast<int>(nan >> 31));
    }
    CHECK_EQ(f.narrow(3.4e38f) & 0x7fff, f.infinity == 0x7c00 ? 0x7c00 : f.narrow(3.4e38f));
    CHECK_EQ(f.narrow(0.0f), 0);
    CHECK_EQ(f.narrow(-0.0f), 0x8000);
    CHECK_EQ(f.narrow(1e-44f), 0);
  }
}
