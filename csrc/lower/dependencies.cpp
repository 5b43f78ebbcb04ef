// Who needs whose results: op by op, from the byte ranges of the law table.
#include <algorithm>
#include <limits>
#include <utility>

#include "base/dtype.h"
#include "lower/passes.h"
#include "ops/op_spec.h"

namespace amk {
namespace {

// The bytes of one buffer between the first and the last that the tasks of an op touch; where a buffer has a row for
// each token, of every row. The ops of a lowering touch runs without holes and all tokens alike, so nothing is lost; a
// hole would only add an edge.
struct Span {
  int32_t op, buffer;
  bool write;
  int64_t begin, end;
};

bool is_bound_input(int32_t kind) {
  return kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST || kind == AMK_KIND_IO_INPUT;
}

// Bytes [begin, end) of each row of `row_bytes` that an access touches.
std::pair<int64_t, int64_t> columns(const Access& a, int64_t row_bytes) {
  const bool row_by_row = a.rows > 1 && a.stride_bytes == row_bytes;
  const int64_t begin = a.offset_bytes % row_bytes;
  const int64_t end = begin + a.row_bytes + (row_by_row ? 0 : (a.rows - 1) * a.stride_bytes);
  if (end <= row_bytes) return {begin, end};
  return {0, row_bytes};
}

void add_to_spans(const Access& access, int64_t row_bytes, int32_t op, std::vector<Span>& spans) {
  // Rows before this step's are written by nobody; its row of a cache is one thing here.
  if (access.region == Region::kKvHistory) return;
  const bool plain = access.region == Region::kPlain;
  const auto [begin, end] =
      plain ? columns(access, row_bytes) : std::pair<int64_t, int64_t>(0, std::numeric_limits<int64_t>::max());
  for (Span& span : spans) {
    if (span.buffer != access.buffer || span.write != access.write) continue;
    span.begin = std::min(span.begin, begin);
    span.end = std::max(span.end, end);
    return;
  }
  spans.push_back({op, access.buffer, access.write, begin, end});
}

// Of a token, in a buffer that has a row for each; else of the whole buffer.
int64_t row_bytes_of(const Program& p, int32_t buffer, int32_t batch) {
  const amk_buffer_t& b = p.buffers[buffer];
  const int64_t nbytes = storage_bytes(b.dtype, b.numel);
  return batch > 1 && b.rank > 1 && b.shape[0] == batch ? nbytes / batch : nbytes;
}

std::vector<Span> spans_of(const Plan& plan, int32_t op, int32_t batch) {
  const Program& p = plan.program;
  std::vector<Span> spans;
  AccessList accesses;
  const int32_t first = plan.ops[op].first_task, end = first + plan.ops[op].task_count;
  for (int32_t task = first; task < end; ++task) {
    op_footprint({p.tasks[task], p.buffers.data(), p.bindings.data()}, &accesses);
    for (const Access& access : accesses)
      if (!is_bound_input(p.bindings[access.buffer].kind))
        add_to_spans(access, row_bytes_of(p, access.buffer, batch), op, spans);
  }
  return spans;
}

void insert_sorted(std::vector<int32_t>& ids, int32_t id) {
  auto at = std::lower_bound(ids.begin(), ids.end(), id);
  if (at == ids.end() || *at != id) ids.insert(at, id);
}

}  // namespace

OpGraph find_dependencies(const Plan& plan) {
  OpGraph order;
  order.preds.resize(plan.ops.size());
  order.uses.resize(plan.program.buffers.size());
  const int32_t batch = program_batch(plan.program.tasks);
  std::vector<std::vector<Span>> seen(plan.program.buffers.size());
  for (int32_t op = 0; op < static_cast<int32_t>(plan.ops.size()); ++op) {
    const std::vector<Span> spans = spans_of(plan, op, batch);
    for (const Span& span : spans) {
      for (const Span& earlier : seen[span.buffer])
        if ((span.write || earlier.write) && span.begin < earlier.end && earlier.begin < span.end)
          insert_sorted(order.preds[op], earlier.op);
      OpGraph::Use& use = order.uses[span.buffer];
      insert_sorted(span.write ? use.writers : use.readers, op);
    }
    for (const Span& span : spans) seen[span.buffer].push_back(span);
  }
  return order;
}

}  // namespace amk
