// The operands of norm_scale_shift as both sides see them, and what both refuse.
// In: the tensors of the C entry: inputs x, residual, gate, scale, shift, weight, bias; scalars eps, rms (0 or 1);
// outputs y, residual_out. residual comes with residual_out, a gate with a residual, a bias with a weight. Out:
// NormOperands, or the status of the first thing wrong. Touches no device memory.
//
// gate, scale and shift are each [1], [C], [1|B, C], [1|B, 1|S, C] or [1|B, F, 1, C]: frame f holds the rows
// [f * S / F, (f + 1) * S / F), and S % F must be 0. They share a dtype, that of x or f32; so do weight and bias.
#pragma once

#include "operand.h"

namespace amk::task {

// [B, S, C], strides in elements.
struct Rows {
  void* data;
  int64_t batch_stride, row_stride, stride;
};

// A row of C modulating values for row s of batch b: at b * batch_stride + s / rows_per_frame * frame_stride.
struct Modulation {
  const void* data;
  int64_t batch_stride, frame_stride, stride;
  int rows_per_frame;
};

struct NormOperands {
  Rows x, residual, y, residual_out;
  Modulation gate, scale, shift;
  const void *weight, *bias;  // [C], or NULL
  int64_t weight_stride, bias_stride;
  int batches, rows, columns;  // B, S, C
  float eps;
  int32_t dtype, modulation_dtype, affine_dtype;
  bool is_rms, has_residual, has_gate, is_vector;  // is_vector: all of it may be read 16 bytes at a time
};

inline int32_t read_rows(const amk_task_tensor_t& t, const amk_task_tensor_t& like, Rows* out) {
  if (!is_well_formed(t)) return AMK_ERR_INVALID_ARGUMENT;
  if (t.dtype != like.dtype) return AMK_ERR_UNSUPPORTED;
  if (t.rank != 3) return AMK_ERR_INVALID_ARGUMENT;
  for (int i = 0; i < 3; ++i) {
    if (t.shape[i] != like.shape[i]) return AMK_ERR_INVALID_ARGUMENT;
  }
  *out = {t.data, t.stride[0], t.stride[1], t.stride[2]};
  return AMK_OK;
}

inline int32_t read_modulation(const amk_task_tensor_t& t, const NormOperands& o, Modulation* out) {
  if (!is_well_formed(t)) return AMK_ERR_INVALID_ARGUMENT;
  if (t.dtype != o.modulation_dtype) return AMK_ERR_UNSUPPORTED;
  const int last = t.rank - 1;
  const bool is_scalar = t.rank == 1 && t.shape[0] == 1;
  if (!is_scalar && t.shape[last] != o.columns) return AMK_ERR_INVALID_ARGUMENT;
  *out = {t.data, 0, 0, is_scalar ? 0 : t.stride[last], o.rows};
  if (t.rank == 1) return AMK_OK;
  if (t.shape[0] != 1 && t.shape[0] != o.batches) return AMK_ERR_INVALID_ARGUMENT;
  if (t.shape[0] != 1) out->batch_stride = t.stride[0];
  if (t.rank == 2) return AMK_OK;
  const int64_t frames = t.shape[1];
  if (t.rank == 3 && frames != 1 && frames != o.rows) return AMK_ERR_INVALID_ARGUMENT;
  if (t.rank == 4 && (t.shape[2] != 1 || o.rows % frames != 0)) return AMK_ERR_INVALID_ARGUMENT;
  out->rows_per_frame = static_cast<int>(o.rows / frames);
  if (frames != 1) out->frame_stride = t.stride[1];
  return AMK_OK;
}

inline int32_t read_operands(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                             int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                             NormOperands* out) {
  if (inputs == nullptr || scalars == nullptr || outputs == nullptr) return AMK_ERR_INVALID_ARGUMENT;
  if (n_inputs != 7 || n_scalars != 2 || n_outputs != 2) return AMK_ERR_INVALID_ARGUMENT;
  const amk_task_tensor_t &x = inputs[0], &residual = inputs[1], &gate = inputs[2], &scale = inputs[3],
                          &shift = inputs[4], &weight = inputs[5], &bias = inputs[6], &y = outputs[0],
                          &residual_out = outputs[1];
  const double eps = scalars[0], rms = scalars[1];
  *out = {};
  if (!is_float(x.dtype)) return AMK_ERR_UNSUPPORTED;
  if (const int32_t status = read_rows(x, x, &out->x)) return status;
  if (const int32_t status = read_rows(y, x, &out->y)) return status;
  if (!(eps >= 0 && eps < 1) || (rms != 0 && rms != 1)) return AMK_ERR_INVALID_ARGUMENT;
  if (x.shape[0] * x.shape[1] > INT32_MAX) return AMK_ERR_UNSUPPORTED;
  out->batches = static_cast<int>(x.shape[0]);
  out->rows = static_cast<int>(x.shape[1]);
  out->columns = static_cast<int>(x.shape[2]);
  out->eps = static_cast<float>(eps);
  out->is_rms = rms == 1;
  out->dtype = x.dtype;
  out->has_residual = is_present(residual);
  out->has_gate = is_present(gate);
  if (is_present(residual_out) != out->has_residual) return AMK_ERR_INVALID_ARGUMENT;
  if (out->has_residual) {
    if (const int32_t status = read_rows(residual, x, &out->residual)) return status;
    if (const int32_t status = read_rows(residual_out, x, &out->residual_out)) return status;
  }
  for (const amk_task_tensor_t* t : {&y, &residual_out}) {
    if (is_present(*t) && (is_broadcast(*t) || t->data == x.data || t->data == residual.data))
      return AMK_ERR_INVALID_ARGUMENT;
  }
  if (y.data == residual_out.data) return AMK_ERR_INVALID_ARGUMENT;
  out->modulation_dtype = scale.dtype;
  if (scale.dtype != x.dtype && scale.dtype != AMK_DTYPE_F32) return AMK_ERR_UNSUPPORTED;
  if (const int32_t status = read_modulation(scale, *out, &out->scale)) return status;
  if (const int32_t status = read_modulation(shift, *out, &out->shift)) return status;
  if (out->has_gate) {
    if (!out->has_residual) return AMK_ERR_INVALID_ARGUMENT;
    if (const int32_t status = read_modulation(gate, *out, &out->gate)) return status;
  }
  out->affine_dtype = x.dtype;
  if (is_present(bias) && !is_present(weight)) return AMK_ERR_INVALID_ARGUMENT;
  for (const amk_task_tensor_t* t : {&weight, &bias}) {
    if (!is_present(*t)) continue;
    if (!is_well_formed(*t)) return AMK_ERR_INVALID_ARGUMENT;
    if ((t->dtype != x.dtype && t->dtype != AMK_DTYPE_F32) || t->dtype != weight.dtype) return AMK_ERR_UNSUPPORTED;
    if (t->rank != 1 || t->shape[0] != x.shape[2]) return AMK_ERR_INVALID_ARGUMENT;
    out->affine_dtype = t->dtype;
  }
  out->weight = weight.data;
  out->weight_stride = is_present(weight) ? weight.stride[0] : 0;
  out->bias = bias.data;
  out->bias_stride = is_present(bias) ? bias.stride[0] : 0;
  out->is_vector = out->columns % (kVectorAlignment / bytes_of(x.dtype)) == 0;
  for (const amk_task_tensor_t* t : {&x, &residual, &gate, &scale, &shift, &weight, &bias, &y, &residual_out}) {
    if (!is_present(*t)) continue;
    out->is_vector = out->is_vector && has_vector_rows(*t) && t->shape[t->rank - 1] == out->columns;
  }
  return AMK_OK;
}

// Calls f(Type<X>, Type<M>) for the dtypes of x and of gate, scale and shift.
template <class F>
int32_t with_types(const NormOperands& o, F f) {
  const auto with_modulation = [&](auto x) {
    return o.modulation_dtype == AMK_DTYPE_F32 ? f(x, Type<float>{}) : f(x, x);
  };
  switch (o.dtype) {
    case AMK_DTYPE_F32: return f(Type<float>{}, Type<float>{});
    case AMK_DTYPE_F16: return with_modulation(Type<__half>{});
    default: return with_modulation(Type<__nv_bfloat16>{});
  }
}

// An entry's way: its operands, or what it refuses; then f(operands, Type<X>, Type<M>).
template <class F>
int32_t with_operands(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars, int32_t n_scalars,
                      const amk_task_tensor_t* outputs, int32_t n_outputs, F f) {
  NormOperands o;
  const int32_t status = read_operands(inputs, n_inputs, scalars, n_scalars, outputs, n_outputs, &o);
  return status != AMK_OK ? status : with_types(o, [&](auto x, auto modulation) { return f(o, x, modulation); });
}

}  // namespace amk::task
