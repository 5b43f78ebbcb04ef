// What V17 must accept: every lowering of every kind of decoder, and programs that only move data more than they need.
#include "mini_decoder.h"
#include "translation_support.h"

using namespace amk;

namespace {

void expect_accepted(const char* file, int line, const Edited& e, const std::string& what) {
  const std::string got = model_verdict(e);
  if (got != "accepted") check::fail(file, line, what + ": " + got);
}
#define EXPECT_ACCEPTED(edited, what) expect_accepted(__FILE__, __LINE__, edited, what)

amk_model_t three_layers(int32_t features = 0) {
  return make_model(AMK_DTYPE_F32, 3, 64, 4, 2, 16, 128, 256, 64, features);
}

}  // namespace

TEST(every_fusion_of_every_model_is_the_model) {
  const std::vector<amk_model_t> models = small_models();
  const int32_t kSmCounts[] = {8, 5, 1, 17, 132};
  int turn = 0;
  for (size_t m = 0; m < models.size(); ++m) {
    const Graph graph = build_decoder(models[m]);
    for (int fusion = 0; fusion < 256; ++fusion)
      for (int n_tile : {0, 8, 48})
        for (int pages = 0; pages <= AMK_PAGES_GRAPH_COLOR; ++pages) {
          amk_schedule_t s = default_schedule();
          s.fusion = fusion;
          s.gemv_n_tile = n_tile;
          s.page_policy = pages;
          s.sm_policy = turn++ % 2 ? AMK_SM_LOAD_BALANCE : AMK_SM_ROUND_ROBIN;
          s.attention_kv_block = 16 << turn % 6;
          const Judgement j = validate_model(lower(graph, s, small_target(kSmCounts[(m + turn) % 5])), models[m]);
          if (!j.valid.has_value())
            check::fail(__FILE__, __LINE__,
                        text("model %zu fusion %d N_tile %d pages %d: ", m, fusion, n_tile, pages) + verdict(j));
        }
  }
}

TEST(full_shapes_are_the_model) {
  amk_schedule_t unfused = default_schedule();
  unfused.fusion = 0;
  unfused.page_policy = AMK_PAGES_GRAPH_COLOR;
  for (const amk_schedule_t& s : {default_schedule(), unfused})
    for (const amk_model_t& m : {llama_1b(), llama_8b(), large_hybrid()})
      CHECK_EQ(verdict(validate_model(lower_model(m, s, h200()), m)), "accepted");
}

TEST(a_program_of_one_model_is_not_another) {
  const std::vector<amk_model_t> models = small_models();
  for (size_t a = 0; a < models.size(); ++a)
    for (size_t b = 0; b < models.size(); ++b) {
      const Judgement j = validate_model(lower_model(models[a], default_schedule(), small_target(8)), models[b]);
      CHECK_EQ(j.valid.has_value(), a == b);
      if (a != b) CHECK_EQ(j.report.entries()[0].code, 17);
    }
}

TEST(other_proofs_come_first) {
  Edited e(three_layers(), 0);
  e.task("layers.1.o").params.K = 0;
  CHECK_EQ(model_verdict(e).substr(0, 4), "V4: ");
  CHECK_EQ(verdict(validate(MiniDecoder().program)), "accepted");
  CHECK_EQ(verdict(validate_model(Program{}, three_layers())).substr(0, 5), "V10: ");
}

TEST(copies_and_nops_change_nothing) {
  Edited e(three_layers(), 0);
  // The residual stream takes a detour in two pieces, in the wrong order, and through a chain.
  const int x = e.buffer("layers.0.x"), half = static_cast<int>(e.program.buffers[x].numel) / 2;
  const int there = e.add_buffer("there", AMK_KIND_ACTIVATION, e.program.buffers[x]);
  const int back = e.add_buffer("back", AMK_KIND_ACTIVATION, e.program.buffers[x]);
  amk_instruction_t nop{};
  const std::vector<int> readers = e.tasks("layers.1.attn_norm");
  for (int t : readers) e.program.tasks[t].inputs[0] = back;
  e.insert_before("layers.1.attn_norm", {copy_task(x, there, half, half, half), copy_task(x, there, half), nop,
                                         copy_task(there, back, 2 * half)});
  EXPECT_ACCEPTED(e, "detour");
}

TEST(a_copied_weight_is_the_weight) {
  Edited e(three_layers(), 0);
  const int norm = e.buffer("layers.1.mlp_norm");
  const int copy = e.add_buffer("copy", AMK_KIND_ACTIVATION, e.program.buffers[norm]);
  for (int t : e.tasks("layers.1.mlp_norm")) e.program.tasks[t].inputs[1] = copy;
  Edited wrong = e;
  e.insert_before("layers.1.mlp_norm", {copy_task(norm, copy, 64)});
  EXPECT_ACCEPTED(e, "copied norm weight");
  wrong.insert_before("layers.1.mlp_norm", {copy_task(wrong.buffer("layers.0.mlp_norm"), copy, 64)});
  const std::string got = model_verdict(wrong);
  CHECK_EQ(got.substr(got.find(": the") + 2),
           "the weight of layers.1.mlp_in is layers.0.mlp_norm[0, 64), expected layers.1.mlp_norm[0, 64)");
}

