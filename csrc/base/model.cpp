#include "base/model.h"

#include <cstddef>
#include <cstring>

#include "base/error.h"

namespace amk {
namespace {

// The fields of a hybrid begin in what was padding at the end of the first version: its size was 56, and the bytes past
// its last field mean nothing. The second version ended with them, the third with weight_group and padding.
constexpr size_t kFirstFields = offsetof(amk_model_t, linear_key_heads);
constexpr size_t kFirstSize = (kFirstFields + alignof(amk_model_t) - 1) / alignof(amk_model_t) * alignof(amk_model_t);
constexpr size_t kHybridFields = offsetof(amk_model_t, weight_group);
constexpr size_t kGroupFields = offsetof(amk_model_t, reserved), kGroupSize = offsetof(amk_model_t, batch);
static_assert(kFirstFields == 52 && kFirstSize == 56 && kHybridFields == 72 && kGroupFields == 76 && kGroupSize == 80 &&
              sizeof(amk_model_t) == 88);

}  // namespace

amk_model_t read_model(const amk_model_t* model) {
  AMK_CHECK(model, AMK_ERR_INVALID_ARGUMENT, "model is NULL");
  AMK_CHECK(model->struct_size >= kFirstSize, AMK_ERR_INVALID_ARGUMENT,
            "model: struct_size is %llu, expected at least %zu", (unsigned long long)model->struct_size, kFirstSize);
  amk_model_t whole{};
  const size_t known = model->struct_size >= sizeof whole    ? sizeof whole
                       : model->struct_size >= kGroupSize    ? kGroupFields
                       : model->struct_size >= kHybridFields ? kHybridFields
                                                             : kFirstFields;
  std::memcpy(&whole, model, known);
  whole.struct_size = sizeof whole;
  whole.reserved = 0;
  return whole;
}

}  // namespace amk
