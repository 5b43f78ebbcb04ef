// The cost model: exact bytes, a latency that never beats its bound, and the directions a schedule moves it.
#include <algorithm>

#include "cost/cost.h"
#include "lower_models.h"
#include "program_builder.h"

using namespace amk;

namespace {

int64_t rows_of(const amk_model_t& m) { return (m.n_heads + 2 * m.n_kv_heads) * int64_t{m.head_dim}; }

// Bytes of all weights and constants as amk_model_t names them; no biases and no head norms.
int64_t weight_bytes_of(const amk_model_t& m) {
  const int64_t h = m.hidden, f = m.ffn, q = int64_t{m.n_heads} * m.head_dim;
  const int64_t layer = h + rows_of(m) * h + h * q + h + 2 * f * h + h * f;
  const int64_t heads = (m.features & AMK_MODEL_TIED_HEAD ? 1 : 2) * int64_t{m.vocab} * h;
  return (m.layers * layer + heads + h) * dtype_bits(m.dtype) / 8;
}
int64_t cache_bytes_of(const amk_model_t& m, int64_t rows) {
  return 2 * m.layers * int64_t{m.n_kv_heads} * m.head_dim * rows * dtype_bits(m.dtype) / 8;
}

}  // namespace

TEST(streamed_bytes_of_a_tied_model_are_its_weights_and_its_history) {
  const amk_model_t m = llama_1b();
  const Program p = lower_model(m, default_schedule(), h200());
  const int64_t inv_freq = m.head_dim / 2 * 4;
  for (int32_t pos : {0, 1, 63, 1000, m.max_seq - 1}) {
    const amk_cost_t cost = predict_cost(p, pos);
    CHECK_EQ(cost.streamed_bytes, weight_bytes_of(m) + inv_freq + cache_bytes_of(m, pos));
    CHECK_EQ(cost.weight_bytes, weight_bytes_of(m));
    CHECK(cost.struct_size == sizeof cost && cost.arena_bytes > 0);
  }
}

TEST(an_untied_model_reads_one_row_of_its_embedding) {
  const amk_model_t m = toy_model();
  const amk_cost_t cost = predict_cost(lower_model(m, default_schedule(), small_target(8)), 5);
  const int64_t table = int64_t{m.vocab} * m.hidden * 4, row = m.hidden * 4, inv_freq = m.head_dim / 2 * 4;
  CHECK_EQ(cost.weight_bytes, weight_bytes_of(m));
  CHECK_EQ(cost.streamed_bytes, weight_bytes_of(m) - table + row + inv_freq + cache_bytes_of(m, 5));
}

TEST(bytes_do_not_depend_on_the_schedule) {
  for (const amk_model_t& m : small_models()) {
    const int64_t want = predict_cost(lower_model(m, default_schedule(), h200()), m.max_seq / 2).streamed_bytes;
    for (int fusion : {0, 7, 56, 63, 127, 255})
      for (int n_tile : {0, 8, 64}) {
        amk_schedule_t s = default_schedule();
        s.fusion = fusion;
        s.gemv_n_tile = n_tile;
        CHECK_EQ(predict_cost(lower_model(m, s, small_target(3)), m.max_seq / 2).streamed_bytes, want);
      }
  }
}

TEST(latency_is_never_below_the_bound) {
  for (const amk_model_t& m : small_models())
    for (int i = 0; i < target_count(); ++i)
      for (int fusion : {0, 61, 127, 255})
        for (int policy : {AMK_SM_ROUND_ROBIN, AMK_SM_LOAD_BALANCE})
          for (int32_t pos : {0, m.max_seq - 1}) {
            amk_schedule_t s = default_schedule();
            s.fusion = fusion;
            s.sm_policy = policy;
            const amk_cost_t cost = predict_cost(lower_model(m, s, *target_preset(i)), pos);
            CHECK(cost.bound_us > 0 && cost.latency_us >= cost.bound_us);
            CHECK(cost.flops > 0);
          }
}

TEST(full_shapes_are_near_their_bound) {
  for (const amk_model_t& m : {llama_1b(), llama_8b()}) {
    const amk_cost_t cost = predict_cost(lower_model(m, default_schedule(), h200()), 0);
    CHECK(cost.latency_us > cost.bound_us && cost.latency_us < 2.5 * cost.bound_us);
    const double seconds_per_token_bound = static_cast<double>(weight_bytes_of(m)) / 4.8e12;
    CHECK(cost.bound_us > 0.8e6 * seconds_per_token_bound && cost.bound_us < 1.01e6 * seconds_per_token_bound);
  }
}

