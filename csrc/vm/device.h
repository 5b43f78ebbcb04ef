// The live GPU, as far as the core needs to know one: implemented in cuda/, or by cuda/device_absent.cpp in a build
// without CUDA. Neither prints, and only the measurement creates a context.
#pragma once

#include <string>

#include "amk.h"

namespace amk {

// Devices the driver offers. UNAVAILABLE, with the reason, when there is no driver, no device or no CUDA build.
int device_count();

// Facts of device `index`: UNAVAILABLE as above, INVALID_ARGUMENT when the index is out of range.
amk_target_t query_device(int index);

// "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx".
std::string device_uuid(int index);

// Bytes per second / 1e9 that the device reads, measured now. OUT_OF_MEMORY when too little is free to tell.
double measure_read_gb_per_s(int index);

}  // namespace amk
