// Stands in for the CUDA runtime's header, so that a C++ compiler can build a kernel source and a test can run it
// without a GPU. In: kernels whose threads meet only at __syncthreads(), __syncwarp(), __shfl_sync() and
// __shfl_xor_sync(), or await what staging.cuh brings. Out: the same values as on a device, up to the last bits of
// rsqrtf; not its speed, and not its memory model. Blocks run one after another. The threads of a block are coroutines:
// each runs until it has to wait, in the order of kernels_on_cpu_backwards, so a missing barrier shows as a result that
// depends on the order.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __builtin_assume(condition) ((condition) ? void() : kernels_on_cpu::stop("what is assumed does not hold"))

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned n, unsigned m = 1, unsigned k = 1) : x(n), y(m), z(k) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

extern "C" __attribute__((visibility("default"))) inline int kernels_on_cpu_backwards = 0;

namespace kernels_on_cpu {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;

enum class State { kReady, kAtShuffle, kAtBarrier, kAwaiting, kDone };

struct Thread {
  jmp_buf here;
  ucontext_t first;
  std::unique_ptr<char[]> stack;
  State state = State::kDone;
  bool has_begun = false;
  unsigned shuffles = 0;
  float slot[2];  // one for this shuffle, one for the next: a lane may be one ahead of another
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  unsigned count = 0, running = 0;
  std::function<void()> kernel;
  jmp_buf scheduler;
  ucontext_t origin;
};
inline Block block;

[[noreturn]] inline void stop(const char* what) {
  std::fprintf(stderr, "block %u, thread %u: %s\n", blockIdx.x, block.running, what);
  std::abort();
}

inline void wait(State state) {
  Thread& self = *block.threads[block.running];
  self.state = state;
  if (_setjmp(self.here) == 0) _longjmp(block.scheduler, 1);
}

inline void life() {
  for (;;) {
    block.kernel();
    wait(State::kDone);
  }
}

inline void resume(unsigned i) {
  Thread& t = *block.threads[i];
  block.running = i;
  threadIdx.x = i;
  if (_setjmp(block.scheduler) != 0) return;
  if (t.has_begun) _longjmp(t.here, 1);
  t.has_begun = true;
  t.stack = std::make_unique<char[]>(kStackBytes);
  getcontext(&t.first);
  t.first.uc_stack.ss_sp = t.stack.get();
  t.first.uc_stack.ss_size = kStackBytes;
  t.first.uc_link = nullptr;
  makecontext(&t.first, life, 0);
  swapcontext(&block.origin, &t.first);
}

inline bool is_all(unsigned first, unsigned end, State state) {
  for (unsigned i = first; i < end; ++i) {
    if (block.threads[i]->state != state) return false;
  }
  return true;
}
inline bool has(unsigned first, unsigned end, State state) {
  for (unsigned i = first; i < end; ++i) {
    if (block.threads[i]->state == state) return true;
  }
  return false;
}

// One warp as far as it comes without the others.
inline void run_warp(unsigned first, unsigned end) {
  while (has(first, end, State::kReady)) {
    for (unsigned n = 0; n < end - first; ++n) {
      const unsigned i = kernels_on_cpu_backwards ? end - 1 - n : first + n;
      if (block.threads[i]->state == State::kReady) resume(i);
    }
    if (is_all(first, end, State::kAtShuffle)) {
      for (unsigned i = first; i < end; ++i) block.threads[i]->state = State::kReady;
    } else if (has(first, end, State::kAtShuffle) && !has(first, end, State::kAwaiting)) {
      stop("a shuffle of the whole warp that some lanes do not reach");
    }
  }
}

inline void run_block(unsigned count, const std::function<void()>& kernel) {
  while (block.threads.size() < count) block.threads.push_back(std::make_unique<Thread>());
  block.count = count;
  block.kernel = kernel;
  for (unsigned i = 0; i < count; ++i) block.threads[i]->state = State::kReady;
  while (!is_all(0, count, State::kDone)) {
    const unsigned warps = (count + kWarp - 1) / kWarp;
    for (unsigned n = 0; n < warps; ++n) {
      const unsigned w = kernels_on_cpu_backwards ? warps - 1 - n : n;
      run_warp(w * kWarp, std::min(count, (w + 1) * kWarp));
    }
    // Who awaits something looks again; as long as there is such a thread, not all have come to the barrier.
    const State waiting = has(0, count, State::kAwaiting) ? State::kAwaiting : State::kAtBarrier;
    for (unsigned i = 0; i < count; ++i) {
      if (block.threads[i]->state == waiting) block.threads[i]->state = State::kReady;
    }
  }
}

}  // namespace kernels_on_cpu

inline void __syncthreads() { kernels_on_cpu::wait(kernels_on_cpu::State::kAtBarrier); }
namespace kernels_on_cpu {
// What the whole warp's lane `from` holds: every lane comes here at the same shuffle.
inline float exchange(unsigned mask, float v, unsigned from) {
  if (mask != 0xffffffffu) stop("a shuffle of part of a warp");
  if (block.count % kWarp != 0 || from / kWarp != block.running / kWarp) stop("a shuffle out of the warp");
  Thread& t = *block.threads[block.running];
  const unsigned parity = t.shuffles++ % 2;
  t.slot[parity] = v;
  wait(State::kAtShuffle);
  return block.threads[from]->slot[parity];
}
}  // namespace kernels_on_cpu

inline float __shfl_xor_sync(unsigned mask, float v, int lanes) {
  return kernels_on_cpu::exchange(mask, v, kernels_on_cpu::block.running ^ static_cast<unsigned>(lanes));
}
inline float __shfl_sync(unsigned mask, float v, int lane, int width = kernels_on_cpu::kWarp) {
  const unsigned lanes = static_cast<unsigned>(width), self = kernels_on_cpu::block.running;
  return kernels_on_cpu::exchange(mask, v, self / lanes * lanes + static_cast<unsigned>(lane) % lanes);
}

inline void __syncwarp() { kernels_on_cpu::wait(kernels_on_cpu::State::kAtShuffle); }
template <class T>
void __stcg(T* p, T v) {
  *p = v;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
uint64_t __cvta_generic_to_shared(const void* p);  // named by functions that no kernel here calls

typedef struct kernels_on_cpu_stream* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrReservedSharedMemoryPerBlock
};
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  constexpr int kValues[] = {4, 227 << 10, 228 << 10, 1 << 10};
  return *value = kValues[what], cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  return *blocks = 3, cudaSuccess;
}
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), const Args&... args) {
  if (config->gridDim.x == 0 || config->blockDim.x == 0 || config->blockDim.x > 1024)
    return cudaErrorInvalidConfiguration;
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
        kernels_on_cpu::run_block(blockDim.x, [&] { kernel(args...); });
  return cudaSuccess;
}
