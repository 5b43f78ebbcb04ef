#include "cost/cost.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"
#include "program/storage.h"

namespace amk {
namespace {

// From a signal to the first load behind its wait: a join of 132 blocks on one counter with release and acquire,
// measured on an H200 (CUDA 13.0) with an otherwise idle chip.
constexpr double kSyncUs = 0.96;
// What a task costs besides its bytes: reduce, store and release of a matrix-vector tile, measured on an H200.
constexpr double kTaskUs = 0.75;
// NVIDIA A100 architecture white paper: the L2 cache reads 5,120 bytes per clock, over 108 SMs.
constexpr double kL2BytesPerClock = 47.0;

// f32 multiply-adds one SM issues per clock (CUDA C++ Programming Guide, table of arithmetic throughput).
double f32_lanes(const amk_target_t& target) { return target.cc_major == 8 && target.cc_minor == 0 ? 64 : 128; }

struct TaskBytes {
  double streamed = 0, cached = 0;
};

// Matrices, cache rows older than this step and states come from memory, and states go back to it. Vectors
// (activations, norm weights, biases) come from the L2 cache: the op before has just written them, or another tile has
// just read them.
TaskBytes count_bytes(const TaskView& view, int32_t pos) {
  AccessList accesses;
  op_footprint(view, &accesses);
  TaskBytes bytes;
  for (const Access& a : accesses) {
    const double rows = a.some_rows ? a.some_rows : static_cast<double>(a.rows);
    const double touched = rows * (static_cast<double>(a.row_bytes) + static_cast<double>(a.row_bytes_per_pos) * pos);
    const int32_t kind = view.bindings[a.buffer].kind;
    const bool is_state = kind == AMK_KIND_STATE;
    const bool matrix = (kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST) && view.buffers[a.buffer].rank >= 2;
    if (a.region == Region::kKvHistory) {
      bytes.streamed += touched / std::max(1, view.task.params.M);  // one of M splits of the rows
    } else {
      (is_state || (matrix && !a.write) ? bytes.streamed : bytes.cached) += touched;
    }
  }
  return bytes;
}

// All of a task's cost but when it runs.
amk_task_cost_t price_task(const TaskView& view, const amk_target_t& target, int32_t pos) {
  const TaskBytes bytes = count_bytes(view, pos);
  const double clocks_per_us = target.clock_mhz;
  amk_task_cost_t cost{};
  cost.blocker = cost.producer = -1;
  cost.streamed_bytes = bytes.streamed;
  cost.cached_bytes = bytes.cached;
  cost.flops = static_cast<double>(op_flops(view, pos));
  // 1e9 bytes/s = 1e3 bytes/us, shared evenly: no SM is faster than its share, so no replay beats the bandwidth.
  cost.streamed_us = bytes.streamed / (target.hbm_gb_per_s * 1e3 / target.sm_count);
  cost.cached_us = bytes.cached / (kL2BytesPerClock * clocks_per_us);
  cost.compute_us = cost.flops / (2 * f32_lanes(target) * clocks_per_us);
  return cost;
}

double task_us(const amk_task_cost_t& cost) {
  return std::max(cost.streamed_us + cost.cached_us, cost.compute_us) + kTaskUs;
}

// ---- bytes that must move at least once ---------------------------------------------------------------------------

struct Interval {
  int32_t storage;
  int64_t begin, end;
  bool operator<(const Interval& o) const { return storage != o.storage ? storage < o.storage : begin < o.begin; }
};

void add_streamed(const Access& a, const StorageMap& map, int32_t pos, std::vector<Interval>& out) {
  const Place& place = map.places[a.buffer];
  const int64_t row_bytes = a.row_bytes + a.row_bytes_per_pos * pos;
  if (row_bytes == 0) return;
  int64_t begin = place.offset_bytes + a.offset_bytes + a.offset_per_pos * pos;
  if (!a.some_rows && a.stride_bytes == row_bytes) {
    out.push_back({place.storage, begin, begin + a.rows * row_bytes});
    return;
  }
  const int64_t rows = a.some_rows ? std::min<int64_t>(a.some_rows, a.rows) : a.rows;
  for (int64_t r = 0; r < rows; ++r, begin += a.stride_bytes) out.push_back({place.storage, begin, begin + row_bytes});
}

// Weights, constants, states and cache rows [0, pos) that the program reads, each byte once, and states that it writes.
int64_t count_streamed(const Program& p, const StorageMap& map, int32_t pos) {
  std::vector<Interval> intervals;
  AccessList accesses;
  int64_t written = 0;  // each byte of a state is, once (V15)
  for (const amk_instruction_t& task : p.tasks) {
    op_footprint({task, p.buffers.data(), p.bindings.data()}, &accesses);
    for (const Access& a : accesses) {
      const int32_t kind = p.bindings[a.buffer].kind;
      const bool bound = kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST;
      if (kind == AMK_KIND_STATE && a.write) written += a.rows * a.row_bytes;
      if (a.write || !(bound || kind == AMK_KIND_STATE || a.region == Region::kKvHistory)) continue;
      add_streamed(a, map, pos, intervals);
    }
  }
  std::sort(intervals.begin(), intervals.end());
  int64_t total = written, covered_to = 0;
  int32_t storage = -1;
  for (const Interval& i : intervals) {
    if (i.storage != storage) {
      storage = i.storage;
      covered_to = 0;
    }
    total += std::max<int64_t>(0, i.end - std::max(i.begin, covered_to));
    covered_to = std::max(covered_to, i.end);
  }
  return total;
}

// ---- replay ---------------------------------------------------------------------------------------------------------

// Runs the queues against the counters: a task starts when its queue is free and each of its waits is satisfied and
// seen. Which queue is looked at first does not change any time. Tasks that never become ready are left out.
class Replay {
 public:
  Replay(const Program& program, int32_t pos)
      : p_(program),
        pos_(pos),
        queues_(std::max(program.launch.grid, 1)),
        missing_(program.counter_init.size(), 0),
        done_us_(program.counter_init.size(), 0.0),
        last_(program.counter_init.size(), -1),
        waiters_(program.counter_init.size()),
        costs_(program.tasks.size()) {
    for (size_t i = 0; i < p_.tasks.size(); ++i) {
      queues_[p_.tasks[i].sm].tasks.push_back(static_cast<int32_t>(i));
      ++missing_[p_.tasks[i].out_counter];
    }
  }

