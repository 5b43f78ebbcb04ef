// Sums and maxima over a warp and a block, always in the same order: butterflies inside a warp, then warp 0, 1, 2, ...
// In: one value per thread. Out: the result in every thread. No atomics (V22).
#pragma once

#include "sync.cuh"

namespace amk {

constexpr int kMaxWarps = 32;
constexpr int kReduceScratch = 2 * kMaxWarps;  // two halves, so that two reductions in a row need no barrier between

// Every lane adds the same two numbers at each level, so all lanes end with the same bits.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) v += __shfl_xor_sync(kWholeWarp, v, mask);
  return v;
}

// half: 0 and 1 in turn.
template <int kThreads>
__device__ __forceinline__ float block_sum(float v, float* scratch, int half) {
  float* slots = scratch + half * kMaxWarps;
  v = warp_sum(v);
  if (ptx::thread_id() % kWarpThreads == 0) slots[ptx::thread_id() / kWarpThreads] = v;
  block_sync<kThreads>();
  float sum = slots[0];
#pragma unroll
  for (int w = 1; w < kThreads / kWarpThreads; ++w) sum += slots[w];
  return sum;
}

// What norm weights lack: they are used as 1 + w where NORM_PLUS_ONE is flagged.
__device__ __forceinline__ float norm_plus(const amk_params_t& p) {
  return p.flags & AMK_FLAG_NORM_PLUS_ONE ? 1.0f : 0.0f;
}

// 1 / sqrt(sum / count + eps). On the path of every product behind a norm, where an exact division and an exact root
// take some 150 cycles more; this root errs by 2 units in the last place (CUDA C++ Programming Guide), and the other
// one does not depend on the sum.
__device__ __forceinline__ float rms_scale(float sum_of_squares, int count, float eps) {
  const float n = static_cast<float>(count);
  return sqrtf(n) * rsqrtf(fmaf(n, eps, sum_of_squares));
}

}  // namespace amk
