// NOP, COPY, ADD, MUL, SILU_MUL. ADD and MUL may run in place: element i is read before it is written.
#pragma once

#include "sync.cuh"
#include "tile_io.cuh"

namespace amk {

// v / (1 + exp(-v)). Below -87 the exponential is held: a denominator beyond 2^126 would take the division's slow path,
// and the result is smaller than 1e-37 times v either way.
__device__ __forceinline__ float silu(float v) { return v * __frcp_rn(1.0f + expf(fminf(-v, 87.0f))); }

// out[n_off + i] = f(i) for i < N_tile.
template <int kThreads, class F>
__device__ bool elementwise(const TaskContext& c, F f) {
  if (!c.await_inputs<kThreads>()) return false;
  return with_dtype(c.task.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    T* out = c.out<T>(0) + c.params().n_off;
    for (int i = ptx::thread_id(); i < c.params().N_tile; i += kThreads) store(out + i, f(type, i));
    return true;
  });
}

template <int kThreads>
__device__ bool add(const TaskContext& c) {
  return elementwise<kThreads>(c, [&](auto type, int i) {
    using T = typename decltype(type)::type;
    const int at = c.params().n_off + i;
    return load(c.in<T>(0) + at) + load(c.in<T>(1) + at);
  });
}

template <int kThreads>
__device__ bool mul(const TaskContext& c) {
  return elementwise<kThreads>(c, [&](auto type, int i) {
    using T = typename decltype(type)::type;
    const int at = c.params().n_off + i;
    return load(c.in<T>(0) + at) * load(c.in<T>(1) + at);
  });
}

template <int kThreads>
__device__ bool silu_mul(const TaskContext& c) {
  return elementwise<kThreads>(c, [&](auto type, int i) {
    using T = typename decltype(type)::type;
    const T* gate = c.in<T>(0) + c.params().n_off + i;
    return silu(load(gate)) * load(gate + c.params().N);
  });
}

// Any dtype of whole bytes, bits unchanged.
template <int kThreads>
__device__ bool copy(const TaskContext& c) {
  const amk_params_t& p = c.params();
  if (!c.await_inputs<kThreads>()) return false;
  const auto move = [&](auto word) {
    using Word = decltype(word);
    const Word* in = c.in<Word>(0) + p.m_off;
    Word* out = c.out<Word>(0) + p.n_off;
    for (int i = ptx::thread_id(); i < p.N_tile; i += kThreads) out[i] = __ldcg(in + i);
    return true;
  };
  switch (c.task.dtype) {
    case AMK_DTYPE_F32:
    case AMK_DTYPE_I32: return move(uint32_t{});
    case AMK_DTYPE_F16:
    case AMK_DTYPE_BF16: return move(static_cast<unsigned short>(0));
    default: return move(static_cast<unsigned char>(0));
  }
}

}  // namespace amk
