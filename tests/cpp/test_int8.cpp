// Quantised matrices: the law of a matrix-vector tile over them, its result against double precision, and the decoder
// that is lowered with them.
#include <algorithm>

#include "cost/cost.h"
#include "test_vm_support.h"
#include "translation_support.h"

using namespace amk;

namespace {

double silu(double v) { return v / (1 + std::exp(-v)); }

// The reference machine against sum_k q[n, k] * scale[n, k / group] * x[k] in double.
void check_gemv(int dtype, int out_dtype, int flags, int seed) {
  OpLab lab(static_cast<uint64_t>(seed) * 1009 + static_cast<uint64_t>(flags));
  amk_params_t p{};
  p.qdtype = AMK_DTYPE_I8;
  p.group = 16 * lab.random.between(1, 5);
  p.K = p.group * lab.random.between(1, 6);
  p.N = lab.random.between(1, 12);
  p.n_off = lab.random.between(0, p.N - 1);
  p.N_tile = lab.random.between(1, p.N - p.n_off);
  p.m_off = lab.random.between(0, 5);
  p.flags = flags;
  const bool pair = flags & AMK_FLAG_SILU_PAIR;
  const int64_t rows = pair ? 2 * p.N : p.N, groups = p.K / p.group;
  const int x = lab.activation(dtype, {p.m_off + p.K + 3});
  const int w = lab.add(AMK_KIND_WEIGHT, AMK_DTYPE_I8, {rows, p.K}, 128);
  const int scale = lab.add(AMK_KIND_WEIGHT, dtype, {rows, groups}, 1.0 / 64);
  lab.put(w, (pair ? 2 * p.n_off : p.n_off) * int64_t{p.K} % (rows * p.K), -128);
  std::vector<int> inputs{x, w, scale};
  const auto operand = [&](int flag, int64_t count, int kind) {
    if (flags & flag) inputs.push_back(lab.add(kind, dtype, {count}));
    return flags & flag ? inputs.back() : -1;
  };
  const int norm = operand(AMK_FLAG_NORM, p.K, AMK_KIND_WEIGHT), bias = operand(AMK_FLAG_BIAS, rows, AMK_KIND_WEIGHT);
  const int residual = operand(AMK_FLAG_RESIDUAL, p.N, AMK_KIND_ACTIVATION);
  if (norm >= 0) p.eps = 1e-5f;
  const int out = residual >= 0 && out_dtype == dtype && seed % 2 ? residual : lab.activation(out_dtype, {p.N});

  double squares = 0, slack_norm = norm < 0 ? 0 : 8 * unit_roundoff(dtype);
  for (int k = 0; k < p.K; ++k) squares += lab.at(x, p.m_off + k) * lab.at(x, p.m_off + k);
  std::vector<double> in;
  for (int k = 0; k < p.K; ++k) {
    const double v = lab.at(x, p.m_off + k);
    in.push_back(norm < 0 ? v : rounded(dtype, v * lab.at(norm, k) / std::sqrt(squares / p.K + p.eps)));
  }
  std::vector<double> want, slack;
  for (int n = p.n_off; n < p.n_off + p.N_tile; ++n) {
    double most = 0, y[2] = {0, 0};
    for (int half = 0; half < (pair ? 2 : 1); ++half) {
      const int64_t row = n + half * p.N;
      for (int64_t k = 0; k < p.K; ++k) {
        const double q = std::max(-127.0, lab.at(w, row * p.K + k));
        const double term = q * lab.at(scale, row * groups + k / p.group) * in[static_cast<size_t>(k)];
        y[half] += term;
        most = std::max(most, std::fabs(term));
      }
      if (bias >= 0) y[half] += lab.at(bias, row);
    }
    double value = pair ? silu(y[0]) * y[1] : y[0];
    if (residual >= 0) value += lab.at(residual, n);
    want.push_back(value);
    const double term = (slack_norm + 1e-5) * most * std::sqrt(static_cast<double>(p.K)) + 1e-5;
    slack.push_back(pair ? term * (2 + std::fabs(y[0]) + std::fabs(y[1])) : term);
  }
  lab.run(AMK_OP_GEMV_TILE, inputs, {out}, p);
  for (int i = 0; i < p.N_tile; ++i)
    lab.expect(out, p.n_off + i, want[static_cast<size_t>(i)], slack[static_cast<size_t>(i)]);
}

// A lawful tile, for tests that break one thing in it.
struct Tile {
  amk_instruction_t task{};
  std::vector<amk_buffer_t> buffers{
      make_buffer(AMK_DTYPE_BF16, AMK_SPACE_HBM, {128}), make_buffer(AMK_DTYPE_I8, AMK_SPACE_HBM, {16, 128}),
      make_buffer(AMK_DTYPE_BF16, AMK_SPACE_HBM, {16, 2}), make_buffer(AMK_DTYPE_BF16, AMK_SPACE_HBM, {16})};
  std::vector<amk_binding_t> bindings{
      {AMK_KIND_ACTIVATION, -1}, {AMK_KIND_WEIGHT, -1}, {AMK_KIND_WEIGHT, -1}, {AMK_KIND_ACTIVATION, -1}};

