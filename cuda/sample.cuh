// SAMPLE_ARGMAX and ARGMAX_COMBINE: the largest logit, the lowest index on a tie, -1 where a NaN was seen.
#pragma once

#include "reduce.cuh"
#include "tile_io.cuh"

namespace amk {

struct Best {
  float value;
  int32_t index;  // -1: a NaN was seen
};

// A NaN beats everything, then the value, then the lower index: a total order, so any tree gives the same answer.
__device__ __forceinline__ Best better(Best a, Best b) {
  if (a.index < 0 || b.index < 0) return a.index < 0 ? a : b;
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

template <int kThreads>
__device__ Best block_best(Best mine, char* shared) {
  Best* slots = reinterpret_cast<Best*>(shared);
#pragma unroll
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2)
    mine = better(mine, {__shfl_xor_sync(kWholeWarp, mine.value, mask), __shfl_xor_sync(kWholeWarp, mine.index, mask)});
  if (ptx::thread_id() % kWarpThreads == 0) slots[ptx::thread_id() / kWarpThreads] = mine;
  block_sync<kThreads>();
  Best best = slots[0];
  for (int w = 1; w < kThreads / kWarpThreads; ++w) best = better(best, slots[w]);
  return best;
}

constexpr int kBestScratchBytes = kMaxWarps * static_cast<int>(sizeof(Best));

// A thread without an element: loses against any.
__device__ __forceinline__ Best no_element() { return {__int_as_float(0xff800000), 0x7fffffff}; }

template <int kThreads>
__device__ bool sample_argmax(const TaskContext& c) {
  const amk_params_t& p = c.params();
  if (!c.await_inputs<kThreads>()) return false;
  const float* logits = c.in<float>(0) + p.n_off;
  Best mine = no_element();
#pragma unroll 4
  for (int i = ptx::thread_id(); i < p.N_tile; i += kThreads) {
    const float v = load(logits + i);
    mine = better(mine, {v, isnan(v) ? -1 : p.n_off + i});
  }
  mine = block_best<kThreads>(mine, c.shared);
  if (ptx::thread_id() == 0) {
    c.out<float>(0)[p.dim] = mine.index < 0 ? __int_as_float(0x7fc00000) : mine.value;
    c.out<int32_t>(1)[p.dim] = mine.index;
  }
  return true;
}

template <int kThreads>
__device__ bool argmax_combine(const TaskContext& c) {
  const amk_params_t& p = c.params();
  if (!c.await_inputs<kThreads>()) return false;
  Best mine = no_element();
  for (int i = ptx::thread_id(); i < p.M; i += kThreads)
    mine = better(mine, {load(c.in<float>(0) + i), __ldcg(c.in<int32_t>(1) + i)});
  mine = block_best<kThreads>(mine, c.shared);
  if (ptx::thread_id() == 0) c.out<int32_t>(0)[0] = mine.index;
  return true;
}

}  // namespace amk
