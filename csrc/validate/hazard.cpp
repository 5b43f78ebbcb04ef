// Proof 3: every byte is read and written in one order, the same in every execution (V11, V12, V13), after it was
// written (V14, V19) by the buffer it is read as (V16), and outputs and states are complete and written once (V15).
// In: mutable accesses as physical ranges, and one topological order. Out: rejections. Must not look at buffer ids to
// decide whether two accesses meet: only bytes count.
//
// Since every wait joins all producers, happens-before is the same in every execution, and one pass over one
// topological order speaks for all of them. Vector clocks per queue, last writer per byte segment and joined readers
// are FastTrack's (Flanagan & Freund 2009, PLDI), made static. What is ours: a range that many queues read keeps one
// joined clock of its writers and one of its readers, so a whole vector of 132 tiles costs one compare of clocks.
#include <algorithm>
#include <memory>

#include "base/error.h"
#include "validate/proofs.h"

namespace amk {
namespace {

using ll = long long;

constexpr int kLanePadding = 16;  // clocks are padded to whole vector registers

// Rows of lanes, handed out and taken back, up to kMaxClockBytes.
template <class Lane>
class ClockRows {
 public:
  explicit ClockRows(int64_t lanes) : lanes_(lanes) {}
  // A row of zeros; -1 when the limit is reached.
  int32_t acquire() {
    if (free_.empty()) {
      const int64_t bytes = static_cast<int64_t>(blocks_.size() + 1) * kBlock * lanes_ * int64_t{sizeof(Lane)};
      if (bytes > kMaxClockBytes) return -1;
      for (int32_t i = kBlock - 1; i >= 0; --i) free_.push_back(static_cast<int32_t>(blocks_.size()) * kBlock + i);
      blocks_.push_back(std::make_unique<Lane[]>(kBlock * lanes_));
    }
    const int32_t row = free_.back();
    free_.pop_back();
    std::fill_n(at(row), lanes_, Lane{0});
    return row;
  }
  void release(int32_t row) { free_.push_back(row); }
  Lane* at(int32_t row) { return blocks_[row / kBlock].get() + row % kBlock * lanes_; }

 private:
  static constexpr int32_t kBlock = 64;
  int64_t lanes_;
  std::vector<std::unique_ptr<Lane[]>> blocks_;
  std::vector<int32_t> free_;
};

// Bytes between two neighbouring boundaries of ranges: always touched as a whole.
struct Segment {
  int32_t writer_lane = -1;  // -1: not written in this step
  uint32_t writer_rank = 0;
  int32_t stamp = 0;     // of the last write
  int32_t tag = -1;      // buffer the last writer wrote it as
  int32_t readers = -1;  // list of ranges read since the last write
  int32_t writes = 0;    // 0, 1, or 2 for more
};

// Segments [first, end) of each row of a range, and who read the range.
struct RangeState {
  int64_t first_run = 0;
  int32_t attached = -1;  // stamp of the last walk that put the range on its segments' lists
  bool fresh = false;     // no segment was written since that walk
  // Readers: none (lane -1), one queue (lane, rank), or several (row `readers` of clocks, and `writers` = the joined
  // clock that a reader must have seen).
  int32_t lane = -1;
  uint32_t rank = 0;
  int32_t readers = -1, writers = -1;
};

struct Run {
  int32_t first, end;
};

struct ReaderNode {
  int32_t range, next;
};

template <class Lane>
class HazardPass {
 public:
  HazardPass(const Program& p, const StorageMap& map, const AccessTable& accesses, const TaskOrder& order,
             Report* report)
      : p_(p),
        map_(map),
        accesses_(accesses),
        order_(order),
        report_(report),
        lanes_((order.lanes + kLanePadding - 1) / kLanePadding * kLanePadding),
        rows_(lanes_) {}

  void run() {
    if (!cut_segments()) return too_large("bytes cut into too many pieces");
    running_.assign(static_cast<size_t>(order_.lanes) * lanes_, 0);
    counter_row_.assign(p_.counter_init.size(), -1);
    waiters_.assign(p_.counter_init.size(), 0);
    for (const amk_instruction_t& t : p_.tasks)
      for (int w = 0; w < t.n_waits; ++w) ++waiters_[t.wait_counter[w]];
    for (size_t i = 0; i < order_.sequence.size(); ++i) {
      step(order_.sequence[i], static_cast<int32_t>(i));
      if (full_) return too_large("too many clocks");
      if (visits_ > kMaxSegmentVisits) return too_large("too many pieces read and written");
    }
    check_coverage();
  }

