// The cost model: what a program moves, and how long it should take on its own target. A prediction, never a
// measurement; the bytes come from the law table (ops/op_spec.h) and nowhere else.
#pragma once

#include <cstdint>
#include <vector>

#include "amk.h"
#include "ops/op_spec.h"
#include "program/program.h"

namespace amk {

// Microseconds one task takes on one SM of the target at position pos, its waits apart. The task passed op_check.
double predict_task_us(const TaskView& view, const amk_target_t& target, int32_t pos);

// In: a program that validate() accepted. INVALID_ARGUMENT when a token of the step is outside [0, max_seq).
amk_cost_t predict_cost(const Program& program, int32_t pos);

// The replay behind that latency, task by task. Same domain, same error.
std::vector<amk_task_cost_t> predict_task_costs(const Program& program, int32_t pos);

}  // namespace amk
