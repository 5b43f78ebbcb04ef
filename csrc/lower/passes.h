// The lowering passes and what travels between them.
// In and out: a Plan, which each pass completes a little more. A pass must not read another pass's internals, and none
// of them may invent what a task touches: that is ops/op_spec.h.
#pragma once

#include <cstdint>
#include <vector>

#include "amk.h"
#include "graph/graph.h"
#include "program/program.h"

namespace amk {

// The tasks one counter counts: one node, or one half of it (attention and its combine, argmax and its combine).
struct Op {
  int32_t first_task = 0, task_count = 0;
};

struct Plan {
  Program program;
  std::vector<Op> ops;  // in table order, which is a topological order
};

// Order between ops. All tasks of an op wait for all tasks of each of its predecessors, so reachability between ops is
// reachability between their tasks.
struct OpGraph {
  // Ops that touch a buffer, ascending.
  struct Use {
    std::vector<int32_t> writers, readers;
  };
  std::vector<std::vector<int32_t>> preds;  // [ops], ascending; each smaller than the op itself
  std::vector<Use> uses;                    // [buffers]
};

// Nodes of the graph merged as the amk_fusion bits say. A fusion whose pattern is not there does nothing.
Graph fuse(Graph graph, int32_t fusion);

// Nodes -> tasks, tensors -> buffers. Leaves sm, waits, out_counter and the pages of activations open.
Plan tile(const Graph& graph, const amk_schedule_t& schedule, const amk_target_t& target);

// The data dependencies, read off the footprints.
OpGraph find_dependencies(const Plan& plan);

// Tasks -> SM queues. REJECTED for an explicit map that does not fit the tasks.
void assign(Plan& plan, const OpGraph& order, const amk_schedule_t& schedule, const amk_target_t& target);

// Activations -> pages. Adds to order.preds what the reuse of a page needs, and reduces preds to the edges that no
// other edge implies; no op is left with more than AMK_MAX_WAITS.
void place(Plan& plan, OpGraph& order, int32_t page_policy);

// order.preds -> one counter per op, all-join waits.
void add_counters(Plan& plan, const OpGraph& order);

}  // namespace amk
