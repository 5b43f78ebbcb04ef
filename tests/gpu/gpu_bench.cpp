// Time of a whole decode step (cache, attention, argmax and all) on device 0, as JSON on stdout; notes on stderr.
// In: names of shapes (0.6B 1B 8B), or nothing for all; knobs as kv_block=N, n_tile=N; quantize=int8, and group=64 or
// 128, for the matrices as int8 against the floor of their own bytes; batch=16 for steps of that many tokens, with the
// time of a step and of a token; context=N, any number of times, for other contexts than kContexts. Weights are
// random and equal on every layer: a copy of each lies on the device, so every byte is streamed. Each step has its own
// tokens and position; time is CUDA events around all that one step enqueues; a step's completion proof is checked
// before it counts. The floor is what the library's own probe reads in this run.
#include <algorithm>
#include <cstdio>

#include "cost/cost.h"
#include "gpu_shapes.h"
#include "read_bandwidth.h"

using namespace gpu_test;

namespace {

void measure(const Shape& s, double gb_per_s, bool is_last, const amk_schedule_t& schedule, int32_t group,
             int32_t batch, const std::vector<int32_t>& contexts) {
  const Lowered lowered = lower_shape(s, schedule, group, batch);
  const amk::ImageView& image = lowered.image;
  auto vm = amk::make_cuda_vm(lowered.bytes, options(), 0);
  ShapeWeights(s, image, group).load(*vm, image);

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
  for (const int32_t& context : contexts) {
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
    const amk_cost_t cost = amk::predict_cost(lowered.program, context - 1 + kWarmUp + kSteps / 2);
    const double floor_us = static_cast<double>(cost.streamed_bytes) / gb_per_s / 1e3, median = us[us.size() / 2];
    std::printf(
        "    {\"context\": %d, \"steps\": %d, \"median_us\": %.1f, \"median_us_per_token\": %.1f, \"p10_us\": %.1f, "
        "\"p90_us\": %.1f, "
        "\"streamed_bytes\": %lld, \"floor_us\": %.1f, \"share_of_floor\": %.3f}%s\n",
        context, kSteps, median, median / batch, us[us.size() / 10], us[us.size() * 9 / 10],
        (long long)cost.streamed_bytes, floor_us, floor_us / median, &context == &contexts.back() ? "" : ",");
    std::fflush(stdout);
  }
  std::printf("  ]}%s\n", is_last ? "" : ",");
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<const Shape*> chosen;
  amk_schedule_t schedule = amk::default_schedule();
  int32_t group = 0, batch = 1;
  std::vector<int32_t> contexts;
  for (int i = 1; i < argc; ++i) {
    if (const Shape* s = find_shape(argv[i])) chosen.push_back(s);
    std::sscanf(argv[i], "n_tile=%d", &schedule.gemv_n_tile);
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
    int32_t context = 0;
    if (std::sscanf(argv[i], "context=%d", &context) == 1) contexts.push_back(context);
  }
  if (contexts.empty()) contexts.assign(std::begin(kContexts), std::end(kContexts));
  if (chosen.empty())
    for (const Shape& s : kShapes) chosen.push_back(&s);
  try {
    const std::vector<amk::ReadRate> rates = amk::measure_read_rates(0);
    const double gb_per_s = rates.front().gb_per_s;
    std::printf("{\"device\": \"%s\", \"read_gb_per_s\": %.0f, \"read_rates\": {", amk::query_device(0).name, gb_per_s);
    for (const amk::ReadRate& r : rates)
      std::printf("%s\"%s\": %.0f", &r == &rates.front() ? "" : ", ", r.way, r.gb_per_s);
    std::printf("}, \"results\": [\n");
    for (const Shape* s : chosen) measure(*s, gb_per_s, s == chosen.back(), schedule, group, batch, contexts);
    std::printf("]}\n");
  } catch (const amk::Error& e) {
    std::fprintf(stderr, "gpu_bench: status %d: %s\n", e.status(), e.what());
    return 1;
  }
  return 0;
}
