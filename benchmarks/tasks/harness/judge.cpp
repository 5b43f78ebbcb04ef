// Passes over operands in host memory, on all cores: what an output must be, bytes that differ, rounding to bf16.
// In: storage without gaps, the oracle's float64. Out: counts, indices, the largest error; the judge of
// python/amk/tasks decides. Every element is computed alone, and what is gathered does not depend on the order: counts,
// a minimum of indices, a maximum. Needs no CUDA, and no other source of the harness.
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "amk_task_harness.h"
#include "guarded.h"
#include "pieces.h"

using amk::task::each_piece;
using amk::task::guarded;
using amk::task::kMostThreads;
using amk::task::require;

namespace {

constexpr int64_t kRun = 1024;  // elements that are widened at a time: they stay in the first cache
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

// ---- values -----------------------------------------------------------------------------------------------------

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

double widen(float x) { return static_cast<double>(x); }
double widen(int32_t x) { return static_cast<double>(x); }
double widen(int64_t x) { return static_cast<double>(x); }
double widen(uint8_t x) { return static_cast<double>(x); }
double widen(Bf16 x) { return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16)); }
double widen(F16 x) {
  constexpr uint32_t kLargestExponent = 0x1F, kShift = 13, kRebias = 127 - 15;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7FFF) << kShift, exponent = (x.bits >> 10) & 0x1F;
  const uint32_t number = magnitude + ((exponent == kLargestExponent ? 2 * kRebias : kRebias) << 23);
  const uint32_t denormal = std::bit_cast<uint32_t>(static_cast<float>(x.bits & 0x3FF) * 0x1p-24F);
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  return static_cast<double>(std::bit_cast<float>((exponent == 0 ? denormal : number) | sign));
}

// Whether all bytes are 0xFF; of an integer, where that number is not what is wanted.
template <class Storage>
bool is_unwritten(Storage x, double want) {
  Storage poison;
  std::memset(&poison, 0xFF, sizeof poison);
  if (std::memcmp(&x, &poison, sizeof x)) return false;
  return !std::numeric_limits<Storage>::is_integer || want != widen(poison);
}

// ---- judging ----------------------------------------------------------------------------------------------------

typedef double Lanes __attribute__((vector_size(2 * sizeof(double))));   // what every x86-64 and aarch64 has
typedef int64_t Mask __attribute__((vector_size(2 * sizeof(int64_t))));  // -1 where true
constexpr int64_t kLanes = 2, kChains = 2, kStep = kLanes * kChains;     // maxima side by side: none waits for another

Lanes magnitude(Lanes x) {
  constexpr int64_t kNoSign = std::numeric_limits<int64_t>::max();
  return (Lanes)((Mask)x & Mask{kNoSign, kNoSign});
}
Lanes everywhere(double x) { return Lanes{x, x}; }

// What one thread found.
struct alignas(64) Found {
  double largest = 0;
  int64_t inside = 0, zeros_outside = 0;
  int64_t n_padded = 0;  // zeros behind the last element of a run, where zero is wanted: they are inside
  int64_t unwritten = 0, first_non_finite = kNone, first_non_finite_oracle = kNone;
};

// `n` elements of a run, a multiple of kStep; true where all are finite.
bool judge_run(const double* got, const double* want, int64_t n, double atol, double rtol, Found& found) {
  const Lanes limit = everywhere(atol), share = everywhere(rtol), most = everywhere(std::numeric_limits<double>::max());
  Lanes largest[kChains]{};
  Mask all_finite = {-1, -1}, inside{}, zeros_outside{};
  for (int64_t i = 0; i < n; i += kStep) {
    for (int64_t chain = 0; chain < kChains; ++chain) {
      Lanes value, wanted;
      std::memcpy(&value, got + i + chain * kLanes, sizeof value);
      std::memcpy(&wanted, want + i + chain * kLanes, sizeof wanted);
      const Lanes size = magnitude(wanted), error = magnitude(value - wanted), tolerated = limit + share * size;
      const Mask finite = (magnitude(value) <= most) & (size <= most);
      inside -= error <= tolerated;
      zeros_outside -= size > tolerated;
      const Lanes counted = (Lanes)((Mask)error & finite);  // else 0
      largest[chain] = counted > largest[chain] ? counted : largest[chain];
      all_finite &= finite;
    }
  }
  for (const Lanes& one : largest)
    for (int64_t i = 0; i < kLanes; ++i) found.largest = std::max(found.largest, one[i]);
  for (int64_t i = 0; i < kLanes; ++i) {
    found.inside += inside[i];
    found.zeros_outside += zeros_outside[i];
  }
  return all_finite[0] & all_finite[1];
}

bool is_finite(double x) { return magnitude(everywhere(x))[0] <= std::numeric_limits<double>::max(); }

