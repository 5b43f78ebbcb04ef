// V17's rules of linear attention: the convolution, the gated delta net and its norm; and of the gate that full
// attention may have behind it. What a state held before the step is right by induction: the same program left it
// there.
#include "base/error.h"
#include "validate/translation.h"

namespace amk {

// The state has the model's shape, so N is its channels and K its taps (V4).
bool Translation::causal_conv(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const int32_t state = t.inputs[2];
  const Value old = bound_[state];
  if (old.what != What::kConvState)
    return fail(state, text("it moves %s on, expected what a convolution keeps", d_.name(old).c_str()));
  const Value out{What::kGdnConv, old.layer};
  const int64_t first = p.n_off, count = p.N_tile, kept = p.K - 1;
  if (!holds(read(t.inputs[0], p.m_off + first, count), {What::kGdnIn, old.layer}, first, "input", out) ||
      !holds(read(t.inputs[1], 0, int64_t{p.N} * p.K), {What::kConvW, old.layer}, 0, "weight", out) ||
      !holds(read(state, first * kept, count * kept), old, first * kept, "state", out) ||
      !compute(t.outputs[0], first, count, out, first))
    return false;
  write(state, first * kept, count * kept, {What::kConvStateNext, old.layer}, first * kept);
  return true;
}

// The state has the model's shape, so n_heads and head_dim are the model's (V4).
bool Translation::gdn(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const int32_t state = t.inputs[4];
  const Value old = bound_[state];
  if (old.what != What::kGdnState)
    return fail(state, text("it moves %s on, expected the state of a gated delta net", d_.name(old).c_str()));
  const int32_t layer = old.layer;
  const Value out{What::kGdnAttended, layer}, qkv{What::kGdnConv, layer}, in{What::kGdnIn, layer};
  if (!number("the number of key heads", p.n_kv_heads, d_.key_heads(), out)) return false;
  if (!(p.flags & AMK_FLAG_L2_NORM))
    return fail(-1, text("%s is made of q and k that are not l2-normalised", d_.name(out).c_str()));
  if (!number("eps of l2", p.eps, d_.l2_eps(), out) || !number("the scale", p.scale, d_.linear_scale(), out))
    return false;
  const int64_t width = p.head_dim, group = p.n_heads / p.n_kv_heads, head = p.n_off, heads = p.N_tile;
  const int64_t key = head / group, keys = (head + heads - 1) / group - key + 1;
  const auto rows = [&](int64_t first, int64_t count, const char* what) {
    return holds(read(t.inputs[0], first * width, count * width), qkv, first * width, what, out);
  };
  const auto per_head = [&](int slot, int64_t at, Value value, int64_t value_at, const char* what) {
    return holds(read(t.inputs[slot], at, heads), value, value_at, what, out);
  };
  const int64_t of_state = width * width;
  if (!rows(key, keys, "q") || !rows(d_.key_heads() + key, keys, "k") ||
      !rows(2 * int64_t{d_.key_heads()} + head, heads, "v") ||
      !per_head(1, p.m_off + head, in, d_.b_first() + head, "b") ||
      !per_head(1, int64_t{p.m_off} + p.n_heads + head, in, d_.a_first() + head, "a") ||
      !per_head(2, head, {What::kALog, layer}, head, "a_log") ||
      !per_head(3, head, {What::kDtBias, layer}, head, "dt_bias") ||
      !holds(read(state, head * of_state, heads * of_state), old, head * of_state, "state", out) ||
      !compute(t.outputs[0], head * width, heads * width, out, head * width))
    return false;
  write(state, head * of_state, heads * of_state, {What::kGdnStateNext, layer}, head * of_state);
  return true;
}

bool Translation::gated_norm(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const int64_t width = p.head_dim, first = p.n_off * width, count = p.N_tile * width;
  const Reading o = read(t.inputs[0], first, count);
  if (o.refused) return false;
  const int32_t layer = o.value.layer;
  if (!o.one || o.value.what != What::kGdnAttended || o.at % d_.linear_head_dim() != 0)
    return fail(t.inputs[0], text("it normalises and gates %s, which the model does not", reading_text(o).c_str()));
  const Value out{What::kGdnGated, layer};
  return number("the head width", p.head_dim, static_cast<double>(d_.linear_head_dim()), out) &&
         number("eps", p.eps, d_.eps(), out) &&
         holds(read(t.inputs[1], p.m_off + first, count), {What::kGdnIn, layer}, d_.z_first() + o.at, "gate z", out) &&
         holds(read(t.inputs[2], 0, width), {What::kGdnNorm, layer}, 0, "weight", out) &&
         compute(t.outputs[0], first, count, out, o.at);
}

bool Translation::sigmoid_mul(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const Reading a = read(t.inputs[0], p.n_off, p.N_tile);
  if (a.refused) return false;
  if (!a.one || a.value.what != What::kAttended || !d_.has_output_gate())
    return fail(t.inputs[0], text("it gates %s, which the model does not", reading_text(a).c_str()));
  const Value out{What::kAttendedGated, a.value.layer}, qkv{What::kQkv, a.value.layer};
  return holds(read(t.inputs[1], int64_t{p.m_off} + p.n_off, p.N_tile), qkv, d_.gate_first() + a.at, "gate", out) &&
         compute(t.outputs[0], p.n_off, p.N_tile, out, a.at);
}

}  // namespace amk
