// How a launch of an image divides up the live device.
// In: an ImageView, the kernel that will run it, a device. Out: the launch's shared memory, or the Error that says why
// it does not fit (V10, V20).
#pragma once

#include "pack/layout.h"
#include "variants.h"

namespace amk {

// What a launch on the live device looks like.
struct LaunchShape {
  size_t shared_bytes = 0;  // dynamic
  int32_t ring_slots = 0, ring_window = 0, ring_slot_bytes = 0, task_bytes = 0;
  float ring_pace = 0;  // clocks of an SM for a byte of weights, at least
};

// Grid, threads and shared memory against the live device.
LaunchShape prove_occupancy(const ImageView& image, const KernelVariant& variant, const void* kernel, int device);

}  // namespace amk
