// What both sides of residual_gate_add are asked: operands checked once, the gate brought to [B, S, D] by its strides.
// In: the operands of an entry. Out: a Problem, or the amk_status of what is refused. No arithmetic: each side has its
// own.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "amk.h"
#include "amk_task.h"

namespace residual_gate_add {

struct Problem {
  const void *residual, *x, *gate;
  void* y;
  int32_t dtype, gate_dtype;  // the gate may be f32 beside a smaller dtype
  int64_t batch, rows, width;
  int64_t residual_step[3], x_step[3], y_step[3];
  int64_t gate_step[3];  // of batch, frame and column
  int64_t frame_rows;    // rows of one frame: the gate of row s is that of frame s / frame_rows
};

inline bool is_float(int32_t dtype) {
  return dtype == AMK_DTYPE_F32 || dtype == AMK_DTYPE_F16 || dtype == AMK_DTYPE_BF16;
}

// The layouts of python/amk/tasks/oracles/residual_gate_add.py.
inline bool set_gate(const amk_task_tensor_t& gate, Problem& p) {
  int64_t shape[3] = {1, 1, 1}, step[3] = {0, 0, 0};
  p.frame_rows = 1;
  const auto put = [&](int at, int dim) {
    shape[at] = gate.shape[dim];
    step[at] = gate.stride[dim];
  };
  switch (gate.rank) {
    case 1: put(2, 0); break;
    case 2: put(0, 0), put(2, 1); break;
    case 3: put(0, 0), put(1, 1), put(2, 2); break;
    case 4:
      if (gate.shape[2] != 1 || gate.shape[1] <= 0 || p.rows % gate.shape[1]) return false;
      put(0, 0), put(1, 1), put(2, 3);
      p.frame_rows = p.rows / gate.shape[1];
      break;
    default: return false;
  }
  const int64_t full[3] = {p.batch, p.rows / p.frame_rows, p.width};
  for (int i = 0; i < 3; ++i) {
    if (shape[i] != 1 && shape[i] != full[i]) return false;
    p.gate_step[i] = shape[i] == 1 ? 0 : step[i];
  }
  return true;
}

inline int32_t read_problem(const amk_task_tensor_t* in, int32_t n_in, int32_t n_scalars, const amk_task_tensor_t* out,
                            int32_t n_out, Problem& p) {
  if (n_in != 3 || n_out != 1 || n_scalars != 0) return AMK_ERR_INVALID_ARGUMENT;
  const amk_task_tensor_t &residual = in[0], &x = in[1], &gate = in[2], &y = out[0];
  for (const amk_task_tensor_t* t : {&residual, &x, &gate, &y})
    if (!t->data) return AMK_ERR_INVALID_ARGUMENT;
  p = {};
  p.dtype = y.dtype;
  p.gate_dtype = gate.dtype;
  if (!is_float(p.dtype) || x.dtype != p.dtype || residual.dtype != p.dtype ||
      (gate.dtype != p.dtype && gate.dtype != AMK_DTYPE_F32)) {
    return AMK_ERR_UNSUPPORTED;
  }
  if (y.rank != 3 || x.rank != 3 || residual.rank != 3) return AMK_ERR_INVALID_ARGUMENT;
  for (int i = 0; i < 3; ++i) {
    if (y.shape[i] <= 0 || x.shape[i] != y.shape[i] || residual.shape[i] != y.shape[i]) return AMK_ERR_INVALID_ARGUMENT;
    p.residual_step[i] = residual.stride[i];
    p.x_step[i] = x.stride[i];
    p.y_step[i] = y.stride[i];
  }
  p.residual = residual.data;
  p.x = x.data;
  p.gate = gate.data;
  p.y = y.data;
  p.batch = y.shape[0];
  p.rows = y.shape[1];
  p.width = y.shape[2];
  return set_gate(gate, p) ? AMK_OK : AMK_ERR_INVALID_ARGUMENT;
}

template <class T>
struct Type {
  using type = T;
};

// f(Type of the operands, Type of the gate), for dtypes that read_problem let through.
template <class F>
int32_t with_dtypes(const Problem& p, F f) {
  const bool wide_gate = p.gate_dtype == AMK_DTYPE_F32;
  switch (p.dtype) {
    case AMK_DTYPE_F32: return f(Type<float>{}, Type<float>{});
    case AMK_DTYPE_F16: return wide_gate ? f(Type<__half>{}, Type<float>{}) : f(Type<__half>{}, Type<__half>{});
    case AMK_DTYPE_BF16:
      return wide_gate ? f(Type<__nv_bfloat16>{}, Type<float>{}) : f(Type<__nv_bfloat16>{}, Type<__nv_bfloat16>{});
    default: return AMK_ERR_UNSUPPORTED;
  }
}

// An entry's way: its operands, or what it refuses; then f(problem, Type of the operands, Type of the gate).
template <class F>
int32_t with_problem(const amk_task_tensor_t* inputs, int32_t n_inputs, int32_t n_scalars,
                     const amk_task_tensor_t* outputs, int32_t n_outputs, F f) {
  Problem p;
  if (const int32_t refusal = read_problem(inputs, n_inputs, n_scalars, outputs, n_outputs, p)) return refusal;
  return with_dtypes(p, [&](auto type, auto gate_type) -> int32_t { return f(p, type, gate_type); });
}

}  // namespace residual_gate_add
