// The checks of a gated delta net, its convolution, its norm, and the gate behind attention.
#include "ops/op_checker.h"

namespace amk {

bool check_causal_conv(Checker& c) {
  const amk_instruction_t& t = c.v.task;
  const int32_t dtype = c.v.input(0).dtype;
  if (!(c.compute_dtype(0, "x") && c.in_dtype(1, dtype, "weight") && c.immutable(1, "weight") &&
        c.in_dtype(2, dtype, "state") && c.out_dtype(0, dtype, "out") && c.same_state(2, 1) && c.positive("N", c.p.N) &&
        c.positive("N_tile", c.p.N_tile)))
    return false;
  if (c.p.K < 2 || c.p.K > AMK_MAX_CONV_WIDTH)
    return c.fail(4, -1, text("K is %d taps, allowed 2..%d", c.p.K, AMK_MAX_CONV_WIDTH));
  return c.shape(c.v.input(1), t.inputs[1], "weight", 2, c.p.N, c.p.K) &&
         c.shape(c.v.input(2), t.inputs[2], "state", 2, c.p.N, c.p.K - 1) && c.numel_out(0, "N", c.p.N) &&
         c.within("channels", c.p.n_off, c.p.N_tile, c.p.N) && c.in_range(0, "x", c.p.m_off, c.p.N);
}

bool check_gdn_decode(Checker& c) {
  const amk_instruction_t& t = c.v.task;
  const amk_params_t& p = c.p;
  const int32_t dtype = c.v.input(0).dtype;
  const auto per_head = [&](int slot, const char* what) {
    return c.in_dtype(slot, AMK_DTYPE_F32, what) && c.immutable(slot, what) && c.numel_in(slot, "n_heads", p.n_heads);
  };
  if (!(c.compute_dtype(0, "qkv") && c.in_dtype(1, dtype, "ba") && c.in_dtype(4, AMK_DTYPE_F32, "state") &&
        c.out_dtype(0, dtype, "out") && c.same_state(4, 1) && c.head_groups() && c.positive("head_dim", p.head_dim) &&
        c.positive("N_tile", p.N_tile) && c.finite_positive("scale", p.scale)))
    return false;
  if ((p.flags & AMK_FLAG_L2_NORM) && !c.finite_positive("eps", p.eps)) return false;
  const int64_t row_bytes = storage_bytes(dtype, p.head_dim);
  if (row_bytes % AMK_VECTOR_BYTES != 0)
    return c.fail(5, t.inputs[0],
                  text("heads of %d %s are no multiple of %d bytes", p.head_dim, dtype_name(dtype), AMK_VECTOR_BYTES));
  // In this order: numel of out bounds n_heads * head_dim, and with it the products below.
  return per_head(2, "a_log") && per_head(3, "dt_bias") &&
         c.numel_out(0, "n_heads * head_dim", int64_t{p.n_heads} * p.head_dim) &&
         c.numel_in(0, "(2 * n_kv_heads + n_heads) * head_dim", (2 * int64_t{p.n_kv_heads} + p.n_heads) * p.head_dim) &&
         c.shape(c.v.input(4), t.inputs[4], "state", 3, p.n_heads, p.head_dim, p.head_dim) &&
         c.within("value heads", p.n_off, p.N_tile, p.n_heads) && c.in_range(1, "ba", p.m_off, 2 * __int128{p.n_heads});
}

bool check_gated_rmsnorm(Checker& c) {
  const amk_params_t& p = c.p;
  const int32_t dtype = c.v.input(0).dtype;
  if (!(c.compute_dtype(0, "o") && c.in_dtype(1, dtype, "z") && c.in_dtype(2, dtype, "weight") &&
        c.out_dtype(0, dtype, "out") && c.positive("n_heads", p.n_heads) && c.positive("head_dim", p.head_dim) &&
        c.positive("N_tile", p.N_tile) && c.finite_positive("eps", p.eps)))
    return false;
  const int64_t numel = int64_t{p.n_heads} * p.head_dim;
  return c.numel_in(0, "n_heads * head_dim", numel) && c.numel_in(2, "head_dim", p.head_dim) &&
         c.numel_out(0, "n_heads * head_dim", numel) && c.within("heads", p.n_off, p.N_tile, p.n_heads) &&
         c.in_range(1, "z", p.m_off, numel);
}

bool check_sigmoid_mul(Checker& c) {
  const int32_t dtype = c.v.input(0).dtype;
  return c.compute_dtype(0, "a") && c.in_dtype(1, dtype, "b") && c.out_dtype(0, dtype, "out") &&
         c.positive("N_tile", c.p.N_tile) &&
         c.within("a", c.p.n_off, c.p.N_tile, c.v.input(0).numel, c.v.task.inputs[0]) &&
         c.in_range(1, "b", int64_t{c.p.m_off} + c.p.n_off, c.p.N_tile) && c.out_range(0, "out", c.p.n_off, c.p.N_tile);
}

}  // namespace amk
