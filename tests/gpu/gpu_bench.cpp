// Time of a whole decode step (cache, attention, argmax and all) on device 0, as JSON on stdout; notes on stderr.
// In: names of shapes (0.6B 1B 8B), or nothing for all; knobs as kv_block=N; quantize=int8, and group=64 or 128, for
// the matrices as int8 against the floor of their own bytes; batch=16 for steps of that many tokens, with the time of a
// step and of a token; contexts as below. Weights are random and equal on every
// layer: a copy of each lies on the device, so every byte is streamed. Each step has its own token and position; time
// is CUDA events around all that one step enqueues; a step's completion proof is checked before it counts. The floor is
// what the library's own probe reads in this run.
#include <algorithm>
#include <cstdio>

#include "cost/cost.h"
#include "gpu_model.h"
#include "read_bandwidth.h"
#include "vm/device.h"

using namespace gpu_test;

namespace {

struct Shape {
  const char* name;
  int32_t layers, hidden, heads, kv_heads, dim, ffn, vocab, features;
};
constexpr Shape kShapes[] = {
    {"0.6B", 28, 1024, 16, 8, 128, 3072, 151936, AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD},
    {"1B", 16, 2048, 32, 8, 64, 8192, 128256, AMK_MODEL_TIED_HEAD},
    {"8B", 32, 4096, 32, 8, 128, 14336, 128256, 0},
};
constexpr int kSteps = 60, kWarmUp = 10;
constexpr int32_t kMaxSeq = 8192 + kSteps + kWarmUp + AMK_MAX_BATCH;

// Random bf16 in [-spread, spread), the same 16 MB again and again.
void fill(uint8_t* at, int64_t nbytes, float spread) {
  constexpr int64_t kPeriod = 16 << 20;
  Random random{3};
  for (int64_t i = 0; i < std::min(nbytes, kPeriod) / 2; ++i) put(AMK_DTYPE_BF16, at, i, random.uniform() * spread);
  for (int64_t done = kPeriod; done < nbytes; done += kPeriod)
    std::memcpy(at + done, at, std::min(kPeriod, nbytes - done));
}

// group: of quantised matrices, a head of its own among them; 0: none is quantised.
void measure(const Shape& s, double gb_per_s, bool is_last, const amk_schedule_t& schedule, int32_t group,
             int32_t batch) {
  amk_model_t m =
      model(AMK_DTYPE_BF16, s.layers, s.hidden, s.heads, s.kv_heads, s.dim, s.ffn, s.vocab, kMaxSeq, s.features);
  m.weight_group = group;
  m.batch = batch;
  if (group) m.features &= ~AMK_MODEL_TIED_HEAD;
  amk::Program program = amk::lower(amk::build_decoder(m), schedule, h200(amk::query_device(0).sm_count));
  amk::Judgement judged = amk::validate(program);
  if (!judged.valid) throw amk::Error(AMK_ERR_INTERNAL, judged.report.entries().front().text);
  const Bytes bytes = amk::pack(*judged.valid).shared_bytes();
  const amk::ImageView image = view_of(bytes);
  auto vm = amk::make_cuda_vm(bytes, options(), 0);

  int64_t largest = 0;
  for (const amk::ImageStorage& storage : image.storages) largest = std::max(largest, storage.nbytes);
  Block random(largest), scales(largest), constants(4096), ones(1 << 20);
  fill(random.data.get(), largest, 0.05f);
  fill(scales.data.get(), group ? largest : 0, 0.0005f);
  for (int64_t i = 0; i < 1024; ++i)
    put(AMK_DTYPE_F32, constants.data.get(), i, std::pow(10000.0f, -float(i) / s.dim * 2));
  for (int64_t i = 0; i < ones.nbytes / 2; ++i) put(AMK_DTYPE_BF16, ones.data.get(), i, 1.0f);
  for (size_t i = 1; i < image.storages.size(); ++i) {
    const amk::ImageStorage& storage = image.storages[i];
    const std::string name(image.storage_name.at(i));
    const bool is_norm = name.find("norm") != std::string::npos;
    if (storage.kind == AMK_KIND_CONST) vm->bind(name, constants.data.get(), (uint64_t)storage.nbytes);
    const bool is_scale = name.find("_scale") != std::string::npos;
    const Block& values = is_norm ? ones : is_scale ? scales : random;
    if (storage.kind == AMK_KIND_WEIGHT) vm->bind(name, values.data.get(), (uint64_t)storage.nbytes);
    if (storage.kind == AMK_KIND_KV_CACHE) vm->write(name, 0, random.data.get(), (uint64_t)storage.nbytes);
  }
  vm->prepare();

  std::printf(
      "  {\"shape\": \"%s\", \"dtype\": \"bf16\", \"weight_group\": %d, \"batch\": %d, \"layers\": %d, \"tasks\": %zu, "
      "\"counters\": "
      "%zu, "
      "\"grid\": %d, \"threads\": %d, \"kv_block\": %d, \"cpasync\": %d, \"pipelining_depth\": %d, \"cpa_stages\": %d, "
      "\"contexts\": [\n",
      s.name, group, batch, s.layers, image.tasks.size(), image.producers.size(), image.launch().grid,
      schedule.threads_per_block, schedule.attention_kv_block, schedule.cpasync, schedule.pipelining_depth,
      schedule.cpa_stages);
  Random tokens{99};
  for (int32_t context : {1, 1024, 8192}) {
    std::vector<float> us;
    for (int i = 0; i < kWarmUp + kSteps; ++i) {
      std::vector<int32_t> token(static_cast<size_t>(batch));
      for (int32_t& t : token) t = static_cast<int32_t>(tokens.next() % static_cast<uint64_t>(s.vocab));
      vm->write("token", 0, token.data(), token.size() * sizeof(int32_t));
      float one = 0;
      vm->time(context - 1 + i, 1, &one);
      if (i >= kWarmUp) us.push_back(one);
    }
    std::sort(us.begin(), us.end());
    const amk_cost_t cost = amk::predict_cost(program, context - 1 + kWarmUp + kSteps / 2);
    const double floor_us = static_cast<double>(cost.streamed_bytes) / gb_per_s / 1e3, median = us[us.size() / 2];
    std::printf(
        "    {\"context\": %d, \"steps\": %d, \"median_us\": %.1f, \"median_us_per_token\": %.1f, \"p10_us\": %.1f, "
        "\"p90_us\": %.1f, "
        "\"streamed_bytes\": %lld, \"floor_us\": %.1f, \"share_of_floor\": %.3f}%s\n",
        context, kSteps, median, median / batch, us[us.size() / 10], us[us.size() * 9 / 10],
        (long long)cost.streamed_bytes, floor_us, floor_us / median, context == 8192 ? "" : ",");
    std::fflush(stdout);
  }
  std::printf("  ]}%s\n", is_last ? "" : ",");
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<const Shape*> chosen;
  amk_schedule_t schedule = amk::default_schedule();
  int32_t group = 0, batch = 1;
  for (int i = 1; i < argc; ++i) {
    for (const Shape& s : kShapes)
      if (std::strcmp(argv[i], s.name) == 0) chosen.push_back(&s);
    std::sscanf(argv[i], "kv_block=%d", &schedule.attention_kv_block);
    std::sscanf(argv[i], "cpasync=%d", &schedule.cpasync);
    std::sscanf(argv[i], "pipelining_depth=%d", &schedule.pipelining_depth);
    std::sscanf(argv[i], "cpa_stages=%d", &schedule.cpa_stages);
    std::sscanf(argv[i], "sm_policy=%d", &schedule.sm_policy);
    std::sscanf(argv[i], "fusion=%d", &schedule.fusion);
    std::sscanf(argv[i], "page_policy=%d", &schedule.page_policy);
    if (std::strcmp(argv[i], "quantize=int8") == 0 && group == 0) group = AMK_MAX_WEIGHT_GROUP;
    std::sscanf(argv[i], "group=%d", &group);
    std::sscanf(argv[i], "batch=%d", &batch);
  }
  if (chosen.empty())
    for (const Shape& s : kShapes) chosen.push_back(&s);
  try {
    const std::vector<amk::ReadRate> rates = amk::measure_read_rates(0);
    const double gb_per_s = rates.front().gb_per_s;
    std::printf("{\"device\": \"%s\", \"read_gb_per_s\": %.0f, \"read_rates\": {", amk::query_device(0).name, gb_per_s);
    for (const amk::ReadRate& r : rates)
      std::printf("%s\"%s\": %.0f", &r == &rates.front() ? "" : ", ", r.way, r.gb_per_s);
    std::printf("}, \"results\": [\n");
    for (const Shape* s : chosen) measure(*s, gb_per_s, s == chosen.back(), schedule, group, batch);
    std::printf("]}\n");
  } catch (const amk::Error& e) {
    std::fprintf(stderr, "gpu_bench: status %d: %s\n", e.status(), e.what());
    return 1;
  }
  return 0;
}
