// What each of the machine's ideas is worth: a decode step without it against the default, step by step in turns, on
// device 0. JSON on stdout, notes on stderr; exit status 1 when a result is not what it must be.
// In: names of shapes (0.6B 1B 8B), or nothing for all; "check": no times. Arms:
//   direct_loads       weights from global memory to registers, without the ring (cpasync = 0)
//   scalar_matvec      the ring, and FMA on the CUDA cores instead of mma (scalar_kernel.cu)
//   round_robin,
//   load_balance       tasks to SMs in turn, or to the one with the least predicted work: the one that is no default
//   tables_every_step  the program packed and its tables sent to the device before each step
// Every program is lowered, proved and packed like any other. Before the times and after them each arm decodes small
// models that the reference machine judges. At each context, before and after: the logits of one step, whose bits may
// not change, against the default's; whole models of random weights differ by the order of their sums, so that limit
// only tells a wrong result. Times are CUDA events around a step; tables_every_step has the clock of the host on both
// sides.
#include <chrono>
#include <cstdio>

#include "cost/cost.h"
#include "gpu_pair.h"
#include "gpu_shapes.h"
#include "read_bandwidth.h"
#include "test_machine.h"

#define X(threads)                \
  const void* kernel_##threads(); \
  const void* kernel_##threads##_timed();
namespace amk_scalar {
AMK_CUDA_VARIANTS
}
#undef X

using namespace gpu_test;

