// Pass 4: activations -> pages of the arena. Buffers may share a page when their lives in table order do not meet; the
// later one's writers are then ordered after everybody who touched the earlier one.
//
// Linear: first fit in the order of birth, a page never grows (Poletto & Sarkar 1999, linear scan); pages that cost no
// wait come first: appends that nobody waits for would otherwise delay whoever takes the page they read. Graph color:
// greedy coloring of the interference graph, largest buffer first (Chaitin 1982); a color is a page.
#include <algorithm>
#include <map>
#include <numeric>

#include "base/checked.h"
#include "base/dtype.h"
#include "base/error.h"
#include "lower/passes.h"

namespace amk {
namespace {

struct Life {
  int32_t buffer;
  int32_t birth, death;  // first writing op, last op that touches it
  int64_t nbytes;        // rounded up to AMK_PAGE_ALIGN
  int32_t page;
};

// Sets of ops, one per op: all that come before it.
class Ancestors {
 public:
  explicit Ancestors(size_t ops) : words_((ops + 63) / 64), bits_(words_ * ops, 0) {}

  bool before(int32_t earlier, int32_t later) const { return bits_[row(later) + earlier / 64] >> (earlier % 64) & 1; }

  // Predecessors that no other one implies. `preds` ascending; an ancestor always has the smaller number.
  std::vector<int32_t> reduce(const std::vector<int32_t>& preds) const {
    std::vector<int32_t> kept;
    for (auto p = preds.rbegin(); p != preds.rend(); ++p)
      if (std::none_of(kept.begin(), kept.end(), [&](int32_t k) { return before(*p, k); })) kept.push_back(*p);
    std::reverse(kept.begin(), kept.end());
    return kept;
  }
  void set(int32_t op, const std::vector<int32_t>& preds) {
    uint64_t* mine = &bits_[row(op)];
    std::fill_n(mine, words_, 0);
    for (int32_t p : preds) {
      const uint64_t* theirs = &bits_[row(p)];
      for (size_t w = 0; w <= static_cast<size_t>(op) / 64; ++w) mine[w] |= theirs[w];
      mine[p / 64] |= uint64_t{1} << (p % 64);
    }
  }

 private:
  size_t row(int32_t op) const { return words_ * static_cast<size_t>(op); }
  size_t words_;
  std::vector<uint64_t> bits_;
};

class Placer {
 public:
  Placer(Plan& plan, OpGraph& order) : plan_(plan), order_(order) { find_lives(); }

  void run(int32_t policy) {
    switch (policy) {
      case AMK_PAGES_LINEAR: fit_linear(); break;
      case AMK_PAGES_GRAPH_COLOR: fit_colors(); break;
      default:
        for (Life& life : lives_) life.page = page_count_++;
    }
    while (!try_order()) {
    }
    write_pages();
  }

 private:
  void find_lives() {
    const Program& p = plan_.program;
    for (size_t b = 0; b < p.buffers.size(); ++b) {
      if (p.bindings[b].kind != AMK_KIND_ACTIVATION) continue;
      const OpGraph::Use& use = order_.uses[b];
      AMK_CHECK(!use.writers.empty(), AMK_ERR_INTERNAL, "nothing writes activation %zu", b);
      const int32_t last_read = use.readers.empty() ? 0 : use.readers.back();
      lives_.push_back({static_cast<int32_t>(b), use.writers.front(), std::max(use.writers.back(), last_read),
                        round_up(storage_bytes(p.buffers[b].dtype, p.buffers[b].numel), AMK_PAGE_ALIGN), -1});
    }
    std::stable_sort(lives_.begin(), lives_.end(), [](const Life& a, const Life& b) { return a.birth < b.birth; });
  }

  void fit_linear() {
    struct Slot {
      int64_t nbytes;
      int32_t death, tenant;
    };
    Ancestors data(plan_.ops.size());
    for (size_t op = 0; op < plan_.ops.size(); ++op) data.set(static_cast<int32_t>(op), order_.preds[op]);
    std::vector<Slot> slots;
    for (Life& life : lives_) {
      // Strictly after: an op never writes over what it reads.
      const auto fits = [&](const Slot& s) { return s.death < life.birth && s.nbytes >= life.nbytes; };
      auto slot = std::find_if(slots.begin(), slots.end(),
                               [&](const Slot& s) { return fits(s) && all_before(data, s.tenant, life.buffer); });
      if (slot == slots.end()) slot = std::find_if(slots.begin(), slots.end(), fits);
      if (slot == slots.end()) slot = slots.insert(slots.end(), {life.nbytes, 0, -1});
      slot->death = life.death;
      slot->tenant = life.buffer;
      life.page = static_cast<int32_t>(slot - slots.begin());
    }
    page_count_ = static_cast<int32_t>(slots.size());
  }

