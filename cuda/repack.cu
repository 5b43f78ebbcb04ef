#include "repack.h"

#include <algorithm>

#include "cuda_resources.h"

namespace amk {
namespace {

constexpr int kThreads = 256, kMaxBlocks = 2048;

__global__ void __launch_bounds__(kThreads)
    repack(PackedMatrix m, const uint4* plain, uint4* packed, int64_t first_row, int64_t vectors) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < vectors; i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = first_row + i / m.row_vectors;
    packed[packed_vector(m.packing, m.rows, m.row_vectors, row, i % m.row_vectors)] = plain[i];
  }
}

__global__ void __launch_bounds__(kThreads)
    repack_int8(Int8Matrix m, const uint4* plain, char* packed, int64_t first_row, int64_t vectors) {
  const int64_t row_vectors = m.columns / kInt8VectorElements;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < vectors; i += int64_t{gridDim.x} * kThreads) {
    const uint4 v = plain[i];
    const int64_t at = int8_vector_byte(m, first_row + i / row_vectors, i % row_vectors);
    *reinterpret_cast<uint4*>(packed + at) = {int8_word(v.x), int8_word(v.y), int8_word(v.z), int8_word(v.w)};
  }
}

__global__ void __launch_bounds__(kThreads)
    repack_scales(Int8Matrix m, const uint16_t* plain, char* packed, int64_t first_row, int64_t count) {
  const int64_t groups = m.columns / m.group;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += int64_t{gridDim.x} * kThreads)
    *reinterpret_cast<uint16_t*>(packed + int8_scale_byte(m, first_row + i / groups, i % groups)) = plain[i];
}

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(std::min<int64_t>(kMaxBlocks, (items + kThreads - 1) / kThreads));
}

}  // namespace

void enqueue_repack(const PackedMatrix& matrix, const void* plain, void* packed, int64_t first_row, int64_t row_count,
                    cudaStream_t stream) {
  const int64_t vectors = row_count * matrix.row_vectors;
  repack<<<blocks_for(vectors), kThreads, 0, stream>>>(matrix, static_cast<const uint4*>(plain),
                                                       static_cast<uint4*>(packed), first_row, vectors);
  AMK_CUDA_CHECK(cudaGetLastError());
}

void enqueue_repack_int8(const Int8Matrix& matrix, const void* plain, void* packed, int64_t first_row,
                         int64_t row_count, cudaStream_t stream) {
  const int64_t vectors = row_count * (matrix.columns / kInt8VectorElements);
  repack_int8<<<blocks_for(vectors), kThreads, 0, stream>>>(matrix, static_cast<const uint4*>(plain),
                                                            static_cast<char*>(packed), first_row, vectors);
  AMK_CUDA_CHECK(cudaGetLastError());
}

void enqueue_repack_scales(const Int8Matrix& matrix, const void* plain, void* packed, int64_t first_row,
                           int64_t row_count, cudaStream_t stream) {
  const int64_t count = row_count * (matrix.columns / matrix.group);
  repack_scales<<<blocks_for(count), kThreads, 0, stream>>>(matrix, static_cast<const uint16_t*>(plain),
                                                            static_cast<char*>(packed), first_row, count);
  AMK_CUDA_CHECK(cudaGetLastError());
}

}  // namespace amk
