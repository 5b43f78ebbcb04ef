// What a block pays that looks around while it waits (poll_waits in cuda/sync.cuh): each thing it looks at alone, by
// one warp of one block, of a third of them and of all, on device 0. JSON on stdout: nanoseconds per look, launch
// included. What costs more with more blocks is a thing that they share.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "cuda_resources.h"
#include "ptx.cuh"

namespace {

constexpr int kLooks = 64, kRounds = 5, kWarp = 32;

enum class Thing { kNothing, kCounter, kSleep, kDeviceWord, kHostWordByWarp, kHostWordByLane, kGlobalTimer };
struct Row {
  Thing thing;
  const char* name;
};
constexpr Row kRows[] = {
    {Thing::kNothing, "nothing"},
    {Thing::kCounter, "acquire a counter"},
    {Thing::kSleep, "nanosleep(64)"},
    {Thing::kDeviceWord, "a word of the device"},
    {Thing::kHostWordByWarp, "a word of the host, by 32 lanes"},
    {Thing::kHostWordByLane, "a word of the host, by one lane"},
    {Thing::kGlobalTimer, "the global timer"},
};

__global__ void look(Thing thing, const uint32_t* device_word, const uint32_t* host_word, uint64_t* sink) {
  uint64_t seen = 0;
  for (int i = 0; i < kLooks; ++i) {
    switch (thing) {
      case Thing::kNothing: break;
      case Thing::kCounter: seen += amk::ptx::load_acquire_gpu(device_word); break;
      case Thing::kSleep: __nanosleep(64); break;
      case Thing::kDeviceWord: seen += amk::ptx::load_relaxed_gpu(device_word); break;
      case Thing::kHostWordByWarp: seen += amk::ptx::load_relaxed_system(host_word); break;
      case Thing::kHostWordByLane:
        if (threadIdx.x == 0) seen += amk::ptx::load_relaxed_system(host_word);
        break;
      case Thing::kGlobalTimer: seen += amk::ptx::global_time_ns() & 1; break;
    }
    if (__any_sync(0xffffffffu, seen > (uint64_t{1} << 40))) break;  // a look is over before the next begins
  }
  if (seen > (uint64_t{1} << 40)) *sink = seen;
}

double ns_per_look(const Row& row, int blocks, const uint32_t* device_word, const uint32_t* host_word, uint64_t* sink) {
  const amk::Event begin = amk::make_event(cudaEventDefault), end = amk::make_event(cudaEventDefault);
  std::vector<float> ms(kRounds);
  for (float& one : ms) {
    AMK_CUDA_CHECK(cudaEventRecord(begin.get()));
    look<<<blocks, kWarp>>>(row.thing, device_word, host_word, sink);
    AMK_CUDA_CHECK(cudaGetLastError());
    AMK_CUDA_CHECK(cudaEventRecord(end.get()));
    AMK_CUDA_CHECK(cudaEventSynchronize(end.get()));
    AMK_CUDA_CHECK(cudaEventElapsedTime(&one, begin.get(), end.get()));
  }
  std::sort(ms.begin(), ms.end());
  return ms[kRounds / 2] * 1e6 / kLooks;
}

}  // namespace

int main() {
  try {
    cudaDeviceProp device{};
    AMK_CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
    const amk::DeviceMemory memory = amk::allocate_device(256, "words");
    AMK_CUDA_CHECK(cudaMemset(memory.get(), 0, 256));
    const amk::PinnedMemory host = amk::allocate_pinned(64, "a word");
    *static_cast<uint32_t*>(host.get()) = 0;
    const uint32_t* device_word = static_cast<const uint32_t*>(memory.get());
    const int all = device.multiProcessorCount;
    std::printf("{\"device\": \"%s\", \"looks\": %d, \"rows\": [\n", device.name, kLooks);
    for (const Row& row : kRows)
      for (int blocks : {1, all / 3, all})
        std::printf("  {\"look_at\": \"%s\", \"blocks\": %d, \"ns\": %.0f}%s\n", row.name, blocks,
                    ns_per_look(row, blocks, device_word, static_cast<const uint32_t*>(host.get()),
                                static_cast<uint64_t*>(memory.get()) + 8),
                    &row == &kRows[std::size(kRows) - 1] && blocks == all ? "" : ",");
    std::printf("]}\n");
  } catch (const amk::Error& e) {
    std::fprintf(stderr, "gpu_look: status %d: %s\n", e.status(), e.what());
    return 1;
  }
  return 0;
}
