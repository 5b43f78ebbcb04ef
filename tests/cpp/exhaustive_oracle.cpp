#include "exhaustive_oracle.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "base/target.h"

namespace oracle {
namespace {

using Bytes = uint32_t;  // one bit per byte of memory

Bytes bytes_of(const TinyBuffer& b, int at, int n) {
  if (b.home == Home::kInput) return 0;
  return ((Bytes{1} << n * b.width) - 1) << (b.first + at * b.width);
}

// The same in each of `rows` rows of the buffer.
Bytes rows_of(const TinyBuffer& b, int rows, int at, int n) {
  Bytes bytes = 0;
  for (int r = 0; r < rows; ++r) bytes |= bytes_of(b, r * (b.elements / rows) + at, n);
  return bytes;
}

struct Touch {
  Bytes bytes = 0;
  int buffer = -1;
};

struct Effects {
  Touch reads[2], write;
  Touch state;  // read, and then written
  Bytes all_reads() const { return reads[0].bytes | reads[1].bytes | state.bytes; }
  Bytes all_writes() const { return write.bytes | state.bytes; }
};

Effects effects_of(const TinyProgram& p, const TinyTask& t) {
  Effects e;
  if (t.kind == Kind::kNop) return e;
  if (t.kind == Kind::kConv) {
    e.reads[0] = {bytes_of(p.buffers[t.a], t.a_at + t.out_at, t.n), t.a};
    e.state = {bytes_of(p.buffers[t.b], t.out_at, t.n), t.b};
    e.write = {bytes_of(p.buffers[t.out], t.out_at, t.n), t.out};
    return e;
  }
  const bool copy = t.kind == Kind::kCopy;
  e.reads[0] = {rows_of(p.buffers[t.a], t.rows, copy ? t.a_at : t.out_at, t.n), t.a};
  if (!copy) e.reads[1] = {rows_of(p.buffers[t.b], t.rows, t.out_at, t.n), t.b};
  e.write = {rows_of(p.buffers[t.out], t.rows, t.out_at, t.n), t.out};
  return e;
}

int producers_of(const TinyProgram& p, int counter) {
  int n = 0;
  for (const TinyTask& t : p.tasks) n += t.counter == counter;
  return n;
}

bool signals_fine(const TinyProgram& p) {
  if (p.preset_counter >= 0) return false;
  for (const TinyTask& t : p.tasks) {
    for (size_t w = 0; w < t.waits.size(); ++w) {
      const int c = t.waits[w].counter;
      if (t.waits[w].threshold_error != 0 || c == t.counter || producers_of(p, c) == 0) return false;
      for (size_t v = 0; v < w; ++v)
        if (t.waits[v].counter == c) return false;
    }
  }
  return true;
}

bool overlaps_itself(const Effects& e, Kind kind) {
  for (const Touch& r : e.reads) {
    if (!(r.bytes & e.write.bytes)) continue;
    // Elementwise ops may replace an element in place; the same set of bytes is the same index here.
    if (kind == Kind::kCopy || kind == Kind::kConv || r.bytes != e.write.bytes) return true;
  }
  return false;
}

struct State {
  std::array<int8_t, kMaxQueues> head{};
  std::array<int8_t, kMaxTasks + 2> counter{};
  std::array<int8_t, kMemoryBytes> tag;  // buffer that each byte was last written as, -1 for none
  int key() const { return head[0] | head[1] << 4 | head[2] << 8 | head[3] << 12; }
};

class Explorer {
 public:
  explicit Explorer(const TinyProgram& p) : p_(p), seen_(1 << 16, 0) {
    for (const TinyTask& t : p.tasks) {
      queue_[t.queue].push_back(static_cast<int>(effects_.size()));
      effects_.push_back(effects_of(p, t));
    }
  }