  double run() {
    std::vector<int32_t> ready(queues_.size());
    for (size_t q = 0; q < queues_.size(); ++q) ready[q] = static_cast<int32_t>(q);
    double end_us = 0;
    while (!ready.empty()) {
      Queue& queue = queues_[ready.back()];
      const int32_t id = ready.back();
      ready.pop_back();
      while (queue.next < queue.tasks.size()) {
        const int32_t index = queue.tasks[queue.next];
        const amk_instruction_t& task = p_.tasks[index];
        const int32_t blocker = first_open_wait(task);
        if (blocker >= 0) {
          waiters_[blocker].push_back(id);
          break;
        }
        costs_[index] = cost_of(queue, task);
        queue.free_us = costs_[index].finish_us;
        end_us = std::max(end_us, queue.free_us);
        ++queue.next;
        signal(index, queue.free_us, ready);
      }
    }
    return end_us;
  }
  std::vector<amk_task_cost_t> take_costs() { return std::move(costs_); }

 private:
  struct Queue {
    std::vector<int32_t> tasks;
    size_t next = 0;
    double free_us = 0;
  };
  int32_t first_open_wait(const amk_instruction_t& task) const {
    for (int32_t w = 0; w < task.n_waits; ++w)
      if (missing_[task.wait_counter[w]] > 0) return task.wait_counter[w];
    return -1;
  }
  amk_task_cost_t cost_of(const Queue& queue, const amk_instruction_t& task) const {
    amk_task_cost_t cost = price_task({task, p_.buffers.data(), p_.bindings.data()}, p_.target, pos_);
    cost.free_us = cost.start_us = queue.free_us;
    for (int32_t w = 0; w < task.n_waits; ++w) {
      const int32_t counter = task.wait_counter[w];
      if (done_us_[counter] + kSyncUs <= cost.start_us) continue;
      cost.start_us = done_us_[counter] + kSyncUs;
      cost.blocker = counter;
      cost.producer = last_[counter];
    }
    cost.finish_us = cost.start_us + task_us(cost);
    return cost;
  }
  void signal(int32_t index, double now_us, std::vector<int32_t>& ready) {
    const int32_t counter = p_.tasks[index].out_counter;
    // Of producers that finish at once, the first in the table: the order of the replay must not show.
    const bool later = now_us > done_us_[counter] || (now_us == done_us_[counter] && index < last_[counter]);
    if (last_[counter] < 0 || later) last_[counter] = index;
    done_us_[counter] = std::max(done_us_[counter], now_us);
    if (--missing_[counter] > 0) return;
    ready.insert(ready.end(), waiters_[counter].begin(), waiters_[counter].end());
    waiters_[counter].clear();
  }

  const Program& p_;
  const int32_t pos_;
  std::vector<Queue> queues_;
  std::vector<int64_t> missing_;  // producers of a counter still to come
  std::vector<double> done_us_;
  std::vector<int32_t> last_;                  // the producer that finished at done_us_
  std::vector<std::vector<int32_t>> waiters_;  // queues blocked on a counter
  std::vector<amk_task_cost_t> costs_;
};

void check_pos(const Program& program, int32_t pos) {
  const int32_t last_pos = program.launch.max_seq - program_batch(program.tasks);
  AMK_CHECK(pos >= 0 && pos <= last_pos, AMK_ERR_INVALID_ARGUMENT, "pos is %d, allowed 0..%d", pos, last_pos);
}

}  // namespace

double predict_task_us(const TaskView& view, const amk_target_t& target, int32_t pos) {
  return task_us(price_task(view, target, pos));
}

amk_cost_t predict_cost(const Program& program, int32_t pos) {
  check_pos(program, pos);
  const StorageMap map = map_storage(program);
  amk_cost_t cost{};
  cost.struct_size = sizeof cost;
  cost.streamed_bytes = count_streamed(program, map, pos);
  cost.arena_bytes = map.storages[0].nbytes;
  for (const Storage& storage : map.storages)
    if (storage.kind == AMK_KIND_WEIGHT) cost.weight_bytes += storage.nbytes;
  for (const amk_instruction_t& task : program.tasks)
    cost.flops += op_flops({task, program.buffers.data(), program.bindings.data()}, pos);
  cost.bound_us = static_cast<double>(cost.streamed_bytes) / (program.target.hbm_gb_per_s * 1e3);
  // Norm weights and biases count as streamed in the bound but come from the L2 cache in a task.
  cost.latency_us = std::max(Replay(program, pos).run(), cost.bound_us);
  return cost;
}

std::vector<amk_task_cost_t> predict_task_costs(const Program& program, int32_t pos) {
  check_pos(program, pos);
  Replay replay(program, pos);
  replay.run();
  return replay.take_costs();
}

}  // namespace amk
