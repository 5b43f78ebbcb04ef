// What V17 must refuse in a hybrid: programs that every other proof accepts and that compute something else, one change
// each.
#include "translation_support.h"

using namespace amk;

namespace {

constexpr int32_t kNoFusion = 0;
constexpr int kChannels = 128, kValues = 64, kHeads = 4;  // of hybrid_model: q and k of 2 heads, v of 4, 16 wide

struct Mutant {
  const char* what;
  int32_t fusion;
  void (*apply)(Edited&);
  const char* part;  // of the first sentence
};

// The tasks of `op` read a copy of input `slot`, made of these pieces {m_off, n_off, count}.
struct Piece {
  int from, to, count;
};
void shuffle(Edited& e, const char* op, int slot, std::initializer_list<Piece> pieces) {
  const int from = e.task(op).inputs[slot];
  const int to = e.add_buffer("shuffled", AMK_KIND_ACTIVATION, e.program.buffers[from]);
  e.each(op, [&](amk_instruction_t& t) { t.inputs[slot] = to; });
  std::vector<amk_instruction_t> copies;
  for (const Piece& p : pieces) copies.push_back(copy_task(from, to, p.count, p.from, p.to));
  e.insert_before(op, copies);
}

void swap_states(Edited& e, const char* op, const char* other, int in) {
  const int a = e.task(op).inputs[in], b = e.task(other).inputs[in];
  for (const char* name : {op, other})
    e.each(name, [&](amk_instruction_t& t) { t.inputs[in] = t.outputs[1] = t.inputs[in] == a ? b : a; });
}

const Mutant kMutants[] = {
    // ---- states ----
    {"the convolution's state of another layer, by operand", kAllButCombine,
     [](Edited& e) { swap_states(e, "layers.0.gdn_conv", "layers.1.gdn_conv", 2); },
     "the input of layers.1.gdn_conv is layers.0.gdn_in[0, 128) (q, k and v rows), expected layers.1.gdn_in[0, 128)"},
    {"the convolution's state of another layer, by name", kAllButCombine,
     [](Edited& e) { e.swap_names("layers.0.conv_state", "layers.2.conv_state"); },
     "the input of layers.2.gdn_conv is layers.0.gdn_in"},
    {"the delta rule's state of another layer, by operand", kAllButCombine,
     [](Edited& e) { swap_states(e, "layers.1.gdn", "layers.2.gdn", 4); },
     "the q of layers.2.gdn_attended is layers.1.gdn_conv[0, 16), expected layers.2.gdn_conv[0, 16)"},
    {"the delta rule's state of another layer, by name", kNoFusion,
     [](Edited& e) { e.swap_names("layers.0.gdn_state", "layers.1.gdn_state"); },
     "the q of layers.1.gdn_attended is layers.0.gdn_conv"},
    {"a state under a name that the model lacks", kAllButCombine,
     [](Edited& e) { e.rename(&Program::buffer_name, e.buffer("layers.0.gdn_state"), "layers.3.gdn_state"); },
     "(layers.3.gdn_state) is no weight, constant, cache, state, input or output of the model"},
    {"a convolution's state under the delta rule's name", kAllButCombine,
     [](Edited& e) { e.swap_names("layers.0.gdn_state", "layers.0.conv_state"); }, "but the model's layers.0."},
    // ---- the convolution ----
    {"z rows convolved", kAllButCombine,
     [](Edited& e) { e.each("layers.0.gdn_conv", [](auto& t) { t.params.m_off = kValues; }); },
     "the input of layers.0.gdn_conv is layers.0.gdn_in[64, 192), expected layers.0.gdn_in[0, 128) (q, k and v rows)"},
    {"channels one off", kAllButCombine,
     [](Edited& e) { e.each("layers.0.gdn_conv", [](auto& t) { t.params.m_off = 1; }); },
     "the input of layers.0.gdn_conv is layers.0.gdn_in[1, 129)"},
    {"k and v channels exchanged", kNoFusion,
     [](Edited& e) { shuffle(e, "layers.1.gdn_conv", 0, {{0, 0, 32}, {96, 32, 32}, {64, 64, 32}, {32, 96, 32}}); },
     "the input of layers.1.gdn_conv is part layers.1.gdn_in"},
    {"taps of another layer", kAllButCombine, [](Edited& e) { e.swap_sources("layers.0.conv_w", "layers.1.conv_w"); },
     "the weight of layers.0.gdn_conv is layers.1.conv_w[0, 512), expected layers.0.conv_w[0, 512)"},
    {"no convolution", kNoFusion,
     [](Edited& e) {
       const int in = e.buffer("layers.0.gdn_in"), out = e.buffer("layers.0.gdn_conv");
       const int raw = e.add_buffer("raw", AMK_KIND_ACTIVATION, e.program.buffers[out]);
       e.each("layers.0.gdn", [&](auto& t) { t.inputs[0] = raw; });
       e.insert_before("layers.0.gdn", {copy_task(in, raw, kChannels)});
     },
     "the q of layers.0.gdn_attended is layers.0.gdn_in[0, 16) (q, k and v rows), expected layers.0.gdn_conv[0, 16)"},
    // ---- the delta rule ----
    {"a and b exchanged", kAllButCombine,
     [](Edited& e) { shuffle(e, "layers.0.gdn", 1, {{0, 0, 192}, {192, 196, kHeads}, {196, 192, kHeads}}); },
     "the b of layers.0.gdn_attended is layers.0.gdn_in[196, 197) (a rows), expected layers.0.gdn_in[192, 193) (b "
     "rows)"},
    {"b of the next head", kAllButCombine,
     [](Edited& e) { shuffle(e, "layers.0.gdn", 1, {{0, 0, 192}, {193, 192, 3}, {192, 195, 1}, {196, 196, kHeads}}); },
     "the b of layers.0.gdn_attended is layers.0.gdn_in[193, 194) (b rows), expected"},
    {"b and a out of z", kAllButCombine,
     [](Edited& e) { e.each("layers.2.gdn", [](auto& t) { t.params.m_off -= 2 * kHeads; }); },
     "the b of layers.2.gdn_attended is layers.2.gdn_in[184, 185) (z rows)"},
    {"q and k exchanged", kNoFusion,
     [](Edited& e) { shuffle(e, "layers.0.gdn", 0, {{32, 0, 32}, {0, 32, 32}, {64, 64, 64}}); },
     "the q of layers.0.gdn_attended is layers.0.gdn_conv[32, 48), expected layers.0.gdn_conv[0, 16)"},
    {"k and v of two layers", kAllButCombine,
     [](Edited& e) { e.each("layers.1.gdn", [&](auto& t) { t.inputs[0] = e.buffer("layers.0.gdn_conv"); }); },
     "the q of layers.1.gdn_attended is layers.0.gdn_conv"},
    {"fewer key heads", kAllButCombine,
     [](Edited& e) {
       e.each("layers.0.gdn", [](auto& t) { t.params.n_kv_heads = 1; });
       shuffle(e, "layers.0.gdn", 0, {{0, 0, 96}});
       amk_buffer_t& b = e.program.buffers.back();
       b.numel = b.shape[0] = 96;
     },
     "the number of key heads of layers.0.gdn_attended is 1, expected 2"},
    {"a_log and dt_bias exchanged", kAllButCombine,
     [](Edited& e) { e.swap_inputs("layers.0.a_log", "layers.0.dt_bias"); },
     "the a_log of layers.0.gdn_attended is layers.0.dt_bias[0, 1), expected layers.0.a_log[0, 1)"},
    {"a_log of another layer", kAllButCombine, [](Edited& e) { e.swap_sources("layers.0.a_log", "layers.2.a_log"); },
     "the a_log of layers.0.gdn_attended is layers.2.a_log"},
    {"q and k not normalised", kAllButCombine,
     [](Edited& e) { e.each("layers.1.gdn", [](auto& t) { t.params.flags = 0, t.params.eps = 0; }); },
     "layers.1.gdn_attended is made of q and k that are not l2-normalised"},
    {"q and k of one head not normalised", kAllButCombine,
     [](Edited& e) { e.task("layers.1.gdn", 3).params.flags = 0, e.task("layers.1.gdn", 3).params.eps = 0; },
     "not l2-normalised"},
    {"eps of the norms in the l2 norm", kAllButCombine,
     [](Edited& e) { e.each("layers.1.gdn", [&](auto& t) { t.params.eps = e.model.eps; }); },
     "eps of l2 of layers.1.gdn_attended is 9.99999975e-06, expected 9.99999997e-07"},
    {"scale x2", kAllButCombine, [](Edited& e) { e.task("layers.2.gdn").params.scale *= 2; },
     "the scale of layers.2.gdn_attended is 0.5, expected 0.25"},
    // ---- the gated norm ----
    {"z and q rows exchanged", kAllButCombine,
     [](Edited& e) { e.each("layers.0.gdn_norm", [](auto& t) { t.params.m_off = 0; }); },
     "the gate z of layers.0.gdn_gated is layers.0.gdn_in[0, 64) (q, k and v rows), expected layers.0.gdn_in[128, "
     "192)"},
    {"z of another layer", kAllButCombine,
     [](Edited& e) { e.each("layers.1.gdn_norm", [&](auto& t) { t.inputs[1] = e.buffer("layers.0.gdn_in"); }); },
     "the gate z of layers.1.gdn_gated is layers.0.gdn_in"},
    {"the norm of another layer", kAllButCombine,
     [](Edited& e) { e.swap_sources("layers.0.gdn_norm", "layers.1.gdn_norm"); },
     "the weight of layers.0.gdn_gated is layers.1.gdn_norm"},
    {"eps x2 of the gated norm", kAllButCombine,
     [](Edited& e) { e.each("layers.0.gdn_norm", [](auto& t) { t.params.eps *= 2; }); }, "eps of layers.0.gdn_gated"},
    {"a norm over all heads at once", kAllButCombine,
     [](Edited& e) {
       const int ones = e.add_buffer("wide", AMK_KIND_ACTIVATION, e.program.buffers[e.buffer("layers.0.x_mid")]);
       e.each("layers.0.gdn_norm",
              [&](auto& t) { t.params.n_heads = t.params.N_tile = 1, t.params.head_dim = 64, t.inputs[2] = ones; });
       e.insert_before("layers.0.gdn_norm", {copy_task(e.buffer("layers.0.mlp_norm"), ones, 64)});
     },
     "the head width of layers.0.gdn_gated is 64, expected 16"},
    {"no gated norm", kAllButCombine,
     [](Edited& e) { e.each("layers.0.gdn_out", [&](auto& t) { t.inputs[0] = e.buffer("layers.0.gdn_attended"); }); },
     "the input of layers.0.w_gdn_out is layers.0.gdn_attended[0, 64), expected layers.0.gdn_gated[0, 64)"},
    {"z in place of the gated norm", kNoFusion,
     [](Edited& e) {
       e.each("layers.0.gdn_out",
              [&](auto& t) { t.inputs[0] = e.buffer("layers.0.gdn_in"), t.params.m_off = kChannels; });
     },
     "the input of layers.0.w_gdn_out is layers.0.gdn_in[128, 192) (z rows)"},
    // ---- around it ----
    {"no residual behind linear attention", kAllButCombine,
     [](Edited& e) { e.each("layers.1.gdn_out", [](auto& t) { Edited::drop_flag(t, AMK_FLAG_RESIDUAL, 2); }); },
     "layers.1.gdn_out"},
    {"two layers' matrices exchanged", kAllButCombine,
     [](Edited& e) { e.swap_sources("layers.0.w_gdn_in", "layers.1.w_gdn_in"); },
     "the normalised input of layers.1.w_gdn_in is x[0, 64), expected layers.0.x[0, 64)"},
    {"a layer of linear attention skipped", kAllButCombine, [](Edited& e) { e.rewire("layers.1.x", "layers.0.x"); },
     "layers.2.w_gdn_in is layers.0.x"},
    // ---- the output gate ----
    {"no output gate", kAllButCombine,
     [](Edited& e) { e.each("layers.3.o", [&](auto& t) { t.inputs[0] = e.buffer("layers.3.attended"); }); },
     "the input of layers.3.wo is layers.3.attended[0, 64), expected layers.3.attended_gated[0, 64)"},
    {"gated by q", kAllButCombine,
     [](Edited& e) { e.each("layers.3.attn_gate_mul", [](auto& t) { t.params.m_off = 0; }); },
     "the gate of layers.3.attended_gated is layers.3.qkv[0, 64) (q rows), expected layers.3.qkv[128, 192) (gate "
     "rows)"},
    {"gated by v", kNoFusion, [](Edited& e) { e.each("layers.3.attn_gate_mul", [](auto& t) { t.params.m_off = 96; }); },
     "the gate of layers.3.attended_gated is layers.3.qkv[96, 160)"},
    {"the gate gated by attention", kAllButCombine,
     [](Edited& e) {
       const int gate = e.add_buffer("gate", AMK_KIND_ACTIVATION, e.program.buffers[e.buffer("layers.3.attended")]);
       const int qkv = e.buffer("layers.3.qkv"), attended = e.buffer("layers.3.attended");
       e.each("layers.3.attn_gate_mul",
              [&](auto& t) { t.inputs[0] = gate, t.inputs[1] = attended, t.params.m_off = 0; });
       e.insert_before("layers.3.attn_gate_mul", {copy_task(qkv, gate, 64, 128)});
     },
     "it gates layers.3.qkv[128, 192) (gate rows), which the model does not"},
    {"a product in place of the gate", kAllButCombine,
     [](Edited& e) {
       const int gate = e.add_buffer("gate", AMK_KIND_ACTIVATION, e.program.buffers[e.buffer("layers.3.attended")]);
       const int qkv = e.buffer("layers.3.qkv");
       e.each("layers.3.attn_gate_mul", [&](auto& t) { t.op = AMK_OP_MUL, t.inputs[1] = gate, t.params.m_off = 0; });
       e.insert_before("layers.3.attn_gate_mul", {copy_task(qkv, gate, 64, 128)});
     },
     "(MUL)"},
    // ---- 1 + w ----
    {"w for 1 + w", kNoFusion, [](Edited& e) { e.task("layers.0.attn_norm").params.flags = 0; },
     "the norm weights of layers.0.attn_in are used as they are, expected as 1 + w"},
    {"w for 1 + w, fused", kAllButCombine,
     [](Edited& e) { e.task("layers.1.gdn_in", 1).params.flags &= ~AMK_FLAG_NORM_PLUS_ONE; },
     "the norm weights of layers.1.w_gdn_in are used as they are"},
    {"w for 1 + w in the head", kAllButCombine,
     [](Edited& e) { e.task("lm_head").params.flags &= ~AMK_FLAG_NORM_PLUS_ONE; }, "the norm weights of lm_head"},
    {"w for 1 + w in a head norm", kNoFusion,
     [](Edited& e) { e.task("layers.3.rope_q").params.flags &= ~AMK_FLAG_NORM_PLUS_ONE; },
     "the norm weights of layers.3.q_rotated are used as they are"},
    {"w for 1 + w in the appended key", kAllButCombine,
     [](Edited& e) { e.task("layers.3.append_k").params.flags &= ~AMK_FLAG_NORM_PLUS_ONE; },
     "the norm weights of layers.3.k_rotated are used as they are"},
    {"w for 1 + w in attention", kAllButCombine,
     [](Edited& e) { e.task("layers.3.attention", 1).params.flags &= ~AMK_FLAG_NORM_PLUS_ONE; },
     "the norm weights of layers.3.q_rotated are used as they are"},
};

}  // namespace

