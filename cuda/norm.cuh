// RMSNORM of M_tile rows (Zhang & Sennrich 2019, arXiv:1910.07467).
#pragma once

#include "reduce.cuh"
#include "tile_io.cuh"

namespace amk {

template <class T, int kThreads>
__device__ bool rmsnorm_rows(const TaskContext& c) {
  const amk_params_t& p = c.params();
  const T* weight = c.in<T>(1);
  if (!c.await_inputs<kThreads>()) return false;
  for (int row = 0; row < p.M_tile; ++row) {
    const T* x = c.in<T>(0) + p.m_off + int64_t{row} * p.hidden;
    T* out = c.out<T>(0) + p.n_off + int64_t{row} * p.hidden;
    float sum = 0;
    for (int j = ptx::thread_id(); j < p.hidden; j += kThreads) {
      const float v = load(x + j);
      sum = fmaf(v, v, sum);
    }
    const float scale = rms_scale(block_sum<kThreads>(sum, c.reduce_scratch, row & 1), p.hidden, p.eps);
    for (int j = ptx::thread_id(); j < p.hidden; j += kThreads)
      store(out + j, load(x + j) * scale * (load(weight + j) + norm_plus(p)));
  }
  return true;
}

template <int kThreads>
__device__ bool rmsnorm(const TaskContext& c) {
  return with_dtype(c.task.dtype, [&](auto type) { return rmsnorm_rows<typename decltype(type)::type, kThreads>(c); });
}

}  // namespace amk
