// One decode step of the gated delta net (Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464), as device functions for
// whoever has a warp: the library call, the opcode and the kernel task all call these.
// In: rows of a state S f32 [V, K] (k-last), raw k and q, one v per row. Out: the new rows and o, in f32.
//   S <- g S; delta = beta (v - S k); S <- S + delta k^T; o = scale * S q
// k and q stay as they were read: whatever multiplies them (l2-norm, scale) is a factor of the sums, so both sums
// <S, k> and <S, q> start with the old state, before any gate is known, and o = g <S, q> + delta <k, q>.
// Sums run in a fixed order, lane by lane and then by butterflies; nothing is accumulated in memory.
// expf and log1pf are used throughout: an error of g is compounded over the life of a state. The one intrinsic is
// rsqrtf, whose 2 ulp are no more than the rounding of the sum below it.
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

  using Rows = float4[kRows][kPieces];
  using Vector = float4[kPieces];

  // This lane's row of set r is lane_row() + set_row(r), its piece p starts at lane_element() + piece_element(p): one
  // address per lane, and constants.
  __device__ static int lane_row() { return static_cast<int>(threadIdx.x) % kWarpThreads / kLanes; }
  __device__ static int lane_element() { return 4 * (static_cast<int>(threadIdx.x) % kLanes); }
  __host__ __device__ static constexpr int set_row(int r) { return r * kSide; }
  __host__ __device__ static constexpr int piece_element(int p) { return 4 * kLanes * p; }
  __device__ static bool is_first_lane() { return threadIdx.x % kLanes == 0; }
};

template <int kLanes>
__device__ __forceinline__ float lanes_sum(float v) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) v += __shfl_xor_sync(kWholeWarp, v, mask);
  return v;
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

__device__ __forceinline__ float gdn_decay(float a_log, float a, float dt_bias) {
  const float x = a + dt_bias;
  const float softplus = fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
  return expf(-expf(a_log) * softplus);
}
__device__ __forceinline__ float gdn_beta(float b) { return 1.0f / (1.0f + expf(-b)); }
__device__ __forceinline__ float gdn_l2_factor(float sum_of_squares, float eps) { return rsqrtf(sum_of_squares + eps); }

// The factors that k and q bring along: every group of kLanes lanes holds the whole of both.
template <int kLanes, int kPieces>
__device__ __forceinline__ GdnFactors gdn_vector_factors(const float4 (&k)[kPieces], const float4 (&q)[kPieces],
                                                         float scale, bool l2norm, float eps) {
  GdnFactors f{0, 0, 1.0f, scale, lanes_sum<kLanes>(dot(q, k))};
  if (l2norm) {
    f.k = gdn_l2_factor(lanes_sum<kLanes>(dot(k, k)), eps);
    f.q = scale * gdn_l2_factor(lanes_sum<kLanes>(dot(q, q)), eps);
  }
  return f;
}

// The step of this warp's rows: state in place, v[r] and o[r] of this lane's row of set r (equal in all its lanes).
template <class Owner, int kRows>
__device__ __forceinline__ void gdn_step(float4 (&state)[kRows][Owner::kPieces], const float4 (&k)[Owner::kPieces],
                                         const float4 (&q)[Owner::kPieces], const GdnFactors& f,
                                         const float (&v)[kRows], float (&o)[kRows]) {
  constexpr int kLanes = kWarpThreads / Owner::kSide;
  float sk[kRows], sq[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sk[r] = dot(state[r], k);
    sq[r] = dot(state[r], q);
  }
  // All rows at each level: their shuffles overlap.
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sk[r] += __shfl_xor_sync(kWholeWarp, sk[r], mask);
      sq[r] += __shfl_xor_sync(kWholeWarp, sq[r], mask);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float delta = f.beta * (v[r] - f.decay * f.k * sk[r]) * f.k;  // what raw k is multiplied by
#pragma unroll
    for (int p = 0; p < Owner::kPieces; ++p) {
      float4& s = state[r][p];
      s.x = fmaf(delta, k[p].x, f.decay * s.x);
      s.y = fmaf(delta, k[p].y, f.decay * s.y);
      s.z = fmaf(delta, k[p].z, f.decay * s.z);
      s.w = fmaf(delta, k[p].w, f.decay * s.w);
    }
    o[r] = f.q * fmaf(delta, f.qk, f.decay * sq[r]);
  }
}

}  // namespace amk