 private:
  // ---- bytes ----

  bool cut_segments() {
    // A buffer's tiles mostly come one after another: then a boundary is the last one seen in that buffer.
    std::vector<int64_t> last_bound(p_.buffers.size(), -1);
    for (const Range& r : accesses_.ranges) {
      for (int64_t i = 0; i < r.rows; ++i) {
        const int64_t first = r.first + i * r.stride, end = first + r.row_bytes;
        if (first != last_bound[r.buffer]) bounds_.push_back(first);
        bounds_.push_back(last_bound[r.buffer] = end);
      }
    }
    for (const Area& a : accesses_.areas) {
      bounds_.push_back(a.first);
      bounds_.push_back(a.first + a.nbytes);
    }
    std::sort(bounds_.begin(), bounds_.end());
    bounds_.erase(std::unique(bounds_.begin(), bounds_.end()), bounds_.end());
    segments_.resize(bounds_.size());
    states_.resize(accesses_.ranges.size());
    std::vector<int32_t> last_segment(p_.buffers.size(), 0);
    int64_t total = 0;
    for (size_t k = 0; k < accesses_.ranges.size(); ++k) {
      const Range& r = accesses_.ranges[k];
      states_[k].first_run = static_cast<int64_t>(runs_.size());
      for (int64_t i = 0; i < r.rows; ++i) {
        const int64_t at = r.first + i * r.stride;
        const int32_t first = segment_at(at, last_segment[r.buffer]);
        const int32_t end = last_segment[r.buffer] = segment_at(at + r.row_bytes, first + 1);
        runs_.push_back({first, end});
        total += end - first;
      }
    }
    return total <= kMaxRangeSegments;
  }
  // The segment that starts at a boundary; `guess` is tried first.
  int32_t segment_at(int64_t address, int32_t guess = 0) const {
    if (guess < static_cast<int32_t>(bounds_.size()) && bounds_[guess] == address) return guess;
    return static_cast<int32_t>(std::lower_bound(bounds_.begin(), bounds_.end(), address) - bounds_.begin());
  }
  template <class Visit>
  void each_segment(int32_t id, Visit visit) {
    const int64_t first = states_[id].first_run, end = first + accesses_.ranges[id].rows;
    for (int64_t i = first; i < end; ++i) {
      visits_ += runs_[i].end - runs_[i].first;
      for (int32_t s = runs_[i].first; s < runs_[i].end; ++s) visit(s);
    }
  }

  // ---- clocks ----

  void join(Lane* to, const Lane* from) const {
    for (int64_t i = 0; i < lanes_; ++i) to[i] = std::max(to[i], from[i]);
  }
  bool covers(const Lane* clock, const Lane* need) const {
    Lane missing = 0;
    for (int64_t i = 0; i < lanes_; ++i) missing |= static_cast<Lane>(need[i] > clock[i] ? need[i] - clock[i] : 0);
    return missing == 0;
  }
  // The rows of one range that several queues read.
  bool make_dense(RangeState& r) {
    r.readers = rows_.acquire();
    r.writers = rows_.acquire();
    full_ = full_ || r.readers < 0 || r.writers < 0;
    if (!full_ && r.lane >= 0) rows_.at(r.readers)[r.lane] = static_cast<Lane>(r.rank);
    return !full_;
  }

  void step(int32_t task, int32_t position) {
    const amk_instruction_t& t = p_.tasks[task];
    task_ = task;
    lane_ = order_.lane[task];
    rank_ = order_.rank[task];
    clock_ = running_.data() + static_cast<int64_t>(lane_) * lanes_;
    for (int w = 0; w < t.n_waits; ++w) {
      const int32_t c = t.wait_counter[w];
      join(clock_, rows_.at(counter_row_[c]));
      if (--waiters_[c] == 0) rows_.release(counter_row_[c]);
    }
    clock_[lane_] = static_cast<Lane>(rank_);
    const int64_t first = accesses_.first_use[task], end = accesses_.first_use[task + 1];
    for (int64_t u = first; u < end && !full_; ++u)
      if (!accesses_.uses[u].write) read(accesses_.uses[u].range, 2 * position);
    for (int64_t u = first; u < end; ++u)
      if (accesses_.uses[u].write) write(accesses_.uses[u].range, 2 * position + 1);
    if (waiters_[t.out_counter] == 0) return;
    int32_t& row = counter_row_[t.out_counter];
    if (row < 0) row = rows_.acquire();
    full_ = full_ || row < 0;
    if (!full_) join(rows_.at(row), clock_);
  }

