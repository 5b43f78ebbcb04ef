// One variant of the kernel: AMK_THREADS threads per block, and with AMK_TIMED a timeline. cmake/amk_cuda.cmake
// compiles this file once per variant.
#include "megakernel.cuh"
#include "variants.h"

#define AMK_JOIN(a, b) a##b
#ifdef AMK_TIMED
#define AMK_KERNEL_NAME(threads) AMK_JOIN(kernel_##threads, _timed)
#else
#define AMK_KERNEL_NAME(threads) kernel_##threads
#endif
#define AMK_KERNEL(threads) AMK_KERNEL_NAME(threads)

namespace amk {

const void* AMK_KERNEL(AMK_THREADS)() { return reinterpret_cast<const void*>(&megakernel<AMK_THREADS, kTimed>); }

}  // namespace amk
