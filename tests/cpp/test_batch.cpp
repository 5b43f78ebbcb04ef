// A step of B tokens as its caller sees it: what B steps of one token give, the same bits where attention is cut into
// the same splits; what a machine refuses; what such a step costs.
#include <cmath>

#include "base/model.h"
#include "batch_models.h"
#include "cost/cost.h"

using namespace amk;

namespace {

constexpr int32_t kOneSplit = 1024;

bool same_bits(const Decoded& a, const Decoded& b) {
  return a.choices == b.choices && a.caches == b.caches && a.logits.size() == b.logits.size() &&
         std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)) == 0;
}

// Largest difference of two logits, relative to the largest logit.
double apart(const Decoded& a, const Decoded& b) {
  double largest = 0, difference = 0;
  for (size_t i = 0; i < a.logits.size(); ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(a.logits[i])));
    difference = std::max(difference, std::fabs(static_cast<double>(a.logits[i]) - static_cast<double>(b.logits[i])));
  }
  return difference / largest;
}

Decoding toy(int32_t batch, int32_t max_seq = 16) {
  const amk_model_t m = with_batch(make_model(AMK_DTYPE_F32, 1, 64, 4, 2, 16, 128, 256, max_seq), batch);
  return Decoding(m, lower_batch(m, kAllButCombine, AMK_PAGES_LINEAR, kOneSplit, 4));
}

}  // namespace

TEST(a_step_of_several_tokens_is_as_many_steps_of_one) {
  for (const amk_model_t& model : dense_models()) {
    const std::vector<int32_t> tokens = some_tokens(model, 48);
    for (const int32_t batch : {2, 3, 8, 16}) {
      const amk_model_t m = with_batch(model, batch);
      const int32_t fusion = batch == 3 ? 0 : batch == 8 ? 18 : kAllButCombine;
      const int32_t pages = batch == 2 ? AMK_PAGES_NONE : batch == 8 ? AMK_PAGES_GRAPH_COLOR : AMK_PAGES_LINEAR;
      const Program program = lower_batch(m, fusion, pages, kOneSplit, batch == 16 ? 7 : 4);
      CHECK_EQ(verdict(validate_model(program, m)), "accepted");
      const Decoded single = decode_text(model, lower_batch(model, fusion, AMK_PAGES_LINEAR, kOneSplit, 4), tokens);
      if (!same_bits(decode_text(m, program, tokens), single))
        check::fail("batch", batch, text("other bits than one token at a time, dtype %d", m.dtype));
    }
  }
}

// Where the cuts of a step of B lie elsewhere, parts are summed in another order: one rounding to the model's type may
// then fall to the other side, and what follows it with it.
TEST(splits_cut_elsewhere_change_roundings_alone) {
  int other_bits = 0;
  for (const amk_model_t& model : dense_models()) {
    const std::vector<int32_t> tokens = some_tokens(model, model.max_seq / 15 * 15);
    const int32_t sms = 2 * model.n_kv_heads;  // two splits of up to four blocks
    const Decoded single = decode_text(model, lower_batch(model, kAllButCombine, AMK_PAGES_LINEAR, 16, sms), tokens);
    for (const int32_t batch : {5, 15}) {
      const amk_model_t m = with_batch(model, batch);
      const Program program = lower_batch(m, kAllButCombine, AMK_PAGES_LINEAR, 16, sms);
      CHECK_EQ(verdict(validate_model(program, m)), "accepted");
      const double difference = apart(decode_text(m, program, tokens), single);
      const double limit = m.dtype == AMK_DTYPE_F32 ? 2e-6 : 4 * unit_roundoff(m.dtype);
      if (!(difference <= limit))
        check::fail("batch", batch, text("logits %g apart, dtype %d, allowed %g", difference, m.dtype, limit));
      other_bits += difference > 0;
    }
  }
  CHECK(other_bits > 0);  // else no cut was elsewhere
}

TEST(the_order_of_tasks_does_not_show) {
  const amk_model_t m = with_batch(dense_models()[2], 4);
  const Program program = lower_batch(m, 0, AMK_PAGES_LINEAR, 16, 7);
  const std::vector<int32_t> tokens = some_tokens(m, 24);
  const Decoded in_order = decode_text(m, program, tokens);
  for (uint64_t seed = 1; seed < 5; ++seed) CHECK(same_bits(decode_text(m, program, tokens, seed, 0), in_order));
  CHECK(same_bits(decode_text(m, program, tokens, 1, 3), in_order));
}

// A caller that has fewer tokens fills up, and one that takes tokens back decodes others in their place.
TEST(tokens_that_were_taken_back_leave_no_trace) {
  Decoding single = toy(1), batch = toy(4);
  const std::vector<int32_t> tokens = some_tokens(single.model, 8);
  Decoded want, got, dropped;
  single.run(tokens, 0, &want);
  batch.run({tokens[0], tokens[1], 7, 200}, 0, &dropped);
  batch.run({tokens[2], 9, 9, 9}, 2, &dropped);
  batch.run({tokens.begin() + 3, tokens.begin() + 7}, 3, &got);
  batch.run({tokens[7], 1, 2, 3}, 7, &got);
  for (size_t i = 0; i < 5; ++i) {
    CHECK_EQ(got.choices[i], want.choices[3 + i]);
    CHECK(std::memcmp(&got.logits[i * 256], &want.logits[(3 + i) * 256], 256 * sizeof(float)) == 0);
  }
  CHECK_EQ(dropped.choices[0], want.choices[0]);
  CHECK_EQ(dropped.choices[4], want.choices[2]);
}

