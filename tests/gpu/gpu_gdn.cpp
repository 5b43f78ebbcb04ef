// amk_gdn_decode on device 0: checked against the host, then every kernel it could be timed against plain copies.
// In: "check" (no timing), batch=N (only that one), l2norm=0 (timed without it). Out: "ok"/"FAIL" lines on stderr, one
// JSON line per batch on stdout, microseconds per launch: cold = back-to-back launches in a captured graph, states
// rotated over at least 4 times the L2, out of place; warm = the same state again and again, in place. Medians over
// replays.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "base/half.h"
#include "gdn/gdn.h"
#include "gdn_candidates.h"
#include "vm/device.h"

using namespace gpu_test;

namespace {

constexpr int kDim = amk::kGdnHeadDim;
constexpr int kWarmUp = 3, kReplays = 15;
constexpr double kReplayUs = 1000;  // a replay takes at least so long
int failures = 0;
FILE* notes = stderr;  // where stdout is for JSON

void report(bool ok, const std::string& line) {
  std::fprintf(notes, "%s %s\n", ok ? "ok  " : "FAIL", line.c_str());
  failures += !ok;
}
void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw amk::Error(AMK_ERR_DEVICE_FAULT, amk::text("%s: %s", what, cudaGetErrorString(code)));
}
#define CHECK(call) check((call), #call)

struct Device {
  void* p = nullptr;
  explicit Device(size_t nbytes) { CHECK(cudaMalloc(&p, nbytes)); }
  ~Device() { cudaFree(p); }
  Device(const Device&) = delete;
};

struct Random {
  uint64_t state;
  uint64_t next() {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  float uniform() { return static_cast<float>(static_cast<int64_t>(next() >> 40)) / 8388608.0f - 1.0f; }
  float normal() {  // Box & Muller 1958
    const float radius = std::sqrt(-2 * std::log((uniform() + 1) / 2 + 1e-7f));
    return radius * std::cos(3.14159265f * uniform());
  }
};

// Inputs as the six regimes of the kernel task have them.
struct Regime {
  const char* name;
  float vectors, state, a_shift, b_spread, a_log;
  bool l2norm;
};
constexpr Regime kRegimes[] = {
    {"unit normal", 1, 1, 0, 1, 0, true},        {"strong decay", 1, 1, 6, 1, 1, true},
    {"almost no decay", 1, 4, -14, 1, -4, true}, {"beta near 0 and 1", 1, 1, 0, 12, 0, true},
    {"large state", 1, 1000, 0, 1, 0, true},     {"tiny q and k", 1e-4f, 1, 0, 1, 0, true},
    {"raw q and k", 0.1f, 1, 0, 1, 0, false},
};

struct Shape {
  int32_t batch, key_heads, value_heads, dtype, gate_dtype, bias_dtype;
  bool strided;
};

// One set of operands on both sides. Buffers: q k v a b dt_bias a_log state state_out out.
class Problem {
 public:
  enum { kQ, kK, kV, kA, kB, kBias, kALog, kState, kStateOut, kOut, kCount };

