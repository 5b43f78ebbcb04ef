// What a task's entry asks of its operands before it launches anything.
// In: tensors as they cross the C border. Out: yes or no; the entry turns a no into its status. Reads no device memory.
#pragma once

#include <cstdint>

#include "amk.h"
#include "amk_task.h"

namespace amk::task {

constexpr int kVectorAlignment = AMK_VECTOR_BYTES;

inline bool is_present(const amk_task_tensor_t& t) { return t.data != nullptr; }
inline bool is_absent(const amk_task_tensor_t& t) { return t.data == nullptr && t.rank == 0; }

inline bool is_float(int32_t dtype) {
  return dtype == AMK_DTYPE_F32 || dtype == AMK_DTYPE_F16 || dtype == AMK_DTYPE_BF16;
}
inline bool is_index(int32_t dtype) { return dtype == AMK_DTYPE_I32 || dtype == AMK_TASK_DTYPE_I64; }
inline int64_t bytes_of(int32_t dtype) {
  return dtype == AMK_TASK_DTYPE_I64 ? 8 : dtype == AMK_DTYPE_F32 || dtype == AMK_DTYPE_I32 ? 4 : 2;
}

// Data, a rank that the struct can hold, at least one element, no negative stride.
inline bool is_well_formed(const amk_task_tensor_t& t) {
  if (t.data == nullptr || t.rank < 1 || t.rank > AMK_TASK_MAX_RANK) return false;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] < 1 || t.shape[i] > INT32_MAX || t.stride[i] < 0) return false;
  }
  return true;
}

// Whether two elements of one output share an address for want of a stride.
inline bool is_broadcast(const amk_task_tensor_t& t) {
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] > 1 && t.stride[i] == 0) return true;
  }
  return false;
}

// Whether every run along the last dimension can be read 16 bytes at a time from its first element on.
inline bool has_vector_rows(const amk_task_tensor_t& t) {
  const int last = t.rank - 1;
  if (reinterpret_cast<uintptr_t>(t.data) % kVectorAlignment != 0) return false;
  if (t.shape[last] > 1 && t.stride[last] != 1) return false;
  for (int i = 0; i < last; ++i) {
    if (t.shape[i] > 1 && t.stride[i] * bytes_of(t.dtype) % kVectorAlignment != 0) return false;
  }
  return true;
}

}  // namespace amk::task