  Tile() {
    task.op = AMK_OP_GEMV_TILE;
    task.n_inputs = 3;
    task.n_outputs = 1;
    for (int i = 0; i < 3; ++i) task.inputs[i] = i;
    task.outputs[0] = 3;
    task.params.K = 128;
    task.params.N = task.params.N_tile = 16;
    task.params.qdtype = AMK_DTYPE_I8;
    task.params.group = 64;
  }
  std::string problem() const {
    Problem found;
    if (op_check({task, buffers.data(), bindings.data()}, &found)) return "lawful";
    return "V" + std::to_string(found.code) + " " + found.text;
  }
};

void expect_problem(const char* what, const char* part, void (*change)(Tile&)) {
  Tile t;
  CHECK_EQ(t.problem(), "lawful");
  change(t);
  if (t.problem().find(part) == std::string::npos) check::fail(what, 0, t.problem() + "; expected: " + part);
}

amk_model_t quantised(amk_model_t model, int32_t group) {
  model.weight_group = group;
  return model;
}

constexpr int32_t kBiases = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;

std::vector<amk_model_t> quantised_models() {
  return {quantised(toy_model(), 64),
          quantised(make_model(AMK_DTYPE_BF16, 2, 128, 4, 2, 32, 256, 512, 256), 128),
          quantised(make_model(AMK_DTYPE_F16, 2, 64, 4, 2, 32, 192, 1003, 64, kBiases | AMK_MODEL_QK_NORM), 64),
          quantised(make_model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 128, 264, 64, AMK_MODEL_TIED_HEAD), 64),
          quantised(hybrid_model(), 64),
          quantised(hybrid_model(AMK_DTYPE_BF16), 64)};
}

struct Mutant {
  const char* what;
  void (*apply)(Edited&);
  const char* part;
};

const Mutant kMutants[] = {
    {"the scales of another layer", [](Edited& e) { e.swap_sources("layers.0.wo_scale", "layers.1.wo_scale"); },
     "the scale of layers.0.wo is layers.1.wo_scale[0, 256), expected layers.0.wo_scale[0, 256)"},
    {"the scales of another layer, by operand",
     [](Edited& e) { e.swap_inputs("layers.0.w_gate_up_scale", "layers.1.w_gate_up_scale"); },
     "the scale of layers.0.w_gate_up is layers.1.w_gate_up_scale"},
    {"another layer's integers, its own scales",
     [](Edited& e) { e.swap_sources("layers.0.w_down", "layers.1.w_down"); }, "the scale of layers.1.w_down"},
    {"the scales of another matrix of one shape",
     [](Edited& e) { e.swap_sources("layers.0.wo_scale", "layers.0.w_down_scale"); },
     "the scale of layers.0.wo is layers.0.w_down_scale"},
    {"scales that the model lacks", [](Edited& e) { e.model.weight_group = 0; }, "but the model's"},
    {"another group than the model's", [](Edited& e) { e.model.weight_group = 128; }, "but the model's"},
};