  Problem(const Shape& s, const Regime& regime, uint64_t seed) : shape_(s) {
    const int gap = s.strided ? 2 : 1, row = s.strided ? kDim + 4 : kDim;
    auto& g = host_;
    g.struct_size = sizeof g;
    g.device = -1;
    g.batch = s.batch;
    g.key_heads = s.key_heads;
    g.value_heads = s.value_heads;
    g.head_dim = kDim;
    g.dtype = s.dtype;
    g.gate_dtype = s.gate_dtype;
    g.bias_dtype = s.bias_dtype;
    g.l2norm = regime.l2norm;
    g.scale = 0.08838835f;
    const auto heads = [&](int64_t (&stride)[3], int64_t count) {
      stride[2] = gap;
      stride[1] = int64_t{kDim} * gap;
      stride[0] = stride[1] * (count + (s.strided ? 1 : 0));
      return stride[0] * s.batch;
    };
    const auto gates = [&](int64_t (&stride)[2]) {
      stride[1] = gap;
      stride[0] = int64_t{s.value_heads} * gap;
      return stride[0] * s.batch;
    };
    const auto state = [&](int64_t (&stride)[3]) {
      stride[2] = row;
      stride[1] = int64_t{row} * kDim;
      stride[0] = stride[1] * s.value_heads;
      return stride[0] * s.batch;
    };
    Random random{seed};
    fill(kQ, s.dtype, heads(g.q_stride, s.key_heads), [&] { return random.normal() * regime.vectors; });
    fill(kK, s.dtype, heads(g.k_stride, s.key_heads), [&] { return random.normal() * regime.vectors; });
    fill(kV, s.dtype, heads(g.v_stride, s.value_heads), [&] { return random.normal(); });
    fill(kA, s.gate_dtype, gates(g.a_stride), [&] { return random.normal() + regime.a_shift; });
    fill(kB, s.gate_dtype, gates(g.b_stride), [&] { return random.normal() * regime.b_spread; });
    fill(kBias, s.bias_dtype, s.value_heads, [&] { return random.normal(); });
    fill(kALog, AMK_DTYPE_F32, s.value_heads, [&] { return random.normal() * 0.5f + regime.a_log; });
    fill(kState, AMK_DTYPE_F32, state(g.state_in_stride), [&] { return random.normal() * regime.state; });
    fill(kStateOut, AMK_DTYPE_F32, state(g.state_out_stride), [] { return NAN; });
    fill(kOut, s.dtype, heads(g.out_stride, s.value_heads), [] { return NAN; });
    aim(&host_, bytes_);
    device_ = host_;
    device_.device = 0;
    amk::check_gdn_decode(host_);
    amk::gdn_decode_on_host(host_);
  }

  // Runs `enqueue` on fresh device buffers; empty where out and state agree with the host, else what does not.
  template <class Enqueue>
  std::string compare(bool in_place, Enqueue enqueue) {
    std::vector<std::unique_ptr<Device>> memory;
    amk_gdn_decode_t g = device_;
    std::vector<void*> at;
    for (int i = 0; i < kCount; ++i) {
      memory.push_back(std::make_unique<Device>(bytes_[i].size()));
      at.push_back(memory.back()->p);
      const bool is_output = i == kStateOut || i == kOut;
      CHECK(cudaMemcpy(at[i], (is_output ? poison_[i] : bytes_[i]).data(), bytes_[i].size(), cudaMemcpyHostToDevice));
    }
    point(&g, at);
    if (in_place) {
      g.state_out = at[kState];
      std::copy(g.state_in_stride, g.state_in_stride + 3, g.state_out_stride);
    }
    amk::check_gdn_decode(g);
    enqueue(g);
    CHECK(cudaDeviceSynchronize());
    const std::vector<uint8_t> out = read(at[kOut], kOut), state = read(at[in_place ? kState : kStateOut], kStateOut);
    std::string wrong;
    const double o = error(shape_.dtype, out, bytes_[kOut], false),
                 s = error(AMK_DTYPE_F32, state, bytes_[kStateOut], in_place);
    const double limit = shape_.dtype == AMK_DTYPE_F32 ? 1e-5 : shape_.dtype == AMK_DTYPE_BF16 ? 1.0 / 128 : 1.0 / 1024;
    if (!(o <= limit)) wrong += amk::text("out differs by %.3g of its largest; ", o);
    if (!(s <= 1e-5)) wrong += amk::text("state differs by %.3g of its largest; ", s);
    worst_ = std::max(worst_, std::max(o / limit, s / 1e-5));
    if (last_.empty()) {
      last_ = out;
    } else if (last_ != out && remembers_) {
      wrong += "out has other bytes than the run before; ";
    }
    remembers_ = true;
    return wrong;
  }
  // The next comparison may give other bytes: another kernel.
  void forget() {
    last_.clear();
    remembers_ = false;
  }
  double worst() const { return worst_; }

