// Pass 3: tasks -> SM queues. Table order is a topological order of the ops and a queue keeps table order, so no
// assignment can deadlock; a policy only decides how long the longest queue gets.
#include <algorithm>
#include <functional>
#include <tuple>

#include "base/error.h"
#include "cost/cost.h"
#include "lower/passes.h"

namespace amk {
namespace {

// One turn over all SMs, on and on: an op of as many tiles as SMs gives each SM one.
void assign_round_robin(Program& program, int32_t sm_count) {
  for (size_t i = 0; i < program.tasks.size(); ++i) program.tasks[i].sm = static_cast<int32_t>(i % sm_count);
}

// Longest path of predecessors: ops of one level may run at the same time.
std::vector<int32_t> levels_of(const OpGraph& order) {
  std::vector<int32_t> level(order.preds.size(), 0);
  for (size_t op = 0; op < level.size(); ++op)
    for (int32_t p : order.preds[op]) level[op] = std::max(level[op], level[p] + 1);
  return level;
}

// Each task to the SM with the least predicted time, counted in its own level first: ops of different levels wait for
// each other, so an SM that idled earlier gains nothing from two tiles of one op.
void assign_least_loaded(Plan& plan, const OpGraph& order, const amk_target_t& target) {
  Program& p = plan.program;
  const int32_t pos = (p.launch.max_seq - 1) / 2;
  const std::vector<int32_t> level = levels_of(order);
  std::vector<double> total(target.sm_count, 0.0);
  // Loads of a level, dropped after its last op.
  std::vector<std::vector<double>> in_level(level.empty() ? 0 : *std::max_element(level.begin(), level.end()) + 1);
  std::vector<size_t> last_op(in_level.size());
  for (size_t op = 0; op < level.size(); ++op) last_op[level[op]] = op;
  using Entry = std::tuple<double, double, int32_t>;  // time in the level, in all, SM: the lowest SM wins a tie
  std::vector<Entry> heap;
  for (size_t op = 0; op < plan.ops.size(); ++op) {
    std::vector<double>& load = in_level[level[op]];
    load.resize(target.sm_count, 0.0);
    heap.clear();
    for (int32_t sm = 0; sm < target.sm_count; ++sm) heap.emplace_back(load[sm], total[sm], sm);
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
    const int32_t first = plan.ops[op].first_task, end = first + plan.ops[op].task_count;
    for (int32_t task = first; task < end; ++task) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      const int32_t sm = std::get<2>(heap.back());
      const double us = predict_task_us({p.tasks[task], p.buffers.data(), p.bindings.data()}, target, pos);
      load[sm] += us;
      total[sm] += us;
      p.tasks[task].sm = sm;
      heap.back() = {load[sm], total[sm], sm};
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
    if (op == last_op[level[op]]) std::vector<double>().swap(load);
  }
}

void assign_explicit(Program& program, const amk_schedule_t& schedule, int32_t sm_count) {
  constexpr const char* kTiling = "an explicit map is valid only for the tiling that produced its task ids";
  const int64_t tasks = static_cast<int64_t>(program.tasks.size());
  AMK_CHECK(schedule.sm_map_count == tasks, AMK_ERR_REJECTED,
            "V26: sm_assignment: the map has %lld entries, but this schedule makes %lld tasks; %s",
            (long long)schedule.sm_map_count, (long long)tasks, kTiling);
  for (amk_instruction_t& task : program.tasks) task.sm = -1;
  for (int64_t i = 0; i < tasks; ++i) {
    const int32_t task = schedule.sm_map_task[i], sm = schedule.sm_map_sm[i];
    AMK_CHECK(task >= 0 && task < tasks, AMK_ERR_REJECTED, "V26: sm_assignment: task %d of %lld tasks; %s", task,
              (long long)tasks, kTiling);
    AMK_CHECK(sm >= 0 && sm < sm_count, AMK_ERR_REJECTED, "V26: sm_assignment: task %d on sm %d, allowed 0..%d", task,
              sm, sm_count - 1);
    AMK_CHECK(program.tasks[task].sm < 0, AMK_ERR_REJECTED, "V26: sm_assignment: task %d appears twice", task);
    program.tasks[task].sm = sm;
  }
}

}  // namespace

void assign(Plan& plan, const OpGraph& order, const amk_schedule_t& schedule, const amk_target_t& target) {
  switch (schedule.sm_policy) {
    case AMK_SM_LOAD_BALANCE: return assign_least_loaded(plan, order, target);
    case AMK_SM_EXPLICIT: return assign_explicit(plan.program, schedule, target.sm_count);
    default: return assign_round_robin(plan.program, target.sm_count);
  }
}

}  // namespace amk
