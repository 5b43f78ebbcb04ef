#include "lower/lower.h"

#include <utility>

#include "lower/passes.h"
#include "lower/schedule.h"

namespace amk {

Program lower(const Graph& graph, const amk_schedule_t& schedule, const amk_target_t& target) {
  check_schedule(schedule, target);
  const Graph fused = fuse(graph, schedule.fusion);
  Plan plan = tile(fused, schedule, target);
  OpGraph order = find_dependencies(plan);
  assign(plan, order, schedule, target);
  place(plan, order, schedule.page_policy);
  add_counters(plan, order);
  return std::move(plan.program);
}

}  // namespace amk
