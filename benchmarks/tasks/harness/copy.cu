// Ways of copying, the fastest of which is the ceiling of every task in the same run: the bytes of a row, half of them
// read and half of them written. Entries like those of a task, so that they are called and timed by the same code.
// In: input 0 and output 0, contiguous, u8, the same multiple of 16 bytes. Out: the bytes, and nothing else.
#include <cuda_runtime.h>

#include <algorithm>

#include "amk.h"
#include "amk_task_harness.h"

namespace {

template <bool kStream>
__device__ __forceinline__ uint4 read(const uint4* p) {
  return kStream ? __ldcs(p) : *p;
}
template <bool kStream>
__device__ __forceinline__ void write(uint4* p, uint4 v) {
  kStream ? __stcs(p, v) : void(*p = v);
}

// A block for each piece of kAhead vectors per thread.
template <int kThreads, int kAhead, bool kStream>
__global__ void __launch_bounds__(kThreads) copy_pieces(const uint4* from, uint4* to, size_t count) {
  const size_t first = size_t{blockIdx.x} * (kThreads * kAhead) + threadIdx.x;
  uint4 v[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j)
    if (first + j * kThreads < count) v[j] = read<kStream>(from + first + j * kThreads);
#pragma unroll
  for (int j = 0; j < kAhead; ++j)
    if (first + j * kThreads < count) write<kStream>(to + first + j * kThreads, v[j]);
}

// As many blocks as are resident at once, all threads side by side.
template <int kThreads, int kAhead, bool kStream>
__global__ void __launch_bounds__(kThreads) copy_striped(const uint4* from, uint4* to, size_t count) {
  const size_t stride = size_t{gridDim.x} * kThreads;
  size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kAhead - 1) * stride < count; i += kAhead * stride) {
    uint4 v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) v[j] = read<kStream>(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) write<kStream>(to + i + j * stride, v[j]);
  }
  for (; i < count; i += stride) write<kStream>(to + i, read<kStream>(from + i));
}

bool is_copy(const amk_task_tensor_t& from, const amk_task_tensor_t& to) {
  const auto plain = [](const amk_task_tensor_t& t) {
    return t.data && t.rank == 1 && t.stride[0] == 1 && t.dtype == AMK_DTYPE_U8 &&
           reinterpret_cast<uintptr_t>(t.data) % sizeof(uint4) == 0;
  };
  return plain(from) && plain(to) && from.shape[0] == to.shape[0] && from.shape[0] > 0 &&
         from.shape[0] % static_cast<int64_t>(sizeof(uint4)) == 0;
}

using Kernel = void (*)(const uint4*, uint4*, size_t);

// `piece`: vectors per block, or 0 for a striped grid.
int32_t launch(Kernel kernel, int threads, size_t piece, const amk_task_tensor_t* in, int32_t n_in,
               const amk_task_tensor_t* out, int32_t n_out, void* stream) {
  if (n_in != 1 || n_out != 1 || !is_copy(in[0], out[0])) return AMK_ERR_INVALID_ARGUMENT;
  const size_t count = static_cast<size_t>(in[0].shape[0]) / sizeof(uint4);
  unsigned grid = 0;
  if (piece) {
    grid = static_cast<unsigned>((count + piece - 1) / piece);
  } else {
    int device = 0, sms = 0, blocks = 0;
    cudaError_t code = cudaGetDevice(&device);
    if (!code) code = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    if (!code) {
      code = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, reinterpret_cast<const void*>(kernel), threads, 0);
    }
    if (code) return code;
    grid = static_cast<unsigned>(std::max(1, blocks * sms));
  }
  kernel<<<grid, static_cast<unsigned>(threads), 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const uint4*>(in[0].data), static_cast<uint4*>(out[0].data), count);
  return cudaGetLastError();
}

template <int kThreads, int kAhead, bool kStream>
int32_t pieces(const amk_task_tensor_t* in, int32_t n_in, const double*, int32_t, const amk_task_tensor_t* out,
               int32_t n_out, void* stream) {
  return launch(copy_pieces<kThreads, kAhead, kStream>, kThreads, size_t{kThreads} * kAhead, in, n_in, out, n_out,
                stream);
}
template <int kThreads, int kAhead, bool kStream>
int32_t striped(const amk_task_tensor_t* in, int32_t n_in, const double*, int32_t, const amk_task_tensor_t* out,
                int32_t n_out, void* stream) {
  return launch(copy_striped<kThreads, kAhead, kStream>, kThreads, 0, in, n_in, out, n_out, stream);
}

const struct {
  const char* name;
  amk_task_fn* entry;
} kWays[] = {
    {"pieces, 256 threads x 1", pieces<256, 1, false>},
    {"pieces, 256 threads x 2", pieces<256, 2, false>},
    {"pieces, 256 threads x 4", pieces<256, 4, false>},
    {"pieces, 256 threads x 4, streaming", pieces<256, 4, true>},
    {"pieces, 512 threads x 4, streaming", pieces<512, 4, true>},
    {"pieces, 256 threads x 8, streaming", pieces<256, 8, true>},
    {"striped, 512 threads x 4", striped<512, 4, false>},
    {"striped, 512 threads x 4, streaming", striped<512, 4, true>},
};

}  // namespace

extern "C" amk_task_fn* amk_tasks_copy(int32_t index, const char** name) {
  if (index < 0 || index >= static_cast<int32_t>(sizeof kWays / sizeof kWays[0])) return nullptr;
  if (name) *name = kWays[index].name;
  return kWays[index].entry;
}
