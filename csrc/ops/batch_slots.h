// The order in which a matrix-vector tile of several tokens takes its slots of the ring (ops/ring.h). A warp keeps the
// x of all tokens for one slot's columns in registers, so columns are taken in panels that give each warp the same
// columns in every row group, and row groups in panels whose sums a block can keep:
//   for each panel of row groups, for each panel of chunks, for each of its row groups, for each of its chunks: a slot.
// A chunk is a slot's worth of columns. A panel of chunks is a power of two of them, the largest first; slot k of a
// panel belongs to stream k % streams, so its chunk is k % chunks whatever the row group.
// In: a tile's chunks and row groups. Out: what the producer copies in which order, and which sums are kept where.
#pragma once

#include "ops/ring.h"

namespace amk {

constexpr int kBatchWarps = 8;  // that run tasks; a warp's sums of a slot are 16 tokens x 8 rows
constexpr int kBatchSumBytes = AMK_MAX_BATCH * kGroupRows * 4;
constexpr int kBatchSums = 48;  // that a block keeps: 24 KB

// `readers` warps share a slot: the x of a quantised slot, which has twice the columns, does not fit one.
struct BatchPlan {
  int chunks, groups, readers;

  AMK_HOST_DEVICE constexpr int streams() const { return kBatchWarps / readers; }
  // Chunks of the panel that begins at chunk `first`; the one at 0 is the largest.
  AMK_HOST_DEVICE constexpr int panel_chunks(int first) const {
    int n = streams();
    while (n > chunks - first) n /= 2;
    return n;
  }
  // Sums of one row group, and the row groups of a panel: an even number, as a gate group stays with its up group.
  AMK_HOST_DEVICE constexpr int group_sums() const { return panel_chunks(0) * readers; }
  AMK_HOST_DEVICE constexpr int panel_groups() const { return kBatchSums / group_sums(); }
  AMK_HOST_DEVICE constexpr bool is_one_panel_of_chunks() const { return panel_chunks(0) == chunks; }
};
static_assert(kBatchSums / kBatchWarps % 2 == 0);

// Calls copy(group, row_groups, chunk, chunks) in the order of the slots: these chunks of each of these row groups.
template <class Copy>
void for_each_batch_copy(const BatchPlan& plan, Copy copy) {
  if (plan.is_one_panel_of_chunks()) return copy(0, plan.groups, 0, plan.chunks);
  for (int group = 0; group < plan.groups; group += plan.panel_groups()) {
    const int end = group + plan.panel_groups() < plan.groups ? group + plan.panel_groups() : plan.groups;
    for (int chunk = 0; chunk < plan.chunks; chunk += plan.panel_chunks(chunk))
      for (int g = group; g < end; ++g) copy(g, 1, chunk, plan.panel_chunks(chunk));
  }
}

}  // namespace amk
