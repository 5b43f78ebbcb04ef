// Times lowering and judging of two full shapes on one core: build graph, lower, validate alone and with
// the translation proof, and the cost model.
// Prints medians in milliseconds. Targets: lower + validate < 300 ms (1B), < 1000 ms (8B); the proof < 300 ms.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "cost/cost.h"
#include "lower_models.h"
#include "validate/validate.h"

namespace {

using Clock = std::chrono::steady_clock;
double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}
double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void bench(const char* name, const amk_model_t& model, const amk_schedule_t& schedule) {
  constexpr int kRounds = 7;
  std::vector<double> lower_ms, validate_ms, model_ms, cost_ms;
  size_t tasks = 0, counters = 0;
  amk_cost_t cost{};
  for (int round = 0; round < kRounds; ++round) {
    Clock::time_point start = Clock::now();
    amk::Program program = amk::lower(amk::build_decoder(model), schedule, h200());
    lower_ms.push_back(ms_since(start));
    tasks = program.tasks.size();
    counters = program.counter_init.size();
    amk::Program copy = program;
    start = Clock::now();
    const amk::Judgement judgement = amk::validate(std::move(copy));
    validate_ms.push_back(ms_since(start));
    start = Clock::now();
    const amk::Judgement with_model = amk::validate_model(std::move(program), model);
    model_ms.push_back(ms_since(start));
    if (judgement.valid && !with_model.valid) {
      std::printf("%s: REJECTED: %s\n", name, with_model.report.entries().front().text.c_str());
      return;
    }
    if (!judgement.valid) {
      std::printf("%s: REJECTED: %s\n", name, judgement.report.entries().front().text.c_str());
      return;
    }
    start = Clock::now();
    cost = amk::predict_cost(judgement.valid->program(), model.max_seq / 2);
    cost_ms.push_back(ms_since(start));
  }
  std::printf(
      "%-22s %7zu tasks %5zu counters  lower %7.1f ms  validate %7.1f ms  validate_model %7.1f ms  cost %6.1f ms"
      "  predicted %.0f us (bound %.0f)\n",
      name, tasks, counters, median(lower_ms), median(validate_ms), median(model_ms), median(cost_ms), cost.latency_us,
      cost.bound_us);
}

}  // namespace

int main() {
  amk_schedule_t unfused = amk::default_schedule();
  unfused.fusion = 0;
  unfused.sm_policy = AMK_SM_LOAD_BALANCE;
  unfused.page_policy = AMK_PAGES_GRAPH_COLOR;
  bench("Llama-3.2-1B", llama_1b(), amk::default_schedule());
  bench("Llama-3.1-8B", llama_8b(), amk::default_schedule());
  bench("Llama-3.2-1B unfused", llama_1b(), unfused);
  bench("Llama-3.1-8B unfused", llama_8b(), unfused);
}