// Of hybrid_model, whose layer 3 is the one of attention.
const Mutant kHybridMutants[] = {
    {"the scales of another layer's projections",
     [](Edited& e) { e.swap_sources("layers.0.w_gdn_in_scale", "layers.1.w_gdn_in_scale"); },
     "the scale of layers.0.w_gdn_in is layers.1.w_gdn_in_scale[0, 200), expected layers.0.w_gdn_in_scale[0, 200)"},
    {"the scales of attention for those of linear attention",
     [](Edited& e) { e.swap_sources("layers.2.w_gdn_out_scale", "layers.3.wo_scale"); },
     "the scale of layers.2.w_gdn_out is layers.3.wo_scale[0, 64), expected layers.2.w_gdn_out_scale[0, 64)"},
    {"scales that the model lacks", [](Edited& e) { e.model.weight_group = 0; }, "but the model's"},
};

void expect_refused(const Mutant& m, const amk_model_t& model, int32_t fusion) {
  Edited e(model, fusion);
  CHECK_EQ(model_verdict(e), "accepted");
  m.apply(e);
  const std::string lawful = verdict(validate(e.program)), got = model_verdict(e);
  if (lawful != "accepted") check::fail(m.what, 0, "refused by another proof: " + lawful);
  if (got.substr(0, 5) != "V17: " || got.find(m.part) == std::string::npos)
    check::fail(m.what, 0, got + "; expected V17 and: " + m.part);
}

}  // namespace

TEST(a_quantised_gemv_with_every_set_of_flags) {
  for (int dtype : kComputeTypes)
    for (int flags = 0; flags < 16; ++flags)
      for (int seed = 0; seed < 8; ++seed) check_gemv(dtype, seed % 3 ? dtype : AMK_DTYPE_F32, flags, seed);
}

TEST(the_law_of_a_quantised_tile) {
  expect_problem("no scales", "V3 GEMV_TILE: 2 inputs, expected 3", [](Tile& t) { t.task.n_inputs = 2; });
  expect_problem("scales without qdtype", "V3 GEMV_TILE: parameter group is set",
                 [](Tile& t) { t.task.params.qdtype = 0, t.task.n_inputs = 2; });
  expect_problem("neither", "V3 GEMV_TILE: weight has dtype i8, expected bf16",
                 [](Tile& t) { t.task.params.qdtype = t.task.params.group = 0, t.task.n_inputs = 2; });
  expect_problem("another qdtype", "V4 GEMV_TILE: qdtype is 7, expected 0 (not quantised) or 6 (i8)",
                 [](Tile& t) { t.task.params.qdtype = AMK_DTYPE_I4, t.task.params.group = 0, t.task.n_inputs = 2; });
  expect_problem("no group", "V4 GEMV_TILE: group is 0", [](Tile& t) { t.task.params.group = 0; });
  expect_problem("a group below 0", "V4 GEMV_TILE: group is -64", [](Tile& t) { t.task.params.group = -64; });
  expect_problem("a group that does not divide", "V4 GEMV_TILE: group is 48, expected a multiple of 16 that divides",
                 [](Tile& t) { t.task.params.group = 48; });
  expect_problem("a group of half vectors", "V4 GEMV_TILE: group is 8", [](Tile& t) { t.task.params.group = 8; });
  expect_problem("scales of another group", "V4 GEMV_TILE: scale has shape [16, 2], expected [16, 1]",
                 [](Tile& t) { t.task.params.group = 128; });
  expect_problem("scales of too few rows", "V4 GEMV_TILE: scale has shape [8, 2], expected [16, 2]",
                 [](Tile& t) { t.buffers[2] = make_buffer(AMK_DTYPE_BF16, AMK_SPACE_HBM, {8, 2}); });
  expect_problem("scales of another type", "V3 GEMV_TILE: scale has dtype f32, expected bf16",
                 [](Tile& t) { t.buffers[2].dtype = AMK_DTYPE_F32; });
  expect_problem("scales that change", "V3 GEMV_TILE: scale must be a WEIGHT, CONST or IO_INPUT buffer",
                 [](Tile& t) { t.bindings[2].kind = AMK_KIND_ACTIVATION; });
  expect_problem("weights of another type", "V3 GEMV_TILE: weight has dtype u8, expected i8",
                 [](Tile& t) { t.buffers[1].dtype = AMK_DTYPE_U8; });
  expect_problem("an integer x", "V3 GEMV_TILE: x has dtype i8", [](Tile& t) { t.buffers[0].dtype = AMK_DTYPE_I8; });
}

