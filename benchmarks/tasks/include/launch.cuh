// One kernel launch of a task, and its two halves of a programmatic dependent launch.
// In: a kernel, a grid, a stream. Out: 0 or the cudaError_t of the launch. Nothing is synchronised or allocated.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace amk::task {

enum class Order { kPlain, kDependent };

// Whether every architecture this file is compiled for has the wait of await_previous: compute capability 9.0. Code for
// an older one, translated for a newer device, would overlap without it.
constexpr bool can_depend() {
#ifdef __CUDA_ARCH_LIST__
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    if (architecture < 900) return false;
  }
  return true;
#else
  return false;
#endif
}
// The same for the copy engine, which came with that wait.
constexpr bool can_copy_in_bulk() { return can_depend(); }

// Dependent: the launch overlaps the end of the kernel before it in the stream, where can_depend(). The kernel must
// begin with await_previous<kDependent>(), before it touches any memory.
template <class... Params, class... Args>
int32_t launch_with(Order order, void (*kernel)(Params...), int64_t blocks, int threads, int shared_bytes, void* stream,
                    const Args&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = order == Order::kDependent && can_depend() ? 1 : 0;
  return static_cast<int32_t>(cudaLaunchKernelEx(&config, kernel, args...));
}
template <class... Params, class... Args>
int32_t launch(Order order, void (*kernel)(Params...), int64_t blocks, int threads, void* stream, const Args&... args) {
  return launch_with(order, kernel, blocks, threads, 0, stream, args...);
}

// SMs, and blocks of a kernel that are resident on one at once with so much dynamic shared memory. The kernel is
// allowed all that a block can have, whatever is asked here, so that launches from several threads do not undo each
// other's; its static shared memory is at most kMostStaticShared.
constexpr int kMostStaticShared = 1024;
struct Room {
  int processors = 0, resident = 0;
};
template <class Kernel>
int32_t find_room(Kernel kernel, int threads, int shared_bytes, Room* out) {
  int device = 0, most = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most - kMostStaticShared);
  }
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&out->processors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess)
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&out->resident, kernel, threads, shared_bytes);
  if (status == cudaSuccess && out->resident < 1) status = cudaErrorInvalidConfiguration;
  return static_cast<int32_t>(status);
}

// Dynamic shared memory of a block, at least `needed`, with which no more than `blocks` are resident on an SM: the next
// kernel's blocks, in a dependent launch, then wait for a place of their own instead of crowding where one ends first.
inline int32_t find_share_of_shared(int blocks, int needed, int* out) {
  int device = 0, all = 0, reserved = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device);
  const int share = (all / blocks - reserved - kMostStaticShared) / 16 * 16;
  *out = share > needed ? share : needed;
  return static_cast<int32_t>(status);
}

// Lets the next kernel of the stream be placed from now on, then waits until the previous one has finished and its
// writes are visible: the next one waits the same way, so nothing overtakes.
template <Order kOrder>
__device__ __forceinline__ void await_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (kOrder == Order::kDependent) {
    cudaTriggerProgrammaticLaunchCompletion();
    cudaGridDependencySynchronize();
  }
#endif
}

}  // namespace amk::task
