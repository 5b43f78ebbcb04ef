// GEMV_TILE of several tokens: the weights are the 8 columns of B as in gemv_stream.cuh, and the 16 rows of A are the
// tokens, so a slot costs as many instructions as with one token. A warp's columns are the same in every row group of a
// panel (ops/batch_slots.h): it keeps their x in registers, normalised, and reads each byte of x from L2 once per
// panel. The sums of a slot go to shared memory, those of later panels of columns on top, and are added up in the order
// of the columns: neither timing nor the warp that a slot fell to changes a bit.
// Weights that are not packed are loaded directly, once per token.
#pragma once

#include "batch.cuh"
#include "gemv.cuh"

namespace amk {

__host__ __device__ inline BatchPlan batch_plan(const amk_params_t& p) {
  const StreamShape s = stream_shape(p, kBatchWarps);
  return {s.chunks, s.groups, p.qdtype == AMK_DTYPE_I8 ? 2 : 1};
}
__host__ inline int64_t batch_gemv_shared_bytes(const amk_params_t& p) {
  const BatchPlan plan = batch_plan(p);
  const int groups = plan.groups < plan.panel_groups() ? plan.groups : plan.panel_groups();
  const int squares = kBatchWarps * AMK_MAX_BATCH * 4, sums = groups * plan.group_sums() * kBatchSumBytes;
  return sums > squares ? sums : squares;  // the squares are gone before the sums come
}

constexpr int kTokenHalves = 2, kHalfTokens = AMK_MAX_BATCH / kTokenHalves;  // rows l/4 and l/4 + 8 of A
constexpr int kBatchX = 16;                                                  // vectors of x per lane and row
// Loads of a warp in flight: vectors of the norm weight, units of a slot. The branch between two lots of them stops the
// compiler from loading all at once, for which there are no registers.
constexpr int kNormsAhead = 2, kUnitsAhead = 8;

// x of tokens lane / 4 and lane / 4 + 8, as a warp's part of a slot meets it.
struct BatchX {
  uint4 v[kTokenHalves][kBatchX];
};

// 16-bit weights: one warp reads a slot.
template <class T>
struct BatchPlainSlots {
  static constexpr int kReaders = 1, kUnits = kSlotUnits, kUnitX = 1, kExponent = 0;

  // units: of the slot; behind them it holds what it held before.
  __device__ static __forceinline__ void multiply(float (&sum)[4], const char* slot, const BatchX& x, int, int units,
                                                  int) {
    const uint4* weights = reinterpret_cast<const uint4*>(slot) + threadIdx.x % kWarpThreads;
    float odd[4] = {};
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (u % kUnitsAhead == 0 && u >= units) break;
      const uint4 w = u < units ? weights[u * kUnitVectors] : uint4{};
      const uint4 a = x.v[0][u], b = x.v[1][u];
      multiply_add_two<T>(sum, a.x, b.x, a.y, b.y, w.x, w.y);
      multiply_add_two<T>(odd, a.z, b.z, a.w, b.w, w.z, w.w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += odd[i];
  }
};

// Quantised ones (gemv_int8.cuh): each of two warps multiplies half of a slot's units, and each unit's sum meets its
// scale.
template <class T>
struct BatchInt8Slots {
  static constexpr int kReaders = 2, kUnits = kSlotUnits / kReaders, kUnitX = 2, kExponent = Int8Slots<T>::kExponent;

  __device__ static __forceinline__ void multiply(float (&sum)[4], const char* slot, const BatchX& x, int part,
                                                  int units, int scale_shift) {
    const int lane = threadIdx.x % kWarpThreads;
    const int first = part * kUnits, mine = units - first;  // an even number of units come before
    const uint4* weights = reinterpret_cast<const uint4*>(slot) + first * kUnitVectors + lane;
    const char* scales =
        slot + units * kUnitBytes + (first >> scale_shift) * kInt8GroupScaleBytes + lane % kUnitRowVectors * 4;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (u % (kUnitsAhead / 2) == 0 && u >= mine) break;
      const uint4 w = weights[u * kUnitVectors];  // behind the units it is finite, and x is zero
      const uint32_t both =
          u < mine ? *reinterpret_cast<const uint32_t*>(scales + (u >> scale_shift) * kInt8GroupScaleBytes) : 0;
      const float2 scale = unpack_pair<T>(both);
      float acc[4] = {};
      const uint4 a0 = x.v[0][2 * u], a1 = x.v[0][2 * u + 1], b0 = x.v[1][2 * u], b1 = x.v[1][2 * u + 1];
      multiply(acc, a0.x, b0.x, a0.y, b0.y, w.x);
      multiply(acc, a0.z, b0.z, a0.w, b0.w, w.y);
      multiply(acc, a1.x, b1.x, a1.y, b1.y, w.z);
      multiply(acc, a1.z, b1.z, a1.w, b1.w, w.w);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = fmaf(acc[i] * Int8Slots<T>::kWhole, i % 2 ? scale.y : scale.x, sum[i]);
    }
  }

