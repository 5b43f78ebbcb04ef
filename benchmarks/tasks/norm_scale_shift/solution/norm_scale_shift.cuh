// [residual + gate * x,] LayerNorm (Ba et al. 2016, arXiv:1607.06450) or RMS norm (Zhang & Sennrich 2019,
// arXiv:1910.07467), * (1 + scale) + shift, in one kernel: each operand crosses the memory bus once.
// In: NormOperands. Out: y and residual_out. The row is normalised as the f32 sum, before residual_out is rounded.
// A team of one or more whole warps holds a row in registers. All loads of a team's rows are issued before the first
// sum. Statistics in a fixed order: a lane, its warp by butterflies, then warps 0, 1, 2, ...
#pragma once

#include "launch.cuh"
#include "row_sums.cuh"
#include "row_vectors.cuh"

// After the storage types, which its dispatch names.
#include "../operands.h"

namespace amk::task {

enum class Fetch { kEarly, kLate };

// What is chosen by measurement. team: threads of a row; vectors: of x per thread, so a row has up to team * vectors;
// bytes: of a vector of x, 16, or 8 so that a lane's f32 modulation is 16 and its neighbours' follows at once; rows:
// that a team has in flight at once; fetch: whether scale and shift are on their way before the statistics or after
// (fewer registers); resident: blocks per SM that registers are kept free for. Four teams of one warp share a block,
// larger teams have it to themselves.
template <int kTeamOfPlan, int kVectorsOfPlan, int kRowsOfPlan = 1, Fetch kFetchOfPlan = Fetch::kEarly,
          int kResidentOfPlan = 1, Reuse kReuseOfPlan = Reuse::kStream, Order kOrderOfPlan = Order::kPlain,
          int kBytesOfPlan = kVectorBytes, Reuse kStoresOfPlan = kReuseOfPlan>
struct NormPlan {
  static constexpr int kBytes = kBytesOfPlan;
  static constexpr int kResident = kResidentOfPlan;
  static constexpr int kTeam = kTeamOfPlan, kVectors = kVectorsOfPlan, kRows = kRowsOfPlan;
  static constexpr Fetch kFetch = kFetchOfPlan;
  static constexpr Reuse kLoads = kReuseOfPlan, kStores = kStoresOfPlan;
  static constexpr Order kOrder = kOrderOfPlan;
  static constexpr int kTeams = kTeam == kWarpThreads ? 4 : 1, kThreads = kTeam * kTeams;
  static constexpr int kWarpsOfTeam = kTeam / kWarpThreads;
  static_assert(kTeam % kWarpThreads == 0 && kThreads <= 1024);
};

// Where the values of row (batch, row) begin, in elements.
__device__ __forceinline__ int64_t row_offset(const Rows& t, int batch, int row) {
  return batch * t.batch_stride + row * t.row_stride;
}
__device__ __forceinline__ int64_t row_offset(const Modulation& t, int batch, int row) {
  // Most have one frame or a frame per row, and need no division.
  if (t.frame_stride == 0) return batch * t.batch_stride;
  const int frame = t.rows_per_frame == 1 ? row : row / t.rows_per_frame;
  return batch * t.batch_stride + frame * t.frame_stride;
}

// Of some of a row's values. squares: sum of (x - mean)^2; RMS norm: mean is 0.
struct alignas(16) Moments {
  float mean, squares, count, unused;
};

// Of all warps' values, from each warp's own (Chan, Golub & LeVeque 1983, for many parts), in one pass: distances are
// taken from the first mean, which is as near to the others as the row's own spread, and put right at the end.
template <int kWarps>
__device__ __forceinline__ Moments combine(const Moments* parts, float per_column) {
  const float pivot = parts[0].mean;
  float distance = 0, squares = 0;
#pragma unroll 4
  for (int w = 0; w < kWarps; ++w) {
    const Moments part = parts[w];
    const float away = part.mean - pivot, weighted = part.count * away;
    distance += weighted;
    squares += fmaf(weighted, away, part.squares);
  }
  const float mean_distance = distance * per_column;
  return {pivot + mean_distance, fmaxf(fmaf(-distance, mean_distance, squares), 0.0f), 0, 0};
}

// Elements of a warp of the team in a row of `vectors` vectors: vector v * kTeam + thread is thread's v-th.
template <class Plan>
__device__ __forceinline__ float elements_of_warp(int warp, int vectors, int per_vector) {
  int n = 0;
#pragma unroll
  for (int v = 0; v < Plan::kVectors; ++v)
    n += min(max(vectors - v * Plan::kTeam - warp * kWarpThreads, 0), kWarpThreads);
  return static_cast<float>(n * per_vector);
}

template <class A, int kCount>
__device__ __forceinline__ void apply_affine(const NormOperands& o, int column, float (&value)[kCount]) {
  Run<A, kCount> run;
  float factor[kCount], offset[kCount]{};
  run.load(static_cast<const A*>(o.weight) + column);
  run.unpack(factor);
  if (o.bias) {
    run.load(static_cast<const A*>(o.bias) + column);
    run.unpack(offset);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) value[i] = fmaf(value[i], factor[i], offset[i]);
}

// A vector of x, normalised, modulated and rounded.
template <class X, class M, bool kAffine, int kPer>
__device__ __forceinline__ Run<X, kPer> finish(const NormOperands& o, const float* x, Moments m, float reciprocal,
                                               int column, const Run<M, kPer>& scale, const Run<M, kPer>& shift) {
  float value[kPer], factor[kPer], offset[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) value[i] = (x[i] - m.mean) * reciprocal;
  if constexpr (kAffine) {
    if (o.affine_dtype == AMK_DTYPE_F32) {
      apply_affine<float>(o, column, value);
    } else {
      apply_affine<X>(o, column, value);
    }
  }
  scale.unpack(factor);
  shift.unpack(offset);
#pragma unroll
  for (int i = 0; i < kPer; ++i) value[i] = fmaf(value[i], 1.0f + factor[i], offset[i]);
  Run<X, kPer> out;
  out.pack(value);
  return out;
}

template <class X, class M, bool kResidual, bool kAffine, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kResident)
    norm_scale_shift_rows(const NormOperands o, int groups) {
  constexpr int kPer = Plan::kBytes / static_cast<int>(sizeof(X)), kVectors = Plan::kVectors, kRows = Plan::kRows,
                kWarps = Plan::kWarpsOfTeam;
  using Values = Run<M, kPer>;
  __shared__ Moments shared_moments[2][kRows][kWarps];
  await_previous<Plan::kOrder>();
  const int thread = threadIdx.x % Plan::kTeam, team = threadIdx.x / Plan::kTeam, warp = thread / kWarpThreads;
  const int vectors = o.columns / kPer, total = o.batches * o.rows;
  const float count = kWarps > 1 ? elements_of_warp<Plan>(warp, vectors, kPer) : static_cast<float>(o.columns);
  const float per_element = 1.0f / fmaxf(count, 1.0f), per_column = 1.0f / static_cast<float>(o.columns);
  const auto is_mine = [&](int v) { return v * Plan::kTeam + thread < vectors; };
  const auto column = [&](int v) { return (v * Plan::kTeam + thread) * kPer; };
  const auto fetch = [&](const Modulation& t, int batch, int row, int v, Values* out) {
    if (is_mine(v)) out->load(static_cast<const M*>(t.data) + row_offset(t, batch, row) + column(v));
  };
  int half = 0;
  for (int group = blockIdx.x * Plan::kTeams + team; group < groups; group += gridDim.x * Plan::kTeams, half ^= 1) {
    int batch[kRows], row[kRows];
    Run<X, kPer> raw[kRows][kVectors], before[kResidual ? kRows : 1][kVectors];
    Values gate[kResidual ? kRows : 1][kVectors], scale[kVectors]{}, shift[kVectors]{};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int at = min(group * kRows + r, total - 1);  // rows past the end repeat the last one and are not stored
      batch[r] = o.batches > 1 ? at / o.rows : 0;
      row[r] = at - batch[r] * o.rows;
      const X* x = static_cast<const X*>(o.x.data) + row_offset(o.x, batch[r], row[r]);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        raw[r][v] = {};
        if (is_mine(v)) raw[r][v].template load<Plan::kLoads>(x + column(v));
      }
      if constexpr (kResidual) {
        const X* residual = static_cast<const X*>(o.residual.data) + row_offset(o.residual, batch[r], row[r]);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          before[r][v] = {};
          if (is_mine(v)) before[r][v].template load<Plan::kLoads>(residual + column(v));
          gate[r][v] = {};
          if (o.has_gate) fetch(o.gate, batch[r], row[r], v, &gate[r][v]);
        }
      }
    }
    if constexpr (Plan::kFetch == Fetch::kEarly) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        fetch(o.scale, batch[0], row[0], v, &scale[v]);
        fetch(o.shift, batch[0], row[0], v, &shift[v]);
      }
    }

    float x[kRows][kVectors * kPer];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      X* out = static_cast<X*>(o.residual_out.data) + row_offset(o.residual_out, batch[r], row[r]);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        float part[kPer];
        raw[r][v].unpack(part);
        if constexpr (kResidual) {
          float sum[kPer], factor[kPer];
          before[r][v].unpack(sum);
          gate[r][v].unpack(factor);
#pragma unroll
          for (int i = 0; i < kPer; ++i) part[i] = o.has_gate ? fmaf(factor[i], part[i], sum[i]) : sum[i] + part[i];
          raw[r][v].pack(part);
          if (is_mine(v) && group * kRows + r < total) raw[r][v].template store<Plan::kStores>(out + column(v));
        }
