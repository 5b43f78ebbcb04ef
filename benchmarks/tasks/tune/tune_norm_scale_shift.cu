// The plans of norm_scale_shift side by side on production shapes, cold, against the fastest plain copy of the same
// bytes: what norm_scale_shift/docs/dispatch.md was chosen from. Each plan's result is first compared with the element
// kernel. Usage: amk_tune_norm_scale_shift [--all] [PART ...]: rows whose name has such a part, as "5120" or
// "37800x5120 f32"; --all: also the plans far from the best.
#include "../norm_scale_shift/solution/norm_scale_shift_solution.cu"
#include "tune.cuh"

namespace amk::task {
namespace {

using X = __nv_bfloat16;
constexpr auto kEarly = Fetch::kEarly, kLate = Fetch::kLate;

struct Candidate {
  std::string name;
  std::function<int32_t(const NormOperands&, int grid, void* stream)> launch;
  int waves;  // blocks per SM of a persistent grid, or 0
};

template <class M, bool kResidual, class Plan>
Candidate plan(const char* name, int waves = 0) {
  return {name, launch_rows<X, M, kResidual, false, Plan>, waves};
}

// Operands are those that the entry reads, so this is what a caller of the entry gets.
template <class M>
int32_t launch_dispatched(const NormOperands& o, int, void* stream) {
  return dispatch<X, M>(o, stream);
}

// Vectors of 8 bytes of x beside f32 modulation of 16.
template <int kTeam, int kVectors, Fetch kFetch, int kRows = 1>
using Narrow = NormPlan<kTeam, kVectors, kRows, kFetch, 1, Reuse::kStream, Order::kPlain, 8>;

template <class M, bool kResidual, int kColumns>
std::vector<Candidate> narrow_candidates() {
  constexpr bool R = kResidual;
  if constexpr (sizeof(M) == 2) {
    return {};
  } else if constexpr (kColumns == 3072) {
    return {
        plan<M, R, Narrow<128, 6, kLate>>("128x6 narrow late"),
        plan<M, R, Narrow<192, 4, kLate>>("192x4 narrow late"),
        plan<M, R, Narrow<192, 4, kEarly>>("192x4 narrow early"),
        plan<M, R, Narrow<384, 2, kEarly>>("384x2 narrow early"),
        plan<M, R, Narrow<256, 3, kEarly>>("256x3 narrow early"),
    };
  } else {
    return {
        plan<M, R, Narrow<256, 5, kLate>>("256x5 narrow late"),
        plan<M, R, Narrow<128, 10, kLate>>("128x10 narrow late"),
        plan<M, R, Narrow<320, 4, kLate>>("320x4 narrow late"),
        plan<M, R, Narrow<320, 4, kEarly>>("320x4 narrow early"),
        plan<M, R, Narrow<640, 2, kEarly>>("640x2 narrow early"),
        plan<M, R, Narrow<256, 5, kEarly>>("256x5 narrow early"),
    };
  }
}

// Of broadcast modulation only: one plan with each way of sharing the rows.
template <class M, bool kResidual, int kTeam, int kVectors, int kStages, int kResident>
void add_rings(std::vector<Candidate>* out) {
  std::vector<Share> shares;
  for (const int staying : {4, 3, 2}) {
    if (staying > kResident) continue;
    shares.push_back({.staying = staying});
    shares.push_back({.staying = staying, .loads = Reuse::kStream});
  }
  for (const int rows : {2, 3, 4, 6, 8}) shares.push_back({.rows_of_block = rows});
  for (const int rows : {2, 4}) shares.push_back({.rows_of_block = rows, .loads = Reuse::kStream});
  for (const Share& share : shares) {
    char name[80];
    std::snprintf(name, sizeof name, "ring %dx%d %d stages, %d %s%s", kTeam, kVectors, kStages,
                  share.staying ? share.staying : share.rows_of_block, share.staying ? "stay" : "rows a block",
                  share.loads == Reuse::kStream ? ", x streamed" : "");
    const auto launch = [share](const NormOperands& o, int, void* stream) {
      return launch_ring<X, M, kResidual, RingPlan<kTeam, kVectors, kStages, kResident>>(o, share, stream);
    };
    out->push_back({name, launch, 0});
  }
}
template <class M, bool kResidual, int kColumns>
std::vector<Candidate> ring_candidates() {
  constexpr bool R = kResidual;
  std::vector<Candidate> all;
  if constexpr (kColumns == 3072) {
    add_rings<M, R, 128, 3, 3, 4>(&all);
    add_rings<M, R, 128, 3, 4, 4>(&all);
    add_rings<M, R, 96, 4, 4, R ? 3 : 5>(&all);
    add_rings<M, R, 192, 2, 4, R ? 3 : 5>(&all);
  } else if constexpr (kColumns == 4096) {
    add_rings<M, R, 128, 4, 3, 4>(&all);
    add_rings<M, R, 128, 4, 4, 4>(&all);
    add_rings<M, R, 256, 2, 3, R ? 2 : 4>(&all);
  } else if constexpr (kColumns == 5120) {
    add_rings<M, R, 128, 5, 4, R && sizeof(M) == 4 ? 3 : 4>(&all);
    add_rings<M, R, 160, 4, 3, R ? 2 : 3>(&all);
    add_rings<M, R, 160, 4, 4, R ? 2 : 3>(&all);
    add_rings<M, R, 320, 2, 4, R ? 1 : 2>(&all);
  }
  return all;
}

template <class M, bool kResidual, int kColumns>
std::vector<Candidate> candidates() {
  constexpr bool R = kResidual;
  if constexpr (kColumns == 1536) {
    return {
        plan<M, R, NormPlan<64, 3>>("64x3 early"),
        plan<M, R, NormPlan<64, 3, 1, kLate>>("64x3 late"),
        plan<M, R, NormPlan<96, 2>>("96x2 early"),
        plan<M, R, NormPlan<192, 1>>("192x1 early"),
        plan<M, R, NormPlan<192, 1, 1, kLate>>("192x1 late"),
        plan<M, R, NormPlan<32, 6, 1, kLate>>("32x6 late"),
        plan<M, R, NormPlan<192, 1, 1, kEarly, 1, Reuse::kStream, Order::kDependent>>("192x1 early dependent"),
    };
  } else if constexpr (kColumns == 3072) {
    return {
        plan<M, R, NormPlan<128, 3>>("128x3 early"),
        plan<M, R, NormPlan<128, 3, 1, kLate>>("128x3 late"),
        plan<M, R, NormPlan<128, 3, 1, kLate, sizeof(M) == 4 ? 5 : 6>>("128x3 late resident 6, f32 5"),
        plan<M, R, NormPlan<128, 3, 2, kLate>>("128x3 2 rows late"),
        plan<M, R, NormPlan<192, 2>>("192x2 early"),
        plan<M, R, NormPlan<192, 2, 1, kLate>>("192x2 late"),
        plan<M, R, NormPlan<192, 2, 2>>("192x2 2 rows early"),
        plan<M, R, NormPlan<384, 1>>("384x1 early"),
        plan<M, R, NormPlan<384, 1, 2>>("384x1 2 rows early"),
        plan<M, R, NormPlan<384, 1, 4>>("384x1 4 rows early"),
        plan<M, R, NormPlan<96, 4, 1, kLate>>("96x4 late"),
        plan<M, R, NormPlan<64, 6, 1, kLate>>("64x6 late"),
        plan<M, R, NormPlan<128, 3, 1, kLate, 1, Reuse::kKeep>>("128x3 late kept"),
        plan<M, R, NormPlan<192, 2, 1, kEarly, 1, Reuse::kKeep>>("192x2 early kept"),
        plan<M, R, NormPlan<192, 2>>("192x2 early persistent", 4),
        plan<M, R, NormPlan<128, 3, 1, kLate>>("128x3 late persistent", 6),
        plan<M, R, NormPlan<128, 3, 1, kEarly, 1, Reuse::kKeep>>("128x3 early kept"),
        plan<M, R, NormPlan<384, 1, 1, kEarly, 1, Reuse::kStream, Order::kDependent>>("384x1 early dependent"),
        plan<M, R, NormPlan<192, 2, 1, kEarly, 1, Reuse::kStream, Order::kDependent>>("192x2 early dependent"),
        plan<M, R, NormPlan<128, 3, 1, kEarly, 1, Reuse::kStream, Order::kDependent>>("128x3 early dependent"),
        plan<M, R, NormPlan<128, 3, 1, kLate, 1, Reuse::kStream, Order::kDependent>>("128x3 late dependent"),
    };
  } else if constexpr (kColumns == 4096) {
    return {
        plan<M, R, NormPlan<128, 4>>("128x4 early"),
        plan<M, R, NormPlan<128, 4, 1, kLate>>("128x4 late"),
        plan<M, R, NormPlan<128, 4, 1, kEarly, 1, Reuse::kKeep>>("128x4 early kept"),
        plan<M, R, NormPlan<128, 4, 1, kLate, 1, Reuse::kKeep>>("128x4 late kept"),
        plan<M, R, NormPlan<256, 2>>("256x2 early"),
        plan<M, R, NormPlan<256, 2, 1, kLate>>("256x2 late"),
        plan<M, R, NormPlan<256, 2, 2>>("256x2 2 rows early"),
        plan<M, R, NormPlan<512, 1>>("512x1 early"),
        plan<M, R, NormPlan<512, 1, 2>>("512x1 2 rows early"),
        plan<M, R, NormPlan<64, 8, 1, kLate>>("64x8 late"),
        plan<M, R, NormPlan<256, 2, 1, kEarly, 1, Reuse::kStream, Order::kDependent>>("256x2 early dependent"),
    };
  } else {
    return {
        plan<M, R, NormPlan<128, 5>>("128x5 early"),
        plan<M, R, NormPlan<128, 5, 1, kLate>>("128x5 late"),
        plan<M, R, NormPlan<128, 5, 1, kEarly, 1, Reuse::kKeep>>("128x5 early kept"),
        plan<M, R, NormPlan<128, 5, 1, kLate, 1, Reuse::kKeep>>("128x5 late kept"),
        plan<M, R, NormPlan<128, 5, 1, kEarly, 1, Reuse::kStream, Order::kPlain, 16, Reuse::kKeep>>(
            "128x5 early stores kept"),
        plan<M, R, NormPlan<128, 5, 1, kLate, 1, Reuse::kStream, Order::kPlain, 16, Reuse::kKeep>>(
            "128x5 late stores kept"),
        plan<M, R, NormPlan<128, 5, 1, kLate, 1, Reuse::kKeep, Order::kPlain, 16, Reuse::kStream>>(
            "128x5 late loads kept"),
        plan<M, R, NormPlan<160, 4, 1, kEarly, 1, Reuse::kKeep>>("160x4 early kept"),
        plan<M, R, NormPlan<160, 4, 1, kLate, 1, Reuse::kKeep>>("160x4 late kept"),
        plan<M, R, NormPlan<160, 4>>("160x4 early"),
        plan<M, R, NormPlan<160, 4, 1, kLate>>("160x4 late"),
        plan<M, R, NormPlan<320, 2>>("320x2 early"),
        plan<M, R, NormPlan<320, 2, 1, kLate>>("320x2 late"),
        plan<M, R, NormPlan<320, 2, 2, kLate>>("320x2 2 rows late"),
        plan<M, R, NormPlan<640, 1>>("640x1 early"),
        plan<M, R, NormPlan<320, 2, 1, kEarly, 1, Reuse::kKeep>>("320x2 early kept"),
        plan<M, R, NormPlan<320, 2>>("320x2 early persistent", 3),
    };
  }
}

struct Tuning {
  Clock clock;
  Asked asked;
  bool is_all;
};

template <class M, bool kResidual, int kColumns>
void tune(Tuning& tuning, int rows, bool is_full = false) {
  char shape[64];
  std::snprintf(shape, sizeof shape, "%dx%d %s%s%s", rows, kColumns, sizeof(M) == 4 ? "f32" : "bf16",
                is_full ? " full" : "", kResidual ? " gated" : "");
  if (!tuning.asked.has(shape)) return;
  Clock& clock = tuning.clock;
  const size_t elements = static_cast<size_t>(rows) * kColumns, x_bytes = elements * sizeof(X);
  const size_t modulation = is_full ? elements : kColumns, modulation_bytes = modulation * sizeof(M);
  const int tensors = kResidual ? 4 : 2, modulations = kResidual ? 3 : 2;
  const size_t bytes = tensors * x_bytes + modulations * modulation_bytes;
  const Pool pool(bytes + 512);
  const auto operands = [&](char* at) {
    const auto rows_at = [&](int i) { return tensor(at + i * x_bytes, AMK_DTYPE_BF16, {1, rows, kColumns}); };
    const auto modulation_at = [&](int i) {
      void* const data = at + tensors * x_bytes + i * modulation_bytes;
      constexpr int32_t kType = sizeof(M) == 4 ? AMK_DTYPE_F32 : AMK_DTYPE_BF16;
      return is_full ? tensor(data, kType, {1, rows, kColumns}) : tensor(data, kType, {kColumns});
    };
    const amk_task_tensor_t none{};
    const amk_task_tensor_t inputs[] = {rows_at(0),
                                        kResidual ? rows_at(2) : none,
                                        kResidual ? modulation_at(2) : none,
                                        modulation_at(0),
                                        modulation_at(1),
                                        none,
                                        none};
    const amk_task_tensor_t outputs[] = {rows_at(1), kResidual ? rows_at(3) : none};
    const double scalars[] = {1e-6, 0};
    NormOperands o{};
    require_vectors(read_operands(inputs, 7, scalars, 2, outputs, 2, &o), o);
    return o;
  };
  for (int i = 0; i < pool.sets(); ++i) {
    const NormOperands o = operands(pool.set(i));
    fill<<<1024, 256>>>(static_cast<X*>(o.x.data), tensors * elements, 1 + 2 * static_cast<uint32_t>(i));
    fill<<<1024, 256>>>(const_cast<M*>(static_cast<const M*>(o.scale.data)), modulations * modulation,
                        2 + 2 * static_cast<uint32_t>(i));
  }
  const NormOperands first = operands(pool.set(0));
  const int n_outputs = kResidual ? 2 : 1;
  void* const outputs[] = {first.y.data, first.residual_out.data};
  X* want;
  check(cudaMalloc(&want, n_outputs * x_bytes), "cudaMalloc");
  if (launch_elements<X, M>(first, nullptr) != 0) std::exit(1);
  for (int i = 0; i < n_outputs; ++i)
    check(cudaMemcpy(want + i * elements, outputs[i], x_bytes, cudaMemcpyDeviceToDevice), "the element kernel");
  std::vector<Finding> found;
  std::vector<Candidate> all{{kDispatched, launch_dispatched<M>, 0}};
  const auto add = [&](const std::vector<Candidate>& more) { all.insert(all.end(), more.begin(), more.end()); };
  add(candidates<M, kResidual, kColumns>());
  add(narrow_candidates<M, kResidual, kColumns>());
  if (!is_full && rows > kFewRows) {
    add(ring_candidates<M, kResidual, kColumns>());
  }
  for (const Candidate& c : all) {
    const int grid = c.waves * pool.sm_count();
    for (int i = 0; i < n_outputs; ++i) check(cudaMemset(outputs[i], 0xff, x_bytes), "cudaMemset");
    if (const int32_t status = c.launch(first, grid, nullptr)) {
      print_refusal(shape, c.name.c_str(), status);
      continue;
    }
    float away = 0;
    for (int i = 0; i < n_outputs; ++i)
      away = std::max(away, distance(want + i * elements, static_cast<const X*>(outputs[i]), elements));
    found.push_back({c.name.c_str(), clock.us_per_launch([&](int i, cudaStream_t stream) {
                       return c.launch(operands(pool.set(i)), grid, stream);
                     }),
                     away});
  }
  // Last: it overwrites the operands.
  print_findings(shape, bytes, pool.copy_us(clock, bytes), found, tuning.is_all);
  check(cudaFree(want), "cudaFree");
}

}  // namespace
}  // namespace amk::task

