// The plans of qknorm_rope side by side on the production shapes, cold, against the fastest plain copy of the same
// bytes: what qknorm_rope/docs/dispatch.md was chosen from. Each plan's result is first compared with the element
// kernel. Usage: amk_tune_qknorm_rope [--all] [TOKENSxHEADS ...]; --all: also the plans far from the best.
#include <cmath>
#include <span>

#include "../qknorm_rope/solution/qknorm_rope_solution.cu"
#include "qknorm_rope_ring.cuh"
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

template <class Plan>
Candidate ring(const char* name) {
  return {name, launch_ring<T, int64_t, false, Plan>, 0};
}
// Operands are those that the entry reads, so this is what a caller of the entry gets.
int32_t launch_dispatched(const QkOperands& o, int, void* stream) { return run(o, stream); }

constexpr auto kKeep = Reuse::kKeep, kStream = Reuse::kStream;
constexpr auto kPlain = Order::kPlain, kDependent = Order::kDependent;
constexpr auto kGuessed = Turn::kGuessed;

const Candidate kOfFewTokens[] = {
    {kDispatched, launch_dispatched, 0},
    plan<QkPlan<64, 1>>("64x1"),
    plan<QkPlan<64, 1, 1, kKeep, kDependent>>("64x1 dependent"),
    plan<QkPlan<128, 1, 1, kKeep, kDependent>>("128x1 dependent"),
    plan<QkPlan<192, 1, 1, kStream>>("192x1 streamed"),
    plan<QkPlan<192, 1, 1, kStream, kDependent>>("192x1 streamed dependent"),
    plan<QkPlan<64, 1, 1, kKeep, kPlain, kGuessed>>("64x1 guessed"),
    plan<QkPlan<32, 1, 1, kKeep, kDependent, kGuessed>>("32x1 dependent guessed"),
    plan<QkPlan<64, 1, 1, kKeep, kDependent, kGuessed>>("64x1 dependent guessed"),
    plan<QkPlan<128, 1, 1, kKeep, kDependent, kGuessed>>("128x1 dependent guessed"),
    plan<QkPlan<192, 1, 1, kKeep, kDependent, kGuessed>>("192x1 dependent guessed"),
    plan<QkPlan<192, 1, 1, kStream, kPlain, kGuessed>>("192x1 streamed guessed"),
    plan<QkPlan<192, 1, 1, kStream, kDependent, kGuessed>>("192x1 streamed dependent guessed"),
    plan<QkPlan<96, 2, 1, kStream, kDependent, kGuessed>>("96x2 streamed dependent guessed"),
};

