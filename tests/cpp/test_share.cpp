// Machines that share weights and caches: what one writes the other reads, whichever goes first; what is not alike is
// refused by name.
#include "batch_models.h"

using namespace amk;

namespace {

constexpr int32_t kOneSplit = 1024;

amk_model_t toy(int32_t layers = 2, int32_t max_seq = 32) {
  return make_model(AMK_DTYPE_F32, layers, 64, 4, 2, 16, 128, 256, max_seq);
}
Image image_of(const amk_model_t& model, int32_t batch) {
  const amk_model_t m = with_batch(model, batch);
  return pack(must_validate(lower_batch(m, kAllButCombine, AMK_PAGES_LINEAR, kOneSplit, batch == 1 ? 4 : 7)));
}
std::unique_ptr<Vm> beside(const Image& image, const Vm* share, int32_t guard = 1) {
  amk_vm_options_t options{};
  options.struct_size = sizeof options;
  options.guard = guard;
  return make_reference_vm(image.shared_bytes(), options, share);
}
Decoding single(const amk_model_t& model) {
  return Decoding(model, lower_batch(model, kAllButCombine, AMK_PAGES_LINEAR, kOneSplit, 4));
}

}  // namespace

TEST(a_machine_of_blocks_fills_the_cache_that_one_of_single_tokens_goes_on_from) {
  const amk_model_t model = toy();
  const std::vector<int32_t> tokens = some_tokens(model, 10);
  Decoding alone = single(model), one = single(model);
  Decoded expected;
  alone.run(tokens, 0, &expected);
  const Image blocks = image_of(model, 4);
  const auto many = beside(blocks, one.vm.get());
  int32_t next[4];
  for (int32_t pos = 0; pos < 8; pos += 4) many->decode_batch(&tokens[static_cast<size_t>(pos)], 4, pos, next);
  CHECK_EQ(next[3], expected.choices[7]);
  CHECK_EQ(one.vm->decode(tokens[8], 8), expected.choices[8]);
  CHECK_EQ(one.vm->decode(tokens[9], 9), expected.choices[9]);
  const int32_t more[4] = {tokens[9], 1, 1, 1};  // after what the other wrote
  many->decode_batch(more, 4, 9, next);
  CHECK_EQ(next[0], expected.choices[9]);
}

// A program of one split for the first block of rows, where it computes the same bits, and one of several behind them.
TEST(a_machine_without_a_combine_leaves_the_cache_that_one_of_several_splits_goes_on_from) {
  const amk_model_t model = toy();
  const std::vector<int32_t> tokens = some_tokens(model, 24);
  const Program splits = lower_batch(model, kAllButCombine, AMK_PAGES_LINEAR, 16, 4);
  Decoding alone(model, splits), one(model, splits);
  Decoded expected;
  alone.run(tokens, 0, &expected);
  const Image direct = pack(
      must_validate(lower_batch(model, kAllButCombine | AMK_FUSE_ATTENTION_COMBINE, AMK_PAGES_LINEAR, kOneSplit, 4)));
  CHECK(direct.view().tasks.size() < one.image.view().tasks.size());
  const auto first = beside(direct, one.vm.get());
  for (int32_t pos = 0; pos < 24; ++pos) {
    const auto at = static_cast<size_t>(pos);
    Vm& vm = pos < 16 ? *first : *one.vm;
    CHECK_EQ(vm.decode(tokens[at], pos), expected.choices[at]);
    std::vector<float> logits(static_cast<size_t>(model.vocab));
    vm.read("logits", 0, logits.data(), logits.size() * sizeof(float));
    CHECK(std::equal(logits.begin(), logits.end(), expected.logits.begin() + pos * model.vocab));
  }
}

TEST(whoever_shares_keeps_what_it_uses) {
  const amk_model_t model = toy();
  const std::vector<int32_t> tokens = some_tokens(model, 5);
  Decoding one = single(model);
  const Image blocks = image_of(model, 4);
  auto many = beside(blocks, one.vm.get());
  const auto third = beside(blocks, many.get());  // and of one that shares itself
  int32_t expected[4], next[4];
  many->decode_batch(tokens.data(), 4, 0, expected);
  one.vm.reset();
  many.reset();
  third->decode_batch(tokens.data(), 4, 0, next);
  CHECK(std::equal(next, next + 4, expected));
}

TEST(what_is_not_alike_is_not_shared) {
  const amk_model_t model = toy();
  Decoding one = single(model);
  const Image blocks = image_of(model, 4);
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "share: kv.0.k has 4096 bytes there, this image wants 2048",
               beside(image_of(toy(2, 16), 4), one.vm.get()));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "share: the other machine has no layers.2.",
               beside(image_of(toy(3), 4), one.vm.get()));
  const auto unbound = make_vm(one.image);
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "is not bound there", beside(blocks, unbound.get()));
  const auto many = beside(blocks, one.vm.get());
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "bind embed: this machine uses the weights of another",
               many->bind("embed", one.weights.at("embed"), one.weights.nbytes("embed")));
}