 private:
  __device__ static __forceinline__ void multiply(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                  uint32_t word) {
    multiply_add_two<T>(acc, a0, a1, a2, a3, word & kInt8Mask, __funnelshift_r(word, word, 8) & kInt8Mask);
  }
};

template <class T, int kThreads, class Slots>
class BatchGemv {
 public:
  __device__ __forceinline__ BatchGemv(const BatchContext& c)
      : c_(c),
        plan_{stream_shape(c.params(), kWarps).chunks, stream_shape(c.params(), kWarps).groups, Slots::kReaders} {}

  __device__ __forceinline__ bool run() {
    if (!c_.template await_inputs<kThreads>()) return false;
    if (norm()) find_scales();
    // Zero at first, and loops that run once at least: registers that some path does not set would be kept alive
    // through every other op.
    BatchX x{};
    int group = 0;
    do {
      const int groups = min(plan_.panel_groups(), plan_.groups - group);
      int chunk = 0;
      do {
        const int n = plan_.panel_chunks(chunk);
        if (chunk > 0 && n != plan_.panel_chunks(0)) block_sync<kThreads>();  // other warps wrote the sums
        if (group == 0 || !plan_.is_one_panel_of_chunks()) {
          load(x, chunk + stream() % n);
          prepare(x, chunk + stream() % n);
        }
        multiply(x, chunk, n, groups);
        chunk += n;
      } while (chunk < plan_.chunks);
      block_sync<kThreads>();
      store_rows(group, groups);
      group += groups;
      if (group < plan_.groups) block_sync<kThreads>();  // the sums have been read
    } while (group < plan_.groups);
    return true;
  }

 private:
  static constexpr int kWarps = kThreads / kWarpThreads, kStreams = kWarps / Slots::kReaders;
  static_assert(kWarps == kBatchWarps && Slots::kUnits * Slots::kUnitX == kBatchX);

  __device__ static int warp() { return threadIdx.x / kWarpThreads; }
  __device__ static int lane() { return threadIdx.x % kWarpThreads; }
  __device__ static int stream() { return warp() / Slots::kReaders; }
  __device__ static int part() { return warp() % Slots::kReaders; }
  __device__ int vectors() const { return static_cast<int>(static_cast<uint32_t>(c_.params().K) / kPerVector<T>); }
  __device__ const T* norm() const { return c_.task.norm_slot < 0 ? nullptr : c_.in<T>(c_.task.norm_slot); }
  __device__ float* sums() const { return reinterpret_cast<float*>(c_.shared); }  // first the squares
  __device__ static int token(int half) { return lane() / kUnitRowVectors + half * kHalfTokens; }

