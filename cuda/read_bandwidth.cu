// How fast this device only reads, now: the denominator of every measured share of the floor.
// In: a device. Out: 1e9 bytes per second of each way of reading, of which the fastest counts. Nothing is written
// unless the sum hits one value. No single way is the fastest on every device, and one that fills its SMs unevenly
// reads 10 % low without a sign of it (34 registers instead of 32: the fourth block of each SM runs after the other
// three). So there are several, all over the same bytes, in turn, with grids that are resident as a whole.
#include "read_bandwidth.h"

#include <algorithm>

#include "cuda_resources.h"
#include "ptx.cuh"
#include "vm/device.h"

namespace amk {
namespace {

constexpr size_t kMostBytes = size_t{8} << 30;
constexpr int kCacheMultiple = 4;  // of the L2: less than this would measure the cache
constexpr int kWarmUpRounds = 3, kRounds = 9;

struct PlainLoad {
  __device__ static uint4 load(const uint4* p) { return __ldcs(p); }
};
struct WeightLoad {  // as the kernel reads weights
  __device__ static uint4 load(const uint4* p) { return ptx::load_weight(p); }
};

__device__ inline void add(uint4& sum, uint4 v) {
  sum.x ^= v.x;
  sum.y ^= v.y;
  sum.z ^= v.z;
  sum.w ^= v.w;
}
__device__ inline void keep(uint4 sum, unsigned* out) {
  if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x12345) *out = sum.x;
}

// kAhead loads of 16 bytes per thread in flight. Vectors [first, last) of p, `stride` threads side by side.
template <class Load, int kAhead>
__device__ inline void read_range(const uint4* p, size_t first, size_t last, size_t stride, unsigned* out) {
  uint4 sum{};
  size_t i = first;
  for (; i + (kAhead - 1) * stride < last; i += kAhead * stride) {
    uint4 v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) v[j] = Load::load(p + i + j * stride);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) add(sum, v[j]);
  }
  for (; i < last; i += stride) add(sum, Load::load(p + i));
  keep(sum, out);
}

// All threads of the grid side by side.
template <class Load, int kAhead, int kThreads, int kBlocksPerSm>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) read_striped(const uint4* p, size_t count, unsigned* out) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  read_range<Load, kAhead>(p, size_t{blockIdx.x} * blockDim.x + threadIdx.x, count, stride, out);
}

// A block for each piece of kAhead vectors per thread: the hardware hands them out, so that a slow SM takes fewer.
template <class Load, int kAhead, int kThreads, int kBlocksPerSm>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) read_pieces(const uint4* p, size_t count, unsigned* out) {
  const size_t piece = size_t{kAhead} * kThreads, begin = blockIdx.x * piece;
  const size_t end = begin + piece < count ? begin + piece : count;
  read_range<Load, kAhead>(p, begin + threadIdx.x, end, kThreads, out);
}

using Kernel = void (*)(const uint4*, size_t, unsigned*);

struct Way {
  const char* name;
  Kernel kernel;
  int threads;
  int piece;  // vectors per block, or 0: striped over the blocks that are resident at once
};
template <class Load, int kAhead, int kThreads, int kBlocksPerSm>
Way striped(const char* name) {
  return {name, read_striped<Load, kAhead, kThreads, kBlocksPerSm>, kThreads, 0};
}
template <class Load, int kAhead, int kThreads, int kBlocksPerSm>
Way pieces(const char* name) {
  return {name, read_pieces<Load, kAhead, kThreads, kBlocksPerSm>, kThreads, kAhead * kThreads};
}

unsigned grid_of(const Way& way, int sm_count, size_t count) {
  if (way.piece) return static_cast<unsigned>((count + way.piece - 1) / way.piece);
  int blocks = 0;
  AMK_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, reinterpret_cast<const void*>(way.kernel),
                                                               way.threads, 0));
  return static_cast<unsigned>(std::max(1, blocks) * sm_count);
}

}  // namespace

std::vector<ReadRate> measure_read_rates(int index) {
  const Way ways[] = {
      striped<PlainLoad, 8, 512, 4>("striped, 8 x 16 bytes ahead, 512 threads x 4"),
      striped<PlainLoad, 4, 1024, 2>("striped, 4 x 16 bytes ahead, 1024 threads x 2"),
      striped<PlainLoad, 16, 512, 1>("striped, 16 x 16 bytes ahead, 512 threads"),
      striped<WeightLoad, 4, 512, 4>("striped, 4 x 16 bytes ahead, 512 threads x 4, as weights"),
      pieces<PlainLoad, 8, 512, 4>("pieces of 64 KB, 512 threads"),
      pieces<PlainLoad, 8, 256, 8>("pieces of 32 KB, 256 threads"),
  };
  constexpr int kWays = sizeof ways / sizeof ways[0];
  const amk_target_t device = query_device(index);
  const CurrentDevice current(index);
  size_t free_bytes = 0, total_bytes = 0;
  AMK_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  const size_t nbytes = std::min(kMostBytes, free_bytes / 2) / sizeof(uint4) * sizeof(uint4);
  AMK_CHECK(nbytes >= kCacheMultiple * static_cast<size_t>(device.l2_bytes), AMK_ERR_OUT_OF_MEMORY,
            "read bandwidth: %zu bytes are free, %d times the %lld bytes of L2 are needed twice over", free_bytes,
            kCacheMultiple, (long long)device.l2_bytes);
  const DeviceMemory data = allocate_device(nbytes, "read bandwidth"), out = allocate_device(4, "read bandwidth");
  const Stream stream = make_stream();
  const Event begin = make_event(cudaEventDefault), end = make_event(cudaEventDefault);
  AMK_CUDA_CHECK(cudaMemsetAsync(data.get(), 0x5a, nbytes, stream.get()));
  const size_t count = nbytes / sizeof(uint4);
  std::vector<double> rates[kWays];
  for (int round = 0; round < kWarmUpRounds + kRounds; ++round) {
    for (int w = 0; w < kWays; ++w) {  // in turn: what the clocks do is the same for all
      AMK_CUDA_CHECK(cudaEventRecord(begin.get(), stream.get()));
      ways[w]
          .kernel<<<grid_of(ways[w], device.sm_count, count), static_cast<unsigned>(ways[w].threads), 0,
                    stream.get()>>>(static_cast<const uint4*>(data.get()), count, static_cast<unsigned*>(out.get()));
      AMK_CUDA_CHECK(cudaGetLastError());
      AMK_CUDA_CHECK(cudaEventRecord(end.get(), stream.get()));
      AMK_CUDA_CHECK(cudaEventSynchronize(end.get()));
      float ms = 0;
      AMK_CUDA_CHECK(cudaEventElapsedTime(&ms, begin.get(), end.get()));
      AMK_CHECK(ms > 0, AMK_ERR_DEVICE_FAULT, "read bandwidth: a pass over %zu bytes took no time", nbytes);
      if (round >= kWarmUpRounds) rates[w].push_back(static_cast<double>(nbytes) / ms / 1e6);
    }
  }
  std::vector<ReadRate> found;
  for (int w = 0; w < kWays; ++w) {
    std::sort(rates[w].begin(), rates[w].end());
    found.push_back({ways[w].name, rates[w][rates[w].size() / 2]});
  }
  std::sort(found.begin(), found.end(), [](const ReadRate& a, const ReadRate& b) { return a.gb_per_s > b.gb_per_s; });
  return found;
}

double measure_read_gb_per_s(int index) { return measure_read_rates(index).front().gb_per_s; }

}  // namespace amk
