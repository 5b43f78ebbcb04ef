// The compiled variants of the kernel. CMake lists them once and passes AMK_CUDA_VARIANTS="X(256) X(512)"; each is a
// translation unit of its own (megakernel.cu) that defines kernel_<threads>().
#pragma once

#include <cstddef>

#ifndef AMK_CUDA_VARIANTS
#error "AMK_CUDA_VARIANTS is not defined: cmake/amk_cuda.cmake holds the table"
#endif

namespace amk {

#define X(threads) const void* kernel_##threads();
AMK_CUDA_VARIANTS
#undef X

struct KernelVariant {
  int threads;
  const void* (*kernel)();
};
constexpr KernelVariant kKernelVariants[] = {
#define X(threads) {threads, kernel_##threads},
    AMK_CUDA_VARIANTS
#undef X
};

}  // namespace amk
