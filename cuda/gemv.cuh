// GEMV_TILE: N_tile rows of a weight matrix times x, with the fusions its flags name.
// The tile is cut into batches of kBatchRows rows x kBatchVectors vectors, in row-group-major order, and each warp
// takes an equal run of them; where a run ends inside a row group, its sum is a partial, and partials are added in warp
// order. So few long rows and many short ones keep all warps busy, and the sum does not depend on timing. Weights are
// immutable: the first kDepth batches of each warp are on their way before the inputs are awaited. x is staged once in
// shared memory, normalised where flagged, in T.
#pragma once

#include "gemv_int8.cuh"
#include "gemv_rows.cuh"
#include "gemv_stream.cuh"

namespace amk {

// Batches a warp has in flight: 64 KB per SM, as many bytes as the memory needs to stay busy (Little's law asks for
// 40). More registers of them (3 of 256 threads) measured the same on an H200 and leave the compiler none for the rest.
__host__ __device__ constexpr int gemv_depth(int threads) { return threads > 256 ? 1 : 2; }

constexpr int kBatchRows = 2, kChunks = 4;
constexpr int kBatchVectors = kChunks * kWarpThreads;  // per row
constexpr int kPanelGroups = 1024;                     // row groups between two rounds of partials

struct Fragment {
  uint4 v[kBatchRows][kChunks];
};

// Row groups of a tile: rows (2g, 2g + 1), or with SILU_PAIR the gate and the up row g.
struct GemvShape {
  int vectors, steps, groups;
  bool is_pair;
};
template <class Params>
__host__ __device__ inline GemvShape gemv_shape(const Params& p, int element_bytes) {
  GemvShape s;
  s.is_pair = p.flags & AMK_FLAG_SILU_PAIR;
  s.vectors = static_cast<int>(int64_t{p.K} * element_bytes / kVectorBytes);
  s.steps = ceil_div_int(s.vectors, kBatchVectors);
  s.groups = s.is_pair ? p.N_tile : ceil_div_int(p.N_tile, kBatchRows);
  return s;
}

// Shared memory: x (padded with zeros to whole steps), the norm weight, the partials.
__host__ __device__ inline int64_t gemv_x_bytes(const GemvShape& s) {
  return int64_t{s.steps} * kBatchVectors * kVectorBytes;
}
__host__ inline int64_t gemv_shared_bytes(const amk_params_t& p, int element_bytes, int threads) {
  const GemvShape s = gemv_shape(p, element_bytes);
  const int64_t norm = p.flags & AMK_FLAG_NORM ? int64_t{s.vectors} * kVectorBytes : 0;
  const int groups = s.groups < kPanelGroups ? s.groups : kPanelGroups;
  return gemv_x_bytes(s) + norm + int64_t{groups + threads / kWarpThreads} * kBatchRows * 4;
}

// The one place that knows where weights lie: hands a warp its batches in order. Another layout is another reader.
class WeightReader {
 public:
  // From batch `first` of the panel that starts at row group `panel`.
  template <class T>
  __device__ WeightReader(const T* weight, const amk_params_t& p, const GemvShape& s, int panel, int first)
      : vectors_(s.vectors), steps_(s.steps), step_(first % s.steps), group_(panel + first / s.steps) {
    const int64_t row_bytes = int64_t{s.vectors} * kVectorBytes;
    const char* base = reinterpret_cast<const char*>(weight) + p.n_off * row_bytes;
    group_bytes_ = s.is_pair ? row_bytes : kBatchRows * row_bytes;
    row0_ = base + group_ * group_bytes_;
    second_ = s.is_pair ? p.N * row_bytes : row_bytes;
    // The last group of an odd tile has one row: its second row repeats the first and is dropped later.
    lone_group_ = !s.is_pair && p.N_tile % kBatchRows ? s.groups - 1 : -1;
  }

  // Lanes behind the end of a row read its last vector again; x is zero there.
  __device__ __forceinline__ void load(Fragment& f) {
    const int first = step_ * kBatchVectors + ptx::thread_id() % kWarpThreads;
    const uint4* row0 = reinterpret_cast<const uint4*>(row0_);
    const uint4* row1 = reinterpret_cast<const uint4*>(group_ == lone_group_ ? row0_ : row0_ + second_);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) f.v[0][c] = ptx::load_weight(row0 + min(first + c * kWarpThreads, vectors_ - 1));
#pragma unroll
    for (int c = 0; c < kChunks; ++c) f.v[1][c] = ptx::load_weight(row1 + min(first + c * kWarpThreads, vectors_ - 1));
    if (++step_ == steps_) {
      step_ = 0;
      ++group_;
      row0_ += group_bytes_;
    }
  }

 private:
  const char* row0_;
  int64_t second_, group_bytes_;
  int vectors_, steps_, step_, group_, lone_group_;
};

// acc[r][parity] += one batch times its part of x.
template <class T>
__device__ __forceinline__ void accumulate(const Fragment& f, const uint4* x, float (&acc)[kBatchRows][2]) {
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    float xs[kPerVector<T>], ws[kPerVector<T>];
    unpack<T>(x[c * kWarpThreads], xs);
#pragma unroll
    for (int r = 0; r < kBatchRows; ++r) {
      unpack<T>(f.v[r][c], ws);
#pragma unroll
      for (int e = 0; e < kPerVector<T>; ++e) acc[r][e & 1] = fmaf(ws[e], xs[e], acc[r][e & 1]);
    }
  }
}