 private:
  template <class Value>
  void fill(int which, int32_t dtype, int64_t count, Value value) {
    const size_t width = static_cast<size_t>(amk::dtype_bits(dtype) / 8);
    std::vector<uint8_t>& at = bytes_[which];
    at.resize(static_cast<size_t>(count) * width + 16);
    for (int64_t i = 0; i < count; ++i) {
      const float v = value();
      const uint16_t bits = dtype == AMK_DTYPE_BF16 ? amk::f32_to_bf16(v) : amk::f32_to_f16(v);
      std::memcpy(&at[static_cast<size_t>(i) * width], dtype == AMK_DTYPE_F32 ? (const void*)&v : &bits, width);
    }
    if (which == kStateOut || which == kOut) poison_[which] = at;
  }
  static void point(amk_gdn_decode_t* g, const std::vector<void*>& at) {
    g->q = at[kQ];
    g->k = at[kK];
    g->v = at[kV];
    g->a = at[kA];
    g->b = at[kB];
    g->dt_bias = at[kBias];
    g->a_log = at[kALog];
    g->state_in = at[kState];
    g->state_out = at[kStateOut];
    g->out = at[kOut];
  }
  static void aim(amk_gdn_decode_t* g, std::vector<uint8_t> (&bytes)[kCount]) {
    std::vector<void*> at;
    for (std::vector<uint8_t>& b : bytes) at.push_back(b.data());
    point(g, at);
  }
  std::vector<uint8_t> read(const void* p, int which) const {
    std::vector<uint8_t> out(bytes_[which].size());
    CHECK(cudaMemcpy(out.data(), p, out.size(), cudaMemcpyDeviceToHost));
    return out;
  }
  // max |a - b| / max |b| over what the host wrote. Gaps hold NaN on both sides, and must still; in place they hold
  // what the input has there.
  double error(int32_t dtype, const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, bool in_place) const {
    const int64_t width = amk::dtype_bits(dtype) / 8, count = static_cast<int64_t>(b.size() - 16) / width;
    double worst = 0, largest = 1e-30;
    for (int64_t i = 0; i < count; ++i) {
      const double x = value(dtype, &a[static_cast<size_t>(i * width)]),
                   y = value(dtype, &b[static_cast<size_t>(i * width)]);
      if (shape_.strided && std::isnan(y) && (std::isnan(x) || in_place)) continue;
      if (!std::isfinite(x) || !std::isfinite(y)) return INFINITY;
      worst = std::max(worst, std::abs(x - y));
      largest = std::max(largest, std::abs(y));
    }
    return worst / largest;
  }
  static double value(int32_t dtype, const uint8_t* at) {
    if (dtype == AMK_DTYPE_F32) {
      float v;
      std::memcpy(&v, at, 4);
      return v;
    }
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return dtype == AMK_DTYPE_BF16 ? amk::bf16_to_f32(bits) : amk::f16_to_f32(bits);
  }

