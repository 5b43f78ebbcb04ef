// Which kernel of gdn_kernels.cuh a call gets, and its launch: the one place that maps shapes to grids.
// In: the operands of amk_gdn_decode, checked, of a device; dtypes are f32, f16 or bf16. Out: what the launch returned.
#pragma once

#include <initializer_list>

#include "gdn_kernels.cuh"

namespace amk {

inline GdnOperands gdn_operands(const amk_gdn_decode_t& g) {
  GdnOperands o{};
  o.state_in = static_cast<const float*>(g.state_in);
  o.state_out = static_cast<float*>(g.state_out);
  o.value_heads = g.value_heads;
  o.heads_per_key = g.value_heads / g.key_heads;
  o.k = g.k;
  o.q = g.q;
  o.v = g.v;
  o.a = g.a;
  o.b = g.b;
  o.dt_bias = g.dt_bias;
  o.a_log = static_cast<const float*>(g.a_log);
  o.out = g.out;
  o.scale = g.scale;
  o.l2norm = g.l2norm;
  o.gate_dtype = g.gate_dtype;
  o.dt_bias_dtype = g.bias_dtype;
  o.batch = g.batch;
  const auto of_vector = [](const int64_t (&stride)[3], int64_t* batch, int64_t* head, int64_t* element) {
    *batch = stride[0];
    *head = stride[1];
    *element = stride[2];
  };
  of_vector(g.q_stride, &o.q_batch, &o.q_head, &o.q_element);
  of_vector(g.k_stride, &o.k_batch, &o.k_head, &o.k_element);
  of_vector(g.v_stride, &o.v_batch, &o.v_head, &o.v_element);
  of_vector(g.out_stride, &o.out_batch, &o.out_head, &o.out_element);
  of_vector(g.state_in_stride, &o.state_in_batch, &o.state_in_head, &o.state_in_row);
  of_vector(g.state_out_stride, &o.state_out_batch, &o.state_out_head, &o.state_out_row);
  o.a_batch = g.a_stride[0];
  o.a_head = g.a_stride[1];
  o.b_batch = g.b_stride[0];
  o.b_head = g.b_stride[1];
  return o;
}

// Launches are programmatic dependent ones, so the end of the kernel before overlaps this launch. That is safe behind
// anything in any stream: every thread of gdn_direct, packed or strided, waits (griddepcontrol.wait: all earlier
// kernels over, their writes visible) before it reads or writes memory, and admits the next kernel only behind that
// wait, so a next kernel that reads before its own wait still meets the writes of all kernels before this one. Code for
// devices that cannot wait (below compute capability 9.0) must not be launched so: a library that holds any launches
// plainly.
#ifdef __CUDA_ARCH_LIST__
constexpr bool gdn_may_overlap() {
  for (const int architecture : {__CUDA_ARCH_LIST__})
    if (architecture < 900) return false;
  return true;
}
#else
constexpr bool gdn_may_overlap() { return false; }
#endif

// The grid by batch * value heads. Few heads take many small warps; many take as many rows per warp as still leave
// enough blocks on an SM. Of the counts timed on an H200 (benchmarks/tasks/gdn_decode/docs/dispatch.md) 64 is the last
// that the first kernel is best at, 128 the first of the second.
constexpr int kFewGdnHeads = 96;
template <class T>
cudaError_t gdn_enqueue(const GdnOperands& o, cudaStream_t stream) {
  constexpr bool kDependent = gdn_may_overlap();
  if (!gdn_is_packed(o, sizeof(T))) return launch_gdn_direct<T, false, 16, 2, 4, CachedAccess>(o, kDependent, stream);
  if (o.batch * o.value_heads <= kFewGdnHeads)
    return launch_gdn_direct<T, true, 16, 2, 2, CachedAccess>(o, kDependent, stream);
  return launch_gdn_direct<T, true, 16, 4, 2, CachedAccess>(o, kDependent, stream);
}

inline cudaError_t gdn_enqueue(const amk_gdn_decode_t& g, cudaStream_t stream) {
  const GdnOperands o = gdn_operands(g);
  switch (g.dtype) {
    case AMK_DTYPE_F32: return gdn_enqueue<float>(o, stream);
    case AMK_DTYPE_F16: return gdn_enqueue<__half>(o, stream);
    case AMK_DTYPE_BF16: return gdn_enqueue<__nv_bfloat16>(o, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace amk
