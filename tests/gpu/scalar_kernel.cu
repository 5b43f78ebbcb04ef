// The kernel with its 16-bit matrix-vector tiles multiplied on the CUDA cores: the same ring, slots, tasks and order of
// partials; FMA where the library's kernel has mma. An ablation: no part of the library, whose code size costs time.
// Compiled once as it is and once with AMK_TIMED, in a namespace of its own (CMake defines amk as another word here),
// as its templates have the names of the library's.
#include "gemv_stream.cuh"

namespace amk {

// A lane holds 8 elements of one row of each unit; it sums what it holds, and the row's four lanes add theirs at the
// end.
template <class T>
struct ScalarSlots {
  static constexpr int kExponent = 0;
  static constexpr bool kIsFragment = false;
  using Held = SlotFragment;

  __device__ static void take(RingReader& ring, Held& f, const StreamShape&, int) { ring.take(f); }

  class Sum {
   public:
    __device__ __forceinline__ void add(const Held& f, const uint4* xs, const StreamShape& s, int chunk) {
      const int units = min(kSlotUnits, s.vectors / kUnitRowVectors - chunk * kSlotUnits);
      const uint4* x = xs + chunk * kSlotRowVectors + threadIdx.x % kUnitRowVectors;
#pragma unroll
      for (int u = 0; u < kSlotUnits; ++u) {
        if (u >= units) break;
        float w[kPerVector<T>], v[kPerVector<T>];
        unpack<T>(f.v[u], w);
        unpack<T>(x[u * kUnitRowVectors], v);
#pragma unroll
        for (int e = 0; e < kPerVector<T>; ++e) acc_[e & 3] = fmaf(w[e], v[e], acc_[e & 3]);
      }
    }
    __device__ __forceinline__ void store_rows(float* at) const {
      const int lane = threadIdx.x % kWarpThreads;
      float v = (acc_[0] + acc_[1]) + (acc_[2] + acc_[3]);
#pragma unroll
      for (int mask = kUnitRowVectors / 2; mask > 0; mask /= 2) v += __shfl_xor_sync(kWholeWarp, v, mask);
      if (lane % kUnitRowVectors == 0) at[lane / kUnitRowVectors] = v;
    }

   private:
    float acc_[4] = {};
  };
};

template <int kThreads>
__device__ bool scalar_streamed_gemv(const TaskContext& c) {
  if (c.task.dtype == AMK_DTYPE_F16) return StreamedGemv<__half, kThreads, ScalarSlots<__half>>(c).run();
  return StreamedGemv<__nv_bfloat16, kThreads, ScalarSlots<__nv_bfloat16>>(c).run();
}

}  // namespace amk

#define streamed_gemv scalar_streamed_gemv
#include "megakernel.cu"
