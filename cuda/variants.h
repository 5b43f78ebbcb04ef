// The compiled variants of the kernel. CMake lists them once and passes AMK_CUDA_VARIANTS="X(256) X(512)"; each is a
// translation unit of its own (megakernel.cu) that defines kernel_<threads>(), with _batched and _timed behind the
// name.
#pragma once

#include "device_task.h"

#ifndef AMK_CUDA_VARIANTS
#error "AMK_CUDA_VARIANTS is not defined: cmake/amk_cuda.cmake holds the table"
#endif

namespace amk {

// For one token and for several, without a timeline and with one.
#define X(threads)                          \
  const void* kernel_##threads();           \
  const void* kernel_##threads##_timed();   \
  const void* kernel_##threads##_batched(); \
  const void* kernel_##threads##_batched_timed();
AMK_CUDA_VARIANTS
#undef X

struct KernelVariant {
  int threads;
  const void* (*kernels[2][2])();  // [for several tokens][with a timeline]; null: not built

  const void* kernel(bool batched, bool timed) const {
    return kernels[batched][timed] ? kernels[batched][timed]() : nullptr;
  }
};
// Threads of a launch: those of the tasks and the producer's.
constexpr int block_threads(const KernelVariant& v) { return v.threads + kProducerThreads; }

constexpr KernelVariant kKernelVariants[] = {
#define X(threads) \
  {threads,        \
   {{kernel_##threads, kernel_##threads##_timed}, {kernel_##threads##_batched, kernel_##threads##_batched_timed}}},
    AMK_CUDA_VARIANTS
#undef X
};

}  // namespace amk
