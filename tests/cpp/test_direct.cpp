// DIRECT attention, which writes its heads itself: what the law refuses, what V17 refuses, and what it accepts beside
// attention of several splits. That it computes what a combining task computes: test_vm_attention.cpp,
// test_vm_order.cpp.
#include "translation_support.h"

using namespace amk;

namespace {

constexpr int32_t kAll = 255, kTurned = kAll & ~AMK_FUSE_ROPE_ATTENTION;
constexpr int kHidden = 64, kHead = 16;

amk_model_t three_layers(int32_t features = 0) {
  return make_model(AMK_DTYPE_BF16, 3, kHidden, 4, 2, kHead, 128, 256, 64, features);
}
Edited direct(int32_t fusion = kAll, int32_t features = 0) {
  return Edited(three_layers(features), fusion, AMK_PAGES_NONE, 64);
}

struct Mutant {
  const char* what;
  int code;
  void (*apply)(Edited&);
  const char* part;  // of the first sentence
};

void expect_refused(const Mutant& m, Edited e, bool by_law) {
  CHECK_EQ(model_verdict(e), "accepted");
  m.apply(e);
  const std::string plain = verdict(validate(e.program)), got = model_verdict(e);
  if ((plain != "accepted") != by_law) check::fail(m.what, 0, "without the model: " + plain);
  const std::string code = text("V%d: ", m.code);
  if (got.rfind(code, 0) != 0 || got.find(m.part) == std::string::npos)
    check::fail(m.what, 0, got + "; expected " + code + m.part);
}

const Mutant kUnlawful[] = {
    {"two splits", 3, [](Edited& e) { e.task("layers.1.attention").params.M = 2; },
     "flag DIRECT with M = 2 splits and 1 tokens, allowed with one of each"},
    {"no split", 3, [](Edited& e) { e.task("layers.1.attention").params.M = 0; }, "flag DIRECT with M = 0 splits"},
    {"the second of one split", 4, [](Edited& e) { e.task("layers.1.attention").params.dim = 1; },
     "split dim is 1 of M = 1"},
    {"two outputs", 3,
     [](Edited& e) {
       amk_instruction_t& t = e.task("layers.1.attention");
       t.outputs[t.n_outputs++] = e.buffer("layers.2.attended");
     },
     "2 outputs, expected 1"},
    {"no flag", 3, [](Edited& e) { e.task("layers.1.attention").params.flags &= ~AMK_FLAG_DIRECT; },
     "1 outputs, expected 2"},
    {"heads in f32", 3,
     [](Edited& e) {
       const int out = e.task("layers.1.attention").outputs[0];
       e.program.buffers[out].dtype = AMK_DTYPE_F32;
     },
     "out has dtype f32, expected bf16"},
    {"an output of other width", 4,
     [](Edited& e) {
       amk_instruction_t& t = e.task("layers.1.attention");
       t.outputs[0] = e.add_buffer("wide", AMK_KIND_ACTIVATION, e.program.buffers[e.buffer("layers.1.qkv")]);
     },
     "n_heads * head_dim"},
    {"an output that begins in the middle of a vector", 5,
     [](Edited& e) {
       amk_instruction_t& t = e.task("layers.1.attention");
       const int out = e.add_buffer("odd", AMK_KIND_ACTIVATION, e.program.buffers[t.outputs[0]]);
       e.program.pages[e.program.bindings[out].page].offset += 4;
       t.outputs[0] = out;
     },
     "needs 16-byte alignment of buffer"},
    {"a flag of attention on another op", 3, [](Edited& e) { e.task("layers.1.o").params.flags |= AMK_FLAG_DIRECT; },
     "flags 0x"},
};

const Mutant kOtherFunctions[] = {
    {"scale x2", 17, [](Edited& e) { e.task("layers.1.attention").params.scale *= 2; },
     "the scale of layers.1.attended is 0.5, expected 0.25"},
    {"heads exchanged on their way", 17,
     [](Edited& e) {
       const int from = e.buffer("layers.1.attended");
       const int to = e.add_buffer("swapped", AMK_KIND_ACTIVATION, e.program.buffers[from]);
       e.each("layers.1.o", [&](auto& t) { t.inputs[0] = to; });
       e.insert_before("layers.1.o", {copy_task(from, to, 32, 0, 32), copy_task(from, to, 32, 32, 0)});
     },
     "the input of layers.1.wo is part layers.1.attended, in another order"},
    {"heads attended to twice", 17,
     [](Edited& e) {
       amk_instruction_t t = e.task("layers.1.attention");
       t.outputs[0] = e.add_buffer("again", AMK_KIND_ACTIVATION, e.program.buffers[t.outputs[0]]);
       t.out_counter = e.add_counter();
       e.program.tasks.push_back(t);
     },
     "computes layers.1.attended[0, 32), which"},
    {"another layer's heads", 17,
     [](Edited& e) { e.each("layers.2.o", [&](auto& t) { t.inputs[0] = e.buffer("layers.1.attended"); }); },
     "the input of layers.2.wo is layers.1.attended[0, 64), expected layers.2.attended[0, 64)"},
    {"the v cache of another layer", 17,
     [](Edited& e) { e.each("layers.1.attention", [&](auto& t) { t.inputs[2] = e.buffer("kv.0.v"); }); },
     "expected k and v of one layer"},
};

}  // namespace

TEST(what_the_law_refuses) {
  for (const Mutant& m : kUnlawful) expect_refused(m, direct(), true);
}

// Another task may still have to read its queries there.
TEST(heads_do_not_take_the_place_of_queries) {
  Edited e = direct(kTurned);
  e.task("layers.1.attention").inputs[0] = e.buffer("layers.1.attended");
  CHECK_EQ(verdict(validate(e.program)).substr(0, 5), "V18: ");
}

TEST(what_is_another_function) {
  for (const Mutant& m : kOtherFunctions)
    for (const int32_t fusion : {kAll, kTurned}) expect_refused(m, direct(fusion), false);
}

// One kv head writes its heads itself, the other leaves partials: the model asks that each part is computed once.
TEST(heads_with_and_without_partials_are_one_layer) {
  const Edited split(three_layers(), kAll & ~AMK_FUSE_ATTENTION_COMBINE, AMK_PAGES_NONE, 64);
  Edited mixed = split;
  amk_instruction_t& t = mixed.task("layers.1.attention");
  const std::vector<int> combines = mixed.tasks("layers.1.attention_combine");
  t.params.flags |= AMK_FLAG_DIRECT;
  t.outputs[0] = mixed.buffer("layers.1.attended");
  t.outputs[1] = 0;
  t.n_outputs = 1;
  // The combining tasks of its two query heads have nothing to do.
  for (int i = 0; i < 2; ++i) {
    amk_instruction_t& combine = mixed.program.tasks[combines.at(static_cast<size_t>(i))];
    const int counter = combine.out_counter, sm = combine.sm;
    const int waits = combine.n_waits, wait = combine.wait_counter[0], threshold = combine.wait_threshold[0];
    combine = {};
    combine.op = AMK_OP_NOP;
    combine.out_counter = counter, combine.sm = sm;
    combine.n_waits = waits, combine.wait_counter[0] = wait, combine.wait_threshold[0] = threshold;
  }
  CHECK_EQ(model_verdict(mixed), "accepted");
  CHECK_EQ(model_verdict(split), "accepted");
}
