// How fast this device only reads, now: the denominator of every measured share of the floor.
// In: a device. Out: 1e9 bytes per second, the median of several passes over more memory than its caches hold. Nothing
// is written unless the sum hits one value. It leaves nothing allocated.
#include <algorithm>
#include <vector>

#include "cuda_resources.h"
#include "vm/device.h"

namespace amk {
namespace {

constexpr size_t kMostBytes = size_t{8} << 30;
constexpr int kCacheMultiple = 4;  // of the L2: less than this would measure the cache
constexpr int kWarmUp = 3, kPasses = 15;
constexpr int kThreads = 512, kBlocksPerSm = 4, kAhead = 8;

__global__ void read_all(const uint4* p, size_t count, unsigned* out) {
  uint4 sum{};
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += kAhead * stride) {
    uint4 v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) v[j] = i + j * stride < count ? __ldcs(p + i + j * stride) : uint4{};
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      sum.x ^= v[j].x;
      sum.y ^= v[j].y;
      sum.z ^= v[j].z;
      sum.w ^= v[j].w;
    }
  }
  if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x12345) *out = sum.x;
}

}  // namespace

double measure_read_gb_per_s(int index) {
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
  std::vector<double> rates;
  for (int i = 0; i < kWarmUp + kPasses; ++i) {
    AMK_CUDA_CHECK(cudaEventRecord(begin.get(), stream.get()));
    read_all<<<static_cast<unsigned>(device.sm_count * kBlocksPerSm), kThreads, 0, stream.get()>>>(
        static_cast<const uint4*>(data.get()), nbytes / sizeof(uint4), static_cast<unsigned*>(out.get()));
    AMK_CUDA_CHECK(cudaGetLastError());
    AMK_CUDA_CHECK(cudaEventRecord(end.get(), stream.get()));
    AMK_CUDA_CHECK(cudaEventSynchronize(end.get()));
    float ms = 0;
    AMK_CUDA_CHECK(cudaEventElapsedTime(&ms, begin.get(), end.get()));
    if (i >= kWarmUp && ms > 0) rates.push_back(static_cast<double>(nbytes) / ms / 1e6);
  }
  AMK_CHECK(!rates.empty(), AMK_ERR_DEVICE_FAULT, "read bandwidth: no pass over %zu bytes took any time", nbytes);
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

}  // namespace amk