template <class Storage>
void judge_piece(const Storage* got, const double* want, int64_t begin, int64_t end, double atol, double rtol,
                 Found& found) {
  static_assert(kRun % kStep == 0);
  double values[kRun], wanted[kStep];
  for (int64_t at = begin; at < end; at += kRun) {
    const int64_t n = std::min(kRun, end - at), whole = n - n % kStep;
    for (int64_t i = 0; i < n; ++i) values[i] = widen(got[at + i]);
    bool finite = judge_run(values, want + at, whole, atol, rtol, found);
    if (whole < n) {
      for (int64_t i = 0; i < kStep; ++i) wanted[i] = whole + i < n ? want[at + whole + i] : 0;
      for (int64_t i = n; i < whole + kStep; ++i) values[i] = 0;
      found.n_padded += whole + kStep - n;
      finite &= judge_run(values + whole, wanted, kStep, atol, rtol, found);
    }
    if (finite && !std::numeric_limits<Storage>::is_integer) continue;  // poison of floats is NaN
    for (int64_t i = 0; i < n; ++i) {
      const double one = want[at + i];
      found.unwritten += is_unwritten(got[at + i], one);
      if (!is_finite(one)) {
        found.first_non_finite_oracle = std::min(found.first_non_finite_oracle, at + i);
      } else if (!is_finite(values[i])) {
        found.first_non_finite = std::min(found.first_non_finite, at + i);
      }
    }
  }
}

template <class Storage>
void judge(const void* got, const double* want, int64_t count, double atol, double rtol, amk_harness_judgement_t& out) {
  require(reinterpret_cast<uintptr_t>(got) % alignof(Storage) == 0, "judge: got is not aligned to its element");
  std::vector<Found> of_thread(kMostThreads);
  each_piece(count, [&](int64_t thread, int64_t begin, int64_t end) {
    judge_piece(static_cast<const Storage*>(got), want, begin, end, atol, rtol, of_thread[static_cast<size_t>(thread)]);
  });
  int64_t inside = 0, n_padded = 0;
  out = {};
  out.first_non_finite = out.first_non_finite_oracle = kNone;
  for (const Found& found : of_thread) {
    out.largest = std::max(out.largest, found.largest);
    out.zeros_outside += found.zeros_outside;
    inside += found.inside;
    n_padded += found.n_padded;
    out.unwritten += found.unwritten;
    out.first_non_finite = std::min(out.first_non_finite, found.first_non_finite);
    out.first_non_finite_oracle = std::min(out.first_non_finite_oracle, found.first_non_finite_oracle);
  }
  out.outside = count - (inside - n_padded);
  if (out.first_non_finite == kNone) out.first_non_finite = -1;
  if (out.first_non_finite_oracle == kNone) out.first_non_finite_oracle = -1;
}

uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

}  // namespace

const char* amk_harness_last_error(void) { return amk::last_error(); }

int32_t amk_harness_judge(const void* got, int32_t dtype, const double* want, int64_t count, double atol, double rtol,
                          amk_harness_judgement_t* out) {
  return guarded([&] {
    require(out && count >= 0 && ((got && want) || !count), "judge: expected two operands and where to put the answer");
    require(atol >= 0 && rtol >= 0, "judge: expected tolerances of at least 0");
    switch (dtype) {
      case AMK_DTYPE_F32: return judge<float>(got, want, count, atol, rtol, *out);
      case AMK_DTYPE_F16: return judge<F16>(got, want, count, atol, rtol, *out);
      case AMK_DTYPE_BF16: return judge<Bf16>(got, want, count, atol, rtol, *out);
      case AMK_DTYPE_I32: return judge<int32_t>(got, want, count, atol, rtol, *out);
      case AMK_TASK_DTYPE_I64: return judge<int64_t>(got, want, count, atol, rtol, *out);
      case AMK_DTYPE_U8: return judge<uint8_t>(got, want, count, atol, rtol, *out);
      default: AMK_CHECK(false, AMK_ERR_INVALID_ARGUMENT, "harness: judge: dtype %d has no values to compare", dtype);
    }
  });
}

int32_t amk_harness_count_different(const void* one, const void* other, int64_t nbytes, int64_t* count) {
  return guarded([&] {
    require(count && nbytes >= 0 && ((one && other) || !nbytes), "count_different: expected two addresses");
    const auto *a = static_cast<const uint8_t*>(one), *b = static_cast<const uint8_t*>(other);
    std::atomic<int64_t> different{0};
    each_piece(nbytes, [&](int64_t, int64_t begin, int64_t end) {
      if (!std::memcmp(a + begin, b + begin, static_cast<size_t>(end - begin))) return;
      int64_t here = 0;
      for (int64_t i = begin; i < end; ++i) here += a[i] != b[i];
      different += here;
    });
    *count = different;
  });
}

int32_t amk_harness_to_bf16(const float* from, uint16_t* to, int64_t count) {
  return guarded([&] {
    require(count >= 0 && ((from && to) || !count), "to_bf16: expected two addresses");
    each_piece(count, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = to_bf16(from[i]);
    });
  });
}

int32_t amk_harness_from_bf16(const uint16_t* from, float* to, int64_t count) {
  return guarded([&] {
    require(count >= 0 && ((from && to) || !count), "from_bf16: expected two addresses");
    each_piece(count, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
    });
  });
}

int32_t amk_harness_keep_freed_memory(void) {
  return guarded([] {
    // One arena that grows by brk, never trimmed; no block is a mapping of its own, which would go back when freed.
    const bool ok = mallopt(M_ARENA_MAX, 1) && mallopt(M_MMAP_MAX, 0) && mallopt(M_TRIM_THRESHOLD, -1);
    AMK_CHECK(ok, AMK_ERR_UNAVAILABLE, "harness: this C library does not keep what is freed (mallopt)");
  });
}
