// One variant of the kernel: AMK_THREADS threads per block, with AMK_TIMED a timeline, with AMK_BATCHED for tasks of
// several tokens. cmake/amk_cuda.cmake compiles this file once per variant.
#include "megakernel.cuh"
#include "variants.h"

#define AMK_JOIN(a, b) a##b
#ifdef AMK_BATCHED
#define AMK_FAMILY_NAME(threads) AMK_JOIN(kernel_##threads, _batched)
constexpr bool kIsBatched = true;
#else
#define AMK_FAMILY_NAME(threads) kernel_##threads
constexpr bool kIsBatched = false;
#endif
#ifdef AMK_TIMED
#define AMK_SUFFIXED(name) AMK_JOIN(name, _timed)
#else
#define AMK_SUFFIXED(name) name
#endif
#define AMK_KERNEL(threads) AMK_SUFFIXED(AMK_FAMILY_NAME(threads))

namespace amk {

const void* AMK_KERNEL(AMK_THREADS)() {
  return reinterpret_cast<const void*>(&megakernel<AMK_THREADS, kTimed, kIsBatched>);
}

}  // namespace amk