TEST(each_other_function_of_a_hybrid_is_refused_by_name) {
  for (const Mutant& m : kMutants) {
    Edited e(hybrid_model(), m.fusion);
    CHECK_EQ(model_verdict(e), "accepted");
    m.apply(e);
    const std::string lawful = verdict(validate(e.program)), got = model_verdict(e);
    if (lawful != "accepted") check::fail(m.what, 0, "refused by another proof: " + lawful);
    if (got.substr(0, 5) != "V17: " || got.find(m.part) == std::string::npos)
      check::fail(m.what, 0, got + "; expected V17 and: " + m.part);
  }
}

TEST(plain_norms_used_as_one_plus_w_are_refused) {
  for (int fusion : {kNoFusion, kAllButCombine})
    for (const char* op : {"layers.0.attn_norm", "layers.0.qkv"}) {
      if ((fusion == kNoFusion) != (op == std::string("layers.0.attn_norm"))) continue;
      Edited e(toy_model(), fusion);
      e.task(op).params.flags |= AMK_FLAG_NORM_PLUS_ONE;
      CHECK(model_verdict(e).find("are used as 1 + w, expected as they are") != std::string::npos);
    }
}

// Without a gate in the model nobody may gate; without linear layers there is no state to move.
TEST(a_hybrid_is_another_model_in_every_field) {
  const Edited e(hybrid_model(), kAllButCombine);
  const auto other = [&](auto change) {
    amk_model_t m = e.model;
    change(m);
    CHECK_EQ(verdict(validate_model(e.program, m)).substr(0, 5), "V17: ");
  };
  other([](amk_model_t& m) { m.full_attention_interval = 2; });
  other([](amk_model_t& m) { m.full_attention_interval = 5; });
  other([](amk_model_t& m) { m.full_attention_interval = 1; });
  other([](amk_model_t& m) { m = make_hybrid(m, 0, 0, 0, 0, 0); });
  other([](amk_model_t& m) { m.linear_key_heads = 4; });
  other([](amk_model_t& m) { m.linear_value_heads = 2; });
  other([](amk_model_t& m) { m.linear_head_dim = 32; });
  other([](amk_model_t& m) { m.conv_width = 3; });
  other([](amk_model_t& m) { m.features &= ~AMK_MODEL_ATTENTION_GATE; });
  other([](amk_model_t& m) { m.features &= ~AMK_MODEL_NORM_PLUS_ONE; });
}

// Reversed taps can only come from outside: what a convolution multiplies with must be bound, not computed.
TEST(taps_cannot_be_reordered_by_a_program) {
  Edited e(hybrid_model(), kAllButCombine);
  const int taps = e.buffer("layers.0.conv_w");
  const int reversed = e.add_buffer("reversed", AMK_KIND_ACTIVATION, e.program.buffers[taps]);
  e.each("layers.0.gdn_conv", [&](amk_instruction_t& t) { t.inputs[1] = reversed; });
  std::vector<amk_instruction_t> copies;
  for (int i = 0; i < 4 * kChannels; ++i) copies.push_back(copy_task(taps, reversed, 1, i, i / 4 * 4 + 3 - i % 4));
  e.insert_before("layers.0.gdn_conv", copies);
  CHECK(model_verdict(e).find("V3: ") == 0 && model_verdict(e).find("weight must be a WEIGHT") != std::string::npos);
}
