// Plain weights to packed ones (ops/packing.h), on the device.
#pragma once

#include <cuda_runtime.h>

#include "ops/packing_int8.h"

namespace amk {

// One matrix and how it is packed.
struct PackedMatrix {
  Packing packing;
  int64_t rows, row_vectors;
};

// Enqueues: rows [first_row, first_row + row_count) of a matrix, which lie plainly at `plain`, to where they belong in
// `packed`, the whole packed matrix. Both are device memory.
void enqueue_repack(const PackedMatrix& matrix, const void* plain, void* packed, int64_t first_row, int64_t row_count,
                    cudaStream_t stream);
// The same for rows of a quantised matrix, and for rows of its scales.
void enqueue_repack_int8(const Int8Matrix& matrix, const void* plain, void* packed, int64_t first_row,
                         int64_t row_count, cudaStream_t stream);
void enqueue_repack_scales(const Int8Matrix& matrix, const void* plain, void* packed, int64_t first_row,
                           int64_t row_count, cudaStream_t stream);

}  // namespace amk
