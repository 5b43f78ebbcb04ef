// GEMV_TILE over quantised weights from the ring (ops/packing_int8.h), on the tensor cores.
// An integer becomes a float without arithmetic: its sign and magnitude are the sign and the low mantissa bits of a
// 16-bit subnormal, q * 2^-24 in f16 and q * 2^-133 in bf16, which the tensor cores multiply exactly (Fasi et al. 2021,
// "Numerical behavior of NVIDIA tensor cores", PeerJ Comput. Sci. 7:e330: subnormal inputs are kept in both types).
// Products with a bf16 x would leave f32, so x is staged times 2^64 there; the power of two is taken back, exactly,
// before a sum meets its scale. A scale belongs to 64 or 128 elements of k, so the sums of units come out apart: the
// weights are A, rows 0 to 7 those of one half of a unit's words, rows 8 to 15 the other half of the same 8 rows of the
// matrix; of B's 8 columns the two of one pair hold the x of either half, and zeros stand in the other pairs. So a pair
// of columns sums units of its own, and of the 16 x 2 results the 8 + 8 where half meets half count.
#pragma once

#include "gemv_stream.cuh"

namespace amk {

template <class T>
struct Int8Slots {
  static constexpr bool kIsBf16 = std::is_same_v<T, __nv_bfloat16>;
  static constexpr int kExponent = kIsBf16 ? 64 : 0;
  static constexpr bool kIsFragment = false;
  static constexpr float kWhole = kIsBf16 ? 0x1p69f : 0x1p24f;         // back from x * 2^kExponent and the subnormals
  static constexpr int kPairs = 4;                                     // of columns of B: unit u is of pair u % kPairs
  static constexpr int kSums = kSlotUnits / kPairs;                    // units of a pair in a slot
  static constexpr int kUnitX = kInt8UnitElements * 2 / kVectorBytes;  // vectors of x for a unit

  // scale[i]: of unit kPairs * i + lane % 4, row lane / 4; zero where the slot has no such unit.
  struct Held {
    SlotFragment q;
    uint16_t scale[kSums];
  };

  __device__ static void take(RingReader& ring, Held& f, const StreamShape& s, int chunk) {
    const int units = chunk + 1 == s.chunks ? s.tail_units : kSlotUnits;
    ring.take(f.q, [&](const char* first) {
      int lane = threadIdx.x % kWarpThreads;
      ptx::forget(lane);  // else its products take registers of every op
      const char* scales = first + units * kUnitBytes + lane / kUnitRowVectors * kInt8ScaleBytes;
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int unit = kPairs * i + lane % kPairs;
        const char* at = scales + (unit >> s.scale_shift) * kInt8GroupScaleBytes;
        f.scale[i] = unit < units ? *reinterpret_cast<const uint16_t*>(at) : 0;
      }
    });
  }

  class Sum {
   public:
    // Behind the end of the rows a slot holds what it held before: finite, and x is zero there.
    __device__ __forceinline__ void add(const Held& f, const uint4* xs, const StreamShape&, int chunk) {
      int lane = threadIdx.x % kWarpThreads;
      ptx::forget(lane);
      const int column = lane / kUnitRowVectors;
      int mine = 1 << column / 2;
      ptx::forget(mine);  // else x_ becomes an array in memory, indexed by the pair
      const uint4* x = xs + chunk * kSlotUnits * kUnitX + lane % kUnitRowVectors * 2 + column % 2;
      float acc[kSums][4] = {};
#pragma unroll
      for (int step = 0; step < kSlotUnits; ++step) {  // each sum in turn: a product waits for the last of its sum
        const int pair = step % kPairs, sum = (step + step / kPairs) % kSums, unit = kPairs * sum + pair;
        if (mine & 1 << pair) x_[pair] = x[unit * kUnitX];
        const uint4 w = f.q.v[unit], v = x_[pair];
        multiply(acc[sum], w.x, w.z, v.x, v.y);
        multiply(acc[sum], w.y, w.w, v.z, v.w);
      }
#pragma unroll
      for (int i = 0; i < kSums; ++i)
        sum_ = fmaf((acc[i][0] + acc[i][3]) * kWhole, to_f32(*reinterpret_cast<const T*>(&f.scale[i])), sum_);
    }
    // The rows of the group at `at`. Pairs are added in one order, in every lane.
    __device__ __forceinline__ void store_rows(float* at) const {
      const int lane = threadIdx.x % kWarpThreads;
      float v = sum_;
#pragma unroll
      for (int mask = 1; mask < kPairs; mask *= 2) v += __shfl_xor_sync(kWholeWarp, v, mask);
      if (lane % kPairs == 0) at[lane / kPairs] = v;
    }

   private:
    __device__ static __forceinline__ uint32_t turned(uint32_t word) { return __funnelshift_r(word, word, 8); }
    __device__ static __forceinline__ void multiply(float (&acc)[4], uint32_t first, uint32_t second, uint32_t x0,
                                                    uint32_t x1) {
      multiply_add_two<T>(acc, first & kInt8Mask, second & kInt8Mask, turned(first) & kInt8Mask,
                          turned(second) & kInt8Mask, x0, x1);
    }

    uint4 x_[kPairs] = {};  // in the lanes of pair i's columns that pair's last x, else zero
    float sum_ = 0;
  };
};

template <int kThreads>
__device__ bool streamed_int8_gemv(const TaskContext& c) {
  if (c.task.dtype == AMK_DTYPE_F16) return StreamedGemv<__half, kThreads, Int8Slots<__half>>(c).run();
  return StreamedGemv<__nv_bfloat16, kThreads, Int8Slots<__nv_bfloat16>>(c).run();
}

}  // namespace amk
