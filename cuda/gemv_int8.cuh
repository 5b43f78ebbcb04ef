// GEMV_TILE over quantised weights from the ring (ops/packing_int8.h), on the tensor cores.
// An integer becomes a float without arithmetic: its sign and magnitude are the sign and the low mantissa bits of a
// 16-bit subnormal, q * 2^-24 in f16 and q * 2^-133 in bf16, which the tensor cores multiply exactly (Fasi et al. 2021,
// "Numerical behavior of NVIDIA tensor cores", PeerJ Comput. Sci. 7:e330: subnormal inputs are kept in both types).
// Products with a bf16 x would leave f32, so x is staged times 2^64 there; the power of two is taken back, exactly,
// when a row group ends. A scale belongs to 64 or 128 elements of k: each of the 8 rows of A that are multiplied holds
// the x of one unit and zeros elsewhere, so that the sums of 8 units come out apart and each meets its scale once per
// slot.
#pragma once

#include "gemv_stream.cuh"

namespace amk {

template <class T>
struct Int8Slots {
  static constexpr bool kIsBf16 = std::is_same_v<T, __nv_bfloat16>;
  static constexpr int kExponent = kIsBf16 ? 64 : 0;
  static constexpr float kWhole = kIsBf16 ? 0x1p69f : 0x1p24f;  // back from x * 2^kExponent and the subnormals
  static constexpr int kHalves = 2, kHalfUnits = kSlotUnits / kHalves;
  static constexpr int kUnitX = kInt8UnitElements * 2 / kVectorBytes;  // vectors of x for a unit

  // scale[h]: of unit 8h + lane / 4, rows 2 * (lane % 4) and the next, zero where the slot has no such unit.
  struct Held {
    SlotFragment q;
    uint32_t scale[kHalves];
  };

  __device__ static __forceinline__ void take(const TaskContext& c, Held& f, int slot) {
    const amk_params_t& p = c.params();
    int units = kSlotUnits;
    if (p.K % kInt8SlotElements != 0 && (slot + 1) % int8_slots(p.K) == 0) units = int8_tail_units(p.K);
    c.ring.take(f.q, [&](const char* first) {
      const int lane = threadIdx.x % kWarpThreads, units_per_scale = p.group / kInt8UnitElements;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const int unit = h * kHalfUnits + lane / kUnitRowVectors;
        const char* at = first + units * kUnitBytes + (unit >> (units_per_scale - 1)) * kInt8GroupScaleBytes;
        f.scale[h] = unit < units ? reinterpret_cast<const uint32_t*>(at)[lane % kUnitRowVectors] : 0;
      }
    });
  }

  class Sum {
   public:
    // Behind the end of the rows a slot holds what it held before: finite, and x is zero there.
    __device__ __forceinline__ void add(const Held& f, const uint4* xs, const StreamShape&, int chunk) {
      const int lane = threadIdx.x % kWarpThreads, row = lane / kUnitRowVectors;
      const uint4* x = xs + (chunk * kSlotUnits + row) * kUnitX + lane % kUnitRowVectors * 2;
      const uint4 a = x[0], b = x[1], c = x[kHalfUnits * kUnitX], d = x[kHalfUnits * kUnitX + 1];
      const uint32_t quads[4][4] = {
          {a.x, c.x, a.y, c.y}, {a.z, c.z, a.w, c.w}, {b.x, d.x, b.y, d.y}, {b.z, d.z, b.w, d.w}};
      float2 own[kHalves] = {};
#pragma unroll
      for (int u = 0; u < kSlotUnits; ++u) {
        const uint4 w = f.q.v[u];
        float acc[4] = {};
        multiply(acc, quads[0], w.x);
        multiply(acc, quads[1], w.y);
        multiply(acc, quads[2], w.z);
        multiply(acc, quads[3], w.w);
        const int h = u / kHalfUnits;
        if (row == u % kHalfUnits) own[h] = {acc[2 * h], acc[2 * h + 1]};
      }
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const float2 scale = unpack_pair<T>(f.scale[h]);
        sum_.x = fmaf(own[h].x, scale.x, sum_.x);
        sum_.y = fmaf(own[h].y, scale.y, sum_.y);
      }
    }
    // Rows of A, one per four lanes, are added in one order, in every lane.
    __device__ __forceinline__ float2 rows() const {
      float2 v = sum_;
#pragma unroll
      for (int mask = kWarpThreads / 2; mask >= kUnitRowVectors; mask /= 2) {
        v.x += __shfl_xor_sync(kWholeWarp, v.x, mask);
        v.y += __shfl_xor_sync(kWholeWarp, v.y, mask);
      }
      return {v.x * kWhole, v.y * kWhole};
    }

   private:
    __device__ static __forceinline__ void multiply(float (&acc)[4], const uint32_t (&x)[4], uint32_t word) {
      const uint32_t w0 = word & kInt8Mask, w1 = __funnelshift_r(word, word, 8) & kInt8Mask;
      if constexpr (kIsBf16) {
        ptx::mma_bf16(acc, x, w0, w1);
      } else {
        ptx::mma_f16(acc, x, w0, w1);
      }
    }

    float2 sum_ = {};
  };
};

template <int kThreads>
__device__ bool streamed_int8_gemv(const TaskContext& c) {
  if (c.task.dtype == AMK_DTYPE_F16) return StreamedGemv<__half, kThreads, Int8Slots<__half>>(c).run();
  return StreamedGemv<__nv_bfloat16, kThreads, Int8Slots<__nv_bfloat16>>(c).run();
}

}  // namespace amk