  // Vector `i` of this warp's part of a chunk, in a row of x.
  __device__ __forceinline__ int vector(int chunk, int i) const {
    constexpr int kUnitVectorsX = kUnitRowVectors * Slots::kUnitX;
    const int unit = chunk * kSlotUnits + part() * Slots::kUnits + i / Slots::kUnitX;
    return unit * kUnitVectorsX + lane() % kUnitRowVectors * Slots::kUnitX + i % Slots::kUnitX;
  }
  // Every lane loads, whatever it finds is there: addresses that only some path computes would keep their registers
  // through every other op. A token that does not exist repeats the last one; its sums are never stored.
  __device__ __forceinline__ void load(BatchX& x, int chunk) const {
    const int last = vectors() - 1;
#pragma unroll
    for (int h = 0; h < kTokenHalves; ++h) {
      const int t = min(token(h), c_.tokens() - 1);
      const uint4* row = reinterpret_cast<const uint4*>(c_.in_row<T>(t) + c_.params().m_off);
#pragma unroll
      for (int i = 0; i < kBatchX; ++i) {
        const int at = vector(chunk, i);
        const uint4 v = load_vector(row + min(at, last));
        const bool inside = at <= last;
        x.v[h][i] = {inside ? v.x : 0, inside ? v.y : 0, inside ? v.z : 0, inside ? v.w : 0};
      }
    }
  }
  // Normalised where flagged, and times two to kExponent. The norm weight is whole vectors: the host saw to it.
  __device__ __forceinline__ void prepare(BatchX& x, int chunk) const {
    const T* weight = norm();
    if (!weight) {
      if constexpr (Slots::kExponent != 0) {
#pragma unroll
        for (int h = 0; h < kTokenHalves; ++h) {
#pragma unroll
          for (int i = 0; i < kBatchX; ++i) x.v[h][i] = times<T>(x.v[h][i], kGain);
        }
      }
      return;
    }
    const int count = vectors();
    const float plus = norm_plus(c_.params());
#pragma unroll
    for (int i = 0; i < kBatchX; ++i) {
      // Behind the end x is zero.
      if (i % kNormsAhead == 0 && vector(chunk, i) - lane() % kUnitRowVectors * Slots::kUnitX >= count) break;
      float w[kPerVector<T>];
      unpack<T>(load_vector(weight + min(vector(chunk, i), count - 1) * kPerVector<T>), w);
#pragma unroll
      for (int h = 0; h < kTokenHalves; ++h) {
        float e[kPerVector<T>];
        unpack<T>(x.v[h][i], e);
#pragma unroll
        for (int j = 0; j < kPerVector<T>; ++j) e[j] = e[j] * scale_[h] * (w[j] + plus);
        x.v[h][i] = pack<T>(e);
      }
    }
  }
  static constexpr float kGain = Slots::kExponent == 0 ? 1.0f : 0x1p64f;
  static_assert(Slots::kExponent == 0 || Slots::kExponent == 64);

  // What the two tokens of this lane are multiplied with: each square counts once, for the first stream that has its
  // chunk, and the warps' sums are added in their order.
  __device__ __forceinline__ void find_scales() {
    float sum[kTokenHalves] = {};
    int chunk = 0;
    do {
      const int n = plan_.panel_chunks(chunk);
      BatchX x;
      load(x, chunk + stream() % n);
#pragma unroll
      for (int h = 0; h < kTokenHalves; ++h) {
        float squares = 0;
#pragma unroll
        for (int i = 0; i < kBatchX; ++i) {
          float e[kPerVector<T>];
          unpack<T>(x.v[h][i], e);
#pragma unroll
          for (int j = 0; j < kPerVector<T>; ++j) squares = fmaf(e[j], e[j], squares);
        }
        sum[h] += stream() < n ? squares : 0.0f;
      }
      chunk += n;
    } while (chunk < plan_.chunks);
#pragma unroll
    for (int h = 0; h < kTokenHalves; ++h) {
#pragma unroll
      for (int mask = kUnitRowVectors / 2; mask > 0; mask /= 2) sum[h] += __shfl_xor_sync(kWholeWarp, sum[h], mask);
      if (lane() % kUnitRowVectors == 0) sums()[warp() * AMK_MAX_BATCH + token(h)] = sum[h];
    }
    block_sync<kThreads>();
#pragma unroll
    for (int h = 0; h < kTokenHalves; ++h) {
      float all = sums()[token(h)];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) all += sums()[w * AMK_MAX_BATCH + token(h)];
      scale_[h] = rms_scale(all, c_.params().K, c_.params().eps) * kGain;
    }
    block_sync<kThreads>();  // the slots' sums come to the same place
  }

  // Chunks [chunk, chunk + n) of `groups` row groups.
  __device__ __forceinline__ void multiply(const BatchX& x, int chunk, int n, int groups) {
    const int slots = groups * n, mine = stream() % n;
    const StreamShape s = stream_shape(c_.params(), kWarps);
    const int units = chunk + mine + 1 == plan_.chunks ? s.tail_units : kSlotUnits;
    float4* at = reinterpret_cast<float4*>(sums()) + lane();
    BatchRing::Place place = c_.slots.at(stream());
    for (int k = stream(); k < slots; k += kStreams) {
      const char* slot = c_.slots.wait(place);
      float sum[4] = {};
      Slots::multiply(sum, slot, x, part(), units, s.scale_shift);
      c_.slots.template release<Slots::kReaders>(place);
      place = c_.slots.behind(place, kStreams);
      float4& out = at[(k / n * plan_.group_sums() + mine * Slots::kReaders + part()) * kWarpThreads];
      const float4 old = chunk > 0 ? out : float4{};
      out = {old.x + sum[0], old.y + sum[1], old.z + sum[2], old.w + sum[3]};
    }
    c_.slots.finish(slots);
  }

