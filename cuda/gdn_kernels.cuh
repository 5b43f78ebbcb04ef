// The gated delta net decode step as a kernel of its own: what it reads, the kernel, and its launch.
// In: operands that were checked (csrc/gdn/gdn.h), head dim 128. Out: the new state, which may lie where the old one
// lay, and o. Every row has one owner, who reads it whole before he writes it. Nothing is read or written before the
// kernels earlier in the stream are over, so any launch may be a programmatic dependent one.
#pragma once

#include <type_traits>

#include "gdn.cuh"
#include "gdn/gdn.h"

namespace amk {

constexpr int kGdnDim = kGdnHeadDim;
static_assert(kGdnDim == kGdnMaxDim);

// Strides count elements; batch, then head, then element along the head dim (of the state: its rows).
struct GdnOperands {
  const float* state_in;
  float* state_out;
  int64_t state_in_batch, state_out_batch;
  int32_t value_heads, heads_per_key;  // Hv and Hv / Hq
  const void *k, *q, *v;
  int64_t k_batch, q_batch, v_batch;
  const void *a, *b, *dt_bias;
  int64_t a_batch, b_batch;
  const float* a_log;
  void* out;
  int64_t out_batch;
  float scale;
  int32_t l2norm, gate_dtype, dt_bias_dtype, batch;
  // Not read where gdn_is_packed.
  int64_t state_in_head, state_out_head, state_in_row, state_out_row;
  int64_t k_head, q_head, v_head, out_head, a_head, b_head;
  int64_t k_element, q_element, v_element, out_element;
};

// Whether heads lie back to back within a batch row everywhere (rows of a fused tensor do too) and q and k can be read
// four elements at a time.
inline bool gdn_is_packed(const GdnOperands& o, int element_bytes) {
  const auto vectors = [&](const void* p, int64_t batch) {
    return reinterpret_cast<uintptr_t>(p) % (4u * static_cast<unsigned>(element_bytes)) == 0 && batch % 4 == 0;
  };
  constexpr int64_t kMatrix = int64_t{kGdnDim} * kGdnDim;
  return o.state_in_head == kMatrix && o.state_out_head == kMatrix && o.state_in_row == kGdnDim &&
         o.state_out_row == kGdnDim && o.k_head == kGdnDim && o.q_head == kGdnDim && o.v_head == kGdnDim &&
         o.out_head == kGdnDim && o.k_element == 1 && o.q_element == 1 && o.v_element == 1 && o.out_element == 1 &&
         o.a_head == 1 && o.b_head == 1 && vectors(o.k, o.k_batch) && vectors(o.q, o.q_batch);
}

// Ways to read and write the state.
struct CachedAccess {
  __device__ static float4 load(const float* p) { return *reinterpret_cast<const float4*>(p); }
  __device__ static void store(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
};
struct StreamedAccess {  // leaves L2 first
  __device__ static float4 load(const float* p) { return __ldcs(reinterpret_cast<const float4*>(p)); }
  __device__ static void store(float* p, float4 v) { __stcs(reinterpret_cast<float4*>(p), v); }
};
struct L2Access {  // past L1
  __device__ static float4 load(const float* p) { return __ldcg(reinterpret_cast<const float4*>(p)); }
  __device__ static void store(float* p, float4 v) { __stcg(reinterpret_cast<float4*>(p), v); }
};

// Four elements as they were read: 8 or 16 bytes; `raw` first and `widen` later keep all loads in front.
template <class T>
struct Quad {
  using Raw = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
  __device__ static Raw load(const T* p) { return *reinterpret_cast<const Raw*>(p); }
  __device__ static float4 widen(Raw r) {
    if constexpr (sizeof(T) == 4) {
      return {__uint_as_float(r.x), __uint_as_float(r.y), __uint_as_float(r.z), __uint_as_float(r.w)};
    } else {
      const float2 low = unpack_pair<T>(r.x), high = unpack_pair<T>(r.y);
      return {low.x, low.y, high.x, high.y};
    }
  }
};

// k or q of one head, this lane's pieces.
template <class T, bool kPacked, class Owner>
__device__ __forceinline__ void load_head(const T* head, int64_t element_stride, float4 (&out)[Owner::kPieces]) {
  if constexpr (kPacked) {
    typename Quad<T>::Raw raw[Owner::kPieces];
    const T* lane = head + Owner::lane_element();
#pragma unroll
    for (int p = 0; p < Owner::kPieces; ++p) raw[p] = Quad<T>::load(lane + Owner::piece_element(p));
#pragma unroll
    for (int p = 0; p < Owner::kPieces; ++p) out[p] = Quad<T>::widen(raw[p]);
  } else {
#pragma unroll
    for (int p = 0; p < Owner::kPieces; ++p) {
      const T* at = head + (Owner::lane_element() + Owner::piece_element(p)) * element_stride;
      const T *second = at + element_stride, *third = second + element_stride;
      out[p] = {to_f32(*at), to_f32(*second), to_f32(*third), to_f32(third[element_stride])};
    }
  }
}

// Where a block works: grid (value heads of a key head x splits of their rows, key heads, batch).
template <bool kPacked>
struct GdnPlace {
  int batch, key_head, head, first_row;  // first_row: of this warp
  __device__ GdnPlace(int block_rows, int warp_rows, int heads_per_key)
      : batch(static_cast<int>(blockIdx.z)),
        key_head(static_cast<int>(blockIdx.y)),
        head(key_head * heads_per_key + static_cast<int>(blockIdx.x) / (kGdnDim / block_rows)),
        first_row(static_cast<int>(blockIdx.x) % (kGdnDim / block_rows) * block_rows +
                  static_cast<int>(threadIdx.x) / kWarpThreads * warp_rows) {}
  __device__ __forceinline__ int64_t at(int64_t batch_stride, int64_t head_stride, int packed_head, int h) const {
    return batch * batch_stride + (kPacked ? int64_t{h * packed_head} : h * head_stride);
  }
  __device__ __forceinline__ int64_t row(int64_t stride, int r) const {
    return kPacked ? int64_t{r * kGdnDim} : r * stride;
  }
  // This lane's first piece.
  template <class Owner>
  __device__ __forceinline__ const float* state_in(const GdnOperands& o) const {
    return o.state_in + at(o.state_in_batch, o.state_in_head, kGdnDim * kGdnDim, head) +
           row(o.state_in_row, first_row + Owner::lane_row()) + Owner::lane_element();
  }
  template <class Owner>
  __device__ __forceinline__ float* state_out(const GdnOperands& o) const {
    return o.state_out + at(o.state_out_batch, o.state_out_head, kGdnDim * kGdnDim, head) +
           row(o.state_out_row, first_row + Owner::lane_row()) + Owner::lane_element();
  }
};

// All that a warp reads besides the state.
template <class T, bool kPacked, class Owner>
struct GdnWarp {
  const GdnOperands& o;
  const GdnPlace<kPacked>& place;
  float4 k[Owner::kPieces], q[Owner::kPieces];
  float v, a_log;
  AnyElement a, b, dt_bias;

