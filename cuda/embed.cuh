// EMBED: some columns of one row of the table, bits unchanged.
#pragma once

#include "ops/packing.h"
#include "sync.cuh"
#include "tile_io.cuh"

namespace amk {

template <int kThreads>
__device__ bool embed(const TaskContext& c) {
  const amk_params_t& p = c.params();
  if (!c.await_inputs<kThreads>()) return false;
  const int32_t token = __ldcg(c.in<int32_t>(0));
  if (token < 0 || token >= p.vocab) {
    if (ptx::thread_id() == 0)
      raise_fault(c.machine.ledger, FaultKind::kBadToken, 1, c.task.task, -1, static_cast<uint32_t>(token),
                  static_cast<uint32_t>(p.vocab));
    return false;
  }
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Packing packing = static_cast<Packing>(c.task.packing);
    const T* table = c.in<T>(1);
    T* out = c.out<T>(0) + p.n_off;
    for (int i = ptx::thread_id(); i < p.N_tile; i += kThreads) {
      const int k = p.n_off + i;
      const int64_t at =
          packing == Packing::kPlain
              ? int64_t{token} * p.hidden + k
              : packed_vector(packing, p.vocab, p.hidden / kPerVector<T>, token, k / kPerVector<T>) * kPerVector<T> +
                    k % kPerVector<T>;
      out[i] = __ldcg(table + at);
    }
    return true;
  });
}

}  // namespace amk