const Candidate kOfManyTokens[] = {
    {kDispatched, launch_dispatched, 0},
    plan<QkPlan<192, 2>>("192x2"),
    plan<QkPlan<192, 1>>("192x1 persistent", 5),
    plan<QkPlan<64, 1, 1, kStream>>("64x1 streamed"),
    plan<QkPlan<192, 1, 1, kStream>>("192x1 streamed"),
    plan<QkPlan<384, 1, 1, kStream>>("384x1 streamed"),
    plan<QkPlan<96, 2, 1, kStream>>("96x2 streamed"),
    plan<QkPlan<128, 2, 1, kStream>>("128x2 streamed"),
    plan<QkPlan<192, 2, 1, kStream>>("192x2 streamed"),
    plan<QkPlan<64, 3, 1, kStream>>("64x3 streamed"),
    plan<QkPlan<128, 3, 1, kStream>>("128x3 streamed"),
    plan<QkPlan<192, 2, 1, kStream, kDependent>>("192x2 streamed dependent"),
    plan<QkPlan<192, 1, 1, kStream, kPlain, kGuessed>>("192x1 streamed guessed"),
    plan<QkPlan<96, 2, 1, kStream, kPlain, kGuessed>>("96x2 streamed guessed"),
    plan<QkPlan<128, 2, 1, kStream, kPlain, kGuessed>>("128x2 streamed guessed"),
    plan<QkPlan<192, 2, 1, kStream, kPlain, kGuessed>>("192x2 streamed guessed"),
    plan<QkPlan<64, 3, 1, kStream, kPlain, kGuessed>>("64x3 streamed guessed"),
    plan<QkPlan<128, 3, 1, kStream, kPlain, kGuessed>>("128x3 streamed guessed"),
    plan<QkPlan<192, 2, 1, kStream, kDependent, kGuessed>>("192x2 streamed dependent guessed"),
    plan<QkPlan<192, 2, 4, kStream>>("192x2 streamed resident 4"),
    plan<QkPlan<192, 2, 4, kStream, kPlain, kGuessed>>("192x2 streamed guessed resident 4"),
    plan<QkPlan<96, 2, 8, kStream>>("96x2 streamed resident 8"),
    plan<QkPlan<96, 2, 8, kStream, kPlain, kGuessed>>("96x2 streamed guessed resident 8"),
    plan<QkPlan<96, 2, 8, kKeep, kPlain, kGuessed>>("96x2 guessed resident 8"),
    plan<QkPlan<96, 2, 8, kStream, kPlain, kGuessed, kKeep>>("96x2 loads streamed guessed resident 8"),
    plan<QkPlan<96, 2, 8, kKeep, kPlain, kGuessed, kStream>>("96x2 stores streamed guessed resident 8"),
    plan<QkPlan<96, 2, 8, kStream, kDependent, kGuessed>>("96x2 streamed dependent guessed resident 8"),
    plan<QkPlan<96, 2, 8, kKeep, kDependent, kGuessed>>("96x2 dependent guessed resident 8"),
    plan<QkPlan<96, 1, 1, kKeep, kPlain, kGuessed>>("96x1 guessed"),
    plan<QkPlan<96, 1, 1, kStream, kPlain, kGuessed>>("96x1 streamed guessed"),
    plan<QkPlan<96, 1, 1, kKeep, kDependent, kGuessed>>("96x1 dependent guessed"),
    plan<QkPlan<160, 1, 1, kKeep, kDependent, kGuessed>>("160x1 dependent guessed"),
    plan<QkPlan<160, 1, 1, kKeep, kPlain, kGuessed>>("160x1 guessed"),
    plan<QkPlan<160, 1, 1, kStream, kPlain, kGuessed>>("160x1 streamed guessed"),
    plan<QkPlan<96, 1, 12, kStream, kPlain, kGuessed>>("96x1 streamed guessed resident 12"),
    plan<QkPlan<192, 1, 1, kKeep, kPlain, kGuessed>>("192x1 guessed"),
    plan<QkPlan<192, 1, 1, kKeep, kDependent, kGuessed>>("192x1 dependent guessed"),
    plan<QkPlan<160, 1, 1, kStream, kDependent, kGuessed>>("160x1 streamed dependent guessed"),
    plan<QkPlan<480, 1, 1, kKeep, kPlain, kGuessed>>("480x1 guessed"),
    plan<QkPlan<32, 3, 16, kStream, kPlain, kGuessed>>("32x3 streamed guessed resident 16"),
    plan<QkPlan<160, 3, 3, kStream, kPlain, kGuessed>>("160x3 streamed guessed resident 3"),
    plan<QkPlan<160, 3, 3, kKeep, kDependent, kGuessed>>("160x3 dependent guessed resident 3"),
    ring<RingPlan<192, 1, 6>>("ring 192x1 6 stages"),
    ring<RingPlan<256, 1, 4>>("ring 256x1 4 stages"),
    ring<RingPlan<128, 2, 3>>("ring 128x2 3 stages"),
    ring<RingPlan<192, 2, 3>>("ring 192x2 3 stages"),
    ring<RingPlan<192, 2, 4>>("ring 192x2 4 stages"),
    ring<RingPlan<128, 2, 4>>("ring 128x2 4 stages"),
    ring<RingPlan<192, 3, 3>>("ring 192x3 3 stages"),
    ring<RingPlan<192, 2, 3, 1, kKeep>>("ring 192x2 3 stages kept"),
    ring<RingPlan<192, 2, 3, 1, kStream, kDependent>>("ring 192x2 3 stages dependent"),
};
constexpr int kFewTokensOfTune = 512;

