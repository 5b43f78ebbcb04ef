// GEMV_TILE over packed weights from the ring, on the tensor cores: the weights are the 8 columns of B, x is a row of
// A. A warp takes every kWarps-th slot of the task, sums those of one row group in registers, and leaves a partial per
// row and group; partials are added in the order of the columns they cover, so the sum depends neither on timing nor on
// which warp a slot fell to. While the inputs are awaited a warp already holds its first slot in registers: that much
// more of the ring is on its way. What a slot holds and how it is multiplied is a parameter: 16-bit weights here,
// quantised ones in gemv_int8.cuh.
#pragma once

#include "gemv_rows.cuh"
#include "mma.cuh"
#include "ops/packing_int8.h"
#include "ring.cuh"

namespace amk {

constexpr int kPanelPartials = 256;  // groups x partials that a task likes to keep before it adds them up

// Row groups of a tile, slots of a row group, and partials of one. x is `vectors` of 16 bytes, and zeros up to
// `padded`. The last slot of a row group has tail_units.
struct StreamShape {
  int vectors, padded, groups, chunks, tail_units, partials;
  int scale_shift;  // units of a quantised slot that share a scale: two to this power
  bool is_pair;
};
__host__ __device__ inline StreamShape stream_shape(const amk_params_t& p, int warps) {
  StreamShape s;
  s.is_pair = p.flags & AMK_FLAG_SILU_PAIR;
  s.vectors = p.K * 2 / kVectorBytes;
  s.groups = p.N_tile / kGroupRows * (s.is_pair ? 2 : 1);
  if (p.qdtype == AMK_DTYPE_I8) {
    s.chunks = int8_slots(p.K);
    s.tail_units = int8_tail_units(p.K);
    s.padded = s.chunks * kInt8SlotElements * 2 / kVectorBytes;
    s.scale_shift = p.group > kInt8UnitElements;
  } else {
    s.chunks = ceil_div_int(s.vectors, kSlotRowVectors);
    s.tail_units = s.vectors / kUnitRowVectors - (s.chunks - 1) * kSlotUnits;
    s.padded = s.vectors;
    s.scale_shift = 0;
  }
  s.partials = s.chunks < warps ? s.chunks : warps;
  return s;
}
// A gate group and its up group stay together.
__host__ __device__ inline int64_t stream_group_bytes(const StreamShape& s) {
  return int64_t{s.partials} * kGroupRows * 4;
}
__host__ inline int64_t stream_shared_bytes(const amk_params_t& p, int threads) {
  const StreamShape s = stream_shape(p, threads / kWarpThreads);
  const int64_t x = int64_t{s.padded} * kVectorBytes;
  const int64_t norm = p.flags & AMK_FLAG_NORM ? int64_t{s.vectors} * kVectorBytes : 0;
  const int liked = kPanelPartials / s.partials, groups = s.groups < liked ? s.groups : liked;
  return x + norm + groups * stream_group_bytes(s);
}

// Slots of 16-bit weights: 16 units of 8 rows x 32 elements.
template <class T>
struct PlainSlots {
  static constexpr int kExponent = 0;  // x is staged times two to this power
  static constexpr bool kIsFragment = true;
  using Held = SlotFragment;

  __device__ static void take(RingReader& ring, Held& f, const StreamShape&, int) { ring.take(f); }

  // What a warp's slots of one row group add up to.
  class Sum {
   public:
    // A vector of x is A as it lies (fragment_order()): the product with a unit's first half stands in row 0, that with
    // its second half in row 8.
    __device__ __forceinline__ void add(const Held& f, const uint4* xs, const StreamShape& s, int chunk) {
      const uint4* x = xs + chunk * kSlotRowVectors + ptx::thread_id() % kUnitRowVectors;
      if (s.tail_units == kSlotUnits || chunk + 1 < s.chunks) {
        add_units<true>(f, x, kSlotUnits);
      } else {
        add_units<false>(f, x, s.tail_units);
      }
    }
    // The rows of the group at `at`: a lane below kUnitRowVectors has 2 * lane and 2 * lane + 1.
    __device__ __forceinline__ void store_rows(float* at) const {
      const int lane = ptx::thread_id() % kWarpThreads;
      const float2 rows = {(first_[0][0] + first_[1][0]) + (second_[0][2] + second_[1][2]),
                           (first_[0][1] + first_[1][1]) + (second_[0][3] + second_[1][3])};
      if (lane < kUnitRowVectors) reinterpret_cast<float2*>(at)[lane] = rows;
    }

   private:
    static constexpr int kAhead = 4;  // units of x that are read before the first is multiplied

    // Four lanes read rows 0 and 8 of A, which are all that counts; the other rows stay zero. A whole warp would take
    // four times as long, although its lanes read the same words.
    // A branch per unit would put the latency of reading x and of its two products behind one another. Behind the end
    // of the rows a slot holds what it held before, so there it must be.
    template <bool kIsWhole>
    __device__ __forceinline__ void add_units(const Held& f, const uint4* x, int units) {
      const bool reads = ptx::thread_id() % kWarpThreads < kUnitRowVectors;
      uint4 v[kAhead]{};
#pragma unroll
      for (int first = 0; first < kSlotUnits; first += kAhead) {
        if constexpr (kIsWhole) {
#pragma unroll
          for (int u = 0; u < kAhead; ++u)
            if (reads) v[u] = x[(first + u) * kUnitRowVectors];
        }
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          if constexpr (!kIsWhole) {
            if (first + u >= units) return;
            if (reads) v[u] = x[(first + u) * kUnitRowVectors];
          }
          const uint4 w = f.v[first + u];
          multiply_add_two<T>(first_[u & 1], v[u].x, v[u].y, v[u].z, v[u].w, w.x, w.y);
          multiply_add_two<T>(second_[u & 1], v[u].x, v[u].y, v[u].z, v[u].w, w.z, w.w);
        }
      }
    }

