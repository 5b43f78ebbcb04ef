// V17, and what comes before it, for steps of several tokens: every row is the right token's, a token sees its own past
// and nothing behind it, none is dropped.
#include <array>
#include <set>

#include "batch_models.h"

using namespace amk;

namespace {

constexpr int32_t kNoFusion = 0, kBatch = 4;
constexpr int kHidden = 64;

amk_model_t model_of(int32_t features = 0) {
  return with_batch(make_model(AMK_DTYPE_F32, 2, kHidden, 4, 2, 16, 128, 256, 64, features), kBatch);
}

struct Mutant {
  const char* what;
  int32_t fusion;
  void (*apply)(Edited&);
  const char* part;  // of the first sentence
};

// The op reads, in place of each of the buffers, a copy whose row t is the buffer's row from[t].
void shuffle(Edited& e, const std::string& op, const std::vector<std::string>& buffers, std::array<int, kBatch> from) {
  std::vector<amk_instruction_t> copies;
  for (const std::string& buffer : buffers) {
    const int old_id = e.buffer(buffer);
    const int width = static_cast<int>(e.program.buffers[old_id].numel / kBatch);
    const int fresh = e.add_buffer("shuffled", AMK_KIND_ACTIVATION, e.program.buffers[old_id]);
    for (int t = 0; t < kBatch; ++t) copies.push_back(copy_task(old_id, fresh, width, from[t] * width, t * width));
    e.each(op, [&](amk_instruction_t& task) {
      for (int i = 0; i < task.n_inputs; ++i)
        if (task.inputs[i] == old_id) task.inputs[i] = fresh;
    });
  }
  e.insert_before(op, copies);
}

const Mutant kMutants[] = {
    {"two tokens exchanged before the first layer", kNoFusion,
     [](Edited& e) { shuffle(e, "embed", {"token"}, {1, 0, 2, 3}); },
     "the token of x is part token, in another order, expected token[0, 4)"},
    {"queries of two tokens exchanged before they turn", AMK_FUSE_QKV,
     [](Edited& e) { shuffle(e, "layers.1.rope_q", {"layers.1.qkv"}, {1, 0, 2, 3}); },
     "it turns layers.1.qkv[0, 64) (q rows) of token 1 by the position of token 0"},
    {"a query on the row behind its own: it sees row pos + t + 1", kNoFusion,
     [](Edited& e) { shuffle(e, "layers.1.attention", {"layers.1.q_rotated"}, {0, 1, 3, 2}); },
     "the query of layers.1.attended is layers.1.q_rotated[0, 32) of token 3, expected layers.1.q_rotated[0, 32) of "
     "token 2"},
    {"the same, fused", kAllButCombine,
     [](Edited& e) { shuffle(e, "layers.0.attention", {"layers.0.q_rotated"}, {0, 0, 1, 2}); },
     "the query of layers.0.attended is layers.0.q_rotated[0, 32) of token 0, expected layers.0.q_rotated[0, 32) of "
     "token 1"},
    {"keys of two tokens exchanged", kNoFusion,
     [](Edited& e) { shuffle(e, "layers.0.append_k", {"layers.0.k_rotated"}, {0, 2, 1, 3}); },
     "the row of kv.0.k is layers.0.k_rotated[0, 32) of token 2, expected layers.0.k_rotated[0, 32) of token 1"},
    {"keys of two tokens exchanged before they turn", kAllButCombine,
     [](Edited& e) { shuffle(e, "layers.0.append_k", {"layers.0.qkv"}, {0, 2, 1, 3}); },
     "it turns layers.0.qkv[64, 96) (k rows) of token 2 by the position of token 1"},
    {"values of two tokens exchanged", kAllButCombine,
     [](Edited& e) { shuffle(e, "layers.1.append_v", {"layers.1.qkv"}, {3, 1, 2, 0}); },
     "the row of kv.1.v is layers.1.qkv[96, 128) (v rows) of token 3, expected layers.1.qkv[96, 128) (v rows) of token "
     "0"},
    {"a token dropped: the one before it twice", kAllButCombine,
     [](Edited& e) { shuffle(e, "lm_head", {"layers.1.x"}, {0, 1, 2, 2}); },
     "the normalised input of lm_head is layers.1.x[0, 64) of token 2, expected layers.1.x[0, 64) of token 3"},
    {"the same, not fused", kNoFusion, [](Edited& e) { shuffle(e, "lm_head", {"head_in"}, {0, 1, 1, 3}); },
     "the input of lm_head is head_in[0, 64) of token 1, expected head_in[0, 64) of token 2"},
    {"rows of a norm exchanged", kNoFusion,
     [](Edited& e) { shuffle(e, "layers.1.mlp_norm", {"layers.1.x_mid"}, {0, 1, 3, 2}); },
     "the input of layers.1.w_gate_up is layers.1.mlp_in[0, 64) of token 3, expected layers.1.mlp_in[0, 64) of token "
     "2"},
    {"residuals of two tokens exchanged", kAllButCombine,
     [](Edited& e) { shuffle(e, "layers.1.o", {"layers.0.x"}, {1, 0, 2, 3}); },
     "the residual of layers.1.wo is layers.0.x[0, 16) of token 1"},
    {"an addition of two tokens", kNoFusion,
     [](Edited& e) { shuffle(e, "layers.1.o_add", {"layers.0.x"}, {0, 1, 3, 2}); },
     "it adds layers.0.x[0, 64) of token 3 and layers.1.attn_out[0, 64) of token 2"},
    {"both operands of another token", kNoFusion,
     [](Edited& e) { shuffle(e, "layers.1.o_add", {"layers.0.x", "layers.1.attn_out"}, {0, 1, 3, 2}); },
     "it adds layers.0.x[0, 64) of token 3 and layers.1.attn_out[0, 64) of token 3"},
    {"gates of two tokens exchanged", kNoFusion,
     [](Edited& e) { shuffle(e, "layers.0.silu_mul", {"layers.0.gate_up"}, {2, 1, 0, 3}); },
     "its gate is layers.0.gate_up[0, 128) of token 2"},
    {"partial results of two tokens exchanged", kAllButCombine,
     [](Edited& e) { shuffle(e, "layers.0.attention_combine", {"layers.0.attention.part_o"}, {1, 0, 2, 3}); },
     "the part_o of layers.0.attended is layers.0.attention.part_o"},
    {"their sums of exponentials alone", kAllButCombine,
     [](Edited& e) { shuffle(e, "layers.0.attention_combine", {"layers.0.attention.part_ml"}, {1, 0, 2, 3}); },
     "the part_ml of layers.0.attended is layers.0.attention.part_ml"},
    {"the choice after another token", kAllButCombine,
     [](Edited& e) { shuffle(e, "argmax", {"logits"}, {0, 2, 1, 3}); },
     "the range of best_value is logits[0, 128) of token 2, expected logits[0, 128) of token 1"},
    {"the index of another token's choice", kAllButCombine,
     [](Edited& e) { shuffle(e, "argmax_combine", {"argmax.best_index"}, {0, 1, 3, 2}); }, "entry 0 is best_value"},
    {"more tokens than the model's", kAllButCombine, [](Edited& e) { e.model.batch = 3; },
     "a step decodes 4 tokens, the model's 3"},
    {"several tokens where the model has one", kAllButCombine, [](Edited& e) { e.model.batch = 0; },
     "a step decodes 4 tokens, the model's 1"},
};

// Refused before V17 is asked.
const Mutant kUnlawful[] = {
    {"17 tokens", kAllButCombine, [](Edited& e) { e.task("layers.0.qkv").params.M_tile = 17; },
     "V4: task 1: GEMV_TILE: M_tile is 17 tokens, allowed 0 (one)..16"},
    {"-1 tokens", kAllButCombine, [](Edited& e) { e.task("layers.0.attention").params.N = -1; },
     "ATTENTION_TILE: N is -1 tokens, allowed 0 (one)..16"},
    {"a product of fewer tokens", kAllButCombine, [](Edited& e) { e.task("layers.0.qkv").params.M_tile = 3; },
     "GEMV_TILE: output has shape [4, 128], expected [3, width]: a row for each token"},
    {"a product of one", kAllButCombine, [](Edited& e) { e.task("layers.0.qkv").params.M_tile = 0; },
     "GEMV_TILE: numel is 512, but N is 128"},
    {"attention of one", kAllButCombine, [](Edited& e) { e.task("layers.0.attention").params.N = 0; },
     "ATTENTION_TILE: part_o has shape [4, 4, 2, 16], expected [4, 2, 16]"},
    {"attention of fewer", kAllButCombine, [](Edited& e) { e.task("layers.0.attention").params.N = 2; },
     "ATTENTION_TILE: part_o has shape [4, 4, 2, 16], expected [2, 4, 2, 16]"},
    {"attention that turns its heads", kAllButCombine,
     [](Edited& e) {
       amk_instruction_t& t = e.task("layers.0.attention");
       t.params.flags = AMK_FLAG_ROPE;
       t.inputs[t.n_inputs++] = e.buffer("rope_inv_freq");
     },
     "V3: task 8: ATTENTION_TILE: flag ROPE with N = 4 tokens, allowed with one alone"},
    {"a rotation of one token", kAllButCombine, [](Edited& e) { e.task("layers.1.rope_q").params.M_tile = 0; },
     "(ROPE) works on 1 tokens, but earlier tasks of the step on 4"},
    {"an embedding of fewer tokens", kAllButCombine, [](Edited& e) { e.task("embed").params.M_tile = 2; },
     "EMBED: numel is 4, but the number of tokens is 2"},
    {"a choice of fewer tokens", kAllButCombine, [](Edited& e) { e.task("argmax_combine").params.M_tile = 0; },
     "ARGMAX_COMBINE: numel is 8, but M is 2"},
    {"a norm that leaves the last token out", kNoFusion,
     [](Edited& e) { e.task("layers.0.attn_norm").params.M_tile = 3; }, "V14: "},
    {"a cache for fewer rows than a step appends", kAllButCombine, [](Edited& e) { e.program.launch.max_seq = 3; },
     "V19: a step decodes 4 tokens, but launch.max_seq is 3"},
    {"attention that does not wait for the step's rows", kAllButCombine,
     [](Edited& e) {
       const int rows = e.task("layers.0.append_v").out_counter;
       e.each("layers.0.attention", [&](amk_instruction_t& t) {
         for (int w = 0; w < t.n_waits; ++w) {
           if (t.wait_counter[w] != rows) continue;
           --t.n_waits;
           t.wait_counter[w] = t.wait_counter[t.n_waits], t.wait_threshold[w] = t.wait_threshold[t.n_waits];
           t.wait_counter[t.n_waits] = t.wait_threshold[t.n_waits] = 0;
         }
       });
     },
     "V19: "},
};

}  // namespace

