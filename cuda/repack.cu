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

}  // namespace

void enqueue_repack(const PackedMatrix& matrix, const void* plain, void* packed, int64_t first_row, int64_t row_count,
                    cudaStream_t stream) {
  const int64_t vectors = row_count * matrix.row_vectors;
  const int64_t blocks = std::min<int64_t>(kMaxBlocks, (vectors + kThreads - 1) / kThreads);
  repack<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(matrix, static_cast<const uint4*>(plain),
                                                                 static_cast<uint4*>(packed), first_row, vectors);
  AMK_CUDA_CHECK(cudaGetLastError());
}

}  // namespace amk
