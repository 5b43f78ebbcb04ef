// RMSNORM of M_tile rows (Zhang & Sennrich 2019, arXiv:1910.07467).
#include "vm/ref_number.h"
#include "vm/ref_ops.h"

namespace amk {

void ref_rmsnorm(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) {
    const amk_params_t& p = c.params();
    float* x = c.scratch.floats(Scratch::kX, p.hidden);
    for (int64_t r = 0; r < p.M_tile; ++r) {
      widen(reinterpret_cast<const T*>(c.in[0]) + p.m_off + r * p.hidden, p.hidden, x);
      rms_normalise(x, reinterpret_cast<const T*>(c.in[1]), p.hidden, p.eps, c.norm_plus());
      T* out = reinterpret_cast<T*>(c.out[0]) + p.n_off + r * p.hidden;
      for (int32_t j = 0; j < p.hidden; ++j) store(out + j, x[j]);
    }
  });
}

}  // namespace amk
