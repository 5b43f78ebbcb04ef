// ROPE and KV_APPEND: a head is normalised where flagged, rounded, turned by its position, rounded, stored.
#include "vm/ref_heads.h"

namespace amk {
namespace {

// One head from src to out; norm and turn may be null.
template <class T>
void one_head(const OpCall& c, const T* src, const T* norm, const float* turn, T* out) {
  const int32_t dim = c.params().head_dim;
  float* x = c.scratch.floats(Scratch::kX, dim);
  make_head(c, src, norm, turn, x);
  for (int32_t i = 0; i < dim; ++i) store(out + i, x[i]);
}

}  // namespace

void ref_rope(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) {
    const amk_params_t& p = c.params();
    const int norm_slot = flag_slots(c.view.task).norm;
    const T* norm = norm_slot < 0 ? nullptr : reinterpret_cast<const T*>(c.in[norm_slot]);
    for (int32_t t = 0; t < c.tokens(); ++t) {
      const float* turn = head_angles(c, c.in[1], p.head_dim, c.pos + t);
      const T* src = c.in_row<T>(0, t) + p.m_off;
      T* out = c.out_row<T>(0, t) + p.n_off;
      for (int64_t h = 0; h < p.n_heads; ++h) one_head(c, src + h * p.head_dim, norm, turn, out + h * p.head_dim);
    }
  });
}

void ref_kv_append(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) {
    const amk_params_t& p = c.params();
    const FlagSlots slots = flag_slots(c.view.task);
    const T* norm = slots.norm < 0 ? nullptr : reinterpret_cast<const T*>(c.in[slots.norm]);
    T* cache = reinterpret_cast<T*>(c.out[0]);
    for (int32_t t = 0; t < c.tokens(); ++t) {
      const int32_t pos = c.pos + t;
      const float* turn = slots.rope < 0 ? nullptr : head_angles(c, c.in[slots.rope], p.head_dim, pos);
      const T* src = c.in_row<T>(0, t) + p.m_off;
      for (int64_t i = 0; i < p.N_tile; ++i)
        one_head(c, src + i * p.head_dim, norm, turn, cache + ((p.n_off + i) * p.K + pos) * p.head_dim);
    }
  });
}

}  // namespace amk
