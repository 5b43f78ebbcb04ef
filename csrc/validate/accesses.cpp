// Proof 1c: what each task touches, as physical bytes: inside its operand and aligned (V5), never written where it is
// read-only (V7), never overlapping itself except in place (V18), a state replaced where it is read (V19); and partial
// results on bytes of their own (V22).
// In: a program that passed V1..V6. Out: the accesses to mutable memory. Must know what an opcode touches only through
// op_footprint.
#include <algorithm>
#include <cstddef>

#include "base/checked.h"
#include "base/dtype.h"
#include "base/error.h"
#include "validate/proofs.h"

namespace amk {
namespace {

using ll = long long;

// Finds the ranges that repeat: in a matrix-vector phase every queue reads the same vector. A small cache that forgets
// is enough, since a range kept twice costs time and nothing else; and no choice of ranges can make it slow.
class RangeIndex {
 public:
  explicit RangeIndex(std::vector<Range>* ranges) : ranges_(ranges), slots_(kSlots, -1) {}

  int32_t find_or_add(const Range& range) {
    int32_t& slot = slots_[hash(range) % kSlots];
    if (slot >= 0 && (*ranges_)[slot] == range) return slot;
    slot = static_cast<int32_t>(ranges_->size());
    ranges_->push_back(range);
    return slot;
  }

 private:
  static constexpr size_t kSlots = 8192;
  static uint64_t hash(const Range& r) {
    uint64_t h = static_cast<uint64_t>(r.first) * 0xff51afd7ed558ccdu;
    h ^= h >> 32 ^ static_cast<uint64_t>(r.row_bytes) ^ static_cast<uint64_t>(r.buffer) << 20;
    h *= 0x9e3779b97f4a7c15u;
    return h >> 40;
  }
  std::vector<Range>* ranges_;
  std::vector<int32_t> slots_;
};

bool is_read_only(int32_t kind) {
  return kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST || kind == AMK_KIND_IO_INPUT;
}

// Lays the mutable storages one after another. Their sizes sum to no more than the device has (V2), so this fits.
void lay_out(const Program& p, const StorageMap& map, AccessTable* out) {
  out->areas.push_back({0, map.storages[0].nbytes, -1, -1});
  out->area_of_buffer.assign(p.buffers.size(), -1);
  const int32_t batch = program_batch(p.tasks);
  int64_t end = map.storages[0].nbytes;
  for (size_t i = 0; i < p.buffers.size(); ++i) {
    const int32_t kind = p.bindings[i].kind;
    if (is_read_only(kind)) continue;
    if (map.places[i].storage == 0) {
      out->area_of_buffer[i] = 0;
      continue;
    }
    int64_t nbytes = map.places[i].nbytes;
    // Of a cache only rows [pos, pos + B) change within a step; rows before them are as old as the step (V19).
    if (kind == AMK_KIND_KV_CACHE)
      nbytes = storage_bytes(p.buffers[i].dtype, p.buffers[i].shape[0] * p.buffers[i].shape[2] * batch);
    out->area_of_buffer[i] = static_cast<int32_t>(out->areas.size());
    out->areas.push_back({end, nbytes, static_cast<int32_t>(i), kind});
    end += nbytes;
  }
}

bool overlap(const Range& a, const Range& b) {
  const int64_t end_a = a.first + (a.rows - 1) * a.stride + a.row_bytes;
  const int64_t end_b = b.first + (b.rows - 1) * b.stride + b.row_bytes;
  if (a.first >= end_b || b.first >= end_a) return false;
  for (int64_t i = 0, j = 0; i < a.rows && j < b.rows;) {
    const int64_t at_a = a.first + i * a.stride, at_b = b.first + j * b.stride;
    if (at_a < at_b + b.row_bytes && at_b < at_a + a.row_bytes) return true;
    at_a < at_b ? ++i : ++j;
  }
  return false;
}

struct Touched {
  const Access* access;
  Range range;
};

class AccessProof {
 public:
  AccessProof(const Program& p, const StorageMap& map, AccessTable* out, Report* report)
      : p_(p), map_(map), out_(out), report_(report), index_(&out->ranges), batch_(program_batch(p.tasks)) {}

