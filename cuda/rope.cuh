// ROPE and KV_APPEND: a head is normalised where flagged, rounded, turned by its position, rounded, stored.
// A warp takes a head. The angles depend on the position alone, so they are computed while the inputs are awaited.
#pragma once

#include "reduce.cuh"
#include "tile_io.cuh"

namespace amk {

__host__ __device__ constexpr int rope_shared_bytes(const amk_params_t& p) { return p.head_dim / 2 * 8; }

// cos and sin of a double angle up to 2^24, to f32 accuracy: reduced modulo pi/2 in two fused steps (Cody & Waite
// 1980), then the Taylor series, whose first omitted term is below 1e-13 for |r| <= pi/4. The library's sincos would
// bring a stack frame for its slow path.
__device__ __forceinline__ float2 cos_sin(double angle) {
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1, kHalfPiHigh = 0x1.921fb54442d18p+0,
                   kHalfPiLow = 0x1.1a62633145c07p-54;
  const double turns = rint(angle * kTwoOverPi);
  const double r = fma(-turns, kHalfPiLow, fma(-turns, kHalfPiHigh, angle)), r2 = r * r;
  double s = 1.0 / 6227020800.0, c = 1.0 / 479001600.0;
  s = fma(s, r2, -1.0 / 39916800.0);
  s = fma(s, r2, 1.0 / 362880.0);
  s = fma(s, r2, -1.0 / 5040.0);
  s = fma(s, r2, 1.0 / 120.0);
  s = fma(s, r2, -1.0 / 6.0);
  s = fma(s * r2, r, r);
  c = fma(c, r2, -1.0 / 3628800.0);
  c = fma(c, r2, 1.0 / 40320.0);
  c = fma(c, r2, -1.0 / 720.0);
  c = fma(c, r2, 1.0 / 24.0);
  c = fma(c, r2, -0.5);
  c = fma(c, r2, 1.0);
  const int quadrant = static_cast<int>(static_cast<long long>(turns) & 3);
  const double cosine = quadrant & 1 ? s : c, sine = quadrant & 1 ? c : s;
  return {static_cast<float>(quadrant == 1 || quadrant == 2 ? -cosine : cosine),
          static_cast<float>(quadrant >= 2 ? -sine : sine)};
}

// Angles that stay from task to task: within a launch they depend on the frequencies alone, and as a rule all layers
// have the same. In static shared memory; `of` is null at first.
constexpr int kKeptAngles = 128;
struct AngleTable {
  float2 turn[kKeptAngles];
  const float* of;  // the frequencies
};

// The angles of a task: turn [head_dim / 2] of (cos, sin), null where it has none. Kept where their frequencies are an
// early input, else in `own`, which is the task's.
struct TaskAngles {
  const float* inv_freq;
  float2* turn;
  bool is_early, is_kept;

  __device__ TaskAngles(const TaskContext& c, int slot, float2* own) {
    inv_freq = slot < 0 ? nullptr : c.in<float>(slot);
    is_early = slot >= 0 && c.is_early(slot);
    is_kept = is_early && c.params().head_dim / 2 <= kKeptAngles;
    turn = !inv_freq ? nullptr : is_kept ? c.angles.turn : own;
  }
  // While the inputs are awaited; the barrier of await_inputs() stands before the first use.
  template <int kThreads>
  __device__ __forceinline__ void make_early(const TaskContext& c) const {
    if (is_early && !(is_kept && c.angles.of == inv_freq)) make<kThreads>(c);
  }
  // Behind await_inputs(). Ends with a barrier where it writes what others read in this task.
  template <int kThreads>
  __device__ __forceinline__ void finish(const TaskContext& c) const {
    if (is_kept && ptx::thread_id() == 0) c.angles.of = inv_freq;
    if (!turn || is_early) return;
    make<kThreads>(c);
    block_sync<kThreads>();
  }