namespace {

constexpr amk::KernelVariant kScalarVariants[] = {
#define X(threads) \
  {threads, {{amk_scalar::kernel_##threads, amk_scalar::kernel_##threads##_timed}, {nullptr, nullptr}}},
    AMK_CUDA_VARIANTS
#undef X
};
constexpr int kPairs = 40, kPairsWarmUp = 6;
static_assert(kPairs + kPairsWarmUp <= kSteps + kWarmUp, "the shapes' caches have rows for so many steps");
constexpr double kWholeModelLimit = 0.2;  // root mean square of the difference over that of the logits; wrong: over 1

enum class Kind { kSchedule, kScalar, kTables };
struct Arm {
  const char* name;
  Kind kind;
  amk_schedule_t schedule;
};

std::vector<Arm> arms() {
  const amk_schedule_t standard = amk::default_schedule();
  amk_schedule_t direct = standard, turns = standard, loads = standard;
  direct.cpasync = 0;
  turns.sm_policy = AMK_SM_ROUND_ROBIN;
  loads.sm_policy = AMK_SM_LOAD_BALANCE;
  std::vector<Arm> out{{"direct_loads", Kind::kSchedule, direct}, {"scalar_matvec", Kind::kScalar, standard}};
  if (standard.sm_policy != AMK_SM_ROUND_ROBIN) out.push_back({"round_robin", Kind::kSchedule, turns});
  if (standard.sm_policy != AMK_SM_LOAD_BALANCE) out.push_back({"load_balance", Kind::kSchedule, loads});
  out.push_back({"tables_every_step", Kind::kTables, standard});
  return out;
}

std::unique_ptr<amk::Vm> make_machine(const Arm& arm, const Bytes& bytes) {
  if (arm.kind != Kind::kScalar) return amk::make_cuda_vm(bytes, options(), 0);
  for (const amk::KernelVariant& v : kScalarVariants)
    if (v.threads == arm.schedule.threads_per_block) return amk::make_cuda_vm_of(v, bytes, options(), 0);
  throw amk::Error(AMK_ERR_INTERNAL, "no scalar kernel of these threads per block");
}

double number(double error) { return std::isfinite(error) ? error : 1e30; }  // JSON has no infinity

// ---- small models against the reference machine ----

bool is_first_check = true;

void check_small(const Arm& arm, const char* name, const amk_model_t& m) {
  const amk_target_t target = h200(132);
  amk::check_schedule(arm.schedule, target);
  const amk::Judgement judged = amk::validate(amk::lower(amk::build_decoder(m), arm.schedule, target));
  if (!judged.valid) throw amk::Error(AMK_ERR_INTERNAL, judged.report.entries().front().text);
  Pair p(amk::pack(*judged.valid).shared_bytes(), 0);
  p.gpu = make_machine(arm, p.bytes);
  bind_all(*p.gpu, p.weights);
  fill_caches(p.image, {p.gpu.get()}, 7 + 4);  // as Pair filled the reference's
  double error = 0;
  for (int32_t pos : {0, 17, 63, 64}) {
    p.token((pos * 37 + 5) % m.vocab);
    if (arm.kind == Kind::kTables) amk::rebuild_tables(*p.gpu, amk::pack(*judged.valid).bytes());
    p.gpu->run(pos);
    p.reference->run(pos);
    const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
    error = std::max(error, error_of(AMK_DTYPE_F32, a.data(), b.data(), m.vocab));
  }
  const double limit = limit_of(m.dtype);
  failures += !(error <= limit);
  std::printf("%s  {\"arm\": \"%s\", \"model\": \"%s\", \"dtype\": \"%s\", \"error\": %.2e, \"limit\": %.0e}",
              is_first_check ? "" : ",\n", arm.name, name, amk::dtype_name(m.dtype), number(error), limit);
  is_first_check = false;
}

void check_all(const char* when) {
  std::printf("\"checks_%s\": [\n", when);
  is_first_check = true;
  for (const Arm& arm : arms()) {
    for (int32_t dtype : {AMK_DTYPE_BF16, AMK_DTYPE_F16})
      check_small(arm, "gqa", model(dtype, 2, 256, 8, 2, 32, 512, 1001, 128));
    check_small(arm, "one layer of 1B", model(AMK_DTYPE_BF16, 1, 2048, 32, 8, 64, 8192, 4096, 128));
  }
  std::printf("]");
}

// ---- whole models ----

struct Machine {
  const Arm arm;
  Lowered lowered;
  std::unique_ptr<amk::Vm> vm;

  Machine(const Arm& given, const Shape& s, const ShapeWeights* weights)
      : arm(given), lowered(lower_shape(s, given.schedule, 0)), vm(make_machine(given, lowered.bytes)) {
    if (weights) load(*weights);
  }
  void load(const ShapeWeights& weights) const { weights.load(*vm, lowered.image); }

  float time(int32_t token, int32_t pos) const {
    vm->write("token", 0, &token, sizeof token);
    float us = 0;
    vm->time(pos, 1, &us);
    return us;
  }
  std::vector<uint8_t> logits(int32_t token, int32_t pos) const {
    vm->write("token", 0, &token, sizeof token);
    vm->run(pos);
    return read_buffer(*vm, lowered.image, "logits");
  }
};

double rms_error(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(a.size() / 4); ++i) {
    const double x = get(AMK_DTYPE_F32, a.data(), i), y = get(AMK_DTYPE_F32, b.data(), i);
    difference += (x - y) * (x - y);
    size += y * y;
  }
  return std::sqrt(difference / size);
}

float at(std::vector<float> us, int percent) {
  std::sort(us.begin(), us.end());
  return us[us.size() * static_cast<size_t>(percent) / 100];
}

struct Times {
  std::vector<float> standard, without, pack;
};

bool is_first_row = true;

void print_row(const Shape& s, const Arm& arm, int32_t context, const Times& t, double floor_us, double error,
               bool same_bits) {
  std::vector<float> ratios;
  for (size_t i = 0; i < t.standard.size(); ++i) ratios.push_back(t.without[i] / t.standard[i]);
  std::printf(
      "%s  {\"shape\": \"%s\", \"arm\": \"%s\", \"context\": %d, \"clock\": \"%s\", \"pairs\": %d, \"default_us\": "
      "%.1f, "
      "\"default_p10_us\": %.1f, \"default_p90_us\": %.1f, \"us\": %.1f, \"p10_us\": %.1f, \"p90_us\": %.1f, "
      "\"ratio\": %.4f, \"ratio_p10\": %.4f, \"ratio_p90\": %.4f, \"floor_us\": %.1f, \"pack_us\": %.1f, "
      "\"logits_error\": %.2e, \"same_bits_after\": %s}",
      is_first_row ? "" : ",\n", s.name, arm.name, context, arm.kind == Kind::kTables ? "host" : "events", kPairs,
      at(t.standard, 50), at(t.standard, 10), at(t.standard, 90), at(t.without, 50), at(t.without, 10),
      at(t.without, 90), at(ratios, 50), at(ratios, 10), at(ratios, 90), floor_us,
      t.pack.empty() ? 0.0f : at(t.pack, 50), error, same_bits ? "true" : "false");
  std::fflush(stdout);
  is_first_row = false;
  failures += !(error <= kWholeModelLimit) + !same_bits;
}

// One step each, and who begins changes.
Times take_turns(const Machine& standard, const Machine& without, const Shape& s, int32_t context) {
  Times t;
  Random tokens{99};
  for (int i = 0; i < kPairsWarmUp + kPairs; ++i) {
    const int32_t token = static_cast<int32_t>(tokens.next() % static_cast<uint64_t>(s.vocab)), pos = context - 1 + i;
    float us[2];
    for (int turn : {i % 2, 1 - i % 2}) us[turn] = (turn == 0 ? standard : without).time(token, pos);
    if (i < kPairsWarmUp) continue;
    t.standard.push_back(us[0]);
    t.without.push_back(us[1]);
  }
  return t;
}

// The same machine, its tables as they are and made again.
Times rebuild_in_turns(const Machine& m, const Shape& s, int32_t context) {
  using Clock = std::chrono::steady_clock;
  const auto us_since = [](Clock::time_point start) {
    return std::chrono::duration<float, std::micro>(Clock::now() - start).count();
  };
  Times t;
  Random tokens{99};
  for (int i = 0; i < kPairsWarmUp + kPairs; ++i) {
    const int32_t token = static_cast<int32_t>(tokens.next() % static_cast<uint64_t>(s.vocab)), pos = context - 1 + i;
    float us[2], pack_us = 0;
    for (int turn : {i % 2, 1 - i % 2}) {
      const auto start = Clock::now();
      if (turn == 1) {
        const amk::Image image = amk::pack(m.lowered.valid);
        pack_us = us_since(start);
        amk::rebuild_tables(*m.vm, image.bytes());
      }
      m.vm->decode(token, pos);
      us[turn] = us_since(start);
    }
    if (i < kPairsWarmUp) continue;
    t.standard.push_back(us[0]);
    t.without.push_back(us[1]);
    t.pack.push_back(pack_us);
  }
  return t;
}

void measure(const Shape& s, double gb_per_s) {
  const Machine standard({"default", Kind::kSchedule, amk::default_schedule()}, s, nullptr);
  const ShapeWeights weights(s, standard.lowered.image, 0);
  standard.load(weights);
  for (const Arm& arm : arms()) {
    std::fprintf(stderr, "gpu_ablate: %s, %s\n", s.name, arm.name);
    std::unique_ptr<Machine> other;  // one beside the default: two copies of the weights fit, all would not
    if (arm.kind != Kind::kTables) other = std::make_unique<Machine>(arm, s, &weights);
    const Machine& without = other ? *other : standard;
    for (int32_t context : kContexts) {
      const int32_t pos = context - 1, token = 1234;
      const std::vector<uint8_t> expected = standard.logits(token, pos), before = without.logits(token, pos);
      const Times t = other ? take_turns(standard, without, s, context) : rebuild_in_turns(standard, s, context);
      // Of both: it writes the row at pos, and later contexts look back at it.
      const std::vector<uint8_t> expected_after = standard.logits(token, pos), after = without.logits(token, pos);
      const double floor_us =
          static_cast<double>(amk::predict_cost(standard.lowered.program, pos + kPairs / 2).streamed_bytes) / gb_per_s /
          1e3;
      const double error = std::max(number(rms_error(before, expected)), number(rms_error(after, expected_after)));
      print_row(s, arm, context, t, floor_us, error, before == after && expected == expected_after);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<const Shape*> chosen;
  bool only_check = false;
  for (int i = 1; i < argc; ++i) {
    if (const Shape* s = find_shape(argv[i])) chosen.push_back(s);
    only_check |= std::strcmp(argv[i], "check") == 0;
  }
  if (chosen.empty())
    for (const Shape& s : kShapes) chosen.push_back(&s);
  try {
    std::printf("{\"device\": \"%s\", ", amk::query_device(0).name);
    check_all("before");
    if (!only_check) {
      const double gb_per_s = amk::measure_read_rates(0).front().gb_per_s;
      std::printf(",\n\"read_gb_per_s\": %.0f, \"rows\": [\n", gb_per_s);
      for (const Shape* s : chosen) measure(*s, gb_per_s);
      std::printf("],\n");
      check_all("after");
    }
    std::printf(", \"failures\": %d}\n", failures);
  } catch (const amk::Error& e) {
    std::fprintf(stderr, "gpu_ablate: status %d: %s\n", e.status(), e.what());
    return 1;
  }
  return failures > 0;
}
