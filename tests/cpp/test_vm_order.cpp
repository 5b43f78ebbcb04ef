// Whatever validate() accepted gives the same bits in every legal order and on any number of threads.
#include <atomic>
#include <set>

#include "lower_models.h"
#include "test_vm_machine.h"
#include "vm/walk.h"

namespace {

amk::Image decoder(int dtype, int features, int fusion, int page_policy, int kv_block = 16) {
  amk_model_t model{};
  model.struct_size = sizeof model;
  model.dtype = dtype;
  model.layers = 2;
  model.hidden = 64;
  model.n_heads = 4;
  model.n_kv_heads = 2;
  model.head_dim = 16;
  model.ffn = 96;
  model.vocab = 128;
  model.max_seq = 64;
  model.features = features;
  model.eps = 1e-5f;
  amk_schedule_t schedule = amk::default_schedule();
  schedule.fusion = fusion;
  schedule.page_policy = page_policy;
  schedule.attention_kv_block = kv_block;
  return amk::pack(must_validate(amk::lower(amk::build_decoder(model), schedule, *amk::target_preset(1))));
}

// The outputs of a few steps, as bytes.
std::string decode(const amk::Image& image, uint64_t seed, int threads, int guard) {
  const auto vm = make_vm(image, seed, threads, guard);
  Weights weights(image, 11, 0.2);
  weights.bind(*vm);
  std::string out;
  std::vector<char> logits(128 * sizeof(float));
  int32_t token = 7;
  for (int pos : {0, 1, 2, 15, 16, 17, 40, 63}) {
    vm->write("token", 0, &token, sizeof token);
    vm->run(pos);
    vm->read("logits", 0, logits.data(), logits.size());
    vm->read("next_token", 0, &token, sizeof token);
    out.append(logits.begin(), logits.end());
    out.append(reinterpret_cast<const char*>(&token), sizeof token);
  }
  return out;
}

}  // namespace

TEST(every_order_and_thread_count_gives_the_same_bits) {
  for (int dtype : kComputeTypes)
    for (int fusion : {0, kAllButCombine & ~AMK_FUSE_ROPE_ATTENTION, kAllButCombine})
      for (int policy : {AMK_PAGES_NONE, AMK_PAGES_LINEAR, AMK_PAGES_GRAPH_COLOR}) {
        const int features = AMK_MODEL_TIED_HEAD | (fusion ? AMK_MODEL_QKV_BIAS | AMK_MODEL_QK_NORM : 0);
        const amk::Image image = decoder(dtype, features, fusion, policy);
        const std::string want = decode(image, 0, 0, 0);
        CHECK(decode(image, 0, 0, 1) == want);
        for (uint64_t seed = 1; seed <= 20; ++seed) CHECK(decode(image, seed, 0, seed % 2) == want);
        for (int threads : {1, 2, 4})
          for (uint64_t seed : {0, 1}) CHECK(decode(image, seed, threads, 1) == want);
      }
}

// Attention that turns this step's heads itself rounds them where ROPE and KV_APPEND do and takes rows in their order.
TEST(attention_of_raw_heads_gives_the_same_bits) {
  for (int dtype : kComputeTypes)
    for (int features : {0, AMK_MODEL_QK_NORM | AMK_MODEL_QKV_BIAS})
      for (int policy : {AMK_PAGES_NONE, AMK_PAGES_LINEAR}) {
        const amk::Image fused = decoder(dtype, features, kAllButCombine, policy);
        const amk::Image unfused = decoder(dtype, features, kAllButCombine & ~AMK_FUSE_ROPE_ATTENTION, policy);
        CHECK(decode(fused, 0, 0, 1) == decode(unfused, 0, 0, 1));
      }
}

// Attention of one split divides as a combining task does: whoever turns the heads, in every order.
TEST(attention_without_a_combine_gives_the_same_bits) {
  for (int dtype : kComputeTypes)
    for (int fusion : {0, kAllButCombine & ~AMK_FUSE_ROPE_ATTENTION, kAllButCombine})
      for (int policy : {AMK_PAGES_NONE, AMK_PAGES_LINEAR}) {
        const int features = fusion ? AMK_MODEL_QK_NORM | AMK_MODEL_QKV_BIAS : 0;
        const amk::Image combined = decoder(dtype, features, fusion, policy, 64);
        const amk::Image direct = decoder(dtype, features, fusion | AMK_FUSE_ATTENTION_COMBINE, policy, 64);
        CHECK(direct.view().tasks.size() < combined.view().tasks.size());
        const std::string want = decode(combined, 0, 0, 1);
        CHECK(decode(direct, 0, 0, 1) == want);
        for (uint64_t seed = 1; seed <= 8; ++seed) CHECK(decode(direct, seed, 0, seed % 2) == want);
        for (int threads : {2, 4}) CHECK(decode(direct, 1, threads, 1) == want);
      }
}

// A walk is legal: each task once, after its queue's predecessor and after all producers of what it waits for.
TEST(walks_are_legal_and_seeds_differ) {
  const amk::Image image = decoder(AMK_DTYPE_F32, 0, kAllButCombine, AMK_PAGES_LINEAR);
  const amk::ImageView v = image.view();
  std::set<std::vector<uint32_t>> orders;
  for (int threads : {0, 3})
    for (uint64_t seed = 0; seed < 10; ++seed) {
      std::vector<std::atomic<int>> begun(v.tasks.size()), ended(v.producers.size());
      std::vector<uint32_t> order;
      std::atomic<int> violations{0};
      amk::walk(v, seed, threads, [&](uint32_t task, int32_t worker) {
        const amk_instruction_t& t = v.tasks[task];
        if (begun[task].fetch_add(1) != 0) ++violations;
        if (threads > 0 && worker != t.sm % threads) ++violations;
        for (int w = 0; w < t.n_waits; ++w)
          if (ended[t.wait_counter[w]].load() != static_cast<int>(v.producers[t.wait_counter[w]])) ++violations;
        for (uint32_t before : v.queue(static_cast<size_t>(t.sm))) {
          if (before == task) break;
          if (begun[before].load() != 1) ++violations;
        }
        if (threads == 0) order.push_back(task);
        ++ended[t.out_counter];
      });
      for (auto& n : begun) CHECK_EQ(n.load(), 1);
      CHECK_EQ(violations.load(), 0);
      if (threads > 0) continue;
      if (seed == 0) CHECK(std::is_sorted(order.begin(), order.end()));
      orders.insert(order);
    }
  CHECK_EQ(orders.size(), 10u);
}

TEST(reseed_changes_the_order_only) {
  const amk::Image image = decoder(AMK_DTYPE_BF16, 0, 0, AMK_PAGES_GRAPH_COLOR);
  const auto vm = make_vm(image, 5);
  Weights weights(image, 3, 0.2);
  weights.bind(*vm);
  std::vector<float> first(128), later(128);
  const int32_t token = 100;
  vm->write("token", 0, &token, sizeof token);
  vm->run(9);
  vm->read("logits", 0, first.data(), 512);
  for (uint64_t seed : {0, 1, 99}) {
    vm->reseed(seed);
    vm->run(9);
    vm->read("logits", 0, later.data(), 512);
    CHECK(first == later);
  }
}
