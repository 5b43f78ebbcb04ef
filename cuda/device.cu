// Facts about the live device, from the CUDA runtime. The runtime is linked statically and opens the driver on the
// first call, so the library loads without one; no call here creates a context.
#include <cuda_runtime.h>

#include <cstdio>

#include "base/error.h"
#include "vm/device.h"

namespace amk {
namespace {

void check_cuda(cudaError_t code, const char* what) {
  AMK_CHECK(code == cudaSuccess, AMK_ERR_UNAVAILABLE, "%s: %s (%s)", what, cudaGetErrorString(code),
            cudaGetErrorName(code));
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

int device_count() {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "no usable CUDA device");
  return count;
}

amk_target_t query_device(int index) {
  const int count = device_count();
  AMK_CHECK(index >= 0 && index < count, AMK_ERR_INVALID_ARGUMENT, "device %d of %d", index, count);
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  amk_target_t t{};
  std::snprintf(t.name, sizeof t.name, "%s", properties.name);
  t.sm_count = properties.multiProcessorCount;
  t.cc_major = properties.major;
  t.cc_minor = properties.minor;
  t.max_threads_per_block = properties.maxThreadsPerBlock;
  t.max_threads_per_sm = properties.maxThreadsPerMultiProcessor;
  t.warp_threads = properties.warpSize;
  t.smem_optin_bytes = static_cast<int32_t>(properties.sharedMemPerBlockOptin);
  t.smem_per_sm_bytes = static_cast<int32_t>(properties.sharedMemPerMultiprocessor);
  t.regs_per_sm = properties.regsPerMultiprocessor;
  t.clock_mhz = attribute(cudaDevAttrClockRate, index) / 1000;
  t.l2_bytes = properties.l2CacheSize;
  t.hbm_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  // Two transfers per memory clock (kHz), bus width in bits.
  t.hbm_gb_per_s = 2.0 * attribute(cudaDevAttrMemoryClockRate, index) * 1e3 *
                   attribute(cudaDevAttrGlobalMemoryBusWidth, index) / 8 / 1e9;
  return t;
}

std::string device_uuid(int index) {
  const int count = device_count();
  AMK_CHECK(index >= 0 && index < count, AMK_ERR_INVALID_ARGUMENT, "device %d of %d", index, count);
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  std::string out = "GPU";
  for (int i = 0; i < 16; ++i) {
    char hex[4];
    const bool begins_a_group = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;
    std::snprintf(hex, sizeof hex, "%s%02x", begins_a_group ? "-" : "",
                  static_cast<unsigned char>(properties.uuid.bytes[i]));
    out += hex;
  }
  return out;
}

}  // namespace amk
