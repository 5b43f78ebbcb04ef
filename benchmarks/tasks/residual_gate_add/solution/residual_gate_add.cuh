// y = residual + gate * x in f32, rounded once: the kernels, each operand crossing the memory bus once.
// In: a Problem. Out: y. Three paths: 16-byte vectors over operands that are contiguous as a whole, by a plan; 16-byte
// vectors over rows at strides; and single elements.
#pragma once

#include <algorithm>

#include "launch.cuh"
#include "row_vectors.cuh"

// After the storage types, which its dispatch names.
#include "../problem.cuh"

namespace residual_gate_add {

using amk::task::Order;
using amk::task::Reuse;

// What is chosen by measurement. threads: of a block; vectors: of 16 bytes per thread, all of whose loads are under way
// before its first store; loads, stores: whether residual, x, y and a gate as large as they are carry streaming hints.
template <int kThreadsOfPlan, int kVectorsOfPlan = 1, Reuse kLoadsOfPlan = Reuse::kKeep,
          Reuse kStoresOfPlan = Reuse::kKeep, Order kOrderOfPlan = Order::kPlain>
struct GatePlan {
  static constexpr int kThreads = kThreadsOfPlan, kVectors = kVectorsOfPlan;
  static constexpr Reuse kLoads = kLoadsOfPlan, kStores = kStoresOfPlan;
  static constexpr Order kOrder = kOrderOfPlan;
};

enum class Gate { kWhole, kRow, kStrided };  // as large as x; one row for all; anything else

template <class T>
constexpr int kPer = amk::kPerVector<T>;

// kPer<T> gate values from p on, which is a multiple of 16 bytes.
template <class T, class G, Reuse kReuse>
__device__ __forceinline__ void read_gate(const G* p, float (&out)[kPer<T>]) {
  amk::task::Run<G, kPer<T>> run;
  run.template load<kReuse>(p);
  run.unpack(out);
}

template <class T>
__device__ __forceinline__ uint4 combine(uint4 residual, uint4 x, const float (&gate)[kPer<T>]) {
  float r[kPer<T>], v[kPer<T>];
  amk::unpack<T>(residual, r);
  amk::unpack<T>(x, v);
#pragma unroll
  for (int k = 0; k < kPer<T>; ++k) r[k] = fmaf(gate[k], v[k], r[k]);
  return amk::pack<T>(r);
}

// A block for each piece of kVectors vectors per thread.
template <class T, class G, Gate kGate, class Plan>
__global__ void __launch_bounds__(Plan::kThreads) contiguous(const Problem p, uint32_t count, uint32_t row_vectors) {
  constexpr int kVectors = Plan::kVectors;
  const uint32_t first = blockIdx.x * (Plan::kThreads * kVectors) + threadIdx.x;
  const auto* const residual = static_cast<const uint4*>(p.residual);
  const auto* const x = static_cast<const uint4*>(p.x);
  const auto* const gate = static_cast<const G*>(p.gate);
  amk::task::await_previous<Plan::kOrder>();
  uint4 r[kVectors], v[kVectors];
  float g[kVectors][kPer<T>];
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const uint32_t i = first + j * Plan::kThreads;
    if (i >= count) continue;
    r[j] = amk::task::load16<Plan::kLoads>(residual + i);
    v[j] = amk::task::load16<Plan::kLoads>(x + i);
  }
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const uint32_t i = first + j * Plan::kThreads;
    if (i >= count) continue;
    if constexpr (kGate == Gate::kWhole) {
      read_gate<T, G, Plan::kLoads>(gate + size_t{i} * kPer<T>, g[j]);
    } else {
      read_gate<T, G, Reuse::kKeep>(gate + i % row_vectors * kPer<T>, g[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const uint32_t i = first + j * Plan::kThreads;
    if (i < count) amk::task::store16<Plan::kStores>(static_cast<uint4*>(p.y) + i, combine<T>(r[j], v[j], g[j]));
  }
}

template <class T, class G, Gate kGate, class Plan>
int32_t launch_contiguous(const Problem& p, void* stream) {
  constexpr uint32_t kPiece = Plan::kThreads * Plan::kVectors;
  const auto row_vectors = static_cast<uint32_t>(p.width / kPer<T>);
  const auto count = static_cast<uint32_t>(p.batch * p.rows) * row_vectors;
  return amk::task::launch(Plan::kOrder, contiguous<T, G, kGate, Plan>, (count + kPiece - 1) / kPiece, Plan::kThreads,
                           stream, p, count, row_vectors);
}

constexpr int kThreads = 256;  // of the paths below
constexpr int64_t kMaxBlocks = 1 << 30;
inline int64_t blocks_for(int64_t rows, int64_t row_blocks) { return std::min(rows * row_blocks, kMaxBlocks); }

// Rows at any stride that is a multiple of a vector; the gate may be one value for the whole row.
template <class T, class G>
__global__ void __launch_bounds__(kThreads) strided(const Problem p, int64_t row_vectors) {
  const int64_t row_blocks = (row_vectors + kThreads - 1) / kThreads;
  for (int64_t i = blockIdx.x; i < p.batch * p.rows * row_blocks; i += gridDim.x) {
    const int64_t row = i / row_blocks, c = (i - row * row_blocks) * kThreads + threadIdx.x;
    const int64_t b = row / p.rows, s = row - b * p.rows, d = c * kPer<T>;
    if (c >= row_vectors) continue;
    const auto at = [&](const void* base, const int64_t (&step)[3]) {
      return reinterpret_cast<const uint4*>(static_cast<const T*>(base) + b * step[0] + s * step[1] + d);
    };
    const uint4 r = amk::task::load16<Reuse::kStream>(at(p.residual, p.residual_step));
    const uint4 v = amk::task::load16<Reuse::kStream>(at(p.x, p.x_step));
    const G* const gate = static_cast<const G*>(p.gate) + b * p.gate_step[0] + s / p.frame_rows * p.gate_step[1];
    float g[kPer<T>];
    if (p.gate_step[2]) {
      read_gate<T, G, Reuse::kKeep>(gate + d, g);
    } else {
      const float one = amk::to_f32(*gate);
#pragma unroll
      for (int k = 0; k < kPer<T>; ++k) g[k] = one;
    }
    amk::task::store16<Reuse::kStream>(const_cast<uint4*>(at(p.y, p.y_step)), combine<T>(r, v, g));
  }
}

template <class T, class G>
int32_t launch_strided(const Problem& p, void* stream) {
  const int64_t row_vectors = p.width / kPer<T>;
  const int64_t blocks = blocks_for(p.batch * p.rows, (row_vectors + kThreads - 1) / kThreads);
  return amk::task::launch(Order::kPlain, strided<T, G>, blocks, kThreads, stream, p, row_vectors);
}

// Any layout, one element at a time.
template <class T, class G>
__global__ void __launch_bounds__(kThreads) single(const Problem p) {
  const int64_t row_blocks = (p.width + kThreads - 1) / kThreads;
  for (int64_t i = blockIdx.x; i < p.batch * p.rows * row_blocks; i += gridDim.x) {
    const int64_t row = i / row_blocks, d = (i - row * row_blocks) * kThreads + threadIdx.x;
    const int64_t b = row / p.rows, s = row - b * p.rows;
    if (d >= p.width) continue;
    const auto at = [&](const void* base, const int64_t (&step)[3]) {
      return static_cast<const T*>(base) + b * step[0] + s * step[1] + d * step[2];
    };
    const G* const gate = static_cast<const G*>(p.gate) + b * p.gate_step[0] + s / p.frame_rows * p.gate_step[1];
    const float y = fmaf(amk::to_f32(gate[d * p.gate_step[2]]), amk::to_f32(*at(p.x, p.x_step)),
                         amk::to_f32(*at(p.residual, p.residual_step)));
    amk::store(const_cast<T*>(at(p.y, p.y_step)), y);
  }
}

template <class T, class G>
int32_t launch_single(const Problem& p, void* stream) {
  const int64_t blocks = blocks_for(p.batch * p.rows, (p.width + kThreads - 1) / kThreads);
  return amk::task::launch(Order::kPlain, single<T, G>, blocks, kThreads, stream, p);
}

}  // namespace residual_gate_add