 private:
  template <int kThreads>
  __device__ __forceinline__ void make(const TaskContext& c) const {
    for (int i = ptx::thread_id(); i < c.params().head_dim / 2; i += kThreads)
      turn[i] = cos_sin(static_cast<double>(c.pos) * static_cast<double>(load(inv_freq + i)));
  }
};

// One warp, one head of any size; norm and turn may be null.
template <class T>
__device__ __forceinline__ void one_head(const TaskContext& c, const T* src, const T* norm, const float2* turn,
                                         T* out) {
  const int lane = ptx::thread_id() % kWarpThreads, dim = c.params().head_dim, half = dim / 2;
  float scale = 1.0f;
  if (norm) {
    float sum = 0;
    for (int i = lane; i < dim; i += kWarpThreads) {
      const float v = load(src + i);
      sum = fmaf(v, v, sum);
    }
    scale = rms_scale(warp_sum(sum), dim, c.params().eps);
  }
  const auto element = [&](int i) {
    const float v = load(src + i);
    return norm ? to_f32(from_f32<T>(v * scale * (load(norm + i) + norm_plus(c.params())))) : v;
  };
  if (!turn) {
    for (int i = lane; i < dim; i += kWarpThreads) store(out + i, element(i));
    return;
  }
  for (int i = lane; i < half; i += kWarpThreads) {
    const float x = element(i), y = element(i + half);
    const float2 cs = turn[i];
    store(out + i, x * cs.x - y * cs.y);
    store(out + i + half, y * cs.x + x * cs.y);
  }
}

constexpr int kPairs = 2;  // of a small head, per lane
__device__ __forceinline__ bool is_small_head(int dim) { return dim % 2 == 0 && dim <= 2 * kPairs * kWarpThreads; }

// The same for a small head: one trip to L2, all of it in registers.
template <class T>
__device__ __forceinline__ void small_head(const TaskContext& c, const T* src, const T* norm, const float2* turn,
                                           T* out) {
  const int lane = ptx::thread_id() % kWarpThreads, dim = c.params().head_dim, half = dim / 2;
  float x[kPairs], y[kPairs], weight_x[kPairs], weight_y[kPairs];
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + j * kWarpThreads;
    x[j] = i < half ? load(src + i) : 0.0f;
    y[j] = i < half ? load(src + i + half) : 0.0f;
    weight_x[j] = norm && i < half ? load(norm + i) : 0.0f;
    weight_y[j] = norm && i < half ? load(norm + i + half) : 0.0f;
  }
  if (norm) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) sum += x[j] * x[j] + y[j] * y[j];
    const float scale = rms_scale(warp_sum(sum), dim, c.params().eps), plus = norm_plus(c.params());
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      x[j] = to_f32(from_f32<T>(x[j] * scale * (weight_x[j] + plus)));
      y[j] = to_f32(from_f32<T>(y[j] * scale * (weight_y[j] + plus)));
    }
  }
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + j * kWarpThreads;
    if (i >= half) break;
    const float2 cs = turn ? turn[i] : float2{1.0f, 0.0f};
    store(out + i, turn ? x[j] * cs.x - y[j] * cs.y : x[j]);
    store(out + i + half, turn ? y[j] * cs.x + x[j] * cs.y : y[j]);
  }
}

// out_head(h): where head h of the task goes.
template <class T, int kThreads, class OutHead>
__device__ bool turn_heads(const TaskContext& c, int rope_slot, int heads, OutHead out_head) {
  const amk_params_t& p = c.params();
  const TaskAngles angles(c, rope_slot, reinterpret_cast<float2*>(c.shared));
  angles.make_early<kThreads>(c);
  if (!c.await_inputs<kThreads>()) return false;
  angles.finish<kThreads>(c);
  const T* norm = c.task.norm_slot < 0 ? nullptr : c.in<T>(c.task.norm_slot);
  const T* src = c.in<T>(0) + p.m_off;
  const bool is_small = is_small_head(p.head_dim);
  for (int h = ptx::thread_id() / kWarpThreads; h < heads; h += kThreads / kWarpThreads) {
    const T* head = src + int64_t{h} * p.head_dim;
    is_small ? small_head(c, head, norm, angles.turn, out_head(h)) : one_head(c, head, norm, angles.turn, out_head(h));
  }
  return true;
}

template <int kThreads>
__device__ bool rope(const TaskContext& c) {
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    T* out = c.out<T>(0) + c.params().n_off;
    return turn_heads<T, kThreads>(c, 1, c.params().n_heads,
                                   [&](int h) { return out + int64_t{h} * c.params().head_dim; });
  });
}

template <int kThreads>
__device__ bool kv_append(const TaskContext& c) {
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const amk_params_t& p = c.params();
    T* cache = c.out<T>(0);
    return turn_heads<T, kThreads>(c, c.task.rope_slot, p.N_tile,
                                   [&](int h) { return cache + ((int64_t{p.n_off} + h) * p.K + c.pos) * p.head_dim; });
  });
}

}  // namespace amk
