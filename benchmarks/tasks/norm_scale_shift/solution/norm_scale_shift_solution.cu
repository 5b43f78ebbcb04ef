// The solution of norm_scale_shift: which kernel which operands get. docs/dispatch.md has the table.
#include "norm_scale_shift_ring.cuh"

namespace amk::task {
namespace {

// Up to this many rows every row has an SM nearly to itself and the launch is shorter than the latency of memory, so a
// row is spread over as many threads as it has vectors.
constexpr int kFewRows = 264;
// Of 256 threads each, on the 132 SMs of an H100 or H200: all at once.
constexpr int kRowsOfOneWave = 8 * 132;
// Of four blocks that stay on each SM: with more rows some block has a second one.
constexpr int kRowsOfStayingBlocks = 4 * 132;
// Up to so many rows blocks stay: there is less to even out than a block's beginning costs.
constexpr int kRowsOfStay = 32 * 132, kRowsOfGatedStay = 20 * 132;

// Early, in a launch that overlaps the end of the one before it.
template <int kTeam, int kVectors>
using Overlapping = NormPlan<kTeam, kVectors, 1, Fetch::kEarly, 1, Reuse::kStream, Order::kDependent>;
template <int kTeam, int kVectors, int kResident = 1, Reuse kReuse = Reuse::kStream>
using Late = NormPlan<kTeam, kVectors, 1, Fetch::kLate, kResident, kReuse>;

// Scale and shift [1, 1, C] with more than kRowsOfStayingBlocks rows; else kPass, and nothing is done.
constexpr int32_t kPass = 1 << 30;
template <class M, bool kResidual>
int32_t run_broadcast(const NormOperands& o, void* stream) {
  const int rows = o.batches * o.rows;
  if (rows <= kRowsOfStayingBlocks || !is_same_for_all_rows(o)) return kPass;
  const bool stays = rows <= (kResidual ? kRowsOfGatedStay : kRowsOfStay);
  const auto ring = [&](auto plan, int staying, int rows_of_block) {
    const Share share =
        stays ? Share{.staying = staying, .loads = Reuse::kStream} : Share{.rows_of_block = rows_of_block};
    return launch_ring<__nv_bfloat16, M, kResidual, decltype(plan)>(o, share, stream);
  };
  if constexpr (sizeof(M) == 4) {
    using Plan = std::conditional_t<kResidual, RingPlan<160, 4, 3, 2>, RingPlan<160, 4, 4, 3>>;
    if (o.columns == 5120) return ring(Plan{}, kResidual ? 2 : 3, kResidual ? 3 : 4);
  } else if constexpr (kResidual) {
    if (o.columns == 3072) return ring(RingPlan<128, 3, 3, 4>{}, 4, 2);
    if (o.columns == 4096 && stays) return ring(RingPlan<128, 4, 3, 4>{}, 4, 0);
    if (o.columns == 4096) return ring(RingPlan<256, 2, 3, 2>{}, 0, 3);
    if (o.columns == 5120) return ring(RingPlan<160, 4, 3, 2>{}, 2, 3);
  } else {
    if (o.columns == 3072) return ring(RingPlan<128, 3, 4, 4>{}, 4, 3);
    if (o.columns == 4096) return ring(RingPlan<128, 4, 4, 4>{}, 4, 3);
    if (o.columns == 5120) return ring(RingPlan<128, 5, 4, 4>{}, 4, 2);
  }
  return kPass;
}

template <class X, class M, bool kResidual, bool kAffine>
int32_t run(const NormOperands& o, void* stream) {
  const auto with = [&](auto plan) { return launch_rows<X, M, kResidual, kAffine, decltype(plan)>(o, 0, stream); };
  const int vectors = o.columns / kPerVector<X>, rows = o.batches * o.rows;
  constexpr bool kWideModulation = sizeof(M) > sizeof(X);
  // The row lengths of production, which is bf16 and without weights: 1536, 3072, 4096 and 5120 columns.
  if constexpr (std::is_same_v<X, __nv_bfloat16> && !kAffine) {
    if constexpr (can_copy_in_bulk()) {
      if (const int32_t status = run_broadcast<M, kResidual>(o, stream); status != kPass) return status;
    }
    if (vectors > 128 && vectors <= 192) {
      if (rows <= kFewRows) return with(NormPlan<192, 1>{});
      return with(Late<64, 3>{});
    }
    if (vectors > 256 && vectors <= 384) {
      if (rows <= kFewRows) return with(Overlapping<384, 1>{});
      // With f32 modulation and six blocks the residual's kernel would spill.
      constexpr int kResident = kWideModulation ? 5 : 6;
      return with(std::conditional_t<kResidual, Late<128, 3, kResident>, Late<128, 3, 1, Reuse::kKeep>>{});
    }
    if (vectors > 384 && vectors <= 512) {
      if (rows <= (kResidual ? kFewRows : kRowsOfOneWave)) return with(Overlapping<256, 2>{});
      return with(std::conditional_t<kResidual, Late<256, 2>, NormPlan<128, 4>>{});
    }
    if (vectors > 512 && vectors <= 640) {
      constexpr bool kIsLate = kResidual && !kWideModulation;
      return with(std::conditional_t<kIsLate, Late<160, 4>, NormPlan<128, 5>>{});
    }
  }
  if (vectors <= 32) return with(NormPlan<32, 1>{});
  if (vectors <= 128) return with(NormPlan<32, 4>{});
  if (vectors <= 512) return with(NormPlan<256, 2>{});
  constexpr int kLongest = sizeof(X) == 4 ? 4 : 2;  // 8192 columns of any type
  if (vectors <= 512 * kLongest) return with(NormPlan<512, kLongest>{});
  return launch_elements<X, M>(o, stream);
}

template <class X, class M>
int32_t dispatch(const NormOperands& o, void* stream) {
  if (!o.is_vector) return launch_elements<X, M>(o, stream);
  const bool has_weight = o.weight != nullptr;
  if (o.has_residual) return has_weight ? run<X, M, true, true>(o, stream) : run<X, M, true, false>(o, stream);
  return has_weight ? run<X, M, false, true>(o, stream) : run<X, M, false, false>(o, stream);
}

}  // namespace
}  // namespace amk::task

AMK_TASK_ENTRY(amk_task_norm_scale_shift_solution);

int32_t amk_task_norm_scale_shift_solution(const amk_task_tensor_t* inputs, int32_t n_inputs, const double* scalars,
                                           int32_t n_scalars, const amk_task_tensor_t* outputs, int32_t n_outputs,
                                           void* stream) {
  using namespace amk::task;
  return with_operands(inputs, n_inputs, scalars, n_scalars, outputs, n_outputs,
                       [&](const NormOperands& o, auto x, auto modulation) {
                         return dispatch<typename decltype(x)::type, typename decltype(modulation)::type>(o, stream);
                       });
}