int main(int argc, char** argv) {
  using namespace amk::task;
  const bool is_all = take_all(argc, argv);
  Tuning tuning{{}, Asked(argc, argv), is_all};
  print_header();
  for (int rows : {19, 195, 1200, 2400, 4096, 8424, 16384, 27030}) tune<X, false, 3072>(tuning, rows);
  for (int rows : {19, 1200, 4096, 8424, 27030}) tune<X, true, 3072>(tuning, rows);
  tune<X, false, 3072>(tuning, 18144, true);
  tune<float, false, 3072>(tuning, 18144, true);
  for (int rows : {600, 997, 2000, 7904}) tune<X, false, 4096>(tuning, rows);
  for (int rows : {600, 997, 7904}) tune<X, true, 4096>(tuning, rows);
  for (int rows : {600, 2400, 9600, 37800, 74088}) tune<X, false, 5120>(tuning, rows);
  for (int rows : {600, 2400, 37800, 75600}) tune<float, false, 5120>(tuning, rows);
  for (int rows : {600, 2400, 37800}) tune<X, true, 5120>(tuning, rows);
  for (int rows : {600, 2400, 37800}) tune<float, true, 5120>(tuning, rows);
  tune<X, false, 5120>(tuning, 8640, true);
  tune<float, false, 5120>(tuning, 11040, true);
  tune<X, false, 1536>(tuning, 101);
  tune<X, true, 1536>(tuning, 101);
  return tuning.asked.status();
}
