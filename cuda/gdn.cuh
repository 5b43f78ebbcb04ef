// One decode step of the gated delta net (Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464), as device functions for
// whoever has a warp: the library call, the opcode and the kernel task all call these.
// In: rows of a state S f32 [V, K] (k-last), raw k and q, one v per row. Out: the new rows and o, in f32.
//   S <- g S; delta = beta (v - S k); S <- S + delta k^T; o = scale * S q
// k and q stay as they were read: whatever multiplies them (l2-norm, scale) is a factor of the sums, so both sums
// <S, k> and <S, q> start with the old state, before any gate is known, and o = g <S, q> + delta <k, q>.
// Sums run in a fixed order, lane by lane and then by butterflies that share out their results (spread_sum); nothing is
// accumulated in memory.
// expf and log1pf are used throughout: an error of g is compounded over the life of a state. rsqrtf's 2 ulp are no more
// than the rounding of the sum below it; the approximate reciprocal of beta is refined to a division's own bits.
#pragma once

#include "device_task.h"
#include "tile_io.cuh"

namespace amk {

constexpr int kGdnMaxDim = 128;

// How a warp owns rows: kLanes lanes share a row, each with 16-byte pieces kLanes apart; 32 / kLanes rows lie side by
// side and kRows such sets follow each other. Fewer lanes per row: fewer shuffles, more registers for k and q.
template <int kLanes, int kRows>
struct GdnOwner {
  static_assert(kLanes == 8 || kLanes == 16 || kLanes == 32, "a row is 8, 16 or 32 times a few 16-byte pieces");
  static constexpr int kPieces = kGdnMaxDim / (4 * kLanes);
  static constexpr int kSide = kWarpThreads / kLanes;
  static constexpr int kRowsPerWarp = kSide * kRows;
  // Of a row's <S, k> of set 0, 1, ... and then its <S, q> of each, every lane ends with one, and so many with the
  // same.
  static constexpr int kSums = 2 * kRows, kLanesPerSum = kLanes / kSums;
  static_assert(kSums <= kLanes, "a lane ends with one sum");

  // This lane's row of set r is lane_row() + set_row(r), its piece p starts at lane_element() + piece_element(p): one
  // address per lane, and constants.
  __device__ static int lane_row() { return static_cast<int>(threadIdx.x) % kWarpThreads / kLanes; }
  __device__ static int lane_element() { return 4 * (static_cast<int>(threadIdx.x) % kLanes); }
  __host__ __device__ static constexpr int set_row(int r) { return r * kSide; }
  __host__ __device__ static constexpr int piece_element(int p) { return 4 * kLanes * p; }
  // The set whose sum this lane ends with: it knows that row's v, and one lane of those with <S, q> has its o.
  __device__ static int own_set() { return static_cast<int>(threadIdx.x) % kLanes / kLanesPerSum % kRows; }
  __device__ static bool has_output() { return threadIdx.x % kLanes >= kLanes / 2 && threadIdx.x % kLanesPerSum == 0; }
  // The lane of a row that ends with <S, k> of set r.
  __host__ __device__ static constexpr int lane_of_key_sum(int r) { return r * kLanesPerSum; }
};

// Sums of kCount values over the kLanes lanes of a group; of the kSpan lanes, lane i ends with that of value
// i / (kSpan / kCount). Where kSpan is more than kLanes, all its groups hold the same: each takes a part of the values.
// At each level a lane keeps half of its values and sends the others, until there is one: kCount - 1 shuffles instead
// of kCount for each level. The pairs of lanes are those of a plain butterfly of each value, and a + b is b + a: so are
// the bits of the sums.
template <int kSpan, int kLanes, int kCount>
__device__ __forceinline__ float spread_sum(const float (&values)[kCount]) {
  static_assert(kCount <= kSpan && kLanes <= kSpan);
  static_assert((kCount & (kCount - 1)) == 0 && (kSpan & (kSpan - 1)) == 0, "halves at every level");
  constexpr int kMask = kSpan / 2;
  if constexpr (kSpan == 1) {
    return values[0];
  } else if constexpr (kCount == 1) {
    static_assert(kSpan <= kLanes, "no value is left for some groups");
    const float sum[1] = {values[0] + __shfl_xor_sync(kWholeWarp, values[0], kMask)};
    return spread_sum<kMask, kMask>(sum);
  } else {
    const bool is_upper = threadIdx.x & kMask;
    float kept[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      kept[i] = is_upper ? values[kCount / 2 + i] : values[i];
      if constexpr (kMask < kLanes)
        kept[i] += __shfl_xor_sync(kWholeWarp, is_upper ? values[i] : values[kCount / 2 + i], kMask);
    }
    return spread_sum<kMask, (kMask < kLanes ? kMask : kLanes)>(kept);
  }
}

__device__ __forceinline__ float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
template <int kPieces>
__device__ __forceinline__ float dot(const float4 (&a)[kPieces], const float4 (&b)[kPieces]) {
  float sum = 0;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) sum = dot4(a[p], b[p], sum);
  return sum;
}