TEST(a_quantised_decoder_is_proved_under_every_fusion) {
  for (const amk_model_t& model : quantised_models())
    for (int32_t fusion : {0, kAllButCombine, kAllButCombine & ~AMK_FUSE_GATE_UP_SILU, kAllButCombine & ~AMK_FUSE_QKV})
      CHECK_EQ(model_verdict(Edited(model, fusion, AMK_PAGES_LINEAR)), "accepted");
}

TEST(each_other_quantised_function_is_refused_by_name) {
  for (int32_t fusion : {0, kAllButCombine}) {
    // wo and w_down have one shape.
    for (const Mutant& m : kMutants)
      expect_refused(m, quantised(make_model(AMK_DTYPE_BF16, 2, 128, 4, 2, 32, 128, 256, 64), 64), fusion);
    for (const Mutant& m : kHybridMutants) expect_refused(m, quantised(hybrid_model(), 64), fusion);
  }
}

TEST(a_plain_program_is_no_quantised_model) {
  Edited e(make_model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 128, 256, 64), kAllButCombine);
  e.model.weight_group = 64;
  const std::string got = model_verdict(e);
  CHECK(got.find("V17") == 0 && got.find("is bf16 [256, 128], but the model's") != std::string::npos);
}

TEST(models_that_cannot_be_quantised) {
  const auto build = [](amk_model_t m, int32_t group) { build_decoder(quantised(m, group)); };
  EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "model.weight_group is 32, allowed 0 (not quantised), 64 or 128",
               build(toy_model(), 32));
  EXPECT_ERROR(AMK_ERR_UNSUPPORTED, "model.hidden is 64: a quantised row is no whole groups of 128",
               build(toy_model(), 128));
  EXPECT_ERROR(AMK_ERR_UNSUPPORTED, "model.ffn is 136",
               build(make_model(AMK_DTYPE_F16, 1, 64, 4, 2, 16, 136, 256, 8), 64));
  EXPECT_ERROR(AMK_ERR_UNSUPPORTED, "model.n_heads times head_dim is 96",
               build(make_model(AMK_DTYPE_F16, 1, 64, 6, 2, 16, 128, 256, 8), 64));
  const amk_model_t narrow = make_hybrid(hybrid_model(), 4, 2, 2, 16, 4);
  EXPECT_ERROR(AMK_ERR_UNSUPPORTED, "model.linear_value_heads times linear_head_dim is 32", build(narrow, 64));
  Edited e(narrow, 0);
  e.model.weight_group = 64;
  EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "rows of w_gdn_out of 32 columns, expected whole groups of 64",
               model_verdict(e));
}

TEST(a_quantised_step_streams_half_the_bytes) {
  amk_model_t plain = llama_8b(), small = quantised(plain, 128);
  const auto cost = [](const amk_model_t& m) { return predict_cost(lower_model(m, default_schedule(), h200()), 0); };
  const amk_cost_t a = cost(plain), b = cost(small);
  // Every element of the matrices: a byte and 1/128 of a bf16, where there were two bytes.
  int64_t elements = int64_t{128256} * 4096;
  elements += 32 * (int64_t{4096} * (6144 + 4096) + int64_t{14336} * 4096 * 3);
  CHECK_EQ(a.streamed_bytes - b.streamed_bytes, elements - elements / 64);
  CHECK(b.latency_us < 0.6 * a.latency_us && b.bound_us < 0.51 * a.bound_us);
}