TEST(a_step_of_several_tokens_is_proved_under_every_fusion) {
  for (const amk_model_t& model : dense_models())
    for (int32_t fusion = 0; fusion < 128; fusion += 13)
      for (const int32_t batch : {2, 16})
        CHECK_EQ(model_verdict(Edited(with_batch(model, batch), fusion, fusion % 3)), "accepted");
}

TEST(attention_never_turns_the_heads_of_several_tokens) {
  const Edited one(with_batch(model_of(), 1), kAllButCombine), four(model_of(), kAllButCombine);
  const auto turns = [](const Edited& e) {
    int n = 0;
    for (const amk_instruction_t& t : e.program.tasks)
      n += t.op == AMK_OP_ATTENTION_TILE && (t.params.flags & AMK_FLAG_ROPE);
    return n;
  };
  CHECK(turns(one) > 0);
  CHECK_EQ(turns(four), 0);
}

TEST(attention_never_writes_the_heads_of_several_tokens_itself) {
  const auto count = [](const Edited& e, int32_t op, int32_t flag) {
    int n = 0;
    for (const amk_instruction_t& t : e.program.tasks) n += t.op == op && (t.params.flags & flag) == flag;
    return n;
  };
  const Edited one(with_batch(model_of(), 1), 255, AMK_PAGES_NONE, 1024), four(model_of(), 255, AMK_PAGES_NONE, 1024);
  CHECK(count(one, AMK_OP_ATTENTION_TILE, AMK_FLAG_DIRECT) > 0);
  CHECK_EQ(count(one, AMK_OP_ATTENTION_COMBINE, 0), 0);
  CHECK_EQ(count(four, AMK_OP_ATTENTION_TILE, AMK_FLAG_DIRECT), 0);
  CHECK(count(four, AMK_OP_ATTENTION_COMBINE, 0) > 0);
  CHECK_EQ(model_verdict(one), "accepted");
  CHECK_EQ(model_verdict(four), "accepted");
}