// The element kernel's results of some tokens, the last one among them, against float64: how far away they are.
class HostCheck {
 public:
  HostCheck(const QkOperands& o, size_t tokens) : o_(o), tokens_(tokens) {
    for (int s = 0; s < kSamples; ++s) {
      for (const Heads* side : {&o.q, &o.k}) before_.push_back(read(*side, s));
      std::vector<float> row(kHeadDim);
      check(cudaMemcpy(row.data(), o.cache + token(s) * o.cache_row_stride, kHeadDim * sizeof(float),
                       cudaMemcpyDeviceToHost),
            "a cache row");
      turns_.push_back(row);
    }
    for (const Heads* side : {&o.q, &o.k}) {
      std::vector<T> weight(kHeadDim);
      check(cudaMemcpy(weight.data(), side->weight, kHeadDim * sizeof(T), cudaMemcpyDeviceToHost), "weights");
      weights_.push_back(weight);
    }
  }

  float away() const {
    double most = 0;
    for (int s = 0; s < kSamples; ++s) {
      for (int side = 0; side < 2; ++side) {
        const std::vector<T>& x = before_[2 * s + side];
        const std::vector<T> got = read(side == 0 ? o_.q : o_.k, s);
        for (size_t head = 0; head < x.size(); head += kHeadDim) {
          double square = 0, y[kHeadDim];
          for (int i = 0; i < kHeadDim; ++i) square += value(x[head + i]) * value(x[head + i]);
          const double scale = 1 / std::sqrt(square / kHeadDim + o_.eps);
          for (int i = 0; i < kHeadDim; ++i) y[i] = value(x[head + i]) * scale * value(weights_[side][i]);
          for (int i = 0; i < kHeadDim; ++i) {
            const int pair = i % kHalf;
            const double cosine = turns_[s][pair], sine = turns_[s][pair + kHalf];
            const double want = i < kHalf ? y[i] * cosine - y[i + kHalf] * sine : y[i] * cosine + y[pair] * sine;
            const double off = std::abs(value(got[head + i]) - want) / (1 + std::abs(want));
            most = off <= most ? most : off;  // also where it is not a number
          }
        }
      }
    }
    return static_cast<float>(most);
  }

 private:
  static constexpr int kSamples = 64;
  static double value(T v) { return __bfloat162float(v); }
  size_t token(int sample) const { return tokens_ - 1 - tokens_ * static_cast<size_t>(sample) / kSamples; }
  std::vector<T> read(const Heads& side, int sample) const {
    std::vector<T> row(static_cast<size_t>(side.count) * kHeadDim);
    check(cudaMemcpy(row.data(), static_cast<const T*>(side.data) + token(sample) * side.token_stride,
                     row.size() * sizeof(T), cudaMemcpyDeviceToHost),
          "heads");
    return row;
  }

  QkOperands o_;
  size_t tokens_;
  std::vector<std::vector<T>> before_, weights_;
  std::vector<std::vector<float>> turns_;
};

// A set: q, k, the cache, the positions, then both weights.
QkOperands production_operands(char* q, int tokens, int heads) {
  const size_t side_bytes = static_cast<size_t>(tokens) * heads * kHeadDim * sizeof(T);
  char* const cache = q + 2 * side_bytes;
  char* const positions = cache + static_cast<size_t>(tokens) * kHeadDim * sizeof(float);
  char* const weights = positions + (tokens * sizeof(int64_t) + 15) / 16 * 16;
  const amk_task_tensor_t inputs[] = {
      tensor(weights, AMK_DTYPE_BF16, {kHeadDim}), tensor(weights + kHeadDim * sizeof(T), AMK_DTYPE_BF16, {kHeadDim}),
      tensor(cache, AMK_DTYPE_F32, {tokens, kHeadDim}), tensor(positions, AMK_TASK_DTYPE_I64, {tokens})};
  const amk_task_tensor_t outputs[] = {tensor(q, AMK_DTYPE_BF16, {tokens, heads, kHeadDim}),
                                       tensor(q + side_bytes, AMK_DTYPE_BF16, {tokens, heads, kHeadDim})};
  const double scalars[] = {1e-6, 0};
  QkOperands o{};
  require_vectors(read_operands(inputs, 4, scalars, 2, outputs, 2, &o), o);
  return o;
}