  __device__ __forceinline__ GdnWarp(const GdnOperands& operands, const GdnPlace<kPacked>& p) : o(operands), place(p) {
    const int h = place.key_head;
    load_head<T, kPacked, Owner>(static_cast<const T*>(o.k) + place.at(o.k_batch, o.k_head, kGdnDim, h), o.k_element,
                                 k);
    load_head<T, kPacked, Owner>(static_cast<const T*>(o.q) + place.at(o.q_batch, o.q_head, kGdnDim, h), o.q_element,
                                 q);
    a = AnyElement::load(o.a, place.at(o.a_batch, o.a_head, 1, place.head), o.gate_dtype);
    b = AnyElement::load(o.b, place.at(o.b_batch, o.b_head, 1, place.head), o.gate_dtype);
    dt_bias = AnyElement::load(o.dt_bias, place.head, o.dt_bias_dtype);
    a_log = o.a_log[place.head];
    load_value(0);
  }
  // Of this lane's row, among the sets from first_set on.
  __device__ __forceinline__ void load_value(int first_set) {
    const T* head = static_cast<const T*>(o.v) + place.at(o.v_batch, o.v_head, kGdnDim, place.head);
    v = to_f32(head[row(first_set, o.v_element)]);
  }
  __device__ __forceinline__ GdnFactors factors() const {
    GdnFactors f = gdn_vector_factors<kWarpThreads / Owner::kSide>(k, q, o.scale, o.l2norm, kGdnNormEps);
    f.decay = gdn_decay(a_log, a.value(o.gate_dtype), dt_bias.value(o.dt_bias_dtype));
    f.beta = gdn_beta(b.value(o.gate_dtype));
    return f;
  }
  __device__ __forceinline__ void store(int first_set, float y) const {
    T* head = static_cast<T*>(o.out) + place.at(o.out_batch, o.out_head, kGdnDim, place.head);
    if (Owner::has_output()) head[row(first_set, o.out_element)] = from_f32<T>(y);
  }
  __device__ __forceinline__ int64_t row(int first_set, int64_t stride) const {
    const int r = place.first_row + Owner::lane_row() + Owner::set_row(first_set + Owner::own_set());
    return kPacked ? r : r * stride;
  }
};

// The state goes through registers: every load of it is issued before anything else. kBlocksPerSm: at least so many
// have to fit, by registers.
template <class T, bool kPacked, int kLanes, int kRows, int kWarps, class Access, int kBlocksPerSm = 1>
__global__ void __launch_bounds__(kWarps* kWarpThreads, kBlocksPerSm)
    gdn_direct(const __grid_constant__ GdnOperands o) {
  using Owner = GdnOwner<kLanes, kRows>;
  constexpr int kBlockRows = kWarps * Owner::kRowsPerWarp;
  static_assert(kGdnDim % kBlockRows == 0);
  const GdnPlace<kPacked> place(kBlockRows, Owner::kRowsPerWarp, o.heads_per_key);
  const float* from = place.template state_in<Owner>(o);
  ptx::await_prior_kernels();
  float4 state[kRows][Owner::kPieces];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int p = 0; p < Owner::kPieces; ++p)
      state[r][p] = Access::load(from + place.row(o.state_in_row, Owner::set_row(r)) + Owner::piece_element(p));
  }
  __syncwarp();  // nothing moves in front of them
  const GdnWarp<T, kPacked, Owner> warp(o, place);
  ptx::admit_next_kernel();
  const float y = gdn_step<Owner>(state, warp.k, warp.q, warp.factors(), warp.v);
  float* to = place.template state_out<Owner>(o);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int p = 0; p < Owner::kPieces; ++p)
      Access::store(to + place.row(o.state_out_row, Owner::set_row(r)) + Owner::piece_element(p), state[r][p]);
  }
  warp.store(0, y);
}

// One launch on a stream. dependent: as a programmatic dependent launch (compute capability 9.0 and up).
template <class Kernel>
cudaError_t gdn_launch(Kernel kernel, const GdnOperands& o, int split, int threads, int shared_bytes, bool dependent,
                       cudaStream_t stream) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (code != cudaSuccess) return code;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(split * o.heads_per_key),
                        static_cast<unsigned>(o.value_heads / o.heads_per_key), static_cast<unsigned>(o.batch));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, o);
}
template <class T, bool kPacked, int kLanes, int kRows, int kWarps, class Access, int kBlocksPerSm = 1>
cudaError_t launch_gdn_direct(const GdnOperands& o, bool dependent, cudaStream_t stream) {
  return gdn_launch(gdn_direct<T, kPacked, kLanes, kRows, kWarps, Access, kBlocksPerSm>, o,
                    kGdnDim / (kWarps * kRows * kWarpThreads / kLanes), kWarps * kWarpThreads, 0, dependent, stream);
}
}  // namespace amk
