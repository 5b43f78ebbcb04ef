// COPY, ADD, MUL, SILU_MUL. ADD and MUL may run in place: element i is read before it is written.
#include <cstring>

#include "base/dtype.h"
#include "vm/ref_number.h"
#include "vm/ref_ops.h"

namespace amk {
namespace {

template <class F>
void elementwise(const OpCall& c, F f) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) {
    const amk_params_t& p = c.params();
    for (int32_t t = 0; t < c.tokens(); ++t) {
      const T* a = c.in_row<T>(0, t) + p.n_off;
      const T* b = c.in_row<T>(1, t) + p.n_off;
      T* out = c.out_row<T>(0, t) + p.n_off;
      for (int32_t i = 0; i < p.N_tile; ++i) store(out + i, f(to_f32(a[i]), to_f32(b[i])));
    }
  });
}

}  // namespace

void ref_copy(const OpCall& c) {
  const int64_t bytes = dtype_bits(c.view.input(0).dtype) / 8;
  const amk_params_t& p = c.params();
  const int64_t in_width = c.view.input(0).numel / c.tokens(), out_width = c.view.output(0).numel / c.tokens();
  for (int64_t t = 0; t < c.tokens(); ++t)
    std::memcpy(c.out[0] + (t * out_width + p.n_off) * bytes, c.in[0] + (t * in_width + p.m_off) * bytes,
                static_cast<size_t>(p.N_tile * bytes));
}

void ref_add(const OpCall& c) {
  elementwise(c, [](float a, float b) { return a + b; });
}

void ref_mul(const OpCall& c) {
  elementwise(c, [](float a, float b) { return a * b; });
}

void ref_silu_mul(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) {
    const amk_params_t& p = c.params();
    for (int32_t t = 0; t < c.tokens(); ++t) {
      const T* gate = c.in_row<T>(0, t) + p.n_off;
      const T* up = gate + p.N;
      T* out = c.out_row<T>(0, t) + p.n_off;
      for (int32_t i = 0; i < p.N_tile; ++i) store(out + i, silu(to_f32(gate[i])) * to_f32(up[i]));
    }
  });
}

}  // namespace amk