  Verdict run() {
    State start;
    start.tag.fill(-1);
    std::vector<State> todo{start};
    seen_[start.key()] = 1;
    while (!todo.empty()) {
      const State s = todo.back();
      todo.pop_back();
      int ready[kMaxQueues], n = 0;
      bool finished = true;
      for (int q = 0; q < kMaxQueues; ++q) {
        if (s.head[q] == static_cast<int>(queue_[q].size())) continue;
        finished = false;
        if (is_ready(s, p_.tasks[queue_[q][s.head[q]]])) ready[n++] = q;
      }
      if (!finished && n == 0) return Verdict::kDeadlock;
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < i; ++j)
          if (conflict(head_effects(s, ready[i]), head_effects(s, ready[j]))) return Verdict::kRace;
      for (int i = 0; i < n; ++i) {
        const Effects& e = head_effects(s, ready[i]);
        if (const Verdict bad = check_reads(s, e); bad != Verdict::kSafe) return bad;
        State after = s;
        ++after.counter[p_.tasks[queue_[ready[i]][s.head[ready[i]]]].counter];
        ++after.head[ready[i]];
        for (int b = 0; b < kMemoryBytes; ++b)
          if (e.all_writes() >> b & 1)
            after.tag[b] = static_cast<int8_t>(b < kFirstState ? e.write.buffer : e.state.buffer);
        if (seen_[after.key()]) continue;
        seen_[after.key()] = 1;
        todo.push_back(after);
      }
    }
    return outputs_complete() ? Verdict::kSafe : Verdict::kOutput;
  }

 private:
  bool is_ready(const State& s, const TinyTask& t) const {
    for (const TinyWait& w : t.waits)
      if (s.counter[w.counter] < producers_of(p_, w.counter)) return false;
    return true;
  }
  const Effects& head_effects(const State& s, int q) const { return effects_[queue_[q][s.head[q]]]; }
  static bool conflict(const Effects& x, const Effects& y) {
    return (x.all_writes() & (y.all_reads() | y.all_writes())) || (y.all_writes() & x.all_reads());
  }
  static Verdict check_reads(const State& s, const Effects& e) {
    for (const Touch& r : e.reads) {
      for (int b = 0; b < kMemoryBytes; ++b) {
        if (!(r.bytes >> b & 1)) continue;
        if (s.tag[b] < 0) return Verdict::kUninitialised;
        if (s.tag[b] != r.buffer) return Verdict::kStale;
      }
    }
    for (int b = kFirstState; b < kMemoryBytes; ++b)  // there from the start; nobody may see what replaced it
      if ((e.state.bytes >> b & 1) && s.tag[b] >= 0) return Verdict::kState;
    return Verdict::kSafe;
  }
  bool outputs_complete() const {
    for (const TinyBuffer& b : p_.buffers) {
      if (b.home != Home::kOutput && b.home != Home::kState) continue;
      for (int at = b.first; at < b.first + b.width * b.elements; ++at) {
        int writes = 0;
        for (const Effects& e : effects_) writes += e.all_writes() >> at & 1;
        if (writes != 1) return false;
      }
    }
    return true;
  }

  const TinyProgram& p_;
  std::vector<Effects> effects_;
  std::vector<int> queue_[kMaxQueues];
  std::vector<uint8_t> seen_;
};

// ---- generator ----

class Generator {
 public:
  explicit Generator(std::mt19937_64& random) : random_(random) {}

  TinyProgram run() {
    lay_out();
    const int n = std::max(pick(1, kMaxTasks - 1), pick(1, kMaxTasks - 1));
    p_.queues = pick(1, kMaxQueues);
    tag_.fill(-1);
    for (int i = 0; i < n; ++i) {
      const int rest = uncovered();
      if (rest >= 0 && (i >= n - 3 || chance(10)))
        add_output(rest);
      else
        add_random();
    }
    while (uncovered() >= 0 && static_cast<int>(p_.tasks.size()) < kMaxTasks && !chance(3)) add_output(uncovered());
    if (chance(85))
      for (int i = pick(1, 4); i > 0 && !p_.tasks.empty(); --i) damage();
    return p_;
  }