  // Whether all that touch `earlier` come before each writer of `later` for the sake of data alone.
  bool all_before(const Ancestors& data, int32_t earlier, int32_t later) const {
    const OpGraph::Use& use = order_.uses[earlier];
    for (int32_t writer : order_.uses[later].writers)
      for (const std::vector<int32_t>* ops : {&use.writers, &use.readers})
        for (int32_t op : *ops)
          if (!data.before(op, writer)) return false;
    return true;
  }

  void fit_colors() {
    std::vector<int32_t> by_size(lives_.size());
    std::iota(by_size.begin(), by_size.end(), 0);
    std::stable_sort(by_size.begin(), by_size.end(),
                     [&](int32_t a, int32_t b) { return lives_[a].nbytes > lives_[b].nbytes; });
    std::vector<std::map<int32_t, int32_t>> colors;  // birth -> death of the lives that have the color
    for (int32_t i : by_size) {
      Life& life = lives_[i];
      auto color = std::find_if(colors.begin(), colors.end(), [&](const std::map<int32_t, int32_t>& taken) {
        // The last one born before this one dies must be dead before this one is born.
        auto next = taken.upper_bound(life.death);
        return next == taken.begin() || std::prev(next)->second < life.birth;
      });
      if (color == colors.end()) color = colors.insert(colors.end(), std::map<int32_t, int32_t>{});
      color->emplace(life.birth, life.death);
      life.page = static_cast<int32_t>(color - colors.begin());
    }
    page_count_ = static_cast<int32_t>(colors.size());
  }

  // Every predecessor of each op, data and reuse, reduced. False after it took one buffer off its page because an op
  // would have had to wait for too many others; that can happen once per buffer.
  bool try_order() {
    // The life that had the page before, by buffer.
    std::vector<const Life*> tenant(page_count_, nullptr), previous(plan_.program.buffers.size(), nullptr);
    std::vector<std::vector<Life*>> writes(plan_.ops.size());
    for (Life& life : lives_) {
      previous[life.buffer] = tenant[life.page];
      tenant[life.page] = &life;
      for (int32_t op : order_.uses[life.buffer].writers) writes[op].push_back(&life);
    }
    std::vector<std::vector<int32_t>> preds(plan_.ops.size());
    Ancestors ancestors(plan_.ops.size());
    for (int32_t op = 0; op < static_cast<int32_t>(plan_.ops.size()); ++op) {
      std::vector<int32_t> all = order_.preds[op];
      Life* shared = nullptr;
      for (Life* life : writes[op]) {
        if (!previous[life->buffer]) continue;
        shared = life;
        const OpGraph::Use& use = order_.uses[previous[life->buffer]->buffer];
        all.insert(all.end(), use.writers.begin(), use.writers.end());
        all.insert(all.end(), use.readers.begin(), use.readers.end());
      }
      std::sort(all.begin(), all.end());
      all.erase(std::unique(all.begin(), all.end()), all.end());
      preds[op] = ancestors.reduce(all);
      if (preds[op].size() > AMK_MAX_WAITS) {
        AMK_CHECK(shared, AMK_ERR_INTERNAL, "op %d needs %zu waits, allowed %d", op, preds[op].size(), AMK_MAX_WAITS);
        shared->page = page_count_++;
        return false;
      }
      ancestors.set(op, preds[op]);
    }
    order_.preds = std::move(preds);
    return true;
  }

  void write_pages() {
    Program& p = plan_.program;
    std::vector<int64_t> nbytes(page_count_, 0);
    for (const Life& life : lives_) nbytes[life.page] = std::max(nbytes[life.page], life.nbytes);
    int64_t offset = 0;
    std::vector<int32_t> new_id(page_count_, -1);
    for (int32_t page = 0; page < page_count_; ++page) {
      if (nbytes[page] == 0) continue;  // its only tenant was taken off
      new_id[page] = static_cast<int32_t>(p.pages.size());
      p.pages.push_back({AMK_SPACE_GLOBAL_SCRATCH, offset, nbytes[page]});
      AMK_CHECK(checked_add(offset, nbytes[page], &offset), AMK_ERR_REJECTED,
                "page_allocation: the arena does not fit 64 bits");
    }
    for (const Life& life : lives_) p.bindings[life.buffer].page = new_id[life.page];
  }

  Plan& plan_;
  OpGraph& order_;
  std::vector<Life> lives_;  // by birth
  int32_t page_count_ = 0;
};

}  // namespace

void place(Plan& plan, OpGraph& order, int32_t page_policy) { Placer(plan, order).run(page_policy); }

}  // namespace amk
