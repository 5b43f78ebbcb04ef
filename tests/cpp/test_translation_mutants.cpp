// What V17 must refuse: programs that every other proof accepts and that compute something else, one change each.
#include <algorithm>
#include <cmath>

#include "translation_support.h"

using namespace amk;

namespace {

constexpr int32_t kBiases = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;
constexpr int32_t kNoFusion = 0;
constexpr int32_t kTurnedHeads = kAllButCombine & ~AMK_FUSE_ROPE_ATTENTION;
constexpr int kHead = 16, kHidden = 64;

struct Mutant {
  const char* what;
  int32_t fusion, features;
  void (*apply)(Edited&);
  const char* part;  // of the first sentence
};

amk_instruction_t sum_of(Edited& e, const char* a, const char* b, int out) {
  amk_instruction_t t{};
  t.op = AMK_OP_ADD;
  t.n_inputs = 2;
  t.n_outputs = 1;
  t.inputs[0] = e.buffer(a);
  t.inputs[1] = e.buffer(b);
  t.outputs[0] = out;
  t.params.N_tile = kHidden;
  return t;
}

// Task `i` of an op once more, after everything else, into a buffer of its own.
void again(Edited& e, const char* op, int i) {
  amk_instruction_t t = e.task(op, i);
  t.outputs[0] = e.add_buffer("again", AMK_KIND_ACTIVATION, e.program.buffers[t.outputs[0]]);
  t.out_counter = e.add_counter();
  e.program.tasks.push_back(t);
}

const Mutant kMutants[] = {
    // ---- weights ----
    {"another layer's matrix, by source", kAllButCombine, 0,
     [](Edited& e) { e.swap_sources("layers.0.wo", "layers.2.wo"); },
     "the input of layers.2.wo is layers.0.attended[0, 64), expected layers.2.attended[0, 64)"},
    {"another layer's matrix, by operand", kNoFusion, 0,
     [](Edited& e) { e.swap_inputs("layers.0.w_down", "layers.1.w_down"); }, "the input of layers.1.w_down is"},
    {"gate and up matrices of two layers", kNoFusion, 0,
     [](Edited& e) { e.swap_sources("layers.0.w_gate_up", "layers.1.w_gate_up"); }, "the input of layers.1.w_gate_up"},
    {"the wrong norm weight", kNoFusion, 0,
     [](Edited& e) { e.swap_sources("layers.1.attn_norm", "layers.1.mlp_norm"); },
     "the weight of layers.1.attn_in is layers.1.mlp_norm[0, 64), expected layers.1.attn_norm[0, 64)"},
    {"the wrong norm weight, fused", kAllButCombine, 0,
     [](Edited& e) { e.swap_inputs("layers.1.attn_norm", "final_norm"); }, "the norm weight of layers.1.wqkv"},
    {"the wrong bias", kAllButCombine, kBiases, [](Edited& e) { e.swap_sources("layers.1.bo", "layers.1.b_down"); },
     "the bias of layers.1.wo"},
    {"the norm weight as bias", kNoFusion, kBiases,
     [](Edited& e) { e.each("layers.1.o", [&](auto& t) { t.inputs[2] = e.buffer("layers.1.mlp_norm"); }); },
     "the bias of layers.1.wo is layers.1.mlp_norm"},
    {"no bias", kAllButCombine, kBiases,
     [](Edited& e) { e.each("layers.0.qkv", [](auto& t) { Edited::drop_flag(t, AMK_FLAG_BIAS, 3); }); },
     "layers.0.wqkv has no bias, but the model's has one"},
    {"a bias that the model lacks", kNoFusion, 0,
     [](Edited& e) {
       e.each("layers.1.o", [&](auto& t) {
         t.params.flags |= AMK_FLAG_BIAS;
         t.inputs[t.n_inputs++] = e.buffer("layers.0.x");
       });
     },
     "layers.1.wo has a bias, but the model's has none"},
    {"q and k head norms exchanged", kAllButCombine, AMK_MODEL_QK_NORM,
     [](Edited& e) { e.swap_inputs("layers.1.q_norm", "layers.1.k_norm"); }, "the head norm weight of layers.1."},
    {"q without its head norm", kNoFusion, AMK_MODEL_QK_NORM,
     [](Edited& e) {
       e.each("layers.1.rope_q", [](auto& t) { Edited::drop_flag(t, AMK_FLAG_NORM, 2), t.params.eps = 0; });
     },
     "layers.1.q_rotated is made without a head norm"},
    {"the embedding as head", kAllButCombine, 0, [](Edited& e) { e.set_source("lm_head", "embed"); },
     "it multiplies by embed, which the model does not"},
    {"the head as embedding", kAllButCombine, 0, [](Edited& e) { e.swap_inputs("embed", "lm_head"); },
     "the table of x is lm_head"},
    {"another frequency table", kAllButCombine, 0, [](Edited& e) { e.set_source("rope_inv_freq", "rope_other"); },
     "is no weight, constant, cache, state, input or output of the model"},
    // ---- numbers ----
    {"eps x2", kNoFusion, 0, [](Edited& e) { e.task("layers.2.mlp_norm").params.eps *= 2; }, "eps of layers.2.mlp_in"},
    {"eps x2, fused", kAllButCombine, 0, [](Edited& e) { e.task("lm_head").params.eps *= 2; }, "eps of lm_head"},
    {"eps x2 of a head norm", kAllButCombine, AMK_MODEL_QK_NORM,
     [](Edited& e) { e.task("layers.0.append_k").params.eps *= 2; }, "eps of layers.0.k_rotated"},
    {"scale x2", kNoFusion, 0, [](Edited& e) { e.task("layers.1.attention").params.scale *= 2; },
     "the scale of layers.1.attended is 0.5, expected 0.25"},
    {"scale 1 ulp off", kNoFusion, 0,
     [](Edited& e) { e.task("layers.1.attention", 1).params.scale = std::nextafter(0.25f, 1.0f); }, "the scale of"},
    {"fewer positions", kNoFusion, 0, [](Edited& e) { e.program.launch.max_seq = 32; },
     "launch.max_seq is 32, the model's is 64"},
    {"another cut in one split", kNoFusion, 0, [](Edited& e) { e.task("layers.1.attention", 1).params.M_tile = 32; },
     "the rows of a block"},
    // ---- structure ----
    {"skip a layer", kNoFusion, 0, [](Edited& e) { e.rewire("layers.1.x", "layers.0.x"); },
     "the weight of layers.1.attn_in is layers.2.attn_norm[0, 64), expected layers.1.attn_norm"},
    {"skip a feed-forward network", kAllButCombine, 0, [](Edited& e) { e.rewire("layers.1.x", "layers.1.x_mid"); },
     "the normalised input of layers.2.wqkv is layers.1.x_mid"},
    {"the head reads the layer before the last", kAllButCombine, 0,
     [](Edited& e) { e.each("lm_head", [&](auto& t) { t.inputs[0] = e.buffer("layers.1.x"); }); },
     "the normalised input of lm_head is layers.1.x[0, 64), expected layers.2.x[0, 64)"},
    {"a matrix without its norm", kAllButCombine, 0,
     [](Edited& e) {
       e.each("layers.1.qkv", [](auto& t) { Edited::drop_flag(t, AMK_FLAG_NORM, 2), t.params.eps = 0; });
     },
     "the input of layers.1.wqkv is layers.0.x"},
    {"a norm where there is none", kNoFusion, 0,
     [](Edited& e) {
       e.each("layers.1.o", [&](auto& t) {
         t.params.flags |= AMK_FLAG_NORM;
         t.params.eps = e.model.eps;
         t.inputs[t.n_inputs++] = e.buffer("layers.1.mlp_norm");
       });
     },
     "layers.1.wo has a normalisation before it"},
    {"no residual", kAllButCombine, 0,
     [](Edited& e) { e.each("layers.1.o", [](auto& t) { Edited::drop_flag(t, AMK_FLAG_RESIDUAL, 2); }); },
     "layers.1.attn_out"},
    {"the wrong residual", kAllButCombine, 0,
     [](Edited& e) { e.each("layers.1.down", [&](auto& t) { t.inputs[2] = e.buffer("layers.0.x"); }); },
     "the residual of layers.1.w_down is layers.0.x[0, 16), expected layers.1.x_mid[0, 16)"},
    {"a residual of itself", kNoFusion, 0,
     [](Edited& e) { e.each("layers.1.o_add", [](auto& t) { t.inputs[0] = t.inputs[1]; }); },
     "it adds layers.1.attn_out[0, 64) and layers.1.attn_out[0, 64)"},
    {"a product instead of a sum", kNoFusion, 0,
     [](Edited& e) { e.each("layers.1.o_add", [](auto& t) { t.op = AMK_OP_MUL; }); }, "(MUL)"},
    {"the residual twice", kNoFusion, 0,
     [](Edited& e) {
       const int twice = e.add_buffer("twice", AMK_KIND_ACTIVATION, e.program.buffers[e.buffer("layers.1.x_mid")]);
       e.each("layers.1.mlp_norm", [&](auto& t) { t.inputs[0] = twice; });
       e.insert_before("layers.1.mlp_norm", {sum_of(e, "layers.1.x_mid", "layers.0.x", twice)});
     },
     "it adds layers.1.x_mid[0, 64) and layers.0.x[0, 64)"},
    {"gate and up exchanged", kNoFusion, 0,
     [](Edited& e) {
       const int from = e.buffer("layers.1.gate_up");
       const int to = e.add_buffer("up_gate", AMK_KIND_ACTIVATION, e.program.buffers[from]);
       e.each("layers.1.silu_mul", [&](auto& t) { t.inputs[0] = to; });
       e.insert_before("layers.1.silu_mul", {copy_task(from, to, 128, 0, 128), copy_task(from, to, 128, 128, 0)});
     },
     "its gate is layers.1.gate_up[128, 256), expected gate rows"},
    {"down projects the gate", kNoFusion, 0,
     [](Edited& e) { e.each("layers.1.down", [&](auto& t) { t.inputs[0] = e.buffer("layers.1.gate_up"); }); },
     "the input of layers.1.w_down is layers.1.gate_up[0, 128), expected layers.1.act[0, 128)"},
    {"down projects the wrong part", kNoFusion, 0,
     [](Edited& e) {
       e.each("layers.1.down", [&](auto& t) { t.inputs[0] = e.buffer("layers.1.gate_up"), t.params.m_off = 96; });
     },
     "the input of layers.1.w_down is layers.1.gate_up[96, 224)"},
    {"a tile of a vector moved", kNoFusion, 0,
     [](Edited& e) {
       const int from = e.buffer("layers.1.attended");
       const int to = e.add_buffer("shuffled", AMK_KIND_ACTIVATION, e.program.buffers[from]);
       e.each("layers.1.o", [&](auto& t) { t.inputs[0] = to; });
       e.insert_before("layers.1.o", {copy_task(from, to, 32, 0, 32), copy_task(from, to, 32, 32, 0)});
     },
     "the input of layers.1.wo is part layers.1.attended, in another order"},
    {"a tile twice", kNoFusion, 0, [](Edited& e) { again(e, "layers.1.down", 0); },
     "computes layers.1.mlp_out[0, 16), which task"},
    {"a norm twice", kNoFusion, 0, [](Edited& e) { again(e, "layers.1.mlp_norm", 0); }, "computes layers.1.mlp_in"},
    // ---- attention ----
    {"k and v caches exchanged by name", kTurnedHeads, 0, [](Edited& e) { e.swap_names("kv.1.k", "kv.1.v"); },
     "kv.1.v is"},
    {"attention over v as k", kAllButCombine, 0, [](Edited& e) { e.swap_inputs("kv.1.k", "kv.1.v"); },
     "it attends over kv.1.v as k and kv.1.k as v"},
    {"k and v appended to each other", kNoFusion, 0,
     [](Edited& e) { std::swap(e.task("layers.1.append_k").outputs[0], e.task("layers.1.append_v").outputs[0]); },
     "the row of kv.1.v is layers.1.k_rotated"},
    {"another layer's cache", kTurnedHeads, 0,
     [](Edited& e) {
       e.each("layers.2.attention",
              [&](auto& t) { t.inputs[1] = e.buffer("kv.1.k"), t.inputs[2] = e.buffer("kv.1.v"); });
     },
     "the query of layers.1.attended is layers.2.q_rotated[0, 32), expected layers.1.q_rotated[0, 32)"},
    {"v of another layer", kAllButCombine, 0,
     [](Edited& e) { e.each("layers.2.attention", [&](auto& t) { t.inputs[2] = e.buffer("kv.1.v"); }); },
     "it attends over kv.2.k as k and kv.1.v as v"},
    {"two layers' caches exchanged", kTurnedHeads, 0,
     [](Edited& e) {
       for (const char* which : {"k", "v"}) e.swap_names(std::string("kv.0.") + which, std::string("kv.1.") + which);
     },
     "the row of kv.1.k is layers.0.k_rotated"},
    {"query rows from elsewhere", kNoFusion, 0,
     [](Edited& e) { e.each("layers.1.attention", [&](auto& t) { t.inputs[0] = e.buffer("layers.0.attn_out"); }); },
     "the query of layers.1.attended is layers.0.attn_out[0, 32), expected layers.1.q_rotated[0, 32)"},
    {"queries that are not turned", kNoFusion, 0,
     [](Edited& e) { e.each("layers.1.attention", [&](auto& t) { t.inputs[0] = e.buffer("layers.1.qkv"); }); },
     "the query of layers.1.attended is layers.1.qkv[0, 32) (q rows)"},
    {"query heads one off", AMK_FUSE_QKV, 0, [](Edited& e) { e.task("layers.1.rope_q").params.m_off += kHead; },
     "it turns layers.1.qkv[16, 80), expected whole heads"},
    {"query heads half a head off", kNoFusion, 0,
     [](Edited& e) {
       e.each("layers.1.attention",
              [&](auto& t) { t.inputs[0] = e.buffer("layers.1.qkv"), t.params.m_off = kHead / 2; });
     },
     "the query of layers.1.attended is layers.1.qkv[8, 40)"},
    {"k heads one off", kAllButCombine, 0, [](Edited& e) { e.task("layers.1.append_k").params.m_off -= kHead; },
     "it turns layers.1.qkv[48, 80), expected whole heads"},
    {"v rows are k rows", kAllButCombine, 0, [](Edited& e) { e.task("layers.1.append_v").params.m_off -= 2 * kHead; },
     "the row of kv.1.v is layers.1.qkv[64, 96) (k rows), expected layers.1.qkv[96, 128) (v rows)"},
    {"k without its turn", kAllButCombine, 0,
     [](Edited& e) { Edited::drop_flag(e.task("layers.1.append_k"), AMK_FLAG_ROPE, 1); },
     "the row of kv.1.k is layers.1.qkv[64, 96) (k rows), expected layers.1.k_rotated[0, 32)"},
    {"v turned", kAllButCombine, 0,
     [](Edited& e) {
       amk_instruction_t& t = e.task("layers.1.append_v");
       t.params.flags |= AMK_FLAG_ROPE;
       t.inputs[t.n_inputs++] = e.buffer("rope_inv_freq");
     },
     "it turns layers.1.qkv[96, 128) (v rows), expected whole heads"},
    {"k turned twice", kNoFusion, 0,
     [](Edited& e) {
       amk_instruction_t& t = e.task("layers.1.append_k");
       t.params.flags |= AMK_FLAG_ROPE;
       t.inputs[t.n_inputs++] = e.buffer("rope_inv_freq");
     },
     "it turns layers.1.k_rotated[0, 32)"},
    // ---- attention that turns this step's heads ----
    {"raw heads of another layer", kAllButCombine, 0,
     [](Edited& e) { e.each("layers.1.attention", [&](auto& t) { t.inputs[0] = e.buffer("layers.0.qkv"); }); },
     "the raw query of layers.1.attended is layers.0.qkv[0, 32) (q rows), expected layers.1.qkv[0, 32) (q rows)"},
    {"the appends and attention of another layer's raw heads", kAllButCombine, 0,
     [](Edited& e) {
       for (const char* op : {"layers.1.attention", "layers.1.append_k", "layers.1.append_v"})
         e.each(op, [&](auto& t) { t.inputs[0] = e.buffer("layers.0.qkv"); });
     },
     "the raw query of layers.1.attended is layers.0.qkv"},
    {"caches of another layer", kAllButCombine, 0,
     [](Edited& e) {
       e.each("layers.1.attention",
              [&](auto& t) { t.inputs[1] = e.buffer("kv.0.k"), t.inputs[2] = e.buffer("kv.0.v"); });
     },
     "the raw query of layers.0.attended is layers.1.qkv"},
    {"the k cache of another layer", kAllButCombine, 0,
     [](Edited& e) { e.each("layers.1.attention", [&](auto& t) { t.inputs[1] = e.buffer("kv.0.k"); }); },
     "it attends over kv.0.k as k and kv.1.v as v"},
    {"k and v caches exchanged by name, with raw heads", kAllButCombine, 0,
     [](Edited& e) { e.swap_names("kv.1.k", "kv.1.v"); }, "it attends over kv.1.v as k and kv.1.k as v"},
    {"two layers' caches exchanged, with raw heads", kAllButCombine, 0,
     [](Edited& e) {
       for (const char* which : {"k", "v"}) e.swap_names(std::string("kv.0.") + which, std::string("kv.1.") + which);
     },
     "the raw query of layers.1.attended is layers.0.qkv"},
    {"raw k and v rows exchanged", kAllButCombine, 0,
     [](Edited& e) {
       const int from = e.buffer("layers.1.qkv");
       const int to = e.add_buffer("qvk", AMK_KIND_ACTIVATION, e.program.buffers[from]);
       e.each("layers.1.attention", [&](auto& t) { t.inputs[0] = to; });
       e.insert_before("layers.1.attention",
                       {copy_task(from, to, 64), copy_task(from, to, 32, 64, 96), copy_task(from, to, 32, 96, 64)});
     },
     "the raw k row of layers.1.attended is layers.1.qkv[96, 112) (v rows), expected layers.1.qkv[64, 80) (k rows)"},
    {"raw v rows of two heads exchanged", kAllButCombine, 0,
     [](Edited& e) {
       const int from = e.buffer("layers.1.qkv");
       const int to = e.add_buffer("swapped", AMK_KIND_ACTIVATION, e.program.buffers[from]);
       e.each("layers.1.attention", [&](auto& t) { t.inputs[0] = to; });
       e.insert_before("layers.1.attention",
                       {copy_task(from, to, 96), copy_task(from, to, 16, 96, 112), copy_task(from, to, 16, 112, 96)});
     },
     "the raw v row of layers.1.attended is layers.1.qkv[112, 128) (v rows), expected layers.1.qkv[96, 112)"},
    {"queries turned twice", kTurnedHeads, 0,
     [](Edited& e) {
       const int from = e.buffer("layers.1.qkv");
       const int to = e.add_buffer("half", AMK_KIND_ACTIVATION, e.program.buffers[from]);
       e.each("layers.1.attention", [&](auto& t) {
         t.inputs[0] = to;
         t.params.flags |= AMK_FLAG_ROPE;
         t.inputs[t.n_inputs++] = e.buffer("rope_inv_freq");
       });
       e.insert_before("layers.1.attention",
                       {copy_task(e.buffer("layers.1.q_rotated"), to, 64), copy_task(from, to, 64, 64, 64)});
     },
     "the raw query of layers.1.attended is layers.1.q_rotated[0, 32), expected layers.1.qkv[0, 32) (q rows)"},
    {"raw heads taken for turned ones", kAllButCombine, 0,
     [](Edited& e) {
       e.each("layers.1.attention", [&](auto& t) {
         Edited::drop_flag(t, AMK_FLAG_ROPE, 3);
         for (const char* op : {"layers.1.append_k", "layers.1.append_v"}) {
           t.wait_counter[t.n_waits] = e.task(op).out_counter;
           t.wait_threshold[t.n_waits++] = static_cast<int32_t>(e.tasks(op).size());
         }
       });
       const auto at = e.program.tasks.begin();  // the appends back to where they stood before attention
       std::rotate(at + e.tasks("layers.1.attention").front(), at + e.tasks("layers.1.append_k").front(),
                   at + e.tasks("layers.1.append_v").back() + 1);
     },
     "the query of layers.1.attended is layers.1.qkv[0, 32) (q rows), expected layers.1.q_rotated[0, 32)"},
    {"q and k head norms exchanged in attention", kAllButCombine, AMK_MODEL_QK_NORM,
     [](Edited& e) { e.each("layers.1.attention", [](auto& t) { std::swap(t.inputs[4], t.inputs[5]); }); },
     "the head norm weight of layers.1.q_rotated is layers.1.k_norm[0, 16), expected layers.1.q_norm[0, 16)"},
    {"q_norm for k_norm in attention", kAllButCombine, AMK_MODEL_QK_NORM,
     [](Edited& e) { e.task("layers.1.attention", 1).inputs[5] = e.buffer("layers.1.q_norm"); },
     "the head norm weight of layers.1.k_rotated is layers.1.q_norm[0, 16), expected layers.1.k_norm[0, 16)"},
    {"another layer's head norm in attention", kAllButCombine, AMK_MODEL_QK_NORM,
     [](Edited& e) { e.each("layers.1.attention", [&](auto& t) { t.inputs[4] = e.buffer("layers.2.q_norm"); }); },
     "the head norm weight of layers.1.q_rotated is layers.2.q_norm"},
    {"attention without its head norms", kAllButCombine, AMK_MODEL_QK_NORM,
     [](Edited& e) {
       e.each("layers.1.attention",
              [](auto& t) { Edited::drop_flag(t, AMK_FLAG_NORM, 4), Edited::drop_flag(t, 0, 4), t.params.eps = 0; });
     },
     "layers.1.attended is made without head norms, expected with them"},
    {"head norms that the model lacks", kAllButCombine, 0,
     [](Edited& e) {
       const int norm = e.add_buffer("ones", AMK_KIND_ACTIVATION, e.program.buffers[e.buffer("layers.1.qkv")]);
       e.program.buffers[norm].numel = e.program.buffers[norm].shape[0] = kHead;
       e.each("layers.1.attention", [&](auto& t) {
         t.params.flags |= AMK_FLAG_NORM;
         t.params.eps = e.model.eps;
         t.inputs[t.n_inputs++] = norm;
         t.inputs[t.n_inputs++] = norm;
       });
       e.insert_before("layers.1.attention", {copy_task(e.buffer("layers.1.attn_norm"), norm, kHead)});
     },
     "layers.1.attended is made with head norms, expected without them"},
    {"eps x2 of attention's head norms", kAllButCombine, AMK_MODEL_QK_NORM,
     [](Edited& e) { e.task("layers.1.attention", 1).params.eps *= 2; }, "eps of layers.1.q_rotated"},
    {"scale x2 with raw heads", kAllButCombine, 0, [](Edited& e) { e.task("layers.1.attention").params.scale *= 2; },
     "the scale of layers.1.attended is 0.5, expected 0.25"},
    {"a head norm as attention's frequency table", kAllButCombine, 0,
     [](Edited& e) {
       const int table = e.add_buffer("table", AMK_KIND_ACTIVATION, e.program.buffers[e.buffer("rope_inv_freq")]);
       e.each("layers.1.attention", [&](auto& t) { t.inputs[3] = table; });
       e.insert_before("layers.1.attention", {copy_task(e.buffer("layers.1.attn_norm"), table, kHead / 2)});
     },
     "the frequency table of layers.1.attended is layers.1.attn_norm[0, 8), expected rope_inv_freq[0, 8)"},
    {"raw heads one off", kAllButCombine, 0,
     [](Edited& e) {
       const int from = e.buffer("layers.1.qkv");
       const int to = e.add_buffer("wide", AMK_KIND_ACTIVATION, e.program.buffers[from]);
       e.program.buffers[to].numel = e.program.buffers[to].shape[0] = 144;
       e.program.pages.back().nbytes = 144 * 4;
       e.each("layers.1.attention", [&](auto& t) { t.inputs[0] = to, t.params.m_off = kHead; });
       e.insert_before("layers.1.attention", {copy_task(from, to, 128), copy_task(from, to, 16, 0, 128)});
     },
     "the raw query of layers.1.attended is layers.1.qkv[16, 48) (q rows), expected layers.1.qkv[0, 32) (q rows)"},
    {"heads merged for another layer", kNoFusion, 0,
     [](Edited& e) {
       e.each("layers.2.attention_combine", [&](auto& t) {
         t.inputs[0] = e.buffer("layers.1.attention.part_o"), t.inputs[1] = e.buffer("layers.1.attention.part_ml");
       });
     },
     "the input of layers.2.wo is layers.1.attended"},
    {"sums of another layer", kNoFusion, 0,
     [](Edited& e) {
       e.each("layers.2.attention_combine", [&](auto& t) { t.inputs[1] = e.buffer("layers.1.attention.part_ml"); });
     },
     "the part_ml of layers.2.attended is layers.1.attention.part_ml"},
    // ---- the next token ----
    {"half the vocabulary", kNoFusion, 0, [](Edited& e) { e.task("argmax").params.N_tile = 128; },
     "the entries cover logits[0, 128) and then not, expected all of logits[0, 256)"},
    {"all but the first", kNoFusion, 0,
     [](Edited& e) { e.task("argmax").params.n_off = 1, e.task("argmax").params.N_tile = 255; },
     "the entries cover logits[0, 0) and then not"},
    {"the next token is this one", kNoFusion, 0,
     [](Edited& e) {
       amk_instruction_t& t = e.task("argmax_combine");
       amk_instruction_t copy = copy_task(e.buffer("token"), e.buffer("next_token"), 1);
       t.op = copy.op, t.n_inputs = 1, t.inputs[0] = copy.inputs[0], t.inputs[1] = 0, t.params = copy.params;
     },
     "at the end of the step buffer"},
    // ---- what is bound ----
    {"an output that the model lacks", kNoFusion, 0,
     [](Edited& e) {
       const int x = e.buffer("layers.2.x"), out = e.add_buffer("peek", AMK_KIND_IO_OUTPUT, e.program.buffers[x]);
       e.insert_before("final_norm", {copy_task(x, out, kHidden)});
     },
     "(peek) is no weight, constant, cache, state, input or output of the model"},
    {"logits under another name", kNoFusion, 0,
     [](Edited& e) { e.rename(&Program::buffer_name, e.buffer("logits"), "scores"); }, "(scores) is no weight"},
    {"a layer number with a leading zero", kNoFusion, 0, [](Edited& e) { e.set_source("layers.1.wo", "layers.01.wo"); },
     "is no weight"},
    {"a layer number that no model has", kNoFusion, 0,
     [](Edited& e) { e.set_source("layers.1.wo", "layers.99999999999.wo"); }, "is no weight"},
    {"a matrix of another shape", kNoFusion, 0,
     [](Edited& e) { e.swap_sources("layers.1.attn_norm", "layers.1.w_down"); }, "but the model's layers.1."},
};

}  // namespace

