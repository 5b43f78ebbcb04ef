// The plans of norm_scale_shift side by side on production shapes, cold, against the fastest plain copy of the same
// bytes: what norm_scale_shift/docs/dispatch.md was chosen from. Each plan's result is first compared with the element
// kernel. Usage: amk_tune_norm_scale_shift [--all] [PART ...]: rows whose name has such a part, as "5120" or
// "37800x5120 f32"; --all: also the plans far from the best.
#include "../norm_scale_shift/solution/norm_scale_shift_solution.cu"
#include "norm_scale_shift_sweep.cuh"
#include "tune.cuh"

namespace amk::task {
namespace {

using X = __nv_bfloat16;
constexpr auto kEarly = Fetch::kEarly, kLate = Fetch::kLate;

struct Candidate {
  std::string name;
  int32_t (*launch)(const NormOperands&, int grid, void* stream);
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

// Of broadcast modulation only. Shared memory holds the modulation as f32 and kStages rows (with a residual: pairs of
// rows) per warp; with several waves a block ends earlier and SMs even out.
template <class M, bool kResidual, class Plan>
Candidate sweep(const char* name, int waves = 0) {
  return {name, launch_sweep<X, M, kResidual, Plan>, waves};
}
template <class M, bool kResidual, int kColumns>
std::vector<Candidate> sweep_candidates() {
  constexpr bool R = kResidual;
  constexpr int kVectors = kColumns / (kWarpThreads * kPerVector<X>);
  if constexpr (kColumns == 1536) {
    return {};
  } else if constexpr (kColumns == 3072 && !R) {
    return {
        sweep<M, R, SweepPlan<8, kVectors, 2>>("sweep 8 warps 2 stages"),
        sweep<M, R, SweepPlan<8, kVectors, 3>>("sweep 8 warps 3 stages"),
        sweep<M, R, SweepPlan<8, kVectors, 3>>("sweep 8 warps 3 stages 3 waves", 3),
        sweep<M, R, SweepPlan<12, kVectors, 2>>("sweep 12 warps 2 stages"),
        sweep<M, R, SweepPlan<16, kVectors, 2>>("sweep 16 warps 2 stages"),
        sweep<M, R, SweepPlan<8, kVectors, 3, 1, Order::kDependent>>("sweep 8 warps 3 stages dependent"),
        sweep<M, R, SweepPlan<16, kVectors, 2, 1, Order::kDependent>>("sweep 16 warps 2 stages dependent"),
        sweep<M, R, SweepPlan<16, kVectors, 2>>("sweep 16 warps 2 stages 2 waves", 2),
    };
  } else if constexpr (kColumns == 3072) {
    return {
        sweep<M, R, SweepPlan<6, kVectors, 2>>("sweep 6 warps 2 stages"),
        sweep<M, R, SweepPlan<5, kVectors, 3>>("sweep 5 warps 3 stages"),
        sweep<M, R, SweepPlan<6, kVectors, 2, 1, Order::kDependent>>("sweep 6 warps 2 stages dependent"),
        sweep<M, R, SweepPlan<7, kVectors, 2>>("sweep 7 warps 2 stages"),
        sweep<M, R, SweepPlan<7, kVectors, 2>>("sweep 7 warps 2 stages 3 waves", 3),
    };
  } else if constexpr (kColumns == 4096 && !R) {
    return {
        sweep<M, R, SweepPlan<8, kVectors, 2>>("sweep 8 warps 2 stages"),
        sweep<M, R, SweepPlan<8, kVectors, 2>>("sweep 8 warps 2 stages 2 waves", 2),
        sweep<M, R, SweepPlan<8, kVectors, 3>>("sweep 8 warps 3 stages"),
        sweep<M, R, SweepPlan<8, kVectors, 3, 1, Order::kDependent>>("sweep 8 warps 3 stages dependent"),
        sweep<M, R, SweepPlan<12, kVectors, 2>>("sweep 12 warps 2 stages"),
    };
  } else if constexpr (kColumns == 4096) {
    return {
        sweep<M, R, SweepPlan<4, kVectors, 2>>("sweep 4 warps 2 stages"),
        sweep<M, R, SweepPlan<5, kVectors, 2>>("sweep 5 warps 2 stages"),
        sweep<M, R, SweepPlan<5, kVectors, 2>>("sweep 5 warps 2 stages 2 waves", 2),
    };
  } else if constexpr (!R) {
    return {
        sweep<M, R, SweepPlan<6, kVectors, 2>>("sweep 6 warps 2 stages"),
        sweep<M, R, SweepPlan<6, kVectors, 3>>("sweep 6 warps 3 stages"),
        sweep<M, R, SweepPlan<9, kVectors, 2>>("sweep 9 warps 2 stages"),
        sweep<M, R, SweepPlan<9, kVectors, 2>>("sweep 9 warps 2 stages 3 waves", 3),
    };
  } else {
    return {
        sweep<M, R, SweepPlan<4, kVectors, 2>>("sweep 4 warps 2 stages"),
        sweep<M, R, SweepPlan<4, kVectors, 2>>("sweep 4 warps 2 stages 3 waves", 3),
        sweep<M, R, SweepPlan<8, kVectors, 1>>("sweep 8 warps 1 stage"),
    };
  }
}

// Of broadcast modulation only. f32 modulation and a residual's operands take the registers of whole blocks.
template <class M, bool kResidual, class Plan>
Candidate stay(const std::string& name) {
  return {name,
          [](const NormOperands& o, int, void* stream) { return launch_persistent<X, M, kResidual, Plan>(o, stream); },
          0};
}
// One plan in several manners: hints, order and waves.
template <class M, bool kResidual, int kTeam, int kVectors, int kStages, Stay kStay, int kResident>
std::vector<Candidate> manners(const std::string& name) {
  constexpr auto kKeep = Reuse::kKeep, kStream = Reuse::kStream;
  constexpr auto kPlain = Order::kPlain, kDependent = Order::kDependent;
  const auto in = [&]<Manner kManner>(const char* manner) {
    return stay<M, kResidual, PersistentPlan<kTeam, kVectors, kStages, kStay, kResident, 8, kManner>>(name + manner);
  };
  std::vector<Candidate> all{
      in.template operator()<Manner{kStream, kKeep}>(", stores kept"),
      in.template operator()<Manner{kStream, kStream, kDependent}>(", dependent"),
      in.template operator()<Manner{kStream, kKeep, kDependent}>(", stores kept, dependent"),
      in.template operator()<Manner{kStream, kStream, kPlain, 4}>(", 4 waves"),
      in.template operator()<Manner{kStream, kStream, kPlain, 16}>(", 16 waves"),
      in.template operator()<Manner{kStream, kKeep, kDependent, 4}>(", stores kept, dependent, 4 waves"),
  };
  if constexpr (kStages == 0) {
    all.push_back(in.template operator()<Manner{kKeep, kKeep}>(", kept"));
    all.push_back(in.template operator()<Manner{kKeep, kStream}>(", loads kept"));
    all.push_back(in.template operator()<Manner{kKeep, kKeep, kPlain, 4}>(", kept, 4 waves"));
  }
  return all;
}
template <class M, bool kResidual, int kColumns>
std::vector<Candidate> manner_candidates() {
  constexpr bool R = kResidual;
  constexpr auto kPacked = Stay::kPacked;
  std::vector<Candidate> all;
  const auto add = [&](const std::vector<Candidate>& more) { all.insert(all.end(), more.begin(), more.end()); };
  if constexpr (kColumns == 3072 && !R && sizeof(M) == 2) {
    add(manners<M, R, 128, 3, 3, Stay::kFloat, 4>("ring 128x3 3 stages f32"));
  } else if constexpr (kColumns == 4096 && !R) {
    add(manners<M, R, 128, 4, 3, kPacked, 4>("ring 128x4 3 stages"));
    add(manners<M, R, 128, 4, 0, kPacked, 3>("ahead 128x4"));
  } else if constexpr (kColumns == 5120 && !(R && sizeof(M) == 2)) {
    add(manners<M, R, 128, 5, 3, kPacked, R ? 2 : 3>("ring 128x5 3 stages"));
    if constexpr (!R) add(manners<M, R, 160, 4, 0, kPacked, 2>("ahead 160x4"));
  }
  return all;
}
template <class M, bool kResidual, int kColumns>
std::vector<Candidate> persistent_candidates() {
  constexpr bool R = kResidual, kIsHeavy = R && sizeof(M) == 4, kIsLight = !R && sizeof(M) == 2;
  constexpr auto kPacked = Stay::kPacked, kFloat = Stay::kFloat, kShared = Stay::kShared;
  if constexpr (kColumns == 1536 || (kColumns == 3072 && sizeof(M) == 4)) {
    return {};
  } else if constexpr (kColumns == 3072) {
    return {
        stay<M, R, PersistentPlan<128, 3, 4, kPacked, R ? 4 : 5>>("ring 128x3 4 stages"),
        stay<M, R, PersistentPlan<128, 3, 3, kFloat, R ? 3 : 4>>("ring 128x3 3 stages f32"),
        stay<M, R, PersistentPlan<192, 2, 4, kPacked, R ? 3 : 5>>("ring 192x2 4 stages"),
        stay<M, R, PersistentPlan<384, 1, 4, kFloat, R ? 2 : 3>>("ring 384x1 4 stages f32"),
        stay<M, R, PersistentPlan<32, 12, 2, kShared, 1, R ? 8 : 12>>("ring 32x12 2 stages shared"),
        stay<M, R, PersistentPlan<128, 3, 0, kPacked, R ? 3 : 4>>("ahead 128x3"),
        stay<M, R, PersistentPlan<192, 2, 0, kPacked, R ? 3 : 4>>("ahead 192x2"),
        stay<M, R, PersistentPlan<384, 1, 0, kFloat, R ? 2 : 3>>("ahead 384x1 f32"),
    };
  } else if constexpr (kColumns == 4096) {
    return {
        stay<M, R, PersistentPlan<128, 4, 3, kPacked, R ? 3 : 4>>("ring 128x4 3 stages"),
        stay<M, R, PersistentPlan<256, 2, 3, kPacked, R ? 2 : 4>>("ring 256x2 3 stages"),
        stay<M, R, PersistentPlan<512, 1, 4, kFloat, R ? 1 : 2>>("ring 512x1 4 stages f32"),
        stay<M, R, PersistentPlan<32, 16, 2, kShared, 1, R ? 6 : 8>>("ring 32x16 2 stages shared"),
        stay<M, R, PersistentPlan<128, 4, 0, kPacked, R ? 2 : 3>>("ahead 128x4"),
        stay<M, R, PersistentPlan<256, 2, 0, kPacked, R ? 2 : 3>>("ahead 256x2"),
    };
  } else {
    return {
        stay<M, R, PersistentPlan<128, 5, 3, kPacked, R ? 2 : 3>>("ring 128x5 3 stages"),
        stay<M, R,
             PersistentPlan<160, 4, 3, kPacked,
                            kIsHeavy ? 1
                            : R      ? 2
                                     : 3>>("ring 160x4 3 stages"),
        stay<M, R, PersistentPlan<320, 2, 3, kPacked, kIsLight ? 3 : 2>>("ring 320x2 3 stages"),
        stay<M, R, PersistentPlan<640, 1, 4, kFloat, 1>>("ring 640x1 4 stages f32"),
        stay<M, R, PersistentPlan<160, 4, 0, kPacked, R ? 1 : 2>>("ahead 160x4"),
        stay<M, R, PersistentPlan<320, 2, 0, kPacked, kIsHeavy ? 1 : 2>>("ahead 320x2"),
    };
  }
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
    add(persistent_candidates<M, kResidual, kColumns>());
    add(manner_candidates<M, kResidual, kColumns>());
    add(sweep_candidates<M, kResidual, kColumns>());
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
  for (int rows : {19, 195, 4096, 8424, 27030}) tune<X, false, 3072>(tuning, rows);
  for (int rows : {19, 4096, 27030}) tune<X, true, 3072>(tuning, rows);
  tune<X, false, 3072>(tuning, 18144, true);
  tune<float, false, 3072>(tuning, 18144, true);
  for (int rows : {997, 7904}) tune<X, false, 4096>(tuning, rows);
  tune<X, true, 4096>(tuning, 7904);
  for (int rows : {37800, 74088}) tune<X, false, 5120>(tuning, rows);
  for (int rows : {37800, 75600}) tune<float, false, 5120>(tuning, rows);
  tune<X, true, 5120>(tuning, 37800);
  tune<float, true, 5120>(tuning, 37800);
  tune<X, false, 5120>(tuning, 8640, true);
  tune<float, false, 5120>(tuning, 11040, true);
  tune<X, false, 1536>(tuning, 101);
  tune<X, true, 1536>(tuning, 101);
  return tuning.asked.status();
}