TEST(what_a_machine_of_several_tokens_refuses) {
  Decoding d = toy(4);
  int32_t next[5] = {};
  const int32_t tokens[5] = {1, 2, 3, 4, 5};
  CHECK_EQ(d.vm->batch(), 4);
  CHECK_THROWS(AMK_ERR_UNSUPPORTED, "a step of this program decodes 4", d.vm->decode(1, 0));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "3 tokens given, expected the 4 of a step",
               d.vm->decode_batch(tokens, 3, 0, next));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "5 tokens given", d.vm->decode_batch(tokens, 5, 0, next));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "position 13: the last of the 4 tokens of a step is outside [0, 16)",
               d.vm->decode_batch(tokens, 4, 13, next));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "position 13", d.vm->run(13));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "position -1 is outside", d.vm->run(-1));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "position 16 is outside", d.vm->run(16));
  d.vm->decode_batch(tokens, 4, 12, next);
  const int32_t outside[4] = {1, 2, 3, 256};
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "token holds token 256", d.vm->decode_batch(outside, 4, 0, next));
  Decoding one = toy(1);
  CHECK_EQ(one.vm->batch(), 1);
  const int32_t alone = one.vm->decode(3, 0);
  one.vm->decode_batch(&tokens[2], 1, 0, next);
  CHECK_EQ(next[0], alone);
}

// Of token 9 alone the embedding is NaN: the tokens before it in the step do not see it.
TEST(a_token_without_numbers_is_named_by_its_row) {
  Decoding d = toy(4);
  write_number(AMK_DTYPE_F32, d.weights.at("embed"), 9 * 64, std::nan(""));
  int32_t next[4] = {-2, -2, -2, -2};
  const int32_t tokens[4] = {1, 2, 9, 3}, fine[4] = {1, 2, 3, 3};
  CHECK_THROWS(AMK_ERR_NONFINITE, "logits[512] is NaN", d.vm->decode_batch(tokens, 4, 0, next));
  d.vm->decode_batch(fine, 4, 0, next);
  CHECK(next[3] >= 0);
}

TEST(models_that_have_no_batch) {
  const amk_model_t model = dense_models()[0];
  const auto both = [](amk_status status, const char* part, const amk_model_t& m) {
    EXPECT_ERROR(status, part, build_decoder(m));
    const Program program = lower_batch(dense_models()[0], kAllButCombine, AMK_PAGES_LINEAR, 16, 4);
    EXPECT_ERROR(status, part, validate_model(program, m));
  };
  both(AMK_ERR_UNSUPPORTED, "model.batch is 17, supported 1..16", with_batch(model, 17));
  both(AMK_ERR_UNSUPPORTED, "model.batch is -1, supported 1..16", with_batch(model, -1));
  both(AMK_ERR_UNSUPPORTED, "model.batch is 2 with full_attention_interval 4", with_batch(hybrid_model(), 2));
  both(AMK_ERR_UNSUPPORTED, "model.batch is 2 with features 0x20: an output gate",
       with_batch(make_model(AMK_DTYPE_F32, 1, 64, 4, 4, 16, 128, 256, 8, AMK_MODEL_ATTENTION_GATE), 2));
  both(AMK_ERR_INVALID_ARGUMENT, "model.batch is 9",
       with_batch(make_model(AMK_DTYPE_F32, 1, 64, 4, 4, 16, 128, 256, 8), 9));
  const amk_model_t one = with_batch(model, 1);
  CHECK(table_bytes(lower_batch(one, kAllButCombine, AMK_PAGES_LINEAR, 16, 4)) ==
        table_bytes(lower_batch(model, kAllButCombine, AMK_PAGES_LINEAR, 16, 4)));
}

// What a caller of the header before had as padding is not read.
TEST(an_older_model_has_one_token) {
  amk_model_t m = with_batch(dense_models()[0], 4);
  m.weight_group = 64;
  m.reserved = -5;
  CHECK_EQ(read_model(&m).batch, 4);
  CHECK_EQ(read_model(&m).reserved, 0);
  m.struct_size = 80;
  CHECK_EQ(read_model(&m).batch, 0);
  CHECK_EQ(read_model(&m).weight_group, 64);
  CHECK_EQ(read_model(&m).reserved, 0);
}

// The weights and the history are read once, whatever the batch: a step of 8 costs hardly more than one of 1.
TEST(a_step_of_several_tokens_reads_the_weights_once) {
  const amk_model_t model = llama_8b();
  const auto cost = [&](int32_t batch, int32_t pos) {
    return predict_cost(lower_model(with_batch(model, batch), default_schedule(), h200()), pos);
  };
  const amk_cost_t one = cost(1, 1000), eight = cost(8, 1000);
  CHECK_EQ(eight.weight_bytes, one.weight_bytes);
  CHECK_EQ(eight.streamed_bytes - one.streamed_bytes, 7 * 4096 * 2);  // seven more rows of the embedding
  CHECK(eight.flops > 7.9 * one.flops && eight.flops < 8.1 * one.flops);
  CHECK(eight.latency_us > one.latency_us && eight.latency_us < 4 * one.latency_us);
  EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "pos is 4089, allowed 0..4088", cost(8, 4089));
  CHECK(cost(8, 4088).latency_us > 0);
}
