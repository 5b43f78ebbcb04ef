// Pass 5: edges between ops -> counters. Each op has one counter that all its tasks increment, and every wait is for
// all of them: one topological order then speaks for every interleaving.
#include "base/error.h"
#include "lower/passes.h"

namespace amk {

void add_counters(Plan& plan, const OpGraph& order) {
  Program& p = plan.program;
  AMK_CHECK(plan.ops.size() <= AMK_MAX_COUNTERS, AMK_ERR_REJECTED, "the model needs %zu counters, allowed %d",
            plan.ops.size(), AMK_MAX_COUNTERS);
  p.counter_init.assign(plan.ops.size(), 0);
  for (size_t op = 0; op < plan.ops.size(); ++op) {
    const int32_t first = plan.ops[op].first_task, end = first + plan.ops[op].task_count;
    for (int32_t i = first; i < end; ++i) {
      amk_instruction_t& task = p.tasks[i];
      task.out_counter = static_cast<int32_t>(op);
      for (int32_t pred : order.preds[op]) {
        task.wait_counter[task.n_waits] = pred;
        task.wait_threshold[task.n_waits++] = plan.ops[pred].task_count;
      }
    }
  }
}

}  // namespace amk