  // ---- reads ----

  void read(int32_t id, int32_t stamp) {
    RangeState& r = states_[id];
    if (r.fresh && r.readers < 0 && r.lane == lane_) {
      r.rank = rank_;  // a queue's clock only grows: what its earlier task had seen, this one has
      return;
    }
    if (r.fresh && r.readers >= 0 && covers(clock_, rows_.at(r.writers))) {
      rows_.at(r.readers)[lane_] = static_cast<Lane>(rank_);
      return;
    }
    bool rewritten = true, reported = false;
    each_segment(id, [&](int32_t s) {
      Segment& g = segments_[s];
      if (!reported) reported = !check_read(id, s);
      if (r.attached >= 0 && g.stamp <= r.attached)
        rewritten = false;
      else
        attach(g, id);
    });
    r.attached = stamp;
    r.fresh = true;
    if (rewritten) {  // each earlier reader was checked against a write that this walk has checked in turn
      r.lane = -1;
      if (r.readers >= 0) std::fill_n(rows_.at(r.readers), lanes_, Lane{0});
    }
    if (r.readers < 0 && (r.lane < 0 || r.lane == lane_)) {
      r.lane = lane_;
      r.rank = rank_;
      return;
    }
    if (r.readers < 0 && !make_dense(r)) return;
    Lane* writers = rows_.at(r.writers);
    std::fill_n(writers, lanes_, Lane{0});
    each_segment(id, [&](int32_t s) {
      const Segment& g = segments_[s];
      if (g.writer_lane < 0) return;
      writers[g.writer_lane] = std::max(writers[g.writer_lane], static_cast<Lane>(g.writer_rank));
    });
    rows_.at(r.readers)[lane_] = static_cast<Lane>(rank_);
  }

  void attach(Segment& g, int32_t id) {
    int32_t node = free_node_;
    if (node >= 0) {
      free_node_ = nodes_[node].next;
    } else {
      node = static_cast<int32_t>(nodes_.size());
      nodes_.push_back({});
    }
    nodes_[node] = {id, g.readers};
    g.readers = node;
  }

  bool check_read(int32_t id, int32_t s) {
    const Segment& g = segments_[s];
    const int32_t buffer = accesses_.ranges[id].buffer;
    const int32_t kind = accesses_.areas[accesses_.area_of_buffer[buffer]].kind;
    const int code_if_cache = kind == AMK_KIND_KV_CACHE ? 19 : 0;
    if (kind == AMK_KIND_STATE) {
      if (g.writer_lane < 0) return true;  // it holds what the last step left
      AMK_REJECT(report_, 19, task_, buffer, -1,
                 "%s reads %s, but %s replaces them in the same step, and a state is read "
                 "by whoever replaces it alone",
                 task_text(p_, task_).c_str(), bytes_text(buffer, s).c_str(),
                 task_text(p_, order_.task_at(g.writer_lane, g.writer_rank)).c_str());
      return false;
    }
    if (g.writer_lane < 0) {
      AMK_REJECT(report_, code_if_cache ? 19 : 14, task_, buffer, -1, "%s reads %s, but no task before it writes them",
                 task_text(p_, task_).c_str(), bytes_text(buffer, s).c_str());
      return false;
    }
    if (clock_[g.writer_lane] < g.writer_rank) {
      AMK_REJECT(report_, code_if_cache ? 19 : 11, task_, buffer, -1,
                 "%s reads %s, but %s that wrote them is not ordered before it", task_text(p_, task_).c_str(),
                 bytes_text(buffer, s).c_str(), task_text(p_, order_.task_at(g.writer_lane, g.writer_rank)).c_str());
      return false;
    }
    if (g.tag == buffer) return true;
    AMK_REJECT(report_, 16, task_, buffer, -1, "%s reads %s, but %s wrote them last, as %s",
               task_text(p_, task_).c_str(), bytes_text(buffer, s).c_str(),
               task_text(p_, order_.task_at(g.writer_lane, g.writer_rank)).c_str(), buffer_text(p_, g.tag).c_str());
    return false;
  }

  // ---- writes ----

