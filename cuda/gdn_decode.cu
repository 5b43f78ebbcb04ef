// amk_gdn_decode on a device. In: checked operands, a stream. Out: one kernel enqueued; nothing is allocated or
// awaited.
#include "cuda_resources.h"
#include "gdn/gdn.h"
#include "gdn_launch.cuh"
#include "vm/device.h"

namespace amk {

void gdn_decode_on_device(const amk_gdn_decode_t& args, void* stream) {
  const int count = device_count();
  AMK_CHECK(args.device < count, AMK_ERR_INVALID_ARGUMENT, "gdn_decode: device %d of %d", args.device, count);
  const CurrentDevice current(args.device);
  check_cuda(gdn_enqueue(args, static_cast<cudaStream_t>(stream)), "gdn_decode");
}

}  // namespace amk