  Shape shape_;
  amk_gdn_decode_t host_{}, device_{};
  std::vector<uint8_t> bytes_[kCount], poison_[kCount], last_;
  bool remembers_ = false;
  double worst_ = 0;
};

void check_library() {
  const int32_t bf16 = AMK_DTYPE_BF16, f16 = AMK_DTYPE_F16, f32 = AMK_DTYPE_F32;
  const Shape shapes[] = {
      {1, 4, 8, bf16, bf16, bf16, false}, {2, 4, 8, bf16, bf16, f32, false},    {3, 4, 8, f16, f16, f16, false},
      {8, 4, 8, bf16, bf16, f32, false},  {33, 4, 8, bf16, bf16, f32, false},   {64, 4, 8, bf16, bf16, bf16, false},
      {5, 16, 32, f16, f32, bf16, false}, {16, 16, 32, bf16, bf16, f32, false}, {2, 4, 8, f32, f32, f32, false},
      {7, 1, 5, f32, f16, bf16, false},   {1, 1, 1, bf16, f16, f32, false},     {2, 4, 8, bf16, bf16, f32, true},
      {9, 2, 6, f16, f16, f32, true},     {3, 4, 8, f32, bf16, f16, true},      {512, 1, 2, bf16, bf16, f32, false},
  };
  for (const Shape& s : shapes) {
    std::string wrong;
    double worst = 0;
    for (const Regime& regime : kRegimes) {
      Problem problem(s, regime, 17 + static_cast<uint64_t>(s.batch));
      for (int run = 0; run < 4 && wrong.empty(); ++run) {
        wrong = problem.compare(run % 2 == 1, [](const amk_gdn_decode_t& g) { amk::gdn_decode_on_device(g, nullptr); });
        if (!wrong.empty()) wrong = amk::text("%s, %s: ", regime.name, run % 2 ? "in place" : "out of place") + wrong;
      }
      worst = std::max(worst, problem.worst());
    }
    report(wrong.empty(), amk::text("batch %d, heads %d/%d, %s gates %s bias %s%s: %.2f of the limit %s", s.batch,
                                    s.key_heads, s.value_heads, amk::dtype_name(s.dtype), amk::dtype_name(s.gate_dtype),
                                    amk::dtype_name(s.bias_dtype), s.strided ? ", strided" : "", worst, wrong.c_str()));
  }
}

void check_candidates() {
  const Shape shape{3, 4, 8, AMK_DTYPE_BF16, AMK_DTYPE_BF16, AMK_DTYPE_F32, false};
  Problem problem(shape, kRegimes[0], 5);
  int checked = 0;
  std::string wrong;
  for (const GdnCandidate& c : gdn_candidates()) {
    problem.forget();
    for (bool in_place : {false, true}) {
      const std::string found =
          problem.compare(in_place, [&](const amk_gdn_decode_t& g) { CHECK(c.enqueue(g, c.dependent, nullptr)); });
      if (!found.empty()) wrong += c.name + ": " + found;
    }
    ++checked;
  }
  report(wrong.empty(), amk::text("%d kernels, %.2f of the limit %s", checked, problem.worst(), wrong.c_str()));
}

// Microseconds of one of `count` back-to-back launches: enqueue(i, stream) is launch i.
template <class Enqueue>
double time_us(int count, Enqueue enqueue) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  cudaEvent_t begin, end;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) CHECK(enqueue(i, stream));
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&replay, graph, 0));
  std::vector<float> us;
  for (int r = 0; r < kWarmUp + kReplays; ++r) {
    float ms = 0;
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(replay, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (r >= kWarmUp) us.push_back(ms * 1000 / static_cast<float>(count));
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  std::sort(us.begin(), us.end());
  return us[us.size() / 2];
}

struct Timed {
  std::string name;
  double us;
};
void print(const char* key, std::vector<Timed> all) {
  std::sort(all.begin(), all.end(), [](const Timed& a, const Timed& b) { return a.us < b.us; });
  std::printf(", \"%s\": {", key);
  for (size_t i = 0; i < all.size(); ++i) std::printf("%s\"%s\": %.3f", i ? ", " : "", all[i].name.c_str(), all[i].us);
  std::printf("}");
}
double best(const std::vector<Timed>& all, bool dependent_too) {
  double least = INFINITY;
  for (const Timed& t : all)
    if (dependent_too || t.name.find("dependent") == std::string::npos) least = std::min(least, t.us);
  return least;
}

void measure(int32_t batch, int32_t l2norm, const amk_target_t& device) {
  constexpr int32_t kKeyHeads = 4, kValueHeads = 8;
  const int64_t state_bytes = int64_t{batch} * kValueHeads * kDim * kDim * 4, pair_bytes = 2 * state_bytes;
  const int pairs = static_cast<int>(4 * device.l2_bytes / pair_bytes) + 1;
  const double floor_us = static_cast<double>(pair_bytes) / 4e6;  // at 4 TB/s
  const int count = std::max({20, pairs, static_cast<int>(kReplayUs / (floor_us + 1.5))});
  const size_t small = size_t{1} << 21;  // of each small operand, in bytes
  Device states(static_cast<size_t>(pairs) * static_cast<size_t>(pair_bytes)), operands(8 * small);
  // 0x3c3c is 0.0115 as bf16, and so is 0x3c3c3c3c as f32.
  CHECK(cudaMemset(states.p, 0x3c, static_cast<size_t>(pairs) * static_cast<size_t>(pair_bytes)));
  CHECK(cudaMemset(operands.p, 0x3c, 8 * small));
  char* at = static_cast<char*>(operands.p);
  amk_gdn_decode_t g{};
  g.struct_size = sizeof g;
  g.batch = batch;
  g.key_heads = kKeyHeads;
  g.value_heads = kValueHeads;
  g.head_dim = kDim;
  g.dtype = g.gate_dtype = AMK_DTYPE_BF16;
  g.bias_dtype = AMK_DTYPE_F32;
  g.l2norm = l2norm;
  g.scale = 0.08838835f;
  const void** inputs[] = {&g.q, &g.k, &g.v, &g.a, &g.b, &g.dt_bias, &g.a_log};
  for (int i = 0; i < 7; ++i) *inputs[i] = at + static_cast<size_t>(i) * small;
  g.out = at + 7 * small;
  for (int64_t* s : {g.q_stride, g.k_stride, g.v_stride, g.out_stride}) {
    s[0] = (s == g.q_stride || s == g.k_stride ? kKeyHeads : kValueHeads) * kDim;
    s[1] = kDim;
    s[2] = 1;
  }
  for (int64_t* s : {g.a_stride, g.b_stride}) {
    s[0] = kValueHeads;
    s[1] = 1;
  }
  for (int64_t* s : {g.state_in_stride, g.state_out_stride}) {
    s[0] = int64_t{kValueHeads} * kDim * kDim;
    s[1] = kDim * kDim;
    s[2] = kDim;
  }
  const auto pair = [&](int i) { return static_cast<char*>(states.p) + int64_t{i % pairs} * pair_bytes; };
  const auto cold = [&](int i) {
    amk_gdn_decode_t one = g;
    one.state_in = pair(i);
    one.state_out = pair(i) + state_bytes;
    return one;
  };
  amk_gdn_decode_t warm = g;
  warm.state_in = warm.state_out = pair(0);

  std::vector<Timed> copies, colds, warms, in_place;
  for (const CopyWay& way : copy_ways())
    copies.push_back({way.name, time_us(count, [&](int i, cudaStream_t s) {
                        return way.enqueue(pair(i), pair(i) + state_bytes, state_bytes, way.dependent, s);
                      })});
  for (const GdnCandidate& c : gdn_candidates()) {
    colds.push_back(
        {c.name, time_us(count, [&](int i, cudaStream_t s) { return c.enqueue(cold(i), c.dependent, s); })});
    warms.push_back({c.name, time_us(count, [&](int, cudaStream_t s) { return c.enqueue(warm, c.dependent, s); })});
    in_place.push_back({c.name, time_us(count, [&](int i, cudaStream_t s) {
                          amk_gdn_decode_t one = cold(i);
                          one.state_out = const_cast<void*>(one.state_in);
                          return c.enqueue(one, c.dependent, s);
                        })});
  }
  const auto library = [&](bool is_cold) {
    return time_us(count, [&](int i, cudaStream_t s) {
      amk::gdn_decode_on_device(is_cold ? cold(i) : warm, s);
      return cudaSuccess;
    });
  };
  const double library_cold = library(true), library_warm = library(false);
  // The copies again: what the clocks did meanwhile shows as a difference.
  double again = INFINITY;
  for (const CopyWay& way : copy_ways())
    if (!way.dependent)
      again = std::min(again, time_us(count, [&](int i, cudaStream_t s) {
                         return way.enqueue(pair(i), pair(i) + state_bytes, state_bytes, false, s);
                       }));
  std::printf(
      "{\"device\": \"%s\", \"batch\": %d, \"l2norm\": %d, \"bytes\": %lld, \"launches\": %d, \"pairs\": %d, "
      "\"copy_us\": %.3f, "
      "\"copy_again_us\": %.3f, \"copy_dependent_us\": %.3f, \"cold_us\": %.3f, \"cold_dependent_us\": %.3f, "
      "\"warm_in_place_us\": %.3f, \"warm_in_place_dependent_us\": %.3f, \"library_cold_us\": %.3f, "
      "\"library_warm_in_place_us\": %.3f, \"speed_against_copy\": %.4f, \"library_speed_against_copy\": %.4f",
      device.name, batch, l2norm, (long long)pair_bytes, count, pairs, best(copies, false), again, best(copies, true),
      best(colds, false), best(colds, true), best(warms, false), best(warms, true), library_cold, library_warm,
      best(copies, false) / best(colds, true), best(copies, false) / library_cold);
  print("copies", copies);
  print("cold", colds);
  print("cold_in_place", in_place);
  print("warm_in_place", warms);
  std::printf("}\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  int32_t only = 0, l2norm = 1;
  bool times = true;
  for (int i = 1; i < argc; ++i) {
    times &= std::strcmp(argv[i], "check") != 0;
    std::sscanf(argv[i], "batch=%d", &only);
    std::sscanf(argv[i], "l2norm=%d", &l2norm);
  }
  if (!times) notes = stdout;
  try {
    const amk_target_t device = amk::query_device(0);
    check_library();
    check_candidates();
    if (failures == 0 && times)
      for (int32_t batch : {1, 2, 4, 8, 16, 24, 32, 48, 64, 128})
        if (only == 0 || only == batch) measure(batch, l2norm, device);
  } catch (const amk::Error& e) {
    report(false, amk::text("gpu_gdn: status %d: %s", e.status(), e.what()));
  }
  std::fprintf(notes, "gpu_gdn: %d failures\n", failures);
  return failures;
}
