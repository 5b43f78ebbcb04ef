// Sums over a warp and a block of a task kernel, always in the same order: butterflies inside a warp, then warp 0, 1,
// ... In: one value per thread. Out: the result in every thread. No atomics.
#pragma once

#include <cstdint>

namespace amk::task {

constexpr int kWarpThreads = 32;
constexpr uint32_t kWholeWarp = 0xffffffffu;

// Sum over aligned groups of kLanes lanes. Every lane adds the same two numbers at each level, so all lanes of a group
// end with the same bits.
template <int kLanes = kWarpThreads>
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) v += __shfl_xor_sync(kWholeWarp, v, mask);
  return v;
}

// scratch: [kThreads / 32], of this reduction alone.
template <int kThreads>
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  if (threadIdx.x % kWarpThreads == 0) scratch[threadIdx.x / kWarpThreads] = v;
  __syncthreads();
  float sum = scratch[0];
#pragma unroll
  for (int w = 1; w < kThreads / kWarpThreads; ++w) sum += scratch[w];
  return sum;
}

}  // namespace amk::task
