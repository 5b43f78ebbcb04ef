// The proofs and what one hands to the next. Only validate.cpp and the proofs' own files include this.
// In: a program and what earlier proofs established. Out: rejections, and facts for later proofs. No proof throws on
// table contents, recurses, or allocates more than the limits below allow.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/op_spec.h"
#include "program/program.h"
#include "program/storage.h"
#include "validate/report.h"

namespace amk {

class Decoder;

// Caps on the work of judging one program. The lowering of a large model uses less than a hundredth of each; a table
// that needs more is refused under V1 instead of being judged forever.
constexpr int64_t kMaxBufferBytes = int64_t{1} << 47;
constexpr int64_t kMaxRangeRows = int64_t{1} << 24;      // rows of ranges in mutable memory, over all tasks
constexpr int64_t kMaxRangeSegments = int64_t{1} << 26;  // segments under all entries of AccessTable::ranges
constexpr int64_t kMaxSegmentVisits = int64_t{1} << 31;  // segments walked by the hazard pass
constexpr int64_t kMaxClockBytes = int64_t{1} << 30;     // vector clocks alive at one time

// ---- facts -----------------------------------------------------------------------------------------------------

// What the hazard proofs track, one after another in a single line of addresses. Immutable storage is not in it.
struct Area {
  int64_t first = 0, nbytes = 0;  // addresses of the line
  int32_t buffer = -1;            // its only buffer; -1 for the arena
  int32_t kind = -1;              // amk_buffer_kind of that buffer. KV_CACHE: this step's rows alone, head after head
};

// A (buffer, bytes) that tasks read or write; mostly, not always, one entry for all tasks that do.
// `rows` runs of row_bytes bytes, stride apart, on the line of areas.
struct Range {
  int32_t buffer = -1;
  int64_t first = 0, row_bytes = 0, rows = 1, stride = 0;
  bool operator==(const Range&) const = default;
};

struct Use {
  int32_t range;
  bool write;
};

struct AccessTable {
  std::vector<Area> areas;
  std::vector<int32_t> area_of_buffer;  // -1: immutable
  std::vector<Range> ranges;
  std::vector<Use> uses;           // of all tasks, in task order
  std::vector<int64_t> first_use;  // [tasks + 1]

  // Offset in its buffer (in this step's rows, for a cache) of an address of the line.
  int64_t offset_in_buffer(int32_t buffer, int64_t address, const StorageMap& storage) const {
    const Area& area = areas[area_of_buffer[buffer]];
    return address - area.first - (area.buffer < 0 ? storage.places[buffer].offset_bytes : 0);
  }
};

// Queues that have tasks are lanes 0 .. lanes-1 of every clock.
struct TaskOrder {
  int32_t lanes = 0;
  std::vector<int32_t> lane;        // [tasks]
  std::vector<uint32_t> rank;       // [tasks]: 1 for the first of its queue
  std::vector<int32_t> lane_tasks;  // all tasks, queue after queue
  std::vector<int64_t> lane_first;  // [lanes + 1]
  std::vector<int32_t> sequence;    // all tasks in one topological order: the least task id first
  uint32_t longest_queue = 0;

  int32_t task_at(int32_t l, uint32_t r) const { return lane_tasks[lane_first[l] + r - 1]; }
};

// ---- proofs: each returns whether it held --------------------------------------------------------------------------

bool prove_tables(const Program& program, Report* report);  // V1
bool prove_sizes(const Program& program, Report* report);   // V2, and the scalars of V10, V19, V21
bool prove_laws(const Program& program, Report* report);    // V3, V4, V5, and V19 of how many tokens a step has
bool prove_placement(const Program& program, const StorageMap& storage, Report* report);  // V6, and V2 of the total
bool prove_accesses(const Program& program, const StorageMap& storage, AccessTable* out,
                    Report* report);  // V5 V7 V18 V19
bool prove_partials(const Program& program, const StorageMap& storage, const AccessTable& accesses,
                    Report* report);                                                           // V22
bool prove_ring(const Program& program, Report* report);                                       // V20
bool prove_work(const Program& program, Report* report);                                       // V23
bool prove_signals(const Program& program, std::vector<uint32_t>* producers, Report* report);  // V8
bool prove_progress(const Program& program, const std::vector<uint32_t>& producers, TaskOrder* out, Report* report);
bool prove_hazards(const Program& program, const StorageMap& storage, const AccessTable& accesses,
                   const TaskOrder& order, Report* report);  // V11..V16, V19
bool prove_translation(const Program& program, const TaskOrder& order, const Decoder& decoder, Report* report);  // V17

// ---- words for sentences ----

std::string task_text(const Program& program, int32_t task);      // "task 17 (GEMV_TILE)"
std::string buffer_text(const Program& program, int32_t buffer);  // "buffer 4 (x)"; strange names are cut and masked

}  // namespace amk

// A sentence is written only while the report still keeps sentences; the count goes on either way.
#define AMK_REJECT(report, code, task, buffer, counter, ...) \
  (report)->add((code), (task), (buffer), (counter), (report)->wants_text() ? ::amk::text(__VA_ARGS__) : std::string())
