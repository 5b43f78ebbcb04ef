// GEMV_TILE: N_tile rows of weight times x, with the fusions its flags name. The machine spends its time here, so the x
// of each token is widened (and normalised) once per task and each weight row is streamed once.
#include "vm/ref_number.h"
#include "vm/ref_ops.h"

namespace amk {
namespace {

// A quantised row times x: each group's sum times its scale, in the order of the groups.
template <class T>
float dot_groups(const I8* q, const T* scale, const float* x, int64_t count, int64_t group) {
  float sum = 0;
  for (int64_t k = 0; k < count; k += group, ++scale) sum += dot(q + k, x + k, group) * to_f32(*scale);
  return sum;
}

template <class T, class Out>
void gemv(const OpCall& c) {
  const amk_params_t& p = c.params();
  const FlagSlots slots = flag_slots(c.view.task);
  const auto operand = [&](int slot) { return slot < 0 ? nullptr : reinterpret_cast<const T*>(c.in[slot]); };
  const T *weight = operand(1), *scale = operand(slots.scale);
  const T* bias = operand(slots.bias);
  const int32_t tokens = c.tokens();

  float* all_x = c.scratch.floats(Scratch::kX, int64_t{tokens} * p.K);
  for (int32_t t = 0; t < tokens; ++t) {
    float* x = all_x + int64_t{t} * p.K;
    widen(c.in_row<T>(0, t) + p.m_off, p.K, x);
    if (slots.norm >= 0) rms_normalise(x, operand(slots.norm), p.K, p.eps, c.norm_plus());
  }

  const auto row = [&](int64_t n, const float* x) {
    const float y =
        scale ? dot_groups(reinterpret_cast<const I8*>(weight) + n * p.K, scale + n * (p.K / p.group), x, p.K, p.group)
              : dot(weight + n * p.K, x, p.K);
    return bias ? y + to_f32(bias[n]) : y;
  };
  for (int64_t n = p.n_off, end = n + p.N_tile; n < end; ++n) {
    for (int32_t t = 0; t < tokens; ++t) {
      const float* x = all_x + int64_t{t} * p.K;
      float y = row(n, x);
      if (p.flags & AMK_FLAG_SILU_PAIR) y = silu(y) * row(p.N + n, x);
      if (slots.residual >= 0) y += to_f32(c.in_row<T>(slots.residual, t)[n]);
      store(c.out_row<Out>(0, t) + n, y);
    }
  }
}

}  // namespace

void ref_gemv(const OpCall& c) {
  with_storage(c.view.input(0).dtype, [&]<class T>(T) {
    if (c.view.output(0).dtype == AMK_DTYPE_F32) return gemv<T, float>(c);
    gemv<T, T>(c);
  });
}

}  // namespace amk