 private:
  int pick(int low, int high) { return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1)); }
  bool chance(int percent) { return pick(0, 99) < percent; }

  void lay_out() {
    p_.buffers.push_back({Home::kInput, 1, 4, 0, -1});
    p_.buffers.push_back({Home::kInput, 2, 2, 0, -1});
    int at = 0;
    const int arena = pick(1, kArenaBytes);
    while (at < arena) {
      const int nbytes = std::min(arena - at, chance(60) ? 2 * pick(1, 2) : pick(1, 6));
      const int page = static_cast<int>(p_.pages.size());
      p_.pages.push_back({at, nbytes});
      for (int i = pick(1, 4); i > 0; --i) {
        const int width = at % 2 == 0 && nbytes >= 2 && chance(45) ? 2 : 1;
        p_.buffers.push_back({Home::kArena, width, chance(70) ? nbytes / width : pick(1, nbytes / width), at, page});
      }
      at += nbytes;
    }
    if (!chance(5)) {
      const int width = pick(1, 2);
      p_.buffers.push_back({Home::kOutput, width, pick(1, kOutputBytes / width), kArenaBytes, -1});
    }
    if (!chance(40)) return;
    const int y = pick(2, static_cast<int>(p_.buffers.size()) - 1), elements = p_.buffers[y].elements;
    if (p_.buffers[y].width == 2 && 2 * elements <= kStateBytes)
      p_.buffers.push_back({Home::kState, 2, elements, kFirstState, -1});
  }

  // An output's or state's byte that nothing writes yet, as an index into the memory; -1 if none.
  int uncovered() const {
    for (const TinyBuffer& b : p_.buffers)
      if (b.home == Home::kOutput || b.home == Home::kState)
        for (int at = b.first; at < b.first + b.elements * b.width; ++at)
          if (tag_[at] < 0) return at;
    return -1;
  }

  int buffer_of(int width, bool writable) {
    for (;;) {
      const int b = pick(0, static_cast<int>(p_.buffers.size()) - 1);
      const TinyBuffer& buffer = p_.buffers[b];
      if (buffer.home == Home::kState || (width && buffer.width != width)) continue;
      if (writable && buffer.home == Home::kInput) continue;
      return b;
    }
  }

  bool sound(const TinyTask& t) const {
    const Effects e = effects_of(p_, t);
    if (overlaps_itself(e, t.kind)) return false;
    if (p_.buffers[t.out].home == Home::kOutput)
      for (int b = 0; b < kMemoryBytes; ++b)
        if ((e.write.bytes >> b & 1) && tag_[b] >= 0) return false;
    for (const Touch& r : e.reads)
      for (int b = 0; b < kMemoryBytes; ++b)
        if ((r.bytes >> b & 1) && tag_[b] != r.buffer) return false;
    for (int b = kFirstState; b < kMemoryBytes; ++b)
      if ((e.state.bytes >> b & 1) && tag_[b] >= 0) return false;
    return true;
  }

  int width(const TinyTask& t, int buffer) const { return p_.buffers[buffer].elements / t.rows; }
  bool has_rows(const TinyTask& t) const {
    const auto whole = [&](int b) { return p_.buffers[b].elements % t.rows == 0; };
    return whole(t.out) && whole(t.a) && (t.kind == Kind::kCopy || whole(t.b));
  }

  TinyTask random_task() {
    TinyTask t{};
    t.queue = pick(0, p_.queues - 1);
    if (chance(6)) {
      t.kind = Kind::kNop;
      return t;
    }
    if (p_.buffers.size() == 2) return t;
    t.out = buffer_of(0, true);
    const TinyBuffer& out = p_.buffers[t.out];
    t.a = buffer_of(out.width, false);
    t.b = buffer_of(out.width, false);
    t.kind = out.width == 1 || chance(40) ? Kind::kCopy : chance(50) ? Kind::kAdd : Kind::kMul;
    if (t.kind != Kind::kCopy && chance(25)) t.a = t.out;
    if (chance(35)) t.rows = 2;
    if (!has_rows(t)) t.rows = 1;
    int limit = std::min(width(t, t.out), width(t, t.a));
    if (t.kind != Kind::kCopy) limit = std::min(limit, width(t, t.b));
    t.n = chance(60) ? limit : pick(1, limit);
    t.out_at = pick(0, (t.kind == Kind::kCopy ? width(t, t.out) : limit) - t.n);
    t.a_at = t.kind == Kind::kCopy ? pick(0, width(t, t.a) - t.n) : 0;
    return t;
  }

  void add_random() {
    TinyTask t = random_task();
    for (int tries = 0; tries < 12 && t.kind != Kind::kNop && !sound(t); ++tries) t = random_task();
    if (t.kind != Kind::kNop && !sound(t) && !chance(2)) t = TinyTask{Kind::kNop, 0, 0, 0, 0, 0, 0, t.queue, 0, {}};
    commit(t);
  }

  // Moves the state on from the element that holds byte `at`, through a result that has as many elements.
  void add_state(int at) {
    const int state = static_cast<int>(p_.buffers.size()) - 1;  // it was laid out last
    const TinyBuffer& b = p_.buffers[state];
    TinyTask t{};
    for (int tries = 0; tries < 30; ++tries) {
      t = TinyTask{Kind::kConv, 1, state, 1, 0, (at - b.first) / 2, 1, pick(0, p_.queues - 1), 0, {}};
      for (int more = 0; more < 10 && p_.buffers[t.out].home == Home::kInput; ++more)
        if (const int y = buffer_of(2, true); p_.buffers[y].elements == b.elements) t.out = y;
      for (int more = 0; more < 3; ++more)
        if (const int x = buffer_of(2, false); p_.buffers[x].elements >= b.elements) t.a = x;
      t.n = chance(30) ? 1 : b.elements - t.out_at;
      t.a_at = pick(0, p_.buffers[t.a].elements - b.elements);
      if (p_.buffers[t.out].home != Home::kInput && sound(t)) break;
    }
    if (p_.buffers[t.out].home != Home::kInput) commit(t);
  }

  void add_output(int at) {
    if (at >= kFirstState) return add_state(at);
    int out = 0;
    while (p_.buffers[out].home != Home::kOutput) ++out;
    const TinyBuffer& b = p_.buffers[out];
    TinyTask t{};
    for (int tries = 0; tries < 20; ++tries) {
      t = TinyTask{Kind::kCopy, buffer_of(b.width, false), 0, out, 0, (at - b.first) / b.width,
                   1,           pick(0, p_.queues - 1),    0, {}};
      t.n = std::min(b.elements - t.out_at, p_.buffers[t.a].elements);
      if (chance(30)) t.n = 1;
      t.a_at = pick(0, p_.buffers[t.a].elements - t.n);
      if (sound(t)) break;
    }
    commit(t);
  }

  // Gives the task the waits that the order so far asks of it, and a counter that nobody waits for yet.
  void commit(TinyTask t) {
    const int id = static_cast<int>(p_.tasks.size());
    const Effects e = effects_of(p_, t);
    uint32_t before = 0;
    for (int i = 0; i < id; ++i)
      if (p_.tasks[i].queue == t.queue) before |= before_[i] | 1u << i;
    for (int i = id - 1; i >= 0; --i) {
      const Effects o = effects_of(p_, p_.tasks[i]);
      const bool needed = (e.all_writes() & (o.all_reads() | o.all_writes())) || (o.all_writes() & e.all_reads());
      if (!(needed || chance(3)) || before >> i & 1 || t.waits.size() >= AMK_MAX_WAITS) continue;
      t.waits.push_back({p_.tasks[i].counter, 0});
      closed_ |= 1u << p_.tasks[i].counter;
      for (int k = 0; k < id; ++k)
        if (p_.tasks[k].counter == p_.tasks[i].counter) before |= before_[k] | 1u << k;
    }
    t.counter = p_.counters > 0 && chance(35) ? pick(0, p_.counters - 1) : p_.counters;
    if (closed_ >> t.counter & 1) t.counter = p_.counters;
    p_.counters = std::max(p_.counters, t.counter + 1);
    before_[id] = before;
    for (int b = 0; b < kMemoryBytes; ++b)
      if (e.all_writes() >> b & 1) tag_[b] = b < kFirstState ? t.out : t.b;
    p_.tasks.push_back(std::move(t));
  }

  void damage() {
    const int n = static_cast<int>(p_.tasks.size());
    const int id = pick(0, n - 1);
    TinyTask& t = p_.tasks[id];
    switch (pick(0, 13)) {
      case 0:
      case 1:
        if (!t.waits.empty()) t.waits.erase(t.waits.begin() + pick(0, static_cast<int>(t.waits.size()) - 1));
        break;
      case 2:
        if (!t.waits.empty() && chance(50)) t.waits[0].threshold_error = chance(50) ? 1 : -1;
        break;
      case 3: std::swap(p_.tasks[id], p_.tasks[pick(0, n - 1)]); break;
      case 4: t.queue = pick(0, p_.queues - 1); break;
      case 5:
        if (n < kMaxTasks) p_.tasks.push_back(t);
        break;
      case 6: p_.tasks.erase(p_.tasks.begin() + id); break;
      case 7:
        if (t.waits.size() < AMK_MAX_WAITS) t.waits.push_back({pick(0, p_.counters - 1), 0});
        break;
      case 8:
        if (!t.waits.empty()) t.waits[0].counter = pick(0, p_.counters - 1);
        break;
      case 9:
        if (chance(40))
          t.counter = pick(0, p_.counters - 1);
        else if (chance(15))
          p_.preset_counter = pick(0, p_.counters - 1);
        break;
      case 10: retarget(t); break;
      case 11: shift(t); break;
      default:  // every wait at once: the queue order alone must then carry the dependencies
        t.waits.clear();
    }
  }
  bool in_bounds(const TinyTask& t) const {
    if (t.kind == Kind::kConv) {
      const int channels = p_.buffers[t.b].elements;
      return t.n >= 1 && t.out_at >= 0 && t.out_at + t.n <= channels && p_.buffers[t.out].elements == channels &&
             t.a_at >= 0 && t.a_at + channels <= p_.buffers[t.a].elements;
    }
    const int a_at = t.kind == Kind::kCopy ? t.a_at : t.out_at;
    return has_rows(t) && t.n >= 1 && t.out_at >= 0 && a_at >= 0 && t.out_at + t.n <= width(t, t.out) &&
           a_at + t.n <= width(t, t.a) && (t.kind == Kind::kCopy || t.out_at + t.n <= width(t, t.b));
  }
  void retarget(TinyTask& t) {
    if (t.kind == Kind::kNop) return;
    TinyTask other = t;
    const int width = p_.buffers[t.out].width;
    (chance(50) ? other.a : chance(50) && t.kind != Kind::kConv ? other.b : other.out) = buffer_of(width, false);
    if (p_.buffers[other.out].home != Home::kInput && in_bounds(other)) t = other;
  }
  void shift(TinyTask& t) {
    if (t.kind == Kind::kNop) return;
    TinyTask other = t;
    (chance(35) ? other.n : chance(50) ? other.out_at : other.a_at) += chance(50) ? 1 : -1;
    if (other.kind == Kind::kAdd || other.kind == Kind::kMul) other.a_at = 0;
    if (in_bounds(other)) t = other;
  }

  std::mt19937_64& random_;
  TinyProgram p_;
  std::array<int, kMemoryBytes> tag_;
  std::array<uint32_t, kMaxTasks> before_{};
  uint32_t closed_ = 0;
};

}  // namespace