#pragma unroll
        for (int i = 0; i < kPer; ++i) x[r][v * kPer + i] = part[i];
      }
    }

    // Vectors that are not the thread's are zero: they add nothing to sums, and are left out of squared distances.
    Moments moments[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float mean = 0, squares = 0;
      if (!o.is_rms) {
#pragma unroll
        for (int i = 0; i < kVectors * kPer; ++i) mean += x[r][i];
        mean = warp_sum(mean) * per_element;
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (!is_mine(v)) continue;
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
          const float away = x[r][v * kPer + i] - mean;
          squares = fmaf(away, away, squares);
        }
      }
      moments[r] = {mean, warp_sum(squares), count, 0};
    }
    if constexpr (kWarps > 1) {
      // A half is written again only after the barrier of the other one, and so after all its readers.
      if (thread % kWarpThreads == 0) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) shared_moments[half][r][warp] = moments[r];
      }
      __syncthreads();
#pragma unroll
      for (int r = 0; r < kRows; ++r) moments[r] = combine<kWarps>(shared_moments[half][r], per_column);
    }

#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float reciprocal = rsqrtf(moments[r].squares * per_column + o.eps);
      const int64_t scale_at = row_offset(o.scale, batch[r], row[r]), shift_at = row_offset(o.shift, batch[r], row[r]);
      const bool is_fetched = r > 0 ? scale_at == row_offset(o.scale, batch[r - 1], row[r - 1]) &&
                                          shift_at == row_offset(o.shift, batch[r - 1], row[r - 1])
                                    : Plan::kFetch == Fetch::kEarly;
      if (!is_fetched) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          fetch(o.scale, batch[r], row[r], v, &scale[v]);
          fetch(o.shift, batch[r], row[r], v, &shift[v]);
        }
      }
      if (group * kRows + r >= total) break;
      X* y = static_cast<X*>(o.y.data) + row_offset(o.y, batch[r], row[r]);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (!is_mine(v)) continue;
        finish<X, M, kAffine, kPer>(o, x[r] + v * kPer, moments[r], reciprocal, column(v), scale[v], shift[v])
            .template store<Plan::kStores>(y + column(v));
      }
    }
  }
}

