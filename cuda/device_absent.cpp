// The device interface of a library that was built without CUDA.
#include "base/error.h"
#include "vm/device.h"

namespace amk {

int device_count() {
  throw Error(AMK_ERR_UNAVAILABLE, "this library was built without CUDA (no nvcc was found, or AMK_CUDA=OFF)");
}

amk_target_t query_device(int) {
  device_count();
  return {};
}

}  // namespace amk
