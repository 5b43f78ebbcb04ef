// A hybrid decoder whole: lowered, run on the reference machine in every order against double precision, and what a
// failed step does to its states.
#include <map>
#include <set>

#include "base/model.h"
#include "cost/cost.h"
#include "hybrid_oracle.h"
#include "lower_models.h"

using namespace amk;

namespace {

Image lowered(const amk_model_t& model, int fusion, int policy, int sm_policy = AMK_SM_ROUND_ROBIN) {
  amk_schedule_t s = default_schedule();
  s.fusion = fusion;
  s.page_policy = policy;
  s.sm_policy = sm_policy;
  s.attention_kv_block = 16;
  return pack(must_validate(lower_model(model, s, small_target(7))));
}

std::vector<float> step(Vm& vm, int32_t token, int pos, const amk_model_t& model) {
  std::vector<float> logits(static_cast<size_t>(model.vocab));
  vm.write("token", 0, &token, sizeof token);
  vm.run(pos);
  vm.read("logits", 0, logits.data(), logits.size() * sizeof(float));
  return logits;
}

int32_t token_at(int pos, const amk_model_t& model) { return (pos * 37 + 5) % model.vocab; }

// The outputs of some steps, and the states behind the last, as bytes.
std::string decode(const Image& image, const amk_model_t& model, uint64_t seed, int threads, int guard) {
  const auto vm = make_vm(image, seed, threads, guard);
  Weights weights(image, 11, 0.2);
  weights.bind(*vm);
  std::string out;
  for (int pos = 0; pos < 6; ++pos) {
    const std::vector<float> logits = step(*vm, token_at(pos, model), pos, model);
    out.append(reinterpret_cast<const char*>(logits.data()), logits.size() * sizeof(float));
  }
  const ImageView v = image.view();
  for (size_t b = 0; b < v.buffers.size(); ++b) {
    if (v.bindings[b].kind != AMK_KIND_STATE) continue;
    std::string bytes(static_cast<size_t>(v.places[b].nbytes), '\0');
    vm->read(std::string(v.buffer_name.at(b)), 0, bytes.data(), bytes.size());
    out += bytes;
  }
  return out;
}

struct Machine {
  const amk_model_t model = hybrid_model();
  Image image = lowered(model, kAllButCombine, AMK_PAGES_LINEAR);
  Weights weights{image, 5, 0.2};
  std::unique_ptr<Vm> vm = make_vm(image);

  Machine() { weights.bind(*vm); }
  std::vector<float> step(int pos) { return ::step(*vm, token_at(pos, model), pos, model); }
  // A step that ends in a NaN.
  void fail(int pos) {
    const double kept = read_number(AMK_DTYPE_F32, weights.at("lm_head"), 7);
    write_number(AMK_DTYPE_F32, weights.at("lm_head"), 7, std::numeric_limits<double>::quiet_NaN());
    CHECK_THROWS(AMK_ERR_NONFINITE, "logits[0] is NaN", step(pos));
    write_number(AMK_DTYPE_F32, weights.at("lm_head"), 7, kept);
  }
};

}  // namespace

TEST(steps_of_a_hybrid_against_double_precision) {
  for (int features : {kHybridFeatures, 0, int{AMK_MODEL_ATTENTION_GATE}, int{AMK_MODEL_NORM_PLUS_ONE}})
    for (int fusion : {0, kAllButCombine}) {
      amk_model_t model = hybrid_model();
      model.features = features;
      const Image image = lowered(model, fusion, AMK_PAGES_LINEAR);
      Weights weights(image, 3, 0.2);
      HybridOracle oracle(model, weights);
      const auto vm = make_vm(image);
      weights.bind(*vm);
      double worst = 0, largest = 0;
      for (int pos = 0; pos < 20; ++pos) {
        const std::vector<float> got = step(*vm, token_at(pos, model), pos, model);
        const std::vector<double> want = oracle.step(token_at(pos, model));
        for (size_t i = 0; i < want.size(); ++i) {
          worst = std::max(worst, std::fabs(got[i] - want[i]));
          largest = std::max(largest, std::fabs(want[i]));
        }
      }
      CHECK(largest > 0.1);
      if (worst > 2e-5 * largest)
        check::fail(__FILE__, __LINE__,
                    text("features %d fusion %d: off by %g of %g", features, fusion, worst, largest));
    }
}