TEST(a_head_norm_may_be_a_task_of_its_own) {
  Edited e(three_layers(AMK_MODEL_QK_NORM), 0);
  const int qkv = e.buffer("layers.1.qkv");
  const int normed = e.add_buffer("normed", AMK_KIND_ACTIVATION, e.program.buffers[qkv]);
  amk_instruction_t norm{};
  norm.op = AMK_OP_RMSNORM;
  norm.n_inputs = 2;
  norm.n_outputs = 1;
  norm.inputs[0] = qkv;
  norm.outputs[0] = normed;
  norm.params.hidden = 16;
  norm.params.eps = e.model.eps;
  amk_instruction_t q = norm, k = norm;
  q.inputs[1] = e.buffer("layers.1.q_norm");
  q.params.M_tile = 4;
  k.inputs[1] = e.buffer("layers.1.k_norm");
  k.params.M_tile = 2;
  k.params.m_off = k.params.n_off = 64;
  for (const char* name : {"layers.1.rope_q", "layers.1.rope_k"})
    e.each(name, [&](amk_instruction_t& t) {
      Edited::drop_flag(t, AMK_FLAG_NORM, 2);
      t.inputs[0] = normed;
      t.params.eps = 0;
    });
  Edited swapped = e;
  e.insert_before("layers.1.rope_k", {k});
  e.insert_before("layers.1.rope_q", {q});
  EXPECT_ACCEPTED(e, "head norms as tasks");
  std::swap(q.inputs[1], k.inputs[1]);
  swapped.insert_before("layers.1.rope_k", {k});
  swapped.insert_before("layers.1.rope_q", {q});
  CHECK_EQ(model_verdict(swapped).substr(0, 5), "V17: ");
}

TEST(models_outside_their_domain_are_misuse) {
  const Edited e(three_layers(), 0);
  const auto refuse = [&](auto change) {
    amk_model_t m = e.model;
    change(m);
    EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "model.", validate_model(e.program, m));
  };
  refuse([](amk_model_t& m) { m.dtype = AMK_DTYPE_I32; });
  refuse([](amk_model_t& m) { m.layers = 0; });
  refuse([](amk_model_t& m) { m.layers = AMK_MAX_LAYERS + 1; });
  refuse([](amk_model_t& m) { m.n_kv_heads = 3; });
  refuse([](amk_model_t& m) { m.n_heads = INT32_MAX; });
  refuse([](amk_model_t& m) { m.head_dim = 15; });
  refuse([](amk_model_t& m) { m.ffn = -1; });
  refuse([](amk_model_t& m) { m.features = 128; });
  refuse([](amk_model_t& m) { m.eps = 0; });
  refuse([](amk_model_t& m) { m = make_hybrid(m, -1, 2, 4, 16, 4); });
  refuse([](amk_model_t& m) { m = make_hybrid(m, 4, 0, 4, 16, 4); });
  refuse([](amk_model_t& m) { m = make_hybrid(m, 4, 3, 4, 16, 4); });
  refuse([](amk_model_t& m) { m = make_hybrid(m, 4, 2, 4, 0, 4); });
  refuse([](amk_model_t& m) { m = make_hybrid(m, 4, 2, 4, 16, 1); });
  refuse([](amk_model_t& m) { m = make_hybrid(m, 4, 2, 4, 16, AMK_MAX_CONV_WIDTH + 1); });
  refuse([](amk_model_t& m) { m = make_hybrid(m, 0, 2, 4, 16, 4); });
  refuse([](amk_model_t& m) { m.max_seq = 0; });
}

// ---- V23 ----

TEST(work_of_a_queue_is_bounded) {
  ProgramBuilder b(2);
  // One matrix of 64 MB; each task reads all of it, which is 64 MB and 32 M multiply-adds of bf16.
  const int x = b.buffer("x", AMK_KIND_IO_INPUT, AMK_DTYPE_BF16, {8192});
  const int w = b.buffer("w", AMK_KIND_WEIGHT, AMK_DTYPE_BF16, {4096, 8192});
  amk_params_t p{};
  p.K = 8192;
  p.N = p.N_tile = 4096;
  const double each = 2 * 67108864.0 + 2 * 8192 + 2 * 4096 + 4096;  // weight bytes and as many operations, x, y, a task
  const int fit = static_cast<int>(static_cast<double>(AMK_MAX_QUEUE_WORK) / each);
  const auto task = [&](int sm) {
    const int y = b.activation("y", AMK_DTYPE_BF16, {4096});
    b.task(sm, AMK_OP_GEMV_TILE, {x, w}, {y}, p, b.counter());
  };
  for (int i = 0; i < 2 * fit; ++i) task(i % 2);
  CHECK_EQ(verdict(validate(b.program)), "accepted");
  task(1);
  const Judgement j = validate(b.program);
  CHECK_EQ(
      verdict(j),
      "V23: queue 1 has 6.001e+10 units of work (bytes and operations), allowed 6e+10; most of one task has task 1 "
      "(GEMV_TILE), 1.342e+08");
  CHECK_EQ(j.report.count(), 1);
}
