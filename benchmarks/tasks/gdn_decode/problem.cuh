// What both sides of gdn_decode are asked: the operands of an entry as those of amk_gdn_decode (amk.h), judged by the
// library's own check. In: q, k, v, state, a_log, a, dt_bias, b; scale, l2norm; o, state_out. Without a state the new
// one is made in place: state_out holds the old one. Out: the struct, or the amk_status of what is refused. No
// arithmetic.
#pragma once

#include <algorithm>

#include "amk.h"
#include "amk_task.h"
#include "base/error.h"
#include "gdn/gdn.h"

namespace gdn_decode {

// [B, 1, heads, ...]: the axis of one token is dropped. False where the shape is another one.
inline bool drop_token(const amk_task_tensor_t& t, int rank, int64_t (&shape)[3], int64_t (&stride)[3]) {
  if (t.rank != rank || t.shape[1] != 1) return false;
  for (int i = 0; i + 1 < rank; ++i) {
    const int from = i == 0 ? 0 : i + 1;
    shape[i] = t.shape[from];
    stride[i] = t.stride[from];
  }
  return true;
}

inline int32_t read_problem(const amk_task_tensor_t* in, int32_t n_in, const double* scalars, int32_t n_scalars,
                            const amk_task_tensor_t* out, int32_t n_out, amk_gdn_decode_t& g) {
  if (n_in != 8 || n_out != 2 || n_scalars != 2) return AMK_ERR_INVALID_ARGUMENT;
  const amk_task_tensor_t &q = in[0], &k = in[1], &v = in[2], &a_log = in[4], &a = in[5], &dt_bias = in[6], &b = in[7];
  const amk_task_tensor_t &o = out[0], &state_out = out[1], &state = in[3].data ? in[3] : state_out;
  g = {};
  g.struct_size = sizeof g;
  int64_t q_shape[3], k_shape[3], v_shape[3], o_shape[3], a_shape[3]{}, b_shape[3]{}, a_stride[3]{}, b_stride[3]{};
  if (!drop_token(q, 4, q_shape, g.q_stride) || !drop_token(k, 4, k_shape, g.k_stride) ||
      !drop_token(v, 4, v_shape, g.v_stride) || !drop_token(o, 4, o_shape, g.out_stride) ||
      !drop_token(a, 3, a_shape, a_stride) || !drop_token(b, 3, b_shape, b_stride))
    return AMK_ERR_INVALID_ARGUMENT;
  if (state.rank != 4 || state_out.rank != 4 || a_log.rank != 1 || dt_bias.rank != 1) return AMK_ERR_INVALID_ARGUMENT;
  const int64_t heads = v_shape[1], dim = v_shape[2];
  if (!std::equal(q_shape, q_shape + 3, k_shape) || !std::equal(v_shape, v_shape + 3, o_shape) ||
      !std::equal(a_shape, a_shape + 3, b_shape) || !std::equal(state.shape, state.shape + 4, state_out.shape) ||
      q_shape[0] != v_shape[0] || a_shape[0] != v_shape[0] || state.shape[0] != v_shape[0] || q_shape[2] != dim ||
      a_shape[1] != heads || a_log.shape[0] != heads || dt_bias.shape[0] != heads || state.shape[1] != heads ||
      state.shape[2] != dim || state.shape[3] != dim)
    return AMK_ERR_INVALID_ARGUMENT;
  if (k.dtype != q.dtype || v.dtype != q.dtype || o.dtype != q.dtype || b.dtype != a.dtype ||
      a_log.dtype != AMK_DTYPE_F32 || state.dtype != AMK_DTYPE_F32 || state_out.dtype != AMK_DTYPE_F32)
    return AMK_ERR_UNSUPPORTED;
  if (state.stride[3] != 1 || state_out.stride[3] != 1 ||
      (heads > 1 && (a_log.stride[0] != 1 || dt_bias.stride[0] != 1)))
    return AMK_ERR_UNSUPPORTED;
  g.batch = static_cast<int32_t>(v_shape[0]);
  g.key_heads = static_cast<int32_t>(q_shape[1]);
  g.value_heads = static_cast<int32_t>(heads);
  g.head_dim = static_cast<int32_t>(dim);
  g.dtype = q.dtype;
  g.gate_dtype = a.dtype;
  g.bias_dtype = dt_bias.dtype;
  g.scale = static_cast<float>(scalars[0]);
  g.l2norm = scalars[1] != 0;
  g.q = q.data;
  g.k = k.data;
  g.v = v.data;
  g.a = a.data;
  g.b = b.data;
  g.dt_bias = dt_bias.data;
  g.a_log = a_log.data;
  g.state_in = state.data;
  g.state_out = state_out.data;
  g.out = o.data;
  std::copy(a_stride, a_stride + 2, g.a_stride);
  std::copy(b_stride, b_stride + 2, g.b_stride);
  std::copy(state.stride, state.stride + 3, g.state_in_stride);
  std::copy(state_out.stride, state_out.stride + 3, g.state_out_stride);
  try {
    amk::check_gdn_decode(g);
  } catch (const amk::Error& e) {
    return e.status();
  }
  return AMK_OK;
}

}  // namespace gdn_decode