TEST(every_order_and_thread_count_of_a_hybrid_gives_the_same_bits) {
  const amk_model_t bf16 = hybrid_model(AMK_DTYPE_BF16);
  const amk_model_t no_full_layer = small_models()[6];
  CHECK(no_full_layer.full_attention_interval > no_full_layer.layers);
  for (const amk_model_t& model : {hybrid_model(), bf16, hybrid_model(AMK_DTYPE_F16), no_full_layer})
    for (int fusion : {0, kAllButCombine})
      for (int policy : {AMK_PAGES_NONE, AMK_PAGES_LINEAR, AMK_PAGES_GRAPH_COLOR}) {
        const Image image = lowered(model, fusion, policy, policy % 2);
        const std::string want = decode(image, model, 0, 0, 0);
        for (uint64_t seed = 1; seed <= 8; ++seed) CHECK(decode(image, model, seed, 0, seed % 2) == want);
        for (int threads : {1, 3})
          for (uint64_t seed : {0, 1}) CHECK(decode(image, model, seed, threads, 1) == want);
      }
}

TEST(a_state_lasts_from_step_to_step_and_can_be_moved) {
  Machine a, b;
  for (int pos = 0; pos < 4; ++pos) a.step(pos);
  const ImageView v = a.image.view();
  int states = 0;
  for (size_t i = 0; i < v.buffers.size(); ++i) {
    if (v.bindings[i].kind != AMK_KIND_STATE && v.bindings[i].kind != AMK_KIND_KV_CACHE) continue;
    states += v.bindings[i].kind == AMK_KIND_STATE;
    const std::string name(v.buffer_name.at(i));
    std::string bytes(static_cast<size_t>(v.places[i].nbytes), '\0');
    a.vm->read(name, 0, bytes.data(), bytes.size());
    b.vm->write(name, 0, bytes.data(), bytes.size());
  }
  CHECK_EQ(states, 6);
  const std::vector<float> want = a.step(4);
  CHECK(b.step(4) == want);
  CHECK(a.step(4) != want);  // the same position again is another step: the state has moved on
}

// The tables of a hybrid survive packing, opening (which proves them again) and unpacking.
TEST(an_image_of_a_hybrid_opens_as_itself) {
  const Image image = lowered(hybrid_model(AMK_DTYPE_BF16), kAllButCombine, AMK_PAGES_GRAPH_COLOR);
  const Image opened = Image::open(image.bytes().data(), image.bytes().size());
  CHECK(opened.bytes() == image.bytes());
  CHECK(validate_model(opened.program(), hybrid_model(AMK_DTYPE_BF16)).valid.has_value());
  int states = 0;
  for (const ImageStorage& s : opened.view().storages) states += s.kind == AMK_KIND_STATE;
  CHECK_EQ(states, 6);
}

TEST(a_failed_step_poisons_the_states_until_a_reset) {
  Machine m, fresh;
  const std::vector<float> first = fresh.step(0);
  CHECK(m.step(0) == first);
  m.fail(1);
  CHECK_THROWS(AMK_ERR_POISONED, "layers.0.conv_state half written", m.step(1));
  CHECK_THROWS(AMK_ERR_POISONED, "logits[0] is NaN", m.vm->run(1));
  char byte = 0;
  CHECK_THROWS(AMK_ERR_POISONED, "read layers.2.gdn_state", m.vm->read("layers.2.gdn_state", 0, &byte, 1));
  m.vm->read("kv.3.k", 0, &byte, 1);  // the cache is no state
  m.vm->reset_state();
  m.vm->read("layers.2.gdn_state", 0, &byte, 1);
  CHECK_EQ(byte, 0);
  CHECK(m.step(0) == first);
}

TEST(a_poisoned_state_is_good_when_each_is_written_whole) {
  Machine m;
  m.step(0);
  std::map<std::string, std::string> kept;
  const ImageView v = m.image.view();
  for (size_t i = 0; i < v.buffers.size(); ++i) {
    if (v.bindings[i].kind != AMK_KIND_STATE) continue;
    std::string& bytes = kept[std::string(v.buffer_name.at(i))];
    bytes.resize(static_cast<size_t>(v.places[i].nbytes));
    m.vm->read(std::string(v.buffer_name.at(i)), 0, bytes.data(), bytes.size());
  }
  Machine other;
  other.step(0);
  m.fail(1);
  for (const auto& [name, bytes] : kept) {
    CHECK_THROWS(AMK_ERR_POISONED, "half written", m.step(1));
    m.vm->write(name, 0, bytes.data(), bytes.size() / 2);  // a part does not help
    CHECK_THROWS(AMK_ERR_POISONED, "half written", m.step(1));
    m.vm->write(name, 0, bytes.data(), bytes.size());
  }
  CHECK(m.step(1) == other.step(1));
}

