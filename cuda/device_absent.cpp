// The device interface of a library that was built without CUDA.
#include "base/error.h"
#include "gdn/gdn.h"
#include "vm/device.h"
#include "vm/vm.h"

namespace amk {

int device_count() {
  throw Error(AMK_ERR_UNAVAILABLE, "this library was built without CUDA (no nvcc was found, or AMK_CUDA=OFF)");
}

amk_target_t query_device(int) {
  device_count();
  return {};
}

std::string device_uuid(int) {
  device_count();
  return {};
}

double measure_read_gb_per_s(int) {
  device_count();
  return 0;
}

std::unique_ptr<Vm> make_cuda_vm(std::shared_ptr<const std::vector<uint8_t>>, const amk_vm_options_t&, int32_t,
                                 const Vm*) {
  device_count();
  return nullptr;
}

void gdn_decode_on_device(const amk_gdn_decode_t&, void*) { device_count(); }

}  // namespace amk
