// The order of slots of a tile of several tokens: every slot once, and in each panel a stream that keeps its columns.
#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "check.h"
#include "ops/batch_slots.h"

using namespace amk;

namespace {

// The slots as the kernel goes through them: panels of row groups, panels of chunks, streams.
struct Walk {
  std::set<std::pair<int, int>> seen;  // group, chunk
  bool is_right = true;
  int panels = 0;
};

Walk walk(const BatchPlan& plan) {
  Walk w;
  struct Slot {
    int group, chunk;
  };
  std::vector<Slot> order;
  for_each_batch_copy(plan, [&](int group, int groups, int chunk, int chunks) {
    for (int g = group; g < group + groups; ++g)
      for (int c = chunk; c < chunk + chunks; ++c) order.push_back({g, c});
  });
  size_t next = 0;
  for (int group = 0; group < plan.groups; group += plan.panel_groups()) {
    const int groups = std::min(plan.panel_groups(), plan.groups - group);
    w.is_right &= groups * plan.group_sums() <= kBatchSums;
    for (int chunk = 0, n; chunk < plan.chunks; chunk += n, ++w.panels) {
      n = plan.panel_chunks(chunk);
      w.is_right &= n >= 1 && n <= plan.panel_chunks(0) && plan.streams() % n == 0;
      for (int k = 0; k < groups * n; ++k, ++next) {
        const int mine = k % plan.streams() % n;  // of the stream that the slot belongs to
        w.is_right &= next < order.size() && order[next].group == group + k / n && order[next].chunk == chunk + mine;
        w.is_right &= w.seen.insert({group + k / n, chunk + mine}).second;
      }
    }
  }
  w.is_right &= next == order.size();
  return w;
}

}  // namespace

TEST(every_slot_comes_once_and_a_stream_keeps_its_columns) {
  for (int readers : {1, 2}) {
    for (int chunks = 1; chunks <= 40; ++chunks) {
      for (int groups : {1, 2, 3, 5, 6, 7, 24, 49, 121}) {
        const BatchPlan plan{chunks, groups, readers};
        const Walk w = walk(plan);
        CHECK(w.is_right);
        CHECK(w.seen.size() == static_cast<size_t>(chunks) * static_cast<size_t>(groups));
        CHECK(plan.panel_groups() % 2 == 0);  // a gate group and its up group are in one panel
      }
    }
  }
}

TEST(panels_are_the_largest_powers_of_two) {
  const BatchPlan plan{28, 4, 1};
  CHECK(plan.streams() == 8 && plan.panel_chunks(0) == 8 && plan.panel_chunks(16) == 8 && plan.panel_chunks(24) == 4);
  CHECK(walk(plan).panels == 4);
  CHECK((BatchPlan{8, 121, 1}.is_one_panel_of_chunks()));
  CHECK((!BatchPlan{8, 121, 2}.is_one_panel_of_chunks()));  // two warps to a slot leave four streams
  CHECK((BatchPlan{7, 1, 1}.panel_chunks(0)) == 4);
  CHECK((walk(BatchPlan{7, 1, 1}).panels == 3));
}
