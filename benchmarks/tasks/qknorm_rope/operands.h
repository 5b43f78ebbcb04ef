// The operands of qknorm_rope as both sides see them, and what both refuse.
// In: the tensors of the C entry: inputs q_weight, k_weight, cos_sin_cache, positions; scalars eps, interleaved (0 or
// 1); outputs q, k, in place. Out: QkOperands, or the status of the first thing wrong. Touches no device memory.
#pragma once

#include "operand.h"

namespace amk::task {

constexpr int kHeadDim = 128, kHalf = kHeadDim / 2;

// q or k: [tokens, heads, 128], strides in elements.
struct Heads {
  void* data;
  int64_t token_stride, head_stride, stride;
  const void* weight;
  int64_t weight_stride;
  int count;
};

struct QkOperands {
  Heads q, k;
  const float* cache;  // [cache_rows, 128]: 64 cosines, then 64 sines
  int64_t cache_row_stride, cache_stride, cache_rows;
  const void* positions;
  int64_t position_stride;
  int tokens;
  float eps;
  int32_t dtype, position_dtype;
  bool is_interleaved, is_vector;  // is_vector: all of it may be read 16 bytes at a time
};

inline int32_t read_heads(const amk_task_tensor_t& t, const amk_task_tensor_t& weight, int32_t dtype, Heads* out) {
  if (!is_well_formed(t) || !is_well_formed(weight)) return AMK_ERR_INVALID_ARGUMENT;
  if (t.dtype != dtype || weight.dtype != dtype) return AMK_ERR_UNSUPPORTED;
  if (t.rank != 3 || weight.rank != 1 || weight.shape[0] != t.shape[2]) return AMK_ERR_INVALID_ARGUMENT;
  if (t.shape[2] != kHeadDim) return AMK_ERR_UNSUPPORTED;
  if (is_broadcast(t)) return AMK_ERR_INVALID_ARGUMENT;
  *out = {t.data, t.stride[0], t.stride[1], t.stride[2], weight.data, weight.stride[0], static_cast<int>(t.shape[1])};
  return AMK_OK;
}

inline int32_t read_operands(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                             int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs, QkOperands* out) {
  if (inputs == nullptr || scalars == nullptr || outputs == nullptr) return AMK_ERR_INVALID_ARGUMENT;
  if (n_inputs != 4 || n_scalars != 2 || n_outputs != 2) return AMK_ERR_INVALID_ARGUMENT;
  const amk_task_tensor_t &q = outputs[0], &k = outputs[1], &cache = inputs[2], &positions = inputs[3];
  const double eps = scalars[0], interleaved = scalars[1];
  if (!is_float(q.dtype)) return AMK_ERR_UNSUPPORTED;
  if (const int32_t status = read_heads(q, inputs[0], q.dtype, &out->q)) return status;
  if (const int32_t status = read_heads(k, inputs[1], q.dtype, &out->k)) return status;
  if (!is_well_formed(cache) || !is_well_formed(positions)) return AMK_ERR_INVALID_ARGUMENT;
  if (cache.dtype != AMK_DTYPE_F32 || !is_index(positions.dtype)) return AMK_ERR_UNSUPPORTED;
  if (cache.rank != 2 || cache.shape[1] != kHeadDim || positions.rank != 1) return AMK_ERR_INVALID_ARGUMENT;
  if (q.shape[0] != k.shape[0] || q.shape[0] != positions.shape[0] || q.data == k.data) return AMK_ERR_INVALID_ARGUMENT;
  if (!(eps >= 0 && eps < 1) || (interleaved != 0 && interleaved != 1)) return AMK_ERR_INVALID_ARGUMENT;
  if (q.shape[0] * (q.shape[1] + k.shape[1]) > INT32_MAX) return AMK_ERR_UNSUPPORTED;
  out->cache = static_cast<const float*>(cache.data);
  out->cache_row_stride = cache.stride[0];
  out->cache_stride = cache.stride[1];
  out->cache_rows = cache.shape[0];
  out->positions = positions.data;
  out->position_stride = positions.stride[0];
  out->tokens = static_cast<int>(q.shape[0]);
  out->eps = static_cast<float>(eps);
  out->dtype = q.dtype;
  out->position_dtype = positions.dtype;
  out->is_interleaved = interleaved == 1;
  out->is_vector = has_vector_rows(q) && has_vector_rows(k) && has_vector_rows(inputs[0]) &&
                   has_vector_rows(inputs[1]) && has_vector_rows(cache);
  return AMK_OK;
}

// Calls f(Type<T>, Type<P>, std::bool_constant-like int) for the operands' dtype, position type and pairing.
template <class F>
int32_t with_types(const QkOperands& o, F f) {
  const auto with_pairing = [&](auto type, auto position) {
    return o.is_interleaved ? f(type, position, std::true_type{}) : f(type, position, std::false_type{});
  };
  const auto with_position = [&](auto type) {
    return o.position_dtype == AMK_DTYPE_I32 ? with_pairing(type, Type<int32_t>{})
                                             : with_pairing(type, Type<int64_t>{});
  };
  switch (o.dtype) {
    case AMK_DTYPE_F32: return with_position(Type<float>{});
    case AMK_DTYPE_F16: return with_position(Type<__half>{});
    default: return with_position(Type<__nv_bfloat16>{});
  }
}

}  // namespace amk::task