    float first_[2][4] = {}, second_[2][4] = {};
  };
};

template <class T, int kThreads, class Slots>
class StreamedGemv {
 public:
  __device__ StreamedGemv(const TaskContext& c)
      : c_(c),
        s_(stream_shape(c.params(), kWarps)),
        xs_(reinterpret_cast<uint4*>(c.shared)),
        norm_(c, s_.vectors, xs_ + s_.padded),
        partial_(reinterpret_cast<float*>(norm_.behind(xs_ + s_.padded))),
        panel_groups_(groups_per_panel()),
        group_(0),
        chunk_(c.ring.first_slot()) {
    c.ring.advance(s_.groups * s_.chunks);
    settle();
  }

  __device__ bool run() {
    // Zero where there is none: registers that no path sets would be kept alive through every other op.
    Held held{};
    take_next(held);
    norm_.prefetch();
    // All that can be worked out before the inputs are there, is.
    RowTerms<T> terms(c_, ptx::thread_id());
    const T* x = c_.in<T>(0) + c_.params().m_off;
    if (!c_.template await_inputs<kThreads>()) return false;
    terms.load(c_);
    stage_x<T, kThreads, Slots::kExponent, Slots::kIsFragment>(c_, x, s_.vectors, s_.padded, xs_, norm_.weight,
                                                               norm_.shared);
    for (int panel = 0; panel < s_.groups; panel += panel_groups_) {
      const int end = min(panel + panel_groups_, s_.groups);
      if (panel > 0) block_sync<kThreads>();  // the last panel's partials have been read
      multiply(held, panel, end);
      block_sync<kThreads>();
      store_rows(panel, end, terms);
    }
    return true;
  }

 private:
  static constexpr int kWarps = kThreads / kWarpThreads;
  using Held = typename Slots::Held;

  // The slot that is held, or the first behind the task's: a warp has every kWarps-th.
  __device__ __forceinline__ void settle() {
    for (; chunk_ >= s_.chunks; chunk_ -= s_.chunks) ++group_;
  }
  __device__ __forceinline__ void take_next(Held& held) {
    if (group_ < s_.groups) Slots::take(c_.ring, held, s_, chunk_);
  }

  __device__ int groups_per_panel() const {
    const int64_t room = c_.machine.task_bytes - (reinterpret_cast<char*>(partial_) - c_.shared);
    if (s_.groups * stream_group_bytes(s_) <= room) return s_.groups;  // a division takes as long as a slot
    return max(2, static_cast<int>(room) / static_cast<int>(stream_group_bytes(s_)) / 2 * 2);
  }

  // This warp's slots of row groups [panel, end); the next one is always in registers already.
  __device__ __forceinline__ void multiply(Held& held, int panel, int end) {
    while (group_ < end) {
      const int group = group_, first = chunk_;
      typename Slots::Sum sum;
      do {
        sum.add(held, xs_, s_, chunk_);
        chunk_ += kWarps;
        settle();
        take_next(held);
      } while (group_ == group);
      sum.store_rows(partial_ + ((group - panel) * s_.partials + first) * kGroupRows);
    }
  }

  // at: a row's partial of the first columns.
  __device__ float row_sum(const float* at) const {
    float part[kWarps];
#pragma unroll
    for (int i = 0; i < kWarps; ++i) part[i] = i < s_.partials ? at[i * kGroupRows] : 0.0f;
    float sum = part[0];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) sum += part[i];
    return sum;
  }
  __device__ void store_rows(int panel, int end, const RowTerms<T>& early) const {
    const int pair = s_.is_pair, first = (panel >> pair) * kGroupRows, items = ((end - panel) >> pair) * kGroupRows;
    const int group_partials = s_.partials * kGroupRows;
    for (int i = ptx::thread_id(); i < items; i += kThreads) {
      const int item = first + i;
      RowTerms<T> t = early;
      if (item != static_cast<int>(ptx::thread_id())) {
        t = RowTerms<T>(c_, item);
        t.load(c_);
      }
      const float* at = partial_ + (i / kGroupRows << pair) * group_partials + i % kGroupRows;
      store_row<T>(t, [&](int up) { return row_sum(at + up * group_partials); });
    }
  }

  const TaskContext& c_;
  const StreamShape s_;
  uint4* const xs_;
  const NormWeight<T, kThreads> norm_;
  float* const partial_;
  const int panel_groups_;
  int group_, chunk_;  // of this warp's next slot
};

template <int kThreads>
__device__ bool streamed_gemv(const TaskContext& c) {
  if (c.task.dtype == AMK_DTYPE_F16) return StreamedGemv<__half, kThreads, PlainSlots<__half>>(c).run();
  return StreamedGemv<__nv_bfloat16, kThreads, PlainSlots<__nv_bfloat16>>(c).run();
}

}  // namespace amk
