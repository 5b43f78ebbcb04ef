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
    const T* a = reinterpret_cast<const T*>(c.in[0]) + p.n_off;
    const T* b = reinterpret_cast<const T*>(c.in[1]) + p.n_off;
    T* out = reinterpret_cast<T*>(c.out[0]) + p.n_off;
    for (int32_t i = 0; i < p.N_tile; ++i) store(out + i, f(to_f32(a[i]), to_f32(b[i])));
  });
}

}  // namespace

void ref_copy(const OpCall& c) {
  const int64_t bytes = dtype_bits(c.view.input(0).dtype) / 8;
  const amk_params_t& p = c.params();
  std::memcpy(c.out[0] + p.n_off * bytes, c.in[0] + p.m_off * bytes, static_cast<size_t>(p.N_tile * bytes));
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
    const T* gate = reinterpret_cast<const T*>(c.in[0]) + p.n_off;
    const T* up = gate + p.N;
    T* out = reinterpret_cast<T*>(c.out[0]) + p.n_off;
    for (int32_t i = 0; i < p.N_tile; ++i) store(out + i, silu(to_f32(gate[i])) * to_f32(up[i]));
  });
}

}  // namespace amk