// What one value head's step multiplies by: decay g, beta, and the factors that raw k and q lack (l2-norm, scale).
struct GdnFactors {
  float decay, beta, k, q;
  float qk;  // <raw q, raw k>
};

// The gates have no branch, so that the compiler can put them into the waits of the sums.
__device__ __forceinline__ float gdn_decay(float a_log, float a, float dt_bias) {
  const float x = a + dt_bias;
  // In [0, 1]. Said to the compiler, which then leaves out what log1pf does with other numbers; a NaN is still in x.
  const float e = fminf(expf(-fabsf(x)), 1.0f);
  __builtin_assume(__float_as_uint(e) < 0x7f800000u);
  const float softplus = (x < 0.0f ? 0.0f : x) + log1pf(e);
  return expf(-expf(a_log) * softplus);
}
// 1 / x for x of 1 and more: the steps of a division, rounded as it is, less those for numbers that x cannot be. A
// result below the normal numbers is 0.
__device__ __forceinline__ float gdn_reciprocal(float x) {
  const float near = ptx::reciprocal_approximate(x);
  const float y = fmaf(near, fmaf(-x, near, 1.0f), near);
  return x > 0x1p126f ? 0.0f : y;
}
__device__ __forceinline__ float gdn_beta(float b) { return gdn_reciprocal(1.0f + expf(-b)); }
__device__ __forceinline__ float gdn_l2_factor(float sum_of_squares, float eps) { return rsqrtf(sum_of_squares + eps); }

// The factors that k and q bring along: every group of kLanes lanes holds the whole of both. Without a branch around
// the norms, whose shuffles then run beside those of the state.
template <int kLanes, int kPieces>
__device__ __forceinline__ GdnFactors gdn_vector_factors(const float4 (&k)[kPieces], const float4 (&q)[kPieces],
                                                         float scale, bool l2norm, float eps) {
  const float qq = dot(q, q);
  const float sums[4] = {dot(q, k), dot(k, k), qq, qq};
  constexpr int kEach = kWarpThreads / 4;
  const float sum = spread_sum<kWarpThreads, kLanes>(sums);
  const float norm = l2norm ? gdn_l2_factor(sum, eps) : 1.0f;
  const auto from = [](float v, int i) { return __shfl_sync(kWholeWarp, v, i * kEach); };
  return {0, 0, from(norm, 1), scale * from(norm, 2), from(sum, 0)};
}

// The step of this warp's rows: state in place, v and o of this lane's row of Owner::own_set(). o is right where
// Owner::has_output().
template <class Owner, int kRows>
__device__ __forceinline__ float gdn_step(float4 (&state)[kRows][Owner::kPieces], const float4 (&k)[Owner::kPieces],
                                          const float4 (&q)[Owner::kPieces], const GdnFactors& f, float v) {
  constexpr int kLanes = kWarpThreads / Owner::kSide;
  float sums[Owner::kSums];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sums[r] = dot(state[r], k);
    sums[kRows + r] = dot(state[r], q);
  }
  const float sum = spread_sum<kLanes, kLanes>(sums);
  // What raw k is multiplied by, in the lanes where sum is <S, k>.
  const float own_delta = f.beta * (v - f.decay * f.k * sum) * f.k;
  float delta_of_own = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float delta = __shfl_sync(kWholeWarp, own_delta, Owner::lane_of_key_sum(r), kLanes);
    if (r == Owner::own_set()) delta_of_own = delta;
#pragma unroll
    for (int p = 0; p < Owner::kPieces; ++p) {
      float4& s = state[r][p];
      s.x = fmaf(delta, k[p].x, f.decay * s.x);
      s.y = fmaf(delta, k[p].y, f.decay * s.y);
      s.z = fmaf(delta, k[p].z, f.decay * s.z);
      s.w = fmaf(delta, k[p].w, f.decay * s.w);
    }
  }
  return f.q * fmaf(delta_of_own, f.qk, f.decay * sum);
}

}  // namespace amk