  // The sums lie as the tensor cores leave them: 4 to a lane, of tokens lane / 4 and lane / 4 + 8 and rows
  // 2 * (lane % 4) and the next.
  __device__ __forceinline__ void store_rows(int group, int groups) const {
    constexpr int kGroupSums = AMK_MAX_BATCH * kGroupRows;
    const amk_params_t& p = c_.params();
    const bool is_pair = p.flags & AMK_FLAG_SILU_PAIR;
    const int fold = is_pair ? 2 : 1, count = groups / fold * kGroupSums;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int place = i % kGroupSums, of_lane = place % 4, quad = place / 4;
      const int t = quad / kUnitRowVectors + of_lane / 2 * kHalfTokens;
      if (t >= c_.tokens()) continue;
      const int n = p.n_off + (group / fold + i / kGroupSums) * kGroupRows + quad % kUnitRowVectors * 2 + of_lane % 2;
      const auto sum = [&](int up) {
        const float* at = sums() + (i / kGroupSums * fold + up) * plan_.group_sums() * kGroupSums + place;
        float all = at[0];
        for (int j = 1; j < plan_.group_sums(); ++j) all += at[j * kGroupSums];
        return all;
      };
      const T* bias = c_.task.bias_slot < 0 ? nullptr : c_.in<T>(c_.task.bias_slot);
      float y = sum(0) + (bias ? amk::load(bias + n) : 0.0f);
      if (is_pair) y = silu(y) * (sum(1) + (bias ? amk::load(bias + p.N + n) : 0.0f));
      if (c_.task.residual_slot >= 0) y += amk::load(c_.other_row<T>(c_.task.residual_slot, t) + n);
      if (c_.task.out_dtype == AMK_DTYPE_F32) {
        c_.out_row<float>(t)[n] = y;
      } else {
        store(c_.out_row<T>(t) + n, y);
      }
    }
  }

  // What is read again where it is needed keeps no register.
  const BatchContext& c_;
  const BatchPlan plan_;
  float scale_[kTokenHalves] = {};
};

// Weights that are not packed: the tile of one token (gemv.cuh) for each token, its record moved on to the next row.
template <class T, int kThreads>
__device__ __forceinline__ bool batch_gemv_direct(const BatchContext& c) {
  for (int t = 0; t < c.tokens(); ++t) {
    if (t > 0) {
      block_sync<kThreads>();
      if (threadIdx.x == 0) {
        BatchTask& r = c.record;
        r.n_waits = 0;
        r.in[0] = c.in_row<T>(1);
        if (r.residual_slot >= 0) r.in[r.residual_slot] = c.other_row<T>(r.residual_slot, 1);
        r.out[0] = r.out_dtype == AMK_DTYPE_F32 ? static_cast<void*>(c.out_row<float>(1)) : c.out_row<T>(1);
      }
      block_sync<kThreads>();
    }
    if (!GemvTile<T, kThreads>(c).run()) return false;
  }
  return true;
}

template <int kThreads>
__device__ __forceinline__ bool batch_gemv(const BatchContext& c) {
  const bool is_f16 = c.task.dtype == AMK_DTYPE_F16;
  if (c.params().qdtype != 0) {
    if (is_f16) return BatchGemv<__half, kThreads, BatchInt8Slots<__half>>(c).run();
    return BatchGemv<__nv_bfloat16, kThreads, BatchInt8Slots<__nv_bfloat16>>(c).run();
  }
  if (c.task.packing != static_cast<int32_t>(Packing::kPlain)) {
    if (is_f16) return BatchGemv<__half, kThreads, BatchPlainSlots<__half>>(c).run();
    return BatchGemv<__nv_bfloat16, kThreads, BatchPlainSlots<__nv_bfloat16>>(c).run();
  }
  return with_dtype(c.task.dtype,
                    [&](auto type) { return batch_gemv_direct<typename decltype(type)::type, kThreads>(c); });
}

}  // namespace amk