// grid: most blocks of the launch, or 0: as many as there are rows for.
template <class X, class M, bool kResidual, bool kAffine, class Plan>
int32_t launch_rows(const NormOperands& o, int grid, void* stream) {
  const int groups = ceil_div_int(o.batches * o.rows, Plan::kRows), all = ceil_div_int(groups, Plan::kTeams);
  const int blocks = grid > 0 && grid < all ? grid : all;
  return launch(Plan::kOrder, norm_scale_shift_rows<X, M, kResidual, kAffine, Plan>, blocks, Plan::kThreads, stream, o,
                groups);
}

// Any strides, element by element: a block takes a row and reads it three times. Correct, not fast.
constexpr int kElementThreads = 256;
template <class X, class M>
__global__ void __launch_bounds__(kElementThreads) norm_scale_shift_elements(const NormOperands o) {
  __shared__ float scratch[2][kElementThreads / kWarpThreads];
  const int batch = blockIdx.x / o.rows, row = blockIdx.x - batch * o.rows;
  const float columns = static_cast<float>(o.columns);
  const auto at = [&](const Rows& t, int i) {
    return static_cast<X*>(t.data) + row_offset(t, batch, row) + i * t.stride;
  };
  const auto modulation = [&](const Modulation& t, int i) {
    return to_f32(static_cast<const M*>(t.data)[row_offset(t, batch, row) + i * t.stride]);
  };
  const auto affine = [&](const void* p, int64_t stride, int i) {
    return o.affine_dtype == AMK_DTYPE_F32 ? static_cast<const float*>(p)[i * stride]
                                           : to_f32(static_cast<const X*>(p)[i * stride]);
  };
  const auto value = [&](int i) {
    const float x = to_f32(*at(o.x, i));
    if (!o.has_residual) return x;
    return fmaf(o.has_gate ? modulation(o.gate, i) : 1.0f, x, to_f32(*at(o.residual, i)));
  };
  float mean = 0, squares = 0;
  if (!o.is_rms) {
#pragma unroll 1
    for (int i = threadIdx.x; i < o.columns; i += kElementThreads) mean += value(i);
    mean = block_sum<kElementThreads>(mean, scratch[0]) / columns;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < o.columns; i += kElementThreads) {
    const float away = value(i) - mean;
    squares = fmaf(away, away, squares);
  }
  const float reciprocal = rsqrtf(block_sum<kElementThreads>(squares, scratch[1]) / columns + o.eps);
#pragma unroll 1
  for (int i = threadIdx.x; i < o.columns; i += kElementThreads) {
    const float x = value(i);
    if (o.has_residual) *at(o.residual_out, i) = from_f32<X>(x);
    float y = (x - mean) * reciprocal;
    if (o.weight) y = fmaf(y, affine(o.weight, o.weight_stride, i), o.bias ? affine(o.bias, o.bias_stride, i) : 0.0f);
    *at(o.y, i) = from_f32<X>(fmaf(y, 1.0f + modulation(o.scale, i), modulation(o.shift, i)));
  }
}

template <class X, class M>
int32_t launch_elements(const NormOperands& o, void* stream) {
  return launch(Order::kPlain, norm_scale_shift_elements<X, M>, int64_t{o.batches} * o.rows, kElementThreads, stream,
                o);
}

}  // namespace amk::task
