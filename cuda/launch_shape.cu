#include "launch_shape.h"

#include <algorithm>

#include "device_memory.h"
#include "ops/ring.h"
#include "vm/device.h"

#ifndef AMK_CUDA_ARCHITECTURES
#error "AMK_CUDA_ARCHITECTURES is not defined: cmake/amk_cuda.cmake passes the list"
#endif

namespace amk {
namespace {

bool has_packed(const ImageView& image) {
  return std::any_of(image.storages.begin(), image.storages.end(),
                     [](const ImageStorage& s) { return s.packing != 0; });
}

// Shared memory: the ring takes what the tasks leave of `room`, or of what the schedule allows.
LaunchShape divide_shared(const ImageView& image, const KernelVariant& variant, int64_t room, const char* device) {
  const amk_launch_t& launch = image.launch();
  const int64_t asked = launch.smem_bytes_per_block, limit = asked ? asked : room;
  const int64_t tasks = needed_shared_bytes(image, variant.threads, room);
  AMK_CHECK(limit >= tasks && limit <= room, AMK_ERR_REJECTED,
            "V10: smem_bytes_per_block is %lld, the tasks need %lld and %s offers %lld", (long long)asked,
            (long long)tasks, device, (long long)room);
  LaunchShape s;
  s.task_bytes = static_cast<int32_t>(tasks);
  s.shared_bytes = static_cast<size_t>(tasks);
  if (!has_packed(image)) return s;
  const int warps = variant.threads / kWarpThreads;
  s.ring_slot_bytes = ring_slot_bytes(image.tasks);
  const int64_t stage = ring_stage_bytes(warps, s.ring_slot_bytes);
  const int stages = ring_stages(launch, warps, limit, tasks, s.ring_slot_bytes);
  AMK_CHECK(stages >= std::max(1, launch.cpa_stages), AMK_ERR_REJECTED,
            "V20: %lld bytes of shared memory hold %d stages of the ring (%lld bytes each) beside the tasks' %lld, "
            "cpa_stages asks for %d",
            (long long)limit, stages, (long long)stage, (long long)tasks, launch.cpa_stages);
  s.ring_slots = is_batched(image) ? stages * warps : ring_slots(launch, warps, limit, tasks, s.ring_slot_bytes);
  AMK_CHECK(launch.pipelining_depth <= s.ring_slots, AMK_ERR_REJECTED,
            "V20: pipelining_depth is %d, the ring has %d slots", launch.pipelining_depth, s.ring_slots);
  s.ring_window = launch.pipelining_depth;
  const int64_t ring = int64_t{s.ring_slots} * s.ring_slot_bytes;
  s.task_bytes = static_cast<int32_t>(limit - ring);  // what is left makes longer panels
  s.shared_bytes = static_cast<size_t>(limit);
  return s;
}

// An SM's clocks for its share of a byte, a little less than the published bandwidth of the memory takes. How much less
// is measured (docs/performance.md): 15 / 16, and 31 / 32 where any slot has room for scales. By the device's highest
// clock: one that is held lower asks slower than its memory could serve. 0, no pace, where the device does not say.
float ring_pace(const amk_target_t& device, int slot_bytes, int blocks) {
  if (!(device.hbm_gb_per_s > 0)) return 0;
  const double share = slot_bytes > kSlotBytes ? 31.0 / 32 : 15.0 / 16;
  const double clocks = blocks / device.hbm_gb_per_s * device.clock_mhz / 1e3 * share;
  return static_cast<float>(std::min(clocks, static_cast<double>(kLongestPace) / slot_bytes));
}

}  // namespace

LaunchShape prove_occupancy(const ImageView& image, const KernelVariant& variant, const void* kernel, int device) {
  cudaDeviceProp d{};
  AMK_CUDA_CHECK(cudaGetDeviceProperties(&d, device));
  cudaFuncAttributes f{};
  const cudaError_t found = cudaFuncGetAttributes(&f, kernel);
  if (found == cudaErrorNoKernelImageForDevice || found == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    throw Error(AMK_ERR_UNAVAILABLE, text("no machine code for %s (compute capability %d.%d); built for %s", d.name,
                                          d.major, d.minor, AMK_CUDA_ARCHITECTURES));
  }
  check_cuda(found, "cudaFuncGetAttributes");
  AMK_CHECK(d.cooperativeLaunch, AMK_ERR_UNAVAILABLE, "%s has no cooperative launch", d.name);
  AMK_CHECK(block_threads(variant) <= f.maxThreadsPerBlock, AMK_ERR_REJECTED,
            "V10: threads_per_block is %d and the producer's %d, the kernel allows %d on %s", variant.threads,
            kProducerThreads, f.maxThreadsPerBlock, d.name);
  const int64_t room = static_cast<int64_t>(d.sharedMemPerBlockOptin) - static_cast<int64_t>(f.sharedSizeBytes);
  AMK_CHECK(d.major >= 9 || !has_packed(image), AMK_ERR_REJECTED,
            "V20: the ring of weights needs compute capability 9.0, %s has %d.%d (cpasync = 0 does without)", d.name,
            d.major, d.minor);
  LaunchShape shape = divide_shared(image, variant, room, d.name);
  if (shape.ring_slots) shape.ring_pace = ring_pace(query_device(device), shape.ring_slot_bytes, image.launch().grid);
  // One value for all machines on this device: the attribute is the kernel's, not a launch's.
  AMK_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)room));
  int blocks = 0;
  AMK_CUDA_CHECK(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, block_threads(variant), shape.shared_bytes));
  AMK_CHECK(
      image.launch().grid >= 1 && image.launch().grid <= blocks * d.multiProcessorCount, AMK_ERR_REJECTED,
      "V10: the grid has %d blocks, %s holds %d (%d SMs x %d blocks of %d threads and %zu bytes of shared memory)",
      image.launch().grid, d.name, blocks * d.multiProcessorCount, d.multiProcessorCount, blocks,
      block_threads(variant), shape.shared_bytes);
  return shape;
}

}  // namespace amk