TEST(worse_schedules_are_predicted_slower) {
  const amk_model_t m = llama_1b();
  const double best = predict_cost(lower_model(m, default_schedule(), h200()), 100).latency_us;
  amk_schedule_t unfused = default_schedule();
  unfused.fusion = 0;
  CHECK(predict_cost(lower_model(m, unfused, h200()), 100).latency_us > best);
  amk_schedule_t coarse = default_schedule();
  coarse.gemv_n_tile = 8192;
  CHECK(predict_cost(lower_model(m, coarse, h200()), 100).latency_us > best);
  const Program p = lower_model(m, default_schedule(), h200());
  CHECK(predict_cost(p, 4000).latency_us > predict_cost(p, 0).latency_us);
  // Everything on one SM.
  amk_schedule_t one = default_schedule();
  std::vector<int32_t> tasks(p.tasks.size()), sms(p.tasks.size(), 0);
  for (size_t i = 0; i < tasks.size(); ++i) tasks[i] = static_cast<int32_t>(i);
  one.sm_policy = AMK_SM_EXPLICIT;
  one.sm_map_count = static_cast<int64_t>(tasks.size());
  one.sm_map_task = tasks.data();
  one.sm_map_sm = sms.data();
  CHECK(predict_cost(lower_model(m, one, h200()), 100).latency_us > 50 * best);
}

TEST(replay_waits_for_tasks_that_stand_later_in_the_table) {
  // Task 0 on queue 0 waits for task 1 on queue 1: table order is not an order of execution.
  ProgramBuilder b(2);
  const int in = b.buffer("in", AMK_KIND_CONST, AMK_DTYPE_F32, {64});
  const int mid = b.activation("mid", AMK_DTYPE_F32, {64});
  const int out = b.buffer("out", AMK_KIND_IO_OUTPUT, AMK_DTYPE_F32, {64});
  const int c0 = b.counter(), c1 = b.counter();
  amk_params_t p{};
  p.N_tile = 64;
  b.task(0, AMK_OP_COPY, {mid}, {out}, p, c0, {{c1, 1}});
  b.task(1, AMK_OP_COPY, {in}, {mid}, p, c1);
  const amk_cost_t cost = predict_cost(b.program, 0);
  const double task_us =
      predict_task_us({b.program.tasks[1], b.program.buffers.data(), b.program.bindings.data()}, b.program.target, 0);
  CHECK(cost.latency_us > 2 * task_us);
  CHECK_EQ(cost.streamed_bytes, 256);
}

TEST(the_costs_of_tasks_are_the_replay) {
  for (const amk_model_t& m : small_models())
    for (int sms : {1, 3, 132})
      for (int32_t pos : {0, m.max_seq - 1}) {
        const Program p = lower_model(m, default_schedule(), small_target(sms));
        const std::vector<amk_task_cost_t> costs = predict_task_costs(p, pos);
        CHECK_EQ(costs.size(), p.tasks.size());
        double end_us = 0, flops = 0;
        for (size_t i = 0; i < costs.size(); ++i) {
          const amk_task_cost_t& c = costs[i];
          const double want = predict_task_us({p.tasks[i], p.buffers.data(), p.bindings.data()}, p.target, pos);
          CHECK(c.finish_us == c.start_us + want);
          CHECK(c.start_us >= c.free_us && (c.blocker >= 0) == (c.start_us > c.free_us));
          CHECK((c.blocker >= 0) == (c.producer >= 0));
          end_us = std::max(end_us, c.finish_us);
          flops += c.flops;
          if (c.blocker < 0) continue;
          // The blocker is one of its waits, the producer signals it, and none of the producers ends later.
          const amk_instruction_t& task = p.tasks[i];
          CHECK(std::count(task.wait_counter, task.wait_counter + task.n_waits, c.blocker) == 1);
          CHECK_EQ(p.tasks[c.producer].out_counter, c.blocker);
          CHECK(costs[c.producer].finish_us < c.start_us);
          for (size_t j = 0; j < costs.size(); ++j)
            if (p.tasks[j].out_counter == c.blocker) CHECK(costs[j].finish_us <= costs[c.producer].finish_us);
        }
        const amk_cost_t cost = predict_cost(p, pos);
        CHECK(cost.latency_us == std::max(end_us, cost.bound_us));
        CHECK(flops == cost.flops);
      }
}

TEST(tasks_of_one_queue_follow_each_other) {
  const Program p = lower_model(llama_1b(), default_schedule(), h200());
  const std::vector<amk_task_cost_t> costs = predict_task_costs(p, 100);
  std::vector<double> free_us(p.launch.grid, 0);
  for (size_t i = 0; i < costs.size(); ++i) {
    CHECK(costs[i].free_us == free_us[p.tasks[i].sm]);
    free_us[p.tasks[i].sm] = costs[i].finish_us;
  }
}

TEST(position_out_of_range) {
  const Program p = lower_model(toy_model(), default_schedule(), small_target(4));
  for (int32_t pos : {-1, 256, INT32_MAX}) {
    EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "pos", predict_cost(p, pos));
    EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "pos", predict_task_costs(p, pos));
  }
}
