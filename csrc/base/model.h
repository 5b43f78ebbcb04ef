// amk_model_t as callers of any age hand it in.
// In: a pointer with a struct_size. Out: the whole struct, fields that the caller's header did not have zero. Judges no
// field but the size.
#pragma once

#include "amk.h"

namespace amk {

// INVALID_ARGUMENT: NULL, or smaller than the first version of the struct.
amk_model_t read_model(const amk_model_t* model);

}  // namespace amk
