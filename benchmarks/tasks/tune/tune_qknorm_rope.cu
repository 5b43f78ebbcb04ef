// The plans of qknorm_rope side by side on the production shapes, cold, against the fastest plain copy of the same
// bytes: what qknorm_rope/docs/dispatch.md was chosen from. Each plan's result is first compared with the element
// kernel. Usage: amk_tune_qknorm_rope [--all] [TOKENSxHEADS ...]; --all: also the plans far from the best.
#include "../qknorm_rope/solution/qknorm_rope.cuh"
#include "tune.cuh"

namespace amk::task {
namespace {

using T = __nv_bfloat16;

struct Candidate {
  const char* name;
  int32_t (*launch)(const QkOperands&, int grid, void* stream);
  int waves;  // blocks per SM of a persistent grid, or 0
};
template <class Plan>
Candidate plan(const char* name, int waves = 0) {
  return {name, launch_rows<T, int64_t, false, Plan>, waves};
}

const Candidate kCandidates[] = {
    plan<QkPlan<64, 1>>("64x1"),
    plan<QkPlan<128, 1>>("128x1"),
    plan<QkPlan<192, 1>>("192x1"),
    plan<QkPlan<256, 1>>("256x1"),
    plan<QkPlan<384, 1>>("384x1"),
    plan<QkPlan<64, 2>>("64x2"),
    plan<QkPlan<96, 2>>("96x2"),
    plan<QkPlan<128, 2>>("128x2"),
    plan<QkPlan<192, 2>>("192x2"),
    plan<QkPlan<256, 2>>("256x2"),
    plan<QkPlan<64, 3>>("64x3"),
    plan<QkPlan<128, 3>>("128x3"),
    plan<QkPlan<96, 4>>("96x4"),
    plan<QkPlan<128, 4>>("128x4"),
    plan<QkPlan<192, 1, 6>>("192x1 resident 6"),
    plan<QkPlan<192, 1, 1, Reuse::kStream>>("192x1 streamed"),
    plan<QkPlan<192, 2, 1, Reuse::kStream>>("192x2 streamed"),
    plan<QkPlan<128, 2, 1, Reuse::kStream>>("128x2 streamed"),
    plan<QkPlan<192, 2>>("192x2 persistent", 4),
    plan<QkPlan<192, 1>>("192x1 persistent", 5),
    plan<QkPlan<64, 1, 1, Reuse::kKeep, Order::kDependent>>("64x1 dependent"),
    plan<QkPlan<128, 1, 1, Reuse::kKeep, Order::kDependent>>("128x1 dependent"),
    plan<QkPlan<192, 2, 1, Reuse::kKeep, Order::kDependent>>("192x2 dependent"),
};

void tune(Clock& clock, int tokens, int heads, bool is_all) {
  const size_t side = size_t{static_cast<size_t>(tokens)} * heads * kHeadDim, side_bytes = side * sizeof(T);
  const size_t cache_bytes = size_t{static_cast<size_t>(tokens)} * kHeadDim * sizeof(float);
  const size_t weight_bytes = 2 * kHeadDim * sizeof(T), position_bytes = (tokens * sizeof(int64_t) + 15) / 16 * 16;
  const size_t bytes = 4 * side_bytes + weight_bytes + cache_bytes + tokens * sizeof(int64_t);
  // A set also has room for what the copy of the same bytes reads and writes.
  const Pool pool(std::max(2 * side_bytes + cache_bytes + weight_bytes + position_bytes, bytes + 512));
  std::vector<int64_t> counted(tokens);
  for (int i = 0; i < tokens; ++i) counted[i] = i;
  const auto operands = [&](char* at) {
    QkOperands o{};
    T* weight = reinterpret_cast<T*>(at + 2 * side_bytes + cache_bytes + position_bytes);
    o.q = {at, int64_t{heads} * kHeadDim, kHeadDim, 1, weight, 1, heads};
    o.k = {at + side_bytes, int64_t{heads} * kHeadDim, kHeadDim, 1, weight + kHeadDim, 1, heads};
    o.cache = reinterpret_cast<const float*>(at + 2 * side_bytes);
    o.cache_row_stride = kHeadDim;
    o.cache_stride = 1;
    o.cache_rows = o.tokens = tokens;
    o.positions = at + 2 * side_bytes + cache_bytes;
    o.position_stride = 1;
    o.eps = 1e-6f;
    return o;
  };
  const auto reset = [&](char* at, uint32_t seed) {
    const QkOperands o = operands(at);
    fill<<<1024, 256>>>(static_cast<T*>(o.q.data), 2 * side, seed);
    fill<<<64, 256>>>(const_cast<float*>(o.cache), cache_bytes / sizeof(float), seed + 1);
    fill<<<1, 256>>>(const_cast<T*>(static_cast<const T*>(o.q.weight)), 2 * kHeadDim, seed + 2);
    check(cudaMemcpy(const_cast<void*>(o.positions), counted.data(), tokens * sizeof(int64_t), cudaMemcpyHostToDevice),
          "positions");
  };
  T* want;
  check(cudaMalloc(&want, 2 * side_bytes), "cudaMalloc");
  reset(pool.set(0), 1);
  if (launch_elements<T, int64_t, false>(operands(pool.set(0)), nullptr) != 0) std::exit(1);
  check(cudaMemcpy(want, pool.set(0), 2 * side_bytes, cudaMemcpyDeviceToDevice), "the element kernel");
  const float copy = pool.copy_us(clock, bytes);
  char shape[64];
  std::snprintf(shape, sizeof shape, "%dx%d", tokens, heads);
  for (int i = 1; i < pool.sets(); ++i) reset(pool.set(i), 1 + 3 * static_cast<uint32_t>(i));
  std::vector<Finding> found;
  for (const Candidate& c : kCandidates) {
    reset(pool.set(0), 1);
    const int grid = c.waves * pool.sm_count();
    if (c.launch(operands(pool.set(0)), grid, nullptr) != 0) std::exit(1);
    const float away = distance(want, reinterpret_cast<const T*>(pool.set(0)), 2 * side);
    const float us =
        clock.us_per_launch([&](int i, cudaStream_t stream) { return c.launch(operands(pool.set(i)), grid, stream); });
    found.push_back({c.name, us, away});
  }
  print_findings(shape, bytes, copy, found, is_all);
  check(cudaFree(want), "cudaFree");
}

}  // namespace
}  // namespace amk::task

int main(int argc, char** argv) {
  const bool is_all = amk::task::take_all(argc, argv);
  amk::task::Clock clock;
  const int all[][2] = {{19, 24}, {195, 24}, {4096, 24}, {8424, 24}, {4128, 30}, {7904, 32}};
  for (int i = 1; i < argc; ++i) {
    int tokens, heads;
    if (std::sscanf(argv[i], "%dx%d", &tokens, &heads) != 2 || tokens < 1 || heads < 1) {
      std::fprintf(stderr, "expected TOKENSxHEADS, got %s\n", argv[i]);
      return 2;
    }
    amk::task::tune(clock, tokens, heads, is_all);
  }
  for (const auto& shape : all) {
    if (argc == 1) amk::task::tune(clock, shape[0], shape[1], is_all);
  }
  return 0;
}