const char* verdict_name(Verdict verdict) {
  constexpr const char* kNames[] = {"safe",
                                    "ambiguous signal",
                                    "overlap in one task",
                                    "race",
                                    "deadlock",
                                    "uninitialised read",
                                    "stale read",
                                    "state read after its successor",
                                    "output or state not written exactly once"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == static_cast<size_t>(Verdict::kCount), "a verdict needs a name");
  return kNames[static_cast<int>(verdict)];
}

TinyProgram generate(std::mt19937_64& random) { return Generator(random).run(); }

Verdict judge(const TinyProgram& p) {
  for (const TinyTask& t : p.tasks)
    if (overlaps_itself(effects_of(p, t), t.kind)) return Verdict::kSelfOverlap;
  if (!signals_fine(p)) return Verdict::kSignal;
  return Explorer(p).run();
}

amk::Program encode(const TinyProgram& p) {
  amk::Program out;
  out.target = *amk::target_preset(1);
  out.launch.grid = p.queues;
  out.launch.threads_per_block = 128;
  out.launch.max_seq = 1;
  out.launch.steps_per_launch = 1;
  for (const TinyPage& page : p.pages) out.pages.push_back({AMK_SPACE_GLOBAL_SCRATCH, page.first, page.nbytes});
  for (size_t i = 0; i < p.buffers.size(); ++i) {
    const TinyBuffer& b = p.buffers[i];
    const int32_t dtype = b.width == 1 ? AMK_DTYPE_U8 : AMK_DTYPE_BF16;
    const bool arena = b.home == Home::kArena;
    out.buffers.push_back(
        amk::make_buffer(dtype, arena ? AMK_SPACE_GLOBAL_SCRATCH : AMK_SPACE_HBM, {int64_t{b.elements}}));
    out.bindings.push_back({arena                    ? AMK_KIND_ACTIVATION
                            : b.home == Home::kInput ? AMK_KIND_IO_INPUT
                            : b.home == Home::kState ? AMK_KIND_STATE
                                                     : AMK_KIND_IO_OUTPUT,
                            b.page});
    // Two rows where they can be: a task of one row does not mind.
    if (b.elements % 2 == 0)
      out.buffers.back() = amk::make_buffer(dtype, out.buffers.back().space, {int64_t{2}, int64_t{b.elements / 2}});
    if (b.home == Home::kState) out.buffers.back() = amk::make_buffer(dtype, AMK_SPACE_HBM, {int64_t{b.elements}, 1});
    out.buffer_name.push(amk::text("b%zu", i));
    out.buffer_source.push("");
  }
  const int32_t taps = static_cast<int32_t>(p.buffers.size());
  if (const TinyBuffer& last = p.buffers.back(); last.home == Home::kState) {
    out.buffers.push_back(amk::make_buffer(AMK_DTYPE_BF16, AMK_SPACE_HBM, {int64_t{last.elements}, 2}));
    out.bindings.push_back({AMK_KIND_WEIGHT, -1});
    out.buffer_name.push("taps");
    out.buffer_source.push("taps");
  }
  out.counter_init.assign(p.counters, 0);
  if (p.preset_counter >= 0) out.counter_init[p.preset_counter] = 1;
  for (const TinyTask& t : p.tasks) {
    amk_instruction_t task{};
    task.sm = t.queue;
    task.out_counter = t.counter;
    for (const TinyWait& w : t.waits) {
      task.wait_counter[task.n_waits] = w.counter;
      task.wait_threshold[task.n_waits++] = producers_of(p, w.counter) + w.threshold_error;
    }
    if (t.kind == Kind::kConv) {
      task.op = AMK_OP_CAUSAL_CONV;
      for (int32_t id : {t.a, taps, t.b}) task.inputs[task.n_inputs++] = id;
      for (int32_t id : {t.out, t.b}) task.outputs[task.n_outputs++] = id;
      task.params.N = p.buffers[t.b].elements;
      task.params.K = 2;
      task.params.N_tile = t.n;
      task.params.n_off = t.out_at;
      task.params.m_off = t.a_at;
    } else if (t.kind != Kind::kNop) {
      const bool copy = t.kind == Kind::kCopy;
      task.op = copy ? AMK_OP_COPY : t.kind == Kind::kAdd ? AMK_OP_ADD : AMK_OP_MUL;
      task.inputs[task.n_inputs++] = t.a;
      if (!copy) task.inputs[task.n_inputs++] = t.b;
      task.outputs[task.n_outputs++] = t.out;
      task.params.M_tile = t.rows == 1 ? 0 : t.rows;
      task.params.N_tile = t.n;
      task.params.n_off = t.out_at;
      if (copy) task.params.m_off = t.a_at;
    }
    out.tasks.push_back(task);
  }
  return out;
}

std::string describe(const TinyProgram& p) {
  constexpr const char* kHomes[] = {"input", "arena", "output", "state"};
  constexpr const char* kKinds[] = {"NOP", "COPY", "ADD", "MUL", "CONV"};
  std::string s;
  for (size_t i = 0; i < p.buffers.size(); ++i) {
    const TinyBuffer& b = p.buffers[i];
    s += amk::text("b%zu %s first %d elements %d width %d\n", i, kHomes[static_cast<int>(b.home)], b.first, b.elements,
                   b.width);
  }
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const TinyTask& t = p.tasks[i];
    s += amk::text("task %zu q%d %s x%d b%d[%d+%d] <- b%d[%d] b%d signals %d waits", i, t.queue,
                   kKinds[static_cast<int>(t.kind)], t.rows, t.out, t.out_at, t.n, t.a, t.a_at, t.b, t.counter);
    for (const TinyWait& w : t.waits) s += amk::text(w.threshold_error ? " %d (wrong threshold)" : " %d", w.counter);
    s += "\n";
  }
  return s;
}

}  // namespace oracle