  void write(int32_t id, int32_t stamp) {
    const int32_t buffer = accesses_.ranges[id].buffer;
    bool lost_write = false, lost_read = false;
    int32_t checked = -1;  // neighbouring segments mostly hang on one range
    each_segment(id, [&](int32_t s) {
      Segment& g = segments_[s];
      if (!lost_write && g.writer_lane >= 0 && clock_[g.writer_lane] < g.writer_rank) {
        lost_write = true;
        AMK_REJECT(report_, 12, task_, buffer, -1, "%s writes %s, but %s that wrote them too is not ordered before it",
                   task_text(p_, task_).c_str(), bytes_text(buffer, s).c_str(),
                   task_text(p_, order_.task_at(g.writer_lane, g.writer_rank)).c_str());
      }
      while (g.readers >= 0) {
        const ReaderNode node = nodes_[g.readers];
        RangeState& r = states_[node.range];
        r.fresh = false;
        if (!lost_read && node.range != checked) lost_read = !check_readers(r, buffer, s);
        checked = node.range;
        nodes_[g.readers].next = free_node_;
        free_node_ = g.readers;
        g.readers = node.next;
      }
      g.writer_lane = lane_;
      g.writer_rank = rank_;
      g.stamp = stamp;
      g.tag = buffer;
      g.writes = std::min(g.writes + 1, 2);
    });
  }

  bool check_readers(const RangeState& r, int32_t buffer, int32_t s) {
    int32_t lane = r.lane;
    uint32_t rank = r.rank;
    if (r.readers >= 0) {
      const Lane* readers = rows_.at(r.readers);
      if (covers(clock_, readers)) return true;
      for (lane = 0; readers[lane] <= clock_[lane];) ++lane;
      rank = readers[lane];
    } else if (clock_[lane] >= rank) {
      return true;
    }
    AMK_REJECT(report_, 13, task_, buffer, -1, "%s writes %s, but %s that reads them is not ordered before it",
               task_text(p_, task_).c_str(), bytes_text(buffer, s).c_str(),
               task_text(p_, order_.task_at(lane, rank)).c_str());
    return false;
  }

  // ---- the end of the step ----

  void check_coverage() {
    for (const Area& a : accesses_.areas) {
      if (a.kind != AMK_KIND_IO_OUTPUT && a.kind != AMK_KIND_KV_CACHE && a.kind != AMK_KIND_STATE) continue;
      const int32_t end = segment_at(a.first + a.nbytes);
      for (int32_t s = segment_at(a.first); s < end; ++s) {
        if (segments_[s].writes == 1) continue;
        AMK_REJECT(report_, 15, -1, a.buffer, -1, "%s are %s in a step", bytes_text(a.buffer, s).c_str(),
                   segments_[s].writes ? "written more than once" : "never written");
        break;
      }
    }
  }

  // ---- words ----

  std::string bytes_text(int32_t buffer, int32_t s) const {
    const bool cache = accesses_.areas[accesses_.area_of_buffer[buffer]].kind == AMK_KIND_KV_CACHE;
    return text("bytes [%lld, %lld) of %s%s", (ll)accesses_.offset_in_buffer(buffer, bounds_[s], map_),
                (ll)accesses_.offset_in_buffer(buffer, bounds_[s + 1], map_), cache ? "this step's rows of " : "",
                buffer_text(p_, buffer).c_str());
  }
  void too_large(const char* why) { AMK_REJECT(report_, 1, -1, -1, -1, "the program is too large to judge: %s", why); }

  const Program& p_;
  const StorageMap& map_;
  const AccessTable& accesses_;
  const TaskOrder& order_;
  Report* report_;
  const int64_t lanes_;

  std::vector<int64_t> bounds_;  // segment s is [bounds_[s], bounds_[s + 1])
  std::vector<Segment> segments_;
  std::vector<RangeState> states_;  // per range
  std::vector<Run> runs_;
  std::vector<ReaderNode> nodes_;
  int32_t free_node_ = -1;

  ClockRows<Lane> rows_;
  std::vector<Lane> running_;         // per queue: what its latest task has seen
  std::vector<int32_t> counter_row_;  // what all producers so far had seen
  std::vector<int32_t> waiters_;      // tasks that still have to join it
  int64_t visits_ = 0;
  bool full_ = false;

  int32_t task_ = -1, lane_ = -1;  // of the current step
  uint32_t rank_ = 0;
  Lane* clock_ = nullptr;
};

}  // namespace

bool prove_hazards(const Program& program, const StorageMap& storage, const AccessTable& accesses,
                   const TaskOrder& order, Report* report) {
  const int64_t before = report->count();
  if (order.longest_queue <= UINT16_MAX)
    HazardPass<uint16_t>(program, storage, accesses, order, report).run();
  else
    HazardPass<uint32_t>(program, storage, accesses, order, report).run();
  return report->count() == before;
}

}  // namespace amk
