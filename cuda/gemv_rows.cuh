// What every form of GEMV_TILE does around its sums: x into shared memory before them, the fusions of a row after them.
// In: a task and its x. Out: x staged in T, rows stored.
#pragma once

#include "elementwise.cuh"
#include "reduce.cuh"
#include "tile_io.cuh"

namespace amk {

template <class T>
__device__ __forceinline__ uint4 times(uint4 v, float factor) {
  float e[kPerVector<T>];
  unpack<T>(v, e);
#pragma unroll
  for (int i = 0; i < kPerVector<T>; ++i) e[i] *= factor;
  return pack<T>(e);
}

// The two middle words of a vector change places, so that it is, as it is read, the A of an mma whose row r has the
// first two words and whose row r + 8 has the last two; and back.
__device__ __forceinline__ uint4 fragment_order(uint4 v) { return {v.x, v.z, v.y, v.w}; }

// x -> shared memory: `vectors` of it, then zeros up to `padded`; normalised and rounded to T where norm is not null.
// Ends with a barrier. norm_shared: the norm weight, on its way there by this thread's own async copies, or null.
// kExponent: all of it times two to this power, exactly unless that leaves the type. kIsFragment: in fragment_order().
template <class T, int kThreads, int kExponent = 0, bool kIsFragment = false>
__device__ __forceinline__ void stage_x(const TaskContext& c, const T* x, int vectors, int padded, uint4* xs,
                                        const T* norm, const uint4* norm_shared) {
  constexpr int kAhead = 4;
  constexpr float kGain =
      static_cast<float>(uint64_t{1} << kExponent / 2) * static_cast<float>(uint64_t{1} << (kExponent + 1) / 2);
  const auto placed = [](uint4 v) { return kIsFragment ? fragment_order(v) : v; };
  float sum = 0;
  for (int first = ptx::thread_id(); first < padded; first += kAhead * kThreads) {
    uint4 raw[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int v = first + a * kThreads;
      raw[a] = v < vectors ? load_vector(reinterpret_cast<const uint4*>(x) + v) : uint4{};
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int v = first + a * kThreads;
      if (v < padded) xs[v] = norm ? raw[a] : placed(kExponent != 0 ? times<T>(raw[a], kGain) : raw[a]);
      if (!norm) continue;
      float e[kPerVector<T>];
      unpack<T>(raw[a], e);
#pragma unroll
      for (int i = 0; i < kPerVector<T>; ++i) sum = fmaf(e[i], e[i], sum);
    }
  }
  if (norm) {
    const float scale = rms_scale(block_sum<kThreads>(sum, c.reduce_scratch, 0), c.params().K, c.params().eps) * kGain;
    const float plus = norm_plus(c.params());
    if (norm_shared) ptx::copy_async_wait<0>();
    for (int v = ptx::thread_id(); v < vectors; v += kThreads) {
      float e[kPerVector<T>], w[kPerVector<T>];
      unpack<T>(xs[v], e);
      if (norm_shared) {
        unpack<T>(norm_shared[v], w);
      } else {
#pragma unroll
        for (int i = 0; i < kPerVector<T>; ++i) w[i] = load(norm + v * kPerVector<T> + i);
      }
#pragma unroll
      for (int i = 0; i < kPerVector<T>; ++i) e[i] = e[i] * scale * (w[i] + plus);
      xs[v] = placed(pack<T>(e));
    }
  }
  block_sync<kThreads>();
}

// The norm weight of a task and its place in shared memory, where it is copied while the inputs are awaited.
template <class T, int kThreads>
struct NormWeight {
  const T* weight;
  uint4* shared;  // null where it is no early input of whole vectors
  int vectors;

  __device__ NormWeight(const TaskContext& c, int x_vectors, uint4* at)
      : weight(c.task.norm_slot < 0 ? nullptr : c.in<T>(c.task.norm_slot)), vectors(x_vectors) {
    const bool is_early = weight && c.is_early(c.task.norm_slot);
    shared = is_early && reinterpret_cast<uintptr_t>(weight) % kVectorBytes == 0 ? at : nullptr;
  }
  __device__ uint4* behind(uint4* at) const { return weight ? at + vectors : at; }
  __device__ void prefetch() const {
    if (!shared) return;
    for (int v = ptx::thread_id(); v < vectors; v += kThreads)
      ptx::copy_async_16(shared + v, reinterpret_cast<const uint4*>(weight) + v);
    ptx::copy_async_commit();
  }
};

// What one output row adds to its sums, and where it goes. The thread that stores row i holds them from the start of
// the task: where they lie before the inputs are awaited, themselves after it. They stay in T until they are added, as
// converting them would wait for them.
template <class T>
struct RowTerms {
  bool is_pair = false, is_f32 = false;
  void* out = nullptr;

  __device__ __forceinline__ RowTerms(const TaskContext& c, int item) {
    const amk_params_t& p = c.params();
    if (item >= p.N_tile) return;
    const int n = p.n_off + item;
    is_pair = p.flags & AMK_FLAG_SILU_PAIR;
    is_f32 = c.task.out_dtype == AMK_DTYPE_F32;
    out = is_f32 ? static_cast<void*>(c.out<float>(0) + n) : c.out<T>(0) + n;
    if (c.task.bias_slot >= 0) bias_at_ = c.in<T>(c.task.bias_slot) + n;
    if (c.task.residual_slot >= 0) residual_at_ = c.in<T>(c.task.residual_slot) + n;
  }
  __device__ __forceinline__ void load(const TaskContext& c) {
    if (residual_at_) residual_ = __ldcg(residual_at_);
    if (!bias_at_) return;
    bias_ = __ldcg(bias_at_);
    if (is_pair) up_bias_ = __ldcg(bias_at_ + c.params().N);
  }
  __device__ float bias() const { return bias_at_ ? to_f32(bias_) : 0.0f; }
  __device__ float up_bias() const { return bias_at_ ? to_f32(up_bias_) : 0.0f; }
  __device__ float residual() const { return residual_at_ ? to_f32(residual_) : 0.0f; }

 private:
  const T *bias_at_ = nullptr, *residual_at_ = nullptr;
  T bias_{}, up_bias_{}, residual_{};
};

// sum(0): the product of the row, sum(1): of its up row, asked for where there is one.
template <class T, class Sum>
__device__ __forceinline__ void store_row(const RowTerms<T>& t, Sum sum) {
  float y = sum(0) + t.bias();
  if (t.is_pair) y = silu(y) * (sum(1) + t.up_bias());
  y += t.residual();
  if (t.is_f32) {
    *static_cast<float*>(t.out) = y;
  } else {
    store(static_cast<T*>(t.out), y);
  }
}

}  // namespace amk
