// One pass: y = residual + gate * x in f32, rounded once, at the speed of a copy.
// In: operands as problem.cuh reads them. Out: y. Three paths, chosen by layout (docs/dispatch.md): 16-byte vectors
// over operands that are contiguous as a whole, 16-byte vectors over rows at strides, and single elements.
#include <algorithm>

#include "../problem.cuh"
#include "launch.cuh"
#include "tile_io.cuh"

namespace residual_gate_add {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 30;
constexpr int kWavesOfBlocks = 8;  // blocks per SM below which a thread takes fewer vectors

enum class Gate { kWhole, kRow, kStrided };  // as large as x; one row for all; anything else

template <class T>
constexpr int kPer = amk::kPerVector<T>;

__device__ __forceinline__ uint4 read_once(const uint4* p) { return __ldcs(p); }

// kPer<T> gate values from p on, which is a multiple of 16 bytes.
template <class T, class G, bool kOnce>
__device__ __forceinline__ void read_gate(const G* p, float (&out)[kPer<T>]) {
  constexpr int kVectors = kPer<T> / kPer<G>;
  static_assert(kVectors >= 1);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const uint4* const at = reinterpret_cast<const uint4*>(p) + i;
    float part[kPer<G>];
    amk::unpack<G>(kOnce ? read_once(at) : __ldca(at), part);
#pragma unroll
    for (int k = 0; k < kPer<G>; ++k) out[i * kPer<G> + k] = part[k];
  }
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

// A block for each piece of kAhead vectors per thread; all loads of a thread are under way before the first store.
template <class T, class G, Gate kGate, int kAhead>
__global__ void __launch_bounds__(kThreads) contiguous(const Problem p, uint32_t count, uint32_t row_vectors) {
  const uint32_t first = blockIdx.x * (kThreads * kAhead) + threadIdx.x;
  const auto* const residual = static_cast<const uint4*>(p.residual);
  const auto* const x = static_cast<const uint4*>(p.x);
  const auto* const gate = static_cast<const G*>(p.gate);
  uint4 r[kAhead], v[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const uint32_t i = first + j * kThreads;
    if (i < count) {
      r[j] = read_once(residual + i);
      v[j] = read_once(x + i);
    }
  }
  float g[kAhead][kPer<T>];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const uint32_t i = first + j * kThreads;
    if (i >= count) continue;
    if constexpr (kGate == Gate::kWhole) {
      read_gate<T, G, true>(gate + size_t{i} * kPer<T>, g[j]);
    } else {
      read_gate<T, G, false>(gate + i % row_vectors * kPer<T>, g[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const uint32_t i = first + j * kThreads;
    if (i < count) __stcs(static_cast<uint4*>(p.y) + i, combine<T>(r[j], v[j], g[j]));
  }
}

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
    const uint4 r = read_once(at(p.residual, p.residual_step)), v = read_once(at(p.x, p.x_step));
    const G* const gate = static_cast<const G*>(p.gate) + b * p.gate_step[0] + s / p.frame_rows * p.gate_step[1];
    float g[kPer<T>];
    if (p.gate_step[2]) {
      read_gate<T, G, false>(gate + d, g);
    } else {
      const float one = amk::to_f32(*gate);
#pragma unroll
      for (int k = 0; k < kPer<T>; ++k) g[k] = one;
    }
    __stcs(const_cast<uint4*>(at(p.y, p.y_step)), combine<T>(r, v, g));
  }
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

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % AMK_VECTOR_BYTES == 0; }

// Whether rows can be taken as vectors of `per` elements.
bool has_vector_rows(const Problem& p, const void* base, const int64_t (&step)[3], int per) {
  return is_aligned(base) && (step[2] == 1 || p.width == 1) && (p.rows == 1 || step[1] % per == 0) &&
         (p.batch == 1 || step[0] % per == 0);
}

bool is_contiguous(const Problem& p, const int64_t (&step)[3]) {
  return (p.width == 1 || step[2] == 1) && (p.rows == 1 || step[1] == p.width) &&
         (p.batch == 1 || step[0] == p.rows * p.width);
}

Gate kind_of_gate(const Problem& p) {
  if (!is_aligned(p.gate)) return Gate::kStrided;
  if (p.frame_rows == 1 && is_contiguous(p, p.gate_step)) return Gate::kWhole;
  const bool same_row = (p.gate_step[0] == 0 || p.batch == 1) && (p.gate_step[1] == 0 || p.rows == p.frame_rows);
  return same_row && p.gate_step[2] == 1 ? Gate::kRow : Gate::kStrided;
}

template <class T, class G, Gate kGate, int kAhead>
int32_t launch_contiguous(const Problem& p, uint32_t count, int sm_count, void* stream) {
  constexpr uint32_t kPiece = kThreads * kAhead;
  const uint32_t blocks = (count + kPiece - 1) / kPiece;
  if constexpr (kAhead > 1) {
    if (blocks < static_cast<uint32_t>(kWavesOfBlocks * sm_count)) {
      return launch_contiguous<T, G, kGate, kAhead / 2>(p, count, sm_count, stream);
    }
  }
  return amk::task::launch(amk::task::Order::kPlain, contiguous<T, G, kGate, kAhead>, blocks, kThreads, stream, p,
                           count, static_cast<uint32_t>(p.width / kPer<T>));
}

template <class T, class G>
int32_t launch(const Problem& p, void* stream) {
  int device = 0, sm_count = 0;
  cudaError_t code = cudaGetDevice(&device);
  if (!code) code = cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device);
  if (code) return code;
  const int64_t rows = p.batch * p.rows, vectors = rows * (p.width / kPer<T>);
  const bool whole_rows = p.width % kPer<T> == 0 && has_vector_rows(p, p.residual, p.residual_step, kPer<T>) &&
                          has_vector_rows(p, p.x, p.x_step, kPer<T>) && has_vector_rows(p, p.y, p.y_step, kPer<T>);
  const Gate gate = kind_of_gate(p);
  const auto blocks_of = [&](int64_t of_row) {
    return std::min(rows * ((of_row + kThreads - 1) / kThreads), kMaxBlocks);
  };
  if (whole_rows && gate != Gate::kStrided && vectors < int64_t{1} << 31 && is_contiguous(p, p.residual_step) &&
      is_contiguous(p, p.x_step) && is_contiguous(p, p.y_step)) {
    const auto count = static_cast<uint32_t>(vectors);
    return gate == Gate::kWhole ? launch_contiguous<T, G, Gate::kWhole, 2>(p, count, sm_count, stream)
                                : launch_contiguous<T, G, Gate::kRow, 4>(p, count, sm_count, stream);
  }
  const bool vector_gate = p.gate_step[2] == 1 && p.gate_step[0] % kPer<T> == 0 && p.gate_step[1] % kPer<T> == 0;
  if (whole_rows && is_aligned(p.gate) && (p.gate_step[2] == 0 || vector_gate)) {
    const int64_t row_vectors = p.width / kPer<T>;
    return amk::task::launch(amk::task::Order::kPlain, strided<T, G>, blocks_of(row_vectors), kThreads, stream, p,
                             row_vectors);
  }
  return amk::task::launch(amk::task::Order::kPlain, single<T, G>, blocks_of(p.width), kThreads, stream, p);
}

}  // namespace
}  // namespace residual_gate_add

AMK_TASK_ENTRY(amk_task_residual_gate_add_solution);
int32_t amk_task_residual_gate_add_solution(const amk_task_tensor_t* inputs, int32_t n_inputs, const double*,
                                            int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                            void* stream) {
  const auto run_as = [&](const residual_gate_add::Problem& p, auto type, auto gate_type) {
    return residual_gate_add::launch<typename decltype(type)::type, typename decltype(gate_type)::type>(p, stream);
  };
  return residual_gate_add::with_problem(inputs, n_inputs, n_scalars, outputs, n_outputs, run_as);
}
