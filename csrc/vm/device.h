// The live GPU, as far as the core needs to know one: implemented in cuda/, or by cuda/device_absent.cpp in a build
// without CUDA. Neither prints, and neither creates a context for the two calls below.
#pragma once

#include "amk.h"

namespace amk {

// Devices the driver offers. UNAVAILABLE, with the reason, when there is no driver, no device or no CUDA build.
int device_count();

// Facts of device `index`: UNAVAILABLE as above, INVALID_ARGUMENT when the index is out of range.
amk_target_t query_device(int index);

}  // namespace amk