// Both rows at once: the half-warps swap, then each adds up its own. Lane 0 ends with row 0, lane 16 with row 1.
__device__ __forceinline__ float reduce_rows(const float (&acc)[kBatchRows][2]) {
  static_assert(kBatchRows == 2);
  const float a = acc[0][0] + acc[0][1], b = acc[1][0] + acc[1][1];
  const bool upper = ptx::thread_id() & kWarpThreads / 2;
  float v = (upper ? b : a) + __shfl_xor_sync(kWholeWarp, upper ? a : b, kWarpThreads / 2);
#pragma unroll
  for (int mask = kWarpThreads / 4; mask > 0; mask /= 2) v += __shfl_xor_sync(kWholeWarp, v, mask);
  return v;
}

template <class T, int kThreads>
class GemvTile {
 public:
  __device__ GemvTile(const TaskContext& c)
      : c_(c),
        p_(c.params()),
        s_(gemv_shape(c.params(), sizeof(T))),
        weight_(c.in<T>(1)),
        xs_(reinterpret_cast<uint4*>(c.shared)),
        norm_(c, s_.vectors, xs_ + s_.steps * kBatchVectors),
        partial_(reinterpret_cast<float*>(norm_.behind(xs_ + s_.steps * kBatchVectors))) {}

  __device__ bool run() {
    RowTerms<T> terms(c_, ptx::thread_id());
    for (int panel = 0; panel < s_.groups; panel += kPanelGroups) {
      const int groups = min(kPanelGroups, s_.groups - panel), batches = groups * s_.steps;
      const int first = batches * warp() / kWarps, end = batches * (warp() + 1) / kWarps;
      WeightReader reader(weight_, p_, s_, panel, first);
      // Zero where there is none: registers that no path sets would be kept alive through every other op.
      Fragment ring[kDepth]{};
#pragma unroll
      for (int d = 0; d < kDepth; ++d)
        if (first + d < end) reader.load(ring[d]);
      if (panel == 0) {
        norm_.prefetch();
        if (!c_.template await_inputs<kThreads>()) return false;
        terms.load(c_);
        stage_x<T, kThreads>(c_, c_.in<T>(0) + p_.m_off, s_.vectors, s_.steps * kBatchVectors, xs_, norm_.weight,
                             norm_.shared);
      } else {
        block_sync<kThreads>();  // the last panel's partials have been read
      }
      multiply(reader, ring, first, end);
      block_sync<kThreads>();
      store_rows(panel, groups, batches, terms);
    }
    return true;
  }

 private:
  static constexpr int kWarps = kThreads / kWarpThreads, kDepth = gemv_depth(kThreads);

  __device__ static int warp() { return ptx::thread_id() / kWarpThreads; }

  __device__ __forceinline__ void multiply(WeightReader& reader, Fragment (&ring)[kDepth], int first, int end) {
    const int lane = ptx::thread_id() % kWarpThreads;
    float acc[kBatchRows][2] = {};
    int step = first % s_.steps, slot = first / s_.steps + warp();
    for (int batch = first; batch < end; batch += kDepth) {
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        if (batch + d >= end) break;
        accumulate<T>(ring[d], xs_ + step * kBatchVectors + lane, acc);
        if (batch + d + kDepth < end) reader.load(ring[d]);
        if (++step < s_.steps && batch + d + 1 < end) continue;
        const float sum = reduce_rows(acc);
        if (lane % (kWarpThreads / 2) == 0) partial_[slot * kBatchRows + lane / (kWarpThreads / 2)] = sum;
#pragma unroll
        for (int r = 0; r < kBatchRows; ++r) acc[r][0] = acc[r][1] = 0;
        step = 0;
        ++slot;
      }
    }
  }

  // Warp w's partial of row group g of the panel is slot g + w: a warp that begins inside a group leaves the slot
  // before to the warp that ended there. The batch's warp is the inverse of first = batches * w / kWarps.
  __device__ float row_sum(int group, int row, int batches) const {
    const auto owner = [&](int batch) {
      return static_cast<int>((static_cast<uint32_t>(batch + 1) * kWarps - 1) / static_cast<uint32_t>(batches));
    };
    const int first = owner(group * s_.steps), last = owner(group * s_.steps + s_.steps - 1);
    float sum = partial_[(group + first) * kBatchRows + row];
    for (int w = first + 1; w <= last; ++w)  // with fewer batches than warps, some have none and left no partial
      if (batches * w / kWarps != batches * (w + 1) / kWarps) sum += partial_[(group + w) * kBatchRows + row];
    return sum;
  }

  __device__ void store_rows(int panel, int groups, int batches, const RowTerms<T>& early) const {
    const int first_item = s_.is_pair ? panel : panel * kBatchRows;
    const int items = min(s_.is_pair ? groups : groups * kBatchRows, p_.N_tile - first_item);
    for (int i = ptx::thread_id(); i < items; i += kThreads) {
      const int item = first_item + i;
      RowTerms<T> t = early;
      if (item != static_cast<int>(ptx::thread_id())) {
        t = RowTerms<T>(c_, item);
        t.load(c_);
      }
      store_row<T>(t, [&](int up) {
        return s_.is_pair ? row_sum(i, up, batches) : row_sum(i / kBatchRows, i % kBatchRows, batches);
      });
    }
  }

  const TaskContext& c_;
  const amk_params_t& p_;
  const GemvShape s_;
  const T* weight_;
  uint4* const xs_;
  const NormWeight<T, kThreads> norm_;
  float* const partial_;
};

template <int kThreads>
__device__ bool gemv(const TaskContext& c) {
  if (c.params().qdtype != 0) return streamed_int8_gemv<kThreads>(c);
  if (c.task.packing != static_cast<int32_t>(Packing::kPlain)) return streamed_gemv<kThreads>(c);
  return with_dtype(c.task.dtype,
                    [&](auto type) { return GemvTile<typename decltype(type)::type, kThreads>(c).run(); });
}

}  // namespace amk
