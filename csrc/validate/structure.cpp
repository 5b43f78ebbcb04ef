// Proof 1: the tables refer only to what exists (V1), sizes fit (V2), launch scalars are in their domains (V10, V19,
// V21) and every task keeps its opcode's law (V3, V4, V5).
// In: tables with any contents. Out: rejections. Must not index anything before V1 has cleared the index.
#include <cmath>
#include <string_view>

#include "base/checked.h"
#include "base/dtype.h"
#include "base/error.h"
#include "validate/proofs.h"

namespace amk {
namespace {

using ll = long long;

bool in_range(int64_t id, size_t n) { return id >= 0 && id < static_cast<int64_t>(n); }

// ids[0, used) index a table of n; ids[used, room) are zero.
void check_ids(const char* what, const int32_t* ids, int32_t used, int room, size_t n, int32_t task, bool counters,
               Report* report) {
  for (int32_t i = 0; i < used; ++i) {
    if (in_range(ids[i], n)) continue;
    AMK_REJECT(report, 1, task, counters ? -1 : ids[i], counters ? ids[i] : -1,
               "task %d names %s %d in slot %d, but there are %zu", task, what, ids[i], i, n);
  }
  for (int i = used; i < room; ++i) {
    if (ids[i] == 0) continue;
    AMK_REJECT(report, 1, task, -1, -1, "task %d holds %s %d in slot %d, past its %d used slots", task, what, ids[i], i,
               used);
  }
}

bool slot_count_ok(const char* what, int32_t n, int room, int32_t task, Report* report) {
  if (n >= 0 && n <= room) return true;
  AMK_REJECT(report, 1, task, -1, -1, "task %d has %s = %d, allowed 0..%d", task, what, n, room);
  return false;
}

void check_task_ids(const Program& p, int32_t id, Report* report) {
  const amk_instruction_t& t = p.tasks[id];
  if (slot_count_ok("n_inputs", t.n_inputs, AMK_MAX_INPUTS, id, report))
    check_ids("buffer", t.inputs, t.n_inputs, AMK_MAX_INPUTS, p.buffers.size(), id, false, report);
  if (slot_count_ok("n_outputs", t.n_outputs, AMK_MAX_OUTPUTS, id, report))
    check_ids("buffer", t.outputs, t.n_outputs, AMK_MAX_OUTPUTS, p.buffers.size(), id, false, report);
  if (slot_count_ok("n_waits", t.n_waits, AMK_MAX_WAITS, id, report)) {
    check_ids("counter", t.wait_counter, t.n_waits, AMK_MAX_WAITS, p.counter_init.size(), id, true, report);
    for (int i = t.n_waits; i < AMK_MAX_WAITS; ++i) {
      if (t.wait_threshold[i] == 0) continue;
      AMK_REJECT(report, 1, id, -1, -1, "task %d holds threshold %d in wait slot %d, past its %d waits", id,
                 t.wait_threshold[i], i, t.n_waits);
    }
  }
  if (!in_range(t.out_counter, p.counter_init.size()))
    AMK_REJECT(report, 1, id, -1, t.out_counter, "task %d increments counter %d, but there are %zu", id, t.out_counter,
               p.counter_init.size());
}

bool shape_ok(const amk_buffer_t& b, int32_t id, Report* report) {
  int64_t step = 1;
  for (int i = b.rank - 1; i >= 0; --i) {
    if (b.shape[i] < 1) {
      AMK_REJECT(report, 2, -1, id, -1, "buffer %d: dimension %d is %lld, expected >= 1", id, i, (ll)b.shape[i]);
      return false;
    }
    if (b.stride[i] != step) {
      AMK_REJECT(report, 2, -1, id, -1, "buffer %d: stride %d is %lld, but row-major contiguous is %lld", id, i,
                 (ll)b.stride[i], (ll)step);
      return false;
    }
    if (!checked_mul(step, b.shape[i], &step) || step > kMaxBufferBytes) {
      AMK_REJECT(report, 2, -1, id, -1, "buffer %d: its dimensions multiply to more than 2^47 elements", id);
      return false;
    }
  }
  for (int i = b.rank; i < AMK_MAX_RANK; ++i) {
    if (b.shape[i] == 0 && b.stride[i] == 0) continue;
    AMK_REJECT(report, 2, -1, id, -1, "buffer %d: shape and stride %d lie past its rank %d and are not zero", id, i,
               b.rank);
    return false;
  }
  if (b.numel == step) return true;
  AMK_REJECT(report, 2, -1, id, -1, "buffer %d: numel is %lld, but its shape multiplies to %lld", id, (ll)b.numel,
             (ll)step);
  return false;
}

bool check_buffer(const amk_buffer_t& b, const amk_binding_t& binding, int32_t id, Report* report) {
  const auto field = [&](const char* name, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return true;
    AMK_REJECT(report, 2, -1, id, -1, "buffer %d: %s is %lld, allowed %lld..%lld", id, name, (ll)value, (ll)low,
               (ll)high);
    return false;
  };
  if (!field("rank", b.rank, 1, AMK_MAX_RANK) || !field("dtype", b.dtype, 0, kDtypeCount - 1) ||
      !field("space", b.space, AMK_SPACE_HBM, AMK_SPACE_REGISTER) ||
      !field("kind", binding.kind, AMK_KIND_WEIGHT, AMK_KIND_STATE) || !field("pad", b.pad, 0, 0))
    return false;
  if (b.ptr != 0) {
    AMK_REJECT(report, 2, -1, id, -1, "buffer %d: ptr is set; a program holds no addresses", id);
    return false;
  }
  return shape_ok(b, id, report) && field("byte size", storage_bytes(b.dtype, b.numel), 1, kMaxBufferBytes);
}

// A named scalar in [low, high], else a rejection under `code`.
void check_scalar(int code, const char* name, int64_t value, int64_t low, int64_t high, Report* report) {
  if (value < low || value > high)
    AMK_REJECT(report, code, -1, -1, -1, "%s is %lld, allowed %lld..%lld", name, (ll)value, (ll)low, (ll)high);
}

void check_launch(const Program& p, Report* report) {
  const amk_target_t& t = p.target;
  const amk_launch_t& l = p.launch;
  constexpr int32_t kWarp = 32;
  check_scalar(10, "target.sm_count", t.sm_count, 1, INT32_MAX, report);
  check_scalar(10, "target.max_threads_per_block", t.max_threads_per_block, kWarp, INT32_MAX, report);
  check_scalar(10, "target.warp_threads", t.warp_threads, kWarp, kWarp, report);
  check_scalar(10, "target.smem_optin_bytes", t.smem_optin_bytes, 0, INT32_MAX, report);
  check_scalar(10, "target.hbm_bytes", t.hbm_bytes, 1, INT64_MAX, report);
  if (!(std::isfinite(t.hbm_gb_per_s) && t.hbm_gb_per_s > 0))
    AMK_REJECT(report, 10, -1, -1, -1, "target.hbm_gb_per_s is %g, expected a finite number > 0", t.hbm_gb_per_s);
  const int32_t queues = t.sm_count < AMK_MAX_QUEUES ? t.sm_count : AMK_MAX_QUEUES;
  check_scalar(10, "launch.grid", l.grid, 1, queues, report);
  check_scalar(10, "launch.threads_per_block", l.threads_per_block, kWarp, t.max_threads_per_block, report);
  if (l.threads_per_block % kWarp != 0)
    AMK_REJECT(report, 10, -1, -1, -1, "launch.threads_per_block is %d, expected a multiple of %d", l.threads_per_block,
               kWarp);
  check_scalar(10, "launch.smem_bytes_per_block", l.smem_bytes_per_block, 0, t.smem_optin_bytes, report);
  check_scalar(19, "launch.max_seq", l.max_seq, 1, AMK_MAX_SEQ, report);
  check_scalar(21, "launch.steps_per_launch", l.steps_per_launch, 1, 1, report);
  check_scalar(21, "launch.counter_reset", l.counter_reset, AMK_COUNTER_RESET_HOST, AMK_COUNTER_RESET_HOST, report);
}

void check_task_scalars(const Program& p, int32_t id, Report* report) {
  const amk_instruction_t& t = p.tasks[id];
  if (t.sm < 0 || t.sm >= p.launch.grid)
    AMK_REJECT(report, 10, id, -1, -1, "task %d is on queue %d, but the grid has %d", id, t.sm, p.launch.grid);
  if (t.params.pos == 0 && t.params.kv_start == 0 && t.params.kv_len == 0) return;
  AMK_REJECT(report, 19, id, -1, -1,
             "%s fixes a position (pos %d, kv_start %d, kv_len %d); the position is a launch scalar",
             task_text(p, id).c_str(), t.params.pos, t.params.kv_start, t.params.kv_len);
}

}  // namespace

std::string task_text(const Program& program, int32_t task) {
  const char* name = op_name(program.tasks[task].op);
  return text("task %d (%s)", task, name ? name : "unknown opcode");
}

std::string buffer_text(const Program& program, int32_t buffer) {
  constexpr size_t kShown = 64;
  const std::string_view name = program.buffer_name.at(buffer).substr(0, kShown);
  if (name.empty()) return text("buffer %d", buffer);
  std::string shown(name);
  for (char& c : shown)
    if (c < ' ' || c > '~') c = '?';
  return text("buffer %d (%s)", buffer, shown.c_str());
}

bool prove_tables(const Program& p, Report* report) {
  const int64_t before = report->count();
  const auto cap = [&](const char* what, size_t n, int64_t limit) {
    if (static_cast<int64_t>(n) > limit) AMK_REJECT(report, 1, -1, -1, -1, "%zu %s, allowed %lld", n, what, (ll)limit);
  };
  cap("tasks", p.tasks.size(), AMK_MAX_TASKS);
  cap("counters", p.counter_init.size(), AMK_MAX_COUNTERS);
  cap("buffers", p.buffers.size(), AMK_MAX_BUFFERS);
  cap("pages", p.pages.size(), AMK_MAX_BUFFERS);
  if (p.bindings.size() != p.buffers.size())
    AMK_REJECT(report, 1, -1, -1, -1, "%zu bindings for %zu buffers", p.bindings.size(), p.buffers.size());
  if (report->count() != before) return false;
  for (size_t i = 0; i < p.tasks.size(); ++i) check_task_ids(p, static_cast<int32_t>(i), report);
  return report->count() == before;
}

bool prove_sizes(const Program& p, Report* report) {
  const int64_t before = report->count();
  for (size_t i = 0; i < p.buffers.size(); ++i)
    check_buffer(p.buffers[i], p.bindings[i], static_cast<int32_t>(i), report);
  check_launch(p, report);
  for (size_t i = 0; i < p.tasks.size(); ++i) check_task_scalars(p, static_cast<int32_t>(i), report);
  if (report->count() != before) return false;
  for (size_t i = 0; i < p.buffers.size(); ++i) {
    const amk_buffer_t& b = p.buffers[i];
    if (p.bindings[i].kind != AMK_KIND_KV_CACHE || (b.rank == 3 && b.shape[1] >= p.launch.max_seq)) continue;
    const int32_t id = static_cast<int32_t>(i);
    AMK_REJECT(report, 19, -1, id, -1, "%s is a cache of rank %d with %lld rows, expected [G, S, D] with S >= %d",
               buffer_text(p, id).c_str(), b.rank, (ll)(b.rank >= 2 ? b.shape[1] : 0), p.launch.max_seq);
  }
  return report->count() == before;
}

// The tasks that know the position agree on how many tokens a step has, and the cache has room for so many (V19).
void check_batch(const Program& p, Report* report) {
  const int32_t batch = program_batch(p.tasks);
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    if (!op_knows_position(p.tasks[i].op) || op_tokens(p.tasks[i]) == batch) continue;
    const int32_t id = static_cast<int32_t>(i);
    AMK_REJECT(report, 19, id, -1, -1, "%s works on %d tokens, but earlier tasks of the step on %d",
               task_text(p, id).c_str(), op_tokens(p.tasks[i]), batch);
  }
  if (batch > p.launch.max_seq)
    AMK_REJECT(report, 19, -1, -1, -1, "a step decodes %d tokens, but launch.max_seq is %d", batch, p.launch.max_seq);
}

bool prove_laws(const Program& p, Report* report) {
  const int64_t before = report->count();
  Problem problem;
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const TaskView view{p.tasks[i], p.buffers.data(), p.bindings.data()};
    if (op_check(view, &problem)) continue;
    AMK_REJECT(report, problem.code, static_cast<int32_t>(i), problem.buffer, -1, "task %zu: %s", i,
               problem.text.c_str());
  }
  if (report->count() == before) check_batch(p, report);
  return report->count() == before;
}

}  // namespace amk
