// EMBED: some columns of one row of the table, bits unchanged.
#pragma once

#include "sync.cuh"
#include "tile_io.cuh"

namespace amk {

template <int kThreads>
__device__ bool embed(const TaskContext& c) {
  const amk_params_t& p = c.params();
  if (!c.await_inputs()) return false;
  const int32_t token = __ldcg(c.in<int32_t>(0));
  if (token < 0 || token >= p.vocab) {
    if (threadIdx.x == 0)
      raise_fault(c.machine.ledger, FaultKind::kBadToken, 1, c.task.task, -1, static_cast<uint32_t>(token),
                  static_cast<uint32_t>(p.vocab));
    return false;
  }
  const int64_t row = int64_t{token} * p.hidden + p.n_off;
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* table = c.in<T>(1) + row;
    T* out = c.out<T>(0) + p.n_off;
    for (int i = threadIdx.x; i < p.N_tile; i += kThreads) out[i] = __ldcg(table + i);
    return true;
  });
}

}  // namespace amk
