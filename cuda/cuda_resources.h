// Owners of what CUDA hands out, and the one translation of its errors.
// In: calls of the CUDA runtime. Out: Error with what was called, or memory that frees itself. A destructor never
// throws.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "base/error.h"

namespace amk {

// After one of these the context is unusable for the rest of the process (CUDA runtime API, "sticky" errors).
inline bool is_sticky(cudaError_t code) {
  switch (code) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorUnknown: return true;
    default: return false;
  }
}

inline amk_status status_of(cudaError_t code) {
  switch (code) {
    case cudaErrorMemoryAllocation: return AMK_ERR_OUT_OF_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorInitializationError: return AMK_ERR_UNAVAILABLE;
    case cudaErrorCooperativeLaunchTooLarge:
    case cudaErrorLaunchOutOfResources: return AMK_ERR_REJECTED;
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorInvalidValue: return AMK_ERR_INVALID_ARGUMENT;
    default: return AMK_ERR_DEVICE_FAULT;
  }
}

inline void check_cuda(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  if (!is_sticky(code)) cudaGetLastError();  // else the next unrelated call would report it again
  throw Error(status_of(code), text("%s: %s (%s)", what, cudaGetErrorString(code), cudaGetErrorName(code)));
}
#define AMK_CUDA_CHECK(call) ::amk::check_cuda((call), #call)

// Makes a device current and puts the caller's back.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    AMK_CUDA_CHECK(cudaGetDevice(&before_));
    if (before_ == device) return;
    AMK_CUDA_CHECK(cudaSetDevice(device));
    is_changed_ = true;
  }
  ~CurrentDevice() {
    if (is_changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool is_changed_ = false;
};

// A handle and how it is released. abandon() leaks it on purpose: releasing would wait for a kernel that never ends.
template <class Handle, cudaError_t (*kRelease)(Handle)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle h) : handle_(h) {}
  Owned(Owned&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  Owned& operator=(Owned&& o) noexcept {
    std::swap(handle_, o.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_) kRelease(handle_);
  }
  Handle get() const { return handle_; }
  void abandon() { handle_ = nullptr; }

 private:
  Handle handle_ = nullptr;
};

using DeviceMemory = Owned<void*, cudaFree>;
using PinnedMemory = Owned<void*, cudaFreeHost>;
using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;

inline DeviceMemory allocate_device(size_t nbytes, const char* what) {
  void* p = nullptr;
  const cudaError_t code = cudaMalloc(&p, nbytes ? nbytes : 1);
  if (code == cudaErrorMemoryAllocation) {
    size_t free_bytes = 0, total_bytes = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &total_bytes);
    throw Error(AMK_ERR_OUT_OF_MEMORY,
                text("%s: %zu bytes asked, %zu of %zu free on the device", what, nbytes, free_bytes, total_bytes));
  }
  check_cuda(code, what);
  return DeviceMemory(p);
}
// Mapped: the device reads it at the same address.
inline PinnedMemory allocate_pinned(size_t nbytes, const char* what) {
  void* p = nullptr;
  const cudaError_t code = cudaHostAlloc(&p, nbytes ? nbytes : 1, cudaHostAllocMapped | cudaHostAllocPortable);
  if (code == cudaErrorMemoryAllocation) cudaGetLastError();
  AMK_CHECK(code != cudaErrorMemoryAllocation, AMK_ERR_OUT_OF_MEMORY, "%s: %zu bytes of pinned memory", what, nbytes);
  check_cuda(code, what);
  return PinnedMemory(p);
}
inline Stream make_stream() {
  cudaStream_t s = nullptr;
  AMK_CUDA_CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  return Stream(s);
}
inline Event make_event(unsigned flags) {
  cudaEvent_t e = nullptr;
  AMK_CUDA_CHECK(cudaEventCreateWithFlags(&e, flags));
  return Event(e);
}

}  // namespace amk
