// amk_model_t as callers of any age hand it in.
// In: a pointer with a struct_size. Out: the whole struct, fields that the caller's header did not have zero. Judges no
// field but the size.
#pragma once

#include "amk.h"

namespace amk {

// INVALID_ARGUMENT: NULL, or smaller than the first version of the struct.
amk_model_t read_model(const amk_model_t* model);

// Layer i of a hybrid is linear attention where this says so.
constexpr bool is_linear_layer(const amk_model_t& m, int32_t layer) {
  return m.full_attention_interval > 0 && (layer + 1) % m.full_attention_interval != 0;
}

}  // namespace amk