// Which op waits for which: rows of several tokens make no op wait that would not wait with one.
TEST(the_order_of_ops_is_that_of_one_token) {
  const auto order = [](const Edited& e) {
    const auto op = [&](size_t task) {
      const std::string_view label = e.program.task_label.at(static_cast<int64_t>(task));
      return std::string(label.substr(0, label.find('[')));
    };
    std::map<int32_t, std::string> producer;
    for (size_t i = 0; i < e.program.tasks.size(); ++i) producer[e.program.tasks[i].out_counter] = op(i);
    std::map<std::string, std::set<std::string>> waits;
    for (size_t i = 0; i < e.program.tasks.size(); ++i)
      for (int w = 0; w < e.program.tasks[i].n_waits; ++w)
        waits[op(i)].insert(producer[e.program.tasks[i].wait_counter[w]]);
    return waits;
  };
  for (const int32_t fusion : {0, 4, 16, 18, 63})
    for (const int32_t batch : {2, 16})
      CHECK(order(Edited(with_batch(model_of(AMK_MODEL_QK_NORM), batch), fusion)) ==
            order(Edited(with_batch(model_of(AMK_MODEL_QK_NORM), 1), fusion)));
}

TEST(each_row_of_another_token_is_refused_by_name) {
  for (const Mutant& m : kMutants) {
    Edited e(model_of(), m.fusion);
    CHECK_EQ(model_verdict(e), "accepted");
    m.apply(e);
    const std::string lawful = verdict(validate(e.program)), got = model_verdict(e);
    if (lawful != "accepted") check::fail(m.what, 0, "refused by another proof: " + lawful);
    if (got.substr(0, 5) != "V17: " || got.find(m.part) == std::string::npos)
      check::fail(m.what, 0, got + "; expected V17 and: " + m.part);
  }
}

