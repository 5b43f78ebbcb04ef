// The GPU as data: presets with published figures. Needs no device.
#pragma once

#include "amk.h"

namespace amk {

int target_count();
const amk_target_t* target_preset(int index);  // nullptr out of range
const char* target_source(int index);          // the document its figures come from

}  // namespace amk
