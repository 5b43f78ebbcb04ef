// The plans of residual_gate_add side by side on the production shapes, cold, against the fastest plain copy of the
// same bytes: what residual_gate_add/docs/dispatch.md was chosen from. Each plan's result is first compared with the
// element kernel. Usage: amk_tune_residual_gate_add [--all] [PART ...]: rows whose name has such a part; --all: also
// the plans far from the best.
#include "../residual_gate_add/solution/residual_gate_add_solution.cu"
#include "tune.cuh"

namespace residual_gate_add {
namespace {

using namespace amk::task;
using T = __nv_bfloat16;

struct Candidate {
  std::string name;
  int32_t (*launch)(const Problem&, void* stream);
};
using Candidates = std::vector<Candidate>;

template <Gate kGate, int kThreads, int kVectors, Reuse kLoads, Reuse kStores, Order kOrder>
void add_plan(Candidates& all, const char* hints) {
  const char* const order = kOrder == Order::kDependent ? " dependent" : "";
  all.push_back({std::to_string(kThreads) + "x" + std::to_string(kVectors) + hints + order,
                 launch_contiguous<T, T, kGate, GatePlan<kThreads, kVectors, kLoads, kStores, kOrder>>});
}
template <Gate kGate, int kThreads, int kVectors, Order kOrder>
void add_hints(Candidates& all) {
  constexpr auto kKeep = Reuse::kKeep, kStream = Reuse::kStream;
  add_plan<kGate, kThreads, kVectors, kKeep, kKeep, kOrder>(all, "");
  add_plan<kGate, kThreads, kVectors, kKeep, kStream, kOrder>(all, " stores streamed");
  add_plan<kGate, kThreads, kVectors, kStream, kKeep, kOrder>(all, " loads streamed");
  add_plan<kGate, kThreads, kVectors, kStream, kStream, kOrder>(all, " streamed");
}
template <Gate kGate, int kThreads, int... kVectors>
void add_threads(Candidates& all) {
  (add_hints<kGate, kThreads, kVectors, Order::kPlain>(all), ...);
  (add_hints<kGate, kThreads, kVectors, Order::kDependent>(all), ...);
}
template <Gate kGate>
Candidates candidates() {
  Candidates all{{kDispatched, dispatch<T, T>}};
  add_threads<kGate, 64, 1>(all);
  add_threads<kGate, 128, 1, 2, 4>(all);
  add_threads<kGate, 256, 1, 2, 4>(all);
  add_threads<kGate, 512, 1, 2, 4>(all);
  return all;
}

template <Gate kGate>
void tune(Clock& clock, int rows, int columns, bool is_all) {
  constexpr bool kIsWhole = kGate == Gate::kWhole;
  constexpr size_t kGuard = 256;  // between operands, as in the task's own run
  const size_t elements = static_cast<size_t>(rows) * columns, x_bytes = elements * sizeof(T);
  const size_t gate_elements = kIsWhole ? elements : columns, gate_bytes = gate_elements * sizeof(T);
  const size_t bytes = 3 * x_bytes + gate_bytes, step = (x_bytes + 2 * kGuard - 1) / kGuard * kGuard;
  const Pool pool(3 * step + gate_bytes + kGuard);
  const auto operands = [&](char* at) {
    const auto whole = [&](int i) { return tensor(at + i * step, AMK_DTYPE_BF16, {1, rows, columns}); };
    void* const gate = at + 3 * step;
    const amk_task_tensor_t inputs[] = {whole(0), whole(1),
                                        kIsWhole ? whole(3) : tensor(gate, AMK_DTYPE_BF16, {1, 1, columns})};
    const amk_task_tensor_t y = whole(2);
    Problem p;
    if (read_problem(inputs, 3, 0, &y, 1, p) != 0 || kind_of_gate(p) != kGate) {
      std::fprintf(stderr, "operands: refused, or the gate is of another kind\n");
      std::exit(1);
    }
    return p;
  };
  for (int i = 0; i < pool.sets(); ++i) {
    const Problem p = operands(pool.set(i));
    const auto seed = 3 * static_cast<uint32_t>(i);
    fill<<<1024, 256>>>(static_cast<T*>(const_cast<void*>(p.residual)), elements, seed + 1);
    fill<<<1024, 256>>>(static_cast<T*>(const_cast<void*>(p.x)), elements, seed + 2);
    fill<<<1024, 256>>>(static_cast<T*>(const_cast<void*>(p.gate)), gate_elements, seed + 3);
  }
  const Problem first = operands(pool.set(0));
  T* want;
  check(cudaMalloc(&want, x_bytes), "cudaMalloc");
  if (launch_single<T, T>(first, nullptr) != 0) std::exit(1);
  check(cudaMemcpy(want, first.y, x_bytes, cudaMemcpyDeviceToDevice), "the element kernel");
  char shape[64];
  std::snprintf(shape, sizeof shape, "%dx%d%s", rows, columns, kIsWhole ? " full" : "");
  const Candidates all = candidates<kGate>();
  std::vector<Finding> found;
  for (const Candidate& c : all) {
    check(cudaMemset(first.y, 0xff, x_bytes), "cudaMemset");
    if (const int32_t status = c.launch(first, nullptr)) {
      print_refusal(shape, c.name.c_str(), status);
      continue;
    }
    const float away = distance(want, static_cast<const T*>(first.y), elements);
    const auto launch = [&](int i, cudaStream_t stream) { return c.launch(operands(pool.set(i)), stream); };
    found.push_back({c.name.c_str(), clock.us_per_launch(launch), away});
  }
  // Last: it overwrites the operands.
  print_findings(shape, bytes, pool.copy_us(clock, bytes), found, is_all);
  check(cudaFree(want), "cudaFree");
}

}  // namespace
}  // namespace residual_gate_add

int main(int argc, char** argv) {
  using namespace residual_gate_add;
  const bool is_all = take_all(argc, argv);
  Clock clock;
  const struct {
    const char* name;
    int rows, columns;
    bool is_full;
  } all[] = {{"8160x4096", 8160, 4096, true},  {"32640x4096", 32640, 4096, false}, {"4096x4608", 4096, 4608, false},
             {"4608x3072", 4608, 3072, false}, {"4096x3072", 4096, 3072, false},   {"512x3072", 512, 3072, false},
             {"126x2048", 126, 2048, true}};
  Asked asked(argc, argv);
  print_header();
  for (const auto& row : all) {
    if (!asked.has(row.name)) continue;
    row.is_full ? tune<Gate::kWhole>(clock, row.rows, row.columns, is_all)
                : tune<Gate::kRow>(clock, row.rows, row.columns, is_all);
  }
  return asked.status();
}
