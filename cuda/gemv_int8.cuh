// GEMV_TILE over quantised weights from the ring (ops/packing_int8.h), on the tensor cores.
// An integer becomes a float without arithmetic: its sign and magnitude are the sign and the low mantissa bits of a
// 16-bit subnormal, q * 2^-24 in f16 and q * 2^-133 in bf16, which the tensor cores multiply exactly (Fasi et al. 2021,
// "Numerical behavior of NVIDIA tensor cores", PeerJ Comput. Sci. 7:e330: subnormal inputs are kept in both types).
// Products with a bf16 x would leave f32, so x is staged times 2^64 there; the power of two is taken back, exactly,
// before a sum meets its scale. A scale belongs to 64 or 128 elements of k: each of the 8 rows of A that are multiplied
// holds the x of one unit and zeros elsewhere, so that the sums of 8 units come out apart and each meets its scale once
// per slot.
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

  __device__ static void take(RingReader& ring, Held& f, const StreamShape& s, int chunk) {
    const int units = chunk + 1 == s.chunks ? s.tail_units : kSlotUnits;
    ring.take(f.q, [&](const char* first) {
      const int lane = ptx::thread_id() % kWarpThreads;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const int unit = h * kHalfUnits + lane / kUnitRowVectors;
        const char* at = first + units * kUnitBytes + (unit >> s.scale_shift) * kInt8GroupScaleBytes;
        f.scale[h] = unit < units ? reinterpret_cast<const uint32_t*>(at)[lane % kUnitRowVectors] : 0;
      }
    });
  }

  class Sum {
   public:
    // Behind the end of the rows a slot holds what it held before: finite, and x is zero there.
    __device__ __forceinline__ void add(const Held& f, const uint4* xs, const StreamShape&, int chunk) {
      const int lane = ptx::thread_id() % kWarpThreads, row = lane / kUnitRowVectors;
      const uint4* x = xs + (chunk * kSlotUnits + row) * kUnitX + lane % kUnitRowVectors * 2;
      uint4 own[kHalves][2];
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        own[h][0] = fragment_order(x[h * kHalfUnits * kUnitX]);
        own[h][1] = fragment_order(x[h * kHalfUnits * kUnitX + 1]);
      }
      float acc[kHalves][2][4] = {};
#pragma unroll
      for (int u = 0; u < kHalfUnits; ++u) {
        const bool is_own = row == u;
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          const uint4 w = f.q.v[h * kHalfUnits + u], a = own[h][0], b = own[h][1];
          multiply(acc[h][0], is_own, a.x, a.y, w.x);
          multiply(acc[h][1], is_own, a.z, a.w, w.y);
          multiply(acc[h][0], is_own, b.x, b.y, w.z);
          multiply(acc[h][1], is_own, b.z, b.w, w.w);
        }
      }
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const float2 scale = unpack_pair<T>(f.scale[h]);
        sum_.x = fmaf((acc[h][0][0] + acc[h][1][0]) * kWhole, scale.x, sum_.x);
        sum_.y = fmaf((acc[h][0][1] + acc[h][1][1]) * kWhole, scale.y, sum_.y);
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
      return v;
    }

   private:
    __device__ static __forceinline__ void multiply(float (&acc)[4], bool is_own, uint32_t x0, uint32_t x1,
                                                    uint32_t word) {
      const uint32_t turned = __funnelshift_r(word, word, 8);
      multiply_add<T>(acc, is_own ? x0 : 0, is_own ? x1 : 0, word & kInt8Mask, turned & kInt8Mask);
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
