// The search point: defaults and domains of every knob.
// In: an amk_schedule_t, which may hold anything. Out: nothing, or Error REJECTED naming the field as Python spells it
// and the values it may have. It must never repair a value (V26).
#pragma once

#include "amk.h"

namespace amk {

amk_schedule_t default_schedule();

// INVALID_ARGUMENT for a broken struct or a target that is no GPU; REJECTED for a knob.
void check_schedule(const amk_schedule_t& schedule, const amk_target_t& target);

}  // namespace amk
