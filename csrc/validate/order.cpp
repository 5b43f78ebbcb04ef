// Proof 2: signals are unambiguous (V8) and every task gets its turn (V9).
// In: a program whose ids are in range. Out: producers per counter, queues, and one topological order. Must treat
// counters as nodes of the graph: producers x consumers edges would be millions.
#include <algorithm>
#include <functional>
#include <queue>

#include "base/error.h"
#include "validate/proofs.h"

namespace amk {
namespace {

void fill_queues(const Program& p, TaskOrder* out) {
  const size_t n = p.tasks.size();
  std::vector<int64_t> length(p.launch.grid, 0);
  for (const amk_instruction_t& t : p.tasks) ++length[t.sm];
  std::vector<int32_t> lane_of_sm(p.launch.grid, -1);
  out->lane_first.assign(1, 0);
  for (int32_t sm = 0; sm < p.launch.grid; ++sm) {
    if (length[sm] == 0) continue;
    lane_of_sm[sm] = out->lanes++;
    out->lane_first.push_back(out->lane_first.back() + length[sm]);
    out->longest_queue = std::max(out->longest_queue, static_cast<uint32_t>(length[sm]));
  }
  out->lane.resize(n);
  out->rank.resize(n);
  out->lane_tasks.resize(n);
  std::vector<uint32_t> filled(out->lanes, 0);
  for (size_t t = 0; t < n; ++t) {
    const int32_t lane = lane_of_sm[p.tasks[t].sm];
    out->lane[t] = lane;
    out->lane_tasks[out->lane_first[lane] + filled[lane]] = static_cast<int32_t>(t);
    out->rank[t] = ++filled[lane];
  }
}

// Heads of queues that never start, one sentence each.
void report_stuck(const Program& p, const TaskOrder& order, const std::vector<int32_t>& unmet,
                  const std::vector<uint32_t>& missing, Report* report) {
  for (int32_t l = 0; l < order.lanes; ++l) {
    for (int64_t i = order.lane_first[l]; i < order.lane_first[l + 1]; ++i) {
      const int32_t id = order.lane_tasks[i];
      if (unmet[id] == 0) continue;
      const amk_instruction_t& t = p.tasks[id];
      int32_t counter = -1;
      for (int w = 0; w < t.n_waits && counter < 0; ++w)
        if (missing[t.wait_counter[w]] > 0) counter = t.wait_counter[w];
      AMK_REJECT(report, 9, id, -1, counter,
                 "%s, next on queue %d, waits for counter %d forever: %u of its producers never run",
                 task_text(p, id).c_str(), t.sm, counter, counter >= 0 ? missing[counter] : 0u);
      break;
    }
  }
}

}  // namespace

bool prove_signals(const Program& p, std::vector<uint32_t>* producers, Report* report) {
  const int64_t before = report->count();
  producers->assign(p.counter_init.size(), 0);
  for (size_t c = 0; c < p.counter_init.size(); ++c) {
    if (p.counter_init[c] != 0)
      AMK_REJECT(report, 8, -1, -1, static_cast<int32_t>(c), "counter %zu starts at %u, expected 0", c,
                 p.counter_init[c]);
  }
  for (const amk_instruction_t& t : p.tasks) ++(*producers)[t.out_counter];
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const amk_instruction_t& t = p.tasks[i];
    const int32_t id = static_cast<int32_t>(i);
    for (int w = 0; w < t.n_waits; ++w) {
      const int32_t c = t.wait_counter[w];
      const uint32_t due = (*producers)[c];
      if (c == t.out_counter)
        AMK_REJECT(report, 8, id, -1, c, "%s waits for counter %d, which it increments itself",
                   task_text(p, id).c_str(), c);
      else if (due == 0)
        AMK_REJECT(report, 8, id, -1, c, "%s waits for counter %d, which no task increments", task_text(p, id).c_str(),
                   c);
      else if (t.wait_threshold[w] < 1 || static_cast<uint32_t>(t.wait_threshold[w]) != due)
        AMK_REJECT(report, 8, id, -1, c, "%s waits for %d increments of counter %d, but it has %u producers",
                   task_text(p, id).c_str(), t.wait_threshold[w], c, due);
      else if (std::find(t.wait_counter, t.wait_counter + w, c) != t.wait_counter + w)
        AMK_REJECT(report, 8, id, -1, c, "%s waits for counter %d twice", task_text(p, id).c_str(), c);
    }
  }
  return report->count() == before;
}

bool prove_progress(const Program& p, const std::vector<uint32_t>& producers, TaskOrder* out, Report* report) {
  const size_t n = p.tasks.size();
  fill_queues(p, out);
  // Who waits for each counter, back to back.
  std::vector<int64_t> first_waiter(p.counter_init.size() + 1, 0);
  for (const amk_instruction_t& t : p.tasks)
    for (int w = 0; w < t.n_waits; ++w) ++first_waiter[t.wait_counter[w] + 1];
  for (size_t c = 0; c < p.counter_init.size(); ++c) first_waiter[c + 1] += first_waiter[c];
  std::vector<int32_t> waiters(first_waiter.back());
  std::vector<int64_t> next(first_waiter.begin(), first_waiter.end() - 1);
  std::vector<int32_t> unmet(n);
  for (size_t t = 0; t < n; ++t) {
    unmet[t] = p.tasks[t].n_waits + (out->rank[t] > 1);
    for (int w = 0; w < p.tasks[t].n_waits; ++w) waiters[next[p.tasks[t].wait_counter[w]]++] = static_cast<int32_t>(t);
  }
  // Kahn 1962 over tasks and counters, with an edge from each task to its successor in the queue. Only queue heads
  // can be ready, so the heap holds at most one task per queue; taking the least id keeps to the table's own order
  // whenever that is a legal one, which is what a reader of the rejections expects.
  std::priority_queue<int32_t, std::vector<int32_t>, std::greater<>> ready;
  for (size_t t = 0; t < n; ++t)
    if (unmet[t] == 0) ready.push(static_cast<int32_t>(t));
  std::vector<uint32_t> missing = producers;
  const auto met = [&](int32_t t) {
    if (--unmet[t] == 0) ready.push(t);
  };
  out->sequence.reserve(n);
  while (!ready.empty()) {
    const int32_t t = ready.top();
    ready.pop();
    out->sequence.push_back(t);
    const int64_t at = out->lane_first[out->lane[t]] + out->rank[t];
    if (at < out->lane_first[out->lane[t] + 1]) met(out->lane_tasks[at]);
    const int32_t c = p.tasks[t].out_counter;
    if (--missing[c] > 0) continue;
    for (int64_t i = first_waiter[c]; i < first_waiter[c + 1]; ++i) met(waiters[i]);
  }
  if (out->sequence.size() == n) return true;
  report_stuck(p, *out, unmet, missing, report);
  return false;
}

}  // namespace amk