TEST(each_other_function_is_refused_by_name) {
  for (const Mutant& m : kMutants) {
    const amk_model_t model = make_model(AMK_DTYPE_F32, 3, kHidden, 4, 2, kHead, 128, 256, 64, m.features);
    Edited e(model, m.fusion);
    CHECK_EQ(model_verdict(e), "accepted");
    m.apply(e);
    const std::string lawful = verdict(validate(e.program)), got = model_verdict(e);
    if (lawful != "accepted") check::fail(m.what, 0, "refused by another proof: " + lawful);
    if (got.substr(0, 5) != "V17: " || got.find(m.part) == std::string::npos)
      check::fail(m.what, 0, got + "; expected V17 and: " + m.part);
  }
}

TEST(a_mutant_has_one_cause_in_its_report) {
  const amk_model_t model = make_model(AMK_DTYPE_F32, 3, kHidden, 4, 2, kHead, 128, 256, 64);
  Edited e(model, kNoFusion);
  amk_instruction_t& t = e.task("layers.0.attn_norm");
  t.params.eps *= 2;
  const Judgement j = validate_model(e.program, model);
  CHECK_EQ(j.report.count(), 1);  // everything after it computes from a refused value and is not reported again
  CHECK_EQ(j.report.entries()[0].task, e.tasks("layers.0.attn_norm")[0]);
}