TEST(rows_that_stay_in_their_order_may_be_copied) {
  for (const char* op : {"layers.1.rope_q", "layers.1.attention", "lm_head"}) {
    Edited e(model_of(), AMK_FUSE_QKV);
    const amk_instruction_t& t = e.task(op);
    const std::string input(e.program.buffer_name.at(t.inputs[0]));
    shuffle(e, op, {input}, {0, 1, 2, 3});
    CHECK_EQ(model_verdict(e), "accepted");
    Edited whole(model_of(), AMK_FUSE_QKV);
    const int from = whole.buffer(input), width = static_cast<int>(whole.program.buffers[from].numel / kBatch);
    const int to = whole.add_buffer("copied", AMK_KIND_ACTIVATION, whole.program.buffers[from]);
    amk_instruction_t copy = copy_task(from, to, width);
    copy.params.M_tile = kBatch;
    whole.each(op, [&](amk_instruction_t& task) { task.inputs[0] = to; });
    whole.insert_before(op, {copy});
    CHECK_EQ(model_verdict(whole), "accepted");
  }
}

TEST(laws_of_several_tokens_that_are_broken) {
  for (const Mutant& m : kUnlawful) {
    Edited e(model_of(), m.fusion);
    m.apply(e);
    const std::string got = verdict(validate(e.program));
    if (got.find(m.part) == std::string::npos) check::fail(m.what, 0, got + "; expected: " + m.part);
  }
}

// Every task of a lowered step, one token fewer: nothing of it passes all proofs.
TEST(no_task_may_leave_a_token_out) {
  for (const int32_t fusion : {kNoFusion, kAllButCombine}) {
    const Edited base(model_of(AMK_MODEL_QK_NORM | kEveryBias), fusion);
    for (size_t i = 0; i < base.program.tasks.size(); ++i) {
      for (const int32_t tokens : {0, 1, 2, 3, 5}) {
        Edited e = base;
        amk_params_t& p = e.program.tasks[i].params;
        (e.program.tasks[i].op == AMK_OP_ATTENTION_TILE ? p.N : p.M_tile) = tokens;
        if (model_verdict(e) == "accepted")
          check::fail(std::string(base.program.task_label.at(static_cast<int64_t>(i))).c_str(), tokens, "accepted");
      }
    }
  }
}