  void run() {
    lay_out(p_, map_, out_);
    out_->first_use.reserve(p_.tasks.size() + 1);
    out_->first_use.push_back(0);
    AccessList list;
    for (size_t t = 0; t < p_.tasks.size() && rows_ <= kMaxRangeRows; ++t) {
      op_footprint({p_.tasks[t], p_.buffers.data(), p_.bindings.data()}, &list);
      check_task(static_cast<int32_t>(t), list);
      out_->first_use.push_back(static_cast<int64_t>(out_->uses.size()));
    }
    if (rows_ > kMaxRangeRows)
      AMK_REJECT(report_, 1, -1, -1, -1, "the tasks touch more than %lld rows of mutable memory", (ll)kMaxRangeRows);
  }

 private:
  void check_task(int32_t task, const AccessList& list) {
    int n = 0;
    for (const Access& a : list) {
      const Place& place = map_.places[a.buffer];
      if (!inside(a, place, task) || !aligned(a, place, task)) return;
      if (is_read_only(p_.bindings[a.buffer].kind)) {
        if (!a.write) continue;
        AMK_REJECT(report_, 7, task, a.buffer, -1, "%s writes %s, which is read-only", task_text(p_, task).c_str(),
                   buffer_text(p_, a.buffer).c_str());
        return;
      }
      if (a.region == Region::kKvHistory) continue;
      touched_[n++] = {&a, on_the_line(a, place)};
      rows_ += touched_[n - 1].range.rows;
    }
    if (rows_ > kMaxRangeRows || !apart(task, n) || !replaces_state(task, n)) return;
    for (int i = 0; i < n; ++i)
      out_->uses.push_back({index_.find_or_add(touched_[i].range), touched_[i].access->write});
  }

  // The law keeps accesses inside; this repeats it in checked arithmetic, at the last position, so that a mistake in
  // a footprint cannot pass silently.
  bool inside(const Access& a, const Place& place, int32_t task) {
    const int64_t last_pos = p_.launch.max_seq - batch_;
    int64_t end = a.offset_bytes, step = 0;
    const bool ok =
        a.offset_bytes >= 0 && a.row_bytes >= 0 && a.rows >= 1 && a.stride_bytes >= 0 && a.offset_per_pos >= 0 &&
        a.row_bytes_per_pos >= 0 && checked_mul(a.rows - 1, a.stride_bytes, &step) && checked_add(end, step, &end) &&
        checked_add(end, a.row_bytes, &end) && checked_mul(last_pos, a.offset_per_pos + a.row_bytes_per_pos, &step) &&
        checked_add(end, step, &end) && end <= place.nbytes;
    const bool is_cache = p_.bindings[a.buffer].kind == AMK_KIND_KV_CACHE;
    if (ok && is_cache == (a.region != Region::kPlain)) return true;
    AMK_REJECT(report_, 5, task, a.buffer, -1, "%s touches bytes outside %s", task_text(p_, task).c_str(),
               buffer_text(p_, a.buffer).c_str());
    return false;
  }
  bool aligned(const Access& a, const Place& place, int32_t task) {
    const int64_t at = place.offset_bytes + a.offset_bytes;
    const int64_t all = at | (a.rows == 1 ? 0 : a.stride_bytes) | a.offset_per_pos;
    if ((all & (a.align_bytes - 1)) == 0) return true;  // alignments are powers of two
    AMK_REJECT(report_, 5, task, a.buffer, -1,
               "%s needs %d-byte alignment of %s, but starts at byte %lld of its storage with a stride of %lld",
               task_text(p_, task).c_str(), a.align_bytes, buffer_text(p_, a.buffer).c_str(), (ll)at,
               (ll)(a.rows == 1 ? a.offset_per_pos : a.stride_bytes));
    return false;
  }
  Range on_the_line(const Access& a, const Place& place) const {
    const Area& area = out_->areas[out_->area_of_buffer[a.buffer]];
    if (a.region == Region::kKvRow)
      return {a.buffer, area.first + a.head_first * a.head_row_bytes, a.head_count * a.head_row_bytes, 1, 0};
    Range r{a.buffer, area.first + (area.buffer < 0 ? place.offset_bytes : 0) + a.offset_bytes, a.row_bytes, a.rows,
            a.stride_bytes};
    if (r.rows == 1 || r.stride == r.row_bytes) r = {r.buffer, r.first, r.row_bytes * r.rows, 1, 0};
    return r;
  }