TEST(a_request_that_is_refused_poisons_nothing) {
  Machine m, other;
  m.step(0), other.step(0);
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "outside", m.vm->run(-1));
  const int32_t token = -3;
  m.vm->write("token", 0, &token, sizeof token);
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "token", m.vm->run(1));
  CHECK(m.step(1) == other.step(1));
}

TEST(a_machine_without_states_is_not_poisoned) {
  const amk_model_t model = toy_model();
  const Image image = lowered(model, kAllButCombine, AMK_PAGES_LINEAR);
  Weights weights(image, 5, 0.2);
  const auto vm = make_vm(image);
  weights.bind(*vm);
  write_number(AMK_DTYPE_F32, weights.at("lm_head"), 7, std::numeric_limits<double>::quiet_NaN());
  CHECK_THROWS(AMK_ERR_NONFINITE, "logits[0]", step(*vm, 1, 0, model));
  write_number(AMK_DTYPE_F32, weights.at("lm_head"), 7, 0);
  step(*vm, 1, 0, model);
  vm->reset_state();
}

TEST(a_hybrid_costs_its_states_both_ways) {
  for (const amk_model_t& m : {hybrid_model(), large_hybrid()}) {
    const int64_t e = m.linear_head_dim, hq = m.linear_key_heads, hv = m.linear_value_heads;
    const int64_t linear = m.layers - m.layers / m.full_attention_interval, element = m.dtype == AMK_DTYPE_F32 ? 4 : 2;
    const int64_t states = linear * (hv * e * e * 4 + (2 * hq + hv) * e * (m.conv_width - 1) * element);
    const Program p = lower_model(m, default_schedule(), h200());
    const amk_cost_t cost = predict_cost(p, 0);
    int64_t read = 0;
    for (size_t b = 0; b < p.buffers.size(); ++b) {
      const int32_t kind = p.bindings[b].kind;
      const int64_t bytes = storage_bytes(p.buffers[b].dtype, p.buffers[b].numel);
      const bool table = p.buffer_name.at(static_cast<int64_t>(b)) == "embed";  // one row of it
      if (kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST) read += table ? m.hidden * element : bytes;
    }
    CHECK_EQ(cost.streamed_bytes, read + 2 * states);
    CHECK(cost.latency_us > cost.bound_us);
  }
}

TEST(work_of_a_hybrid_is_dealt_over_the_sms) {
  const Program p = lower_model(large_hybrid(), default_schedule(), h200());
  std::map<std::string, std::pair<int, std::set<int>>> ops;
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const std::string label(p.task_label.at(static_cast<int64_t>(i)));
    auto& [count, sms] = ops[label.substr(0, label.find('['))];
    ++count;
    sms.insert(p.tasks[i].sm);
  }
  const auto expect = [&](const char* op, int tasks) {
    CHECK_EQ(ops[op].first, tasks);
    CHECK_EQ(static_cast<int>(ops[op].second.size()), tasks);
  };
  expect("layers.0.gdn_in", 132);
  expect("layers.0.gdn_conv", 64);
  expect("layers.0.gdn", 32);
  expect("layers.0.gdn_norm", 8);
  expect("layers.0.gdn_out", 132);
  CHECK_EQ(ops.count("layers.0.gdn_out_add"), 0u);  // the residual is part of the product
  CHECK_EQ(ops.count("layers.0.attn_norm"), 0u);
  expect("layers.3.attn_gate_mul", 8);
}

// A caller built with the first header has no fields behind eps; what its padding holds means nothing.
TEST(an_older_model_lacks_what_came_later) {
  amk_model_t m = toy_model();
  m.struct_size = 56;
  m.linear_key_heads = 0x5a5a5a5a, m.full_attention_interval = 3;
  const amk_model_t whole = read_model(&m);
  CHECK_EQ(whole.struct_size, sizeof whole);
  CHECK_EQ(whole.linear_key_heads, 0);
  CHECK_EQ(whole.full_attention_interval, 0);
  CHECK_EQ(whole.eps, m.eps);
  CHECK_EQ(whole.hidden, m.hidden);
  m.struct_size = sizeof m;
  CHECK_EQ(read_model(&m).full_attention_interval, 3);
  m.weight_group = 64;
  CHECK_EQ(read_model(&m).weight_group, 64);
  m.struct_size = 72;  // one built before quantised models: a hybrid, and nothing is quantised
  CHECK_EQ(read_model(&m).full_attention_interval, 3);
  CHECK_EQ(read_model(&m).weight_group, 0);
  m.struct_size = 55;
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "struct_size is 55", read_model(&m));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "NULL", read_model(nullptr));
}
