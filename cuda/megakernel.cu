// One variant of the kernel: AMK_THREADS threads per block. cmake/amk_cuda.cmake compiles this file once per variant.
#include "megakernel.cuh"
#include "variants.h"

#define AMK_KERNEL_NAME(threads) kernel_##threads
#define AMK_KERNEL(threads) AMK_KERNEL_NAME(threads)

namespace amk {

const void* AMK_KERNEL(AMK_THREADS)() { return reinterpret_cast<const void*>(&megakernel<AMK_THREADS>); }

}  // namespace amk