  bool apart(int32_t task, int n) {
    for (int i = 0; i < n; ++i) {
      if (!touched_[i].access->write) continue;
      for (int j = 0; j < n; ++j) {
        const Touched &w = touched_[i], &other = touched_[j];
        if (j == i || (other.access->write && j < i) || !overlap(w.range, other.range)) continue;
        if (!other.access->write && in_place(task, w, other)) continue;
        AMK_REJECT(report_, 18, task, w.access->buffer, -1, "%s writes %s over bytes that it %s through %s",
                   task_text(p_, task).c_str(), buffer_text(p_, w.access->buffer).c_str(),
                   other.access->write ? "also writes" : "reads", buffer_text(p_, other.access->buffer).c_str());
        return false;
      }
    }
    return true;
  }
  // A task reads of a state exactly what it writes, range for range (V19): a state that somebody else reads would
  // depend on who comes first.
  bool replaces_state(int32_t task, int n) {
    for (int i = 0; i < n; ++i) {
      if (p_.bindings[touched_[i].access->buffer].kind != AMK_KIND_STATE) continue;
      const auto is_other_half = [&](const Touched& t) {
        return t.access->write != touched_[i].access->write && t.range == touched_[i].range;
      };
      if (std::any_of(touched_, touched_ + n, is_other_half)) continue;
      AMK_REJECT(report_, 19, task, touched_[i].access->buffer, -1, "%s %s bytes of %s that it does not %s",
                 task_text(p_, task).c_str(), touched_[i].access->write ? "writes" : "reads",
                 buffer_text(p_, touched_[i].access->buffer).c_str(), touched_[i].access->write ? "read" : "write");
      return false;
    }
    return true;
  }
  // The same element at the same byte: then each element is read before it is replaced.
  bool in_place(int32_t task, const Touched& w, const Touched& r) const {
    const int bit = w.access->slot * 8 + r.access->slot;
    return (op_in_place_mask(p_.tasks[task]) >> bit & 1) && w.range.first == r.range.first &&
           w.range.row_bytes == r.range.row_bytes && w.range.rows == r.range.rows && w.range.stride == r.range.stride &&
           p_.buffers[w.access->buffer].dtype == p_.buffers[r.access->buffer].dtype;
  }

  const Program& p_;
  const StorageMap& map_;
  AccessTable* out_;
  Report* report_;
  RangeIndex index_;
  const int32_t batch_;
  int64_t rows_ = 0;
  Touched touched_[kMaxAccesses];
};

}  // namespace

bool prove_accesses(const Program& program, const StorageMap& storage, AccessTable* out, Report* report) {
  const int64_t before = report->count();
  AccessProof(program, storage, out, report).run();
  return report->count() == before;
}

// A split's partial result must survive until the combining task merges all of them in index order.
bool prove_partials(const Program& p, const StorageMap& storage, const AccessTable& accesses, Report* report) {
  struct Piece {
    int32_t buffer, task;
    int64_t first, end;
  };
  const int64_t before = report->count();
  std::vector<Piece> pieces;
  for (size_t t = 0; t < p.tasks.size(); ++t) {
    const bool has_partials = p.tasks[t].op == AMK_OP_ATTENTION_TILE && !is_direct(p.tasks[t]);
    if (!has_partials && p.tasks[t].op != AMK_OP_SAMPLE_ARGMAX) continue;
    for (int64_t u = accesses.first_use[t]; u < accesses.first_use[t + 1]; ++u) {
      if (!accesses.uses[u].write) continue;
      const Range& r = accesses.ranges[accesses.uses[u].range];
      for (int64_t i = 0; i < r.rows; ++i)
        pieces.push_back(
            {r.buffer, static_cast<int32_t>(t), r.first + i * r.stride, r.first + i * r.stride + r.row_bytes});
    }
  }
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    if (a.buffer != b.buffer) return a.buffer < b.buffer;
    return a.first != b.first ? a.first < b.first : a.task < b.task;
  });
  size_t reach = 0;  // of the pieces so far in this buffer, the one that ends last
  int32_t reported = -1;
  for (size_t i = 1; i < pieces.size(); ++i) {
    const Piece &last = pieces[reach], &now = pieces[i];
    if (last.buffer == now.buffer && now.first < last.end && now.task != reported) {
      reported = now.task;
      AMK_REJECT(report, 22, now.task, now.buffer, -1,
                 "%s and %s both put a partial result on bytes [%lld, %lld) of %s", task_text(p, last.task).c_str(),
                 task_text(p, now.task).c_str(), (ll)accesses.offset_in_buffer(now.buffer, now.first, storage),
                 (ll)accesses.offset_in_buffer(now.buffer, std::min(now.end, last.end), storage),
                 buffer_text(p, now.buffer).c_str());
    }
    if (last.buffer != now.buffer || now.end > last.end) reach = i;
  }
  return report->count() == before;
}

}  // namespace amk