void tune(Clock& clock, int tokens, int heads, bool is_all) {
  const size_t side = size_t{static_cast<size_t>(tokens)} * heads * kHeadDim, side_bytes = side * sizeof(T);
  const size_t cache_bytes = size_t{static_cast<size_t>(tokens)} * kHeadDim * sizeof(float);
  const size_t weight_bytes = 2 * kHeadDim * sizeof(T), position_bytes = (tokens * sizeof(int64_t) + 15) / 16 * 16;
  const size_t bytes = 4 * side_bytes + weight_bytes + cache_bytes + tokens * sizeof(int64_t);
  // A set also has room for what the copy of the same bytes reads and writes.
  const Pool pool(std::max(2 * side_bytes + cache_bytes + weight_bytes + position_bytes, bytes + 512));
  std::vector<int64_t> counted(tokens);
  for (int i = 0; i < tokens; ++i) counted[i] = i;
  const auto operands = [&](char* at) { return production_operands(at, tokens, heads); };
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
  char shape[64];
  std::snprintf(shape, sizeof shape, "%dx%d", tokens, heads);
  const HostCheck host(operands(pool.set(0)), static_cast<size_t>(tokens));
  if (launch_elements<T, int64_t, false>(operands(pool.set(0)), nullptr) != 0) std::exit(1);
  const float off = host.away();
  if (!(off <= kMostAway)) std::printf("%-26s the element kernel is off by %.1e from float64\n", shape, off);
  check(cudaMemcpy(want, pool.set(0), 2 * side_bytes, cudaMemcpyDeviceToDevice), "the element kernel");
  // A copy between two places on the device does not wait, and the clock's stream does not wait for this one: without
  // this the copies below overwrite the cache, which the element kernel still reads.
  check(cudaDeviceSynchronize(), "the element kernel");
  const float copy_before = pool.copy_us(clock, bytes);
  std::vector<Finding> found;
  const bool is_few = tokens <= kFewTokensOfTune;
  for (const Candidate& c : is_few ? std::span<const Candidate>(kOfFewTokens) : std::span(kOfManyTokens)) {
    // All sets: what a wrong candidate wrote is not what the next one is timed with.
    for (int i = 0; i < pool.sets(); ++i) reset(pool.set(i), 1 + 3 * static_cast<uint32_t>(i));
    const int grid = c.waves * pool.sm_count();
    if (const int32_t status = c.launch(operands(pool.set(0)), grid, nullptr)) {
      print_refusal(shape, c.name, status);
      continue;
    }
    const float away = distance(want, reinterpret_cast<const T*>(pool.set(0)), 2 * side);
    const float us =
        clock.us_per_launch([&](int i, cudaStream_t stream) { return c.launch(operands(pool.set(i)), grid, stream); });
    found.push_back({c.name, us, away});
  }
  print_findings(shape, bytes, std::min(copy_before, pool.copy_us(clock, bytes)), found, is_all);
  check(cudaFree(want), "cudaFree");
}

}  // namespace
}  // namespace amk::task

int main(int argc, char** argv) {
  const bool is_all = amk::task::take_all(argc, argv);
  amk::task::Clock clock;
  const int all[][2] = {{19, 24},   {47, 24},   {195, 24},  {32, 30},  {4096, 24},
                        {8424, 24}, {4096, 30}, {4128, 30}, {7904, 32}};
  amk::task::print_header();
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
