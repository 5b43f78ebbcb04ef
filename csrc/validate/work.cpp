// V23: a step ends. Each task's loops run over its operands, so each is finite; here the sum over each queue is held
// under AMK_MAX_QUEUE_WORK.
// In: a program whose accesses passed V5. Out: rejections. Must count at the last position, where attention reads most.
#include "base/error.h"
#include "validate/proofs.h"

namespace amk {
namespace {

// Fetching a task, its waits and its signal: microseconds at the 1 GB/s that the cap is made of.
constexpr double kTaskWork = 4096;

// Bytes touched plus floating-point operations. In double: no table can overflow it, and it is exact below the cap.
double task_work(const Program& p, int64_t task, int32_t last_pos) {
  const TaskView view{p.tasks[task], p.buffers.data(), p.bindings.data()};
  double work = kTaskWork + op_flops(view, last_pos);
  AccessList list;
  op_footprint(view, &list);
  for (const Access& a : list) {
    const double row_bytes =
        static_cast<double>(a.row_bytes) + static_cast<double>(last_pos) * static_cast<double>(a.row_bytes_per_pos);
    work += row_bytes * (a.some_rows ? a.some_rows : static_cast<double>(a.rows));
  }
  return work;
}

}  // namespace

bool prove_work(const Program& p, Report* report) {
  struct Queue {
    double work = 0;
    int32_t largest = -1;
    double largest_work = 0;
  };
  const int64_t before = report->count();
  const int32_t last_pos = p.launch.max_seq - program_batch(p.tasks);
  std::vector<Queue> queues(p.launch.grid);
  for (size_t t = 0; t < p.tasks.size(); ++t) {
    Queue& q = queues[p.tasks[t].sm];
    const double work = task_work(p, static_cast<int64_t>(t), last_pos);
    q.work += work;
    if (work <= q.largest_work) continue;
    q.largest_work = work;
    q.largest = static_cast<int32_t>(t);
  }
  for (size_t s = 0; s < queues.size(); ++s) {
    const Queue& q = queues[s];
    if (q.work <= static_cast<double>(AMK_MAX_QUEUE_WORK)) continue;
    AMK_REJECT(report, 23, q.largest, -1, -1,
               "queue %zu has %.4g units of work (bytes and operations), allowed %.4g; most of one task has %s, %.4g",
               s, q.work, static_cast<double>(AMK_MAX_QUEUE_WORK), task_text(p, q.largest).c_str(), q.largest_work);
  }
  return report->count() == before;
}

}  // namespace amk
