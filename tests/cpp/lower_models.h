// Small models and targets for the tests of graph, lowering and cost.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/target.h"
#include "check.h"
#include "graph/decoder.h"
#include "lower/lower.h"
#include "lower/schedule.h"

// Every fusion but "attention+combine", which takes programs of one KV split (AMK_FLAG_DIRECT).
constexpr int32_t kAllButCombine = AMK_FUSE_RMSNORM_GEMV | AMK_FUSE_GATE_UP | AMK_FUSE_GATE_UP_SILU |
                                   AMK_FUSE_GEMV_ADD | AMK_FUSE_QKV | AMK_FUSE_ROPE_KV_APPEND | AMK_FUSE_ROPE_ATTENTION;

inline amk_model_t make_model(int32_t dtype, int32_t layers, int32_t hidden, int32_t n_heads, int32_t n_kv_heads,
                              int32_t head_dim, int32_t ffn, int32_t vocab, int32_t max_seq, int32_t features = 0) {
  amk_model_t m{};
  m.struct_size = sizeof m;
  m.dtype = dtype;
  m.layers = layers;
  m.hidden = hidden;
  m.n_heads = n_heads;
  m.n_kv_heads = n_kv_heads;
  m.head_dim = head_dim;
  m.ffn = ffn;
  m.vocab = vocab;
  m.max_seq = max_seq;
  m.features = features;
  m.eps = 1e-5f;
  return m;
}

inline amk_model_t toy_model() { return make_model(AMK_DTYPE_F32, 1, 64, 4, 4, 16, 128, 256, 256); }
inline amk_model_t llama_1b(int32_t max_seq = 4096) {
  return make_model(AMK_DTYPE_BF16, 16, 2048, 32, 8, 64, 8192, 128256, max_seq, AMK_MODEL_TIED_HEAD);
}
inline amk_model_t llama_8b(int32_t max_seq = 4096) {
  return make_model(AMK_DTYPE_BF16, 32, 4096, 32, 8, 128, 14336, 128256, max_seq);
}

// `m`, whose layers but each interval-th are linear attention.
inline amk_model_t make_hybrid(amk_model_t m, int32_t interval, int32_t key_heads, int32_t value_heads,
                               int32_t head_dim, int32_t conv_width) {
  m.full_attention_interval = interval;
  m.linear_key_heads = key_heads;
  m.linear_value_heads = value_heads;
  m.linear_head_dim = head_dim;
  m.conv_width = conv_width;
  return m;
}
constexpr int32_t kHybridFeatures = AMK_MODEL_QK_NORM | AMK_MODEL_ATTENTION_GATE | AMK_MODEL_NORM_PLUS_ONE;
// Three layers of linear attention and one of full attention, gated, with norms of 1 + w.
inline amk_model_t hybrid_model(int32_t dtype = AMK_DTYPE_F32) {
  return make_hybrid(make_model(dtype, 4, 64, 4, 2, 16, 128, 256, 64, kHybridFeatures), 4, 2, 4, 16, 4);
}

// The shape of a hybrid of a few billion weights: states of 2 MB a layer.
inline amk_model_t large_hybrid(int32_t max_seq = 4096) {
  return make_hybrid(make_model(AMK_DTYPE_BF16, 24, 2048, 16, 2, 256, 6144, 151936, max_seq, kHybridFeatures), 4, 16,
                     32, 128, 4);
}

// One of each kind of decoder: plain, grouped, with head norms, with every bias, odd vocabulary, one kv head; a hybrid,
// one without a full layer, and one that is gated without being a hybrid.
inline std::vector<amk_model_t> small_models() {
  constexpr int32_t kBiases = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;
  return {
      toy_model(),
      make_model(AMK_DTYPE_BF16, 2, 128, 4, 2, 32, 256, 512, 256),
      make_model(AMK_DTYPE_BF16, 2, 64, 4, 2, 32, 128, 256, 128, AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD),
      make_model(AMK_DTYPE_F16, 2, 72, 6, 3, 24, 136, 1003, 40, kBiases),
      make_model(AMK_DTYPE_F32, 3, 64, 4, 1, 16, 1032, 5001, 7, kBiases | AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD),
      hybrid_model(),
      make_hybrid(make_model(AMK_DTYPE_BF16, 2, 64, 4, 2, 16, 128, 300, 33, AMK_MODEL_TIED_HEAD), 5, 3, 3, 8, 2),
      make_model(AMK_DTYPE_F16, 1, 64, 4, 1, 16, 128, 256, 48, AMK_MODEL_ATTENTION_GATE | kBiases),
  };
}

inline amk_target_t small_target(int32_t sm_count) {
  amk_target_t t = *amk::target_preset(1);
  t.sm_count = sm_count;
  return t;
}

inline const amk_target_t& h200() { return *amk::target_preset(1); }

inline amk::Program lower_model(const amk_model_t& model, const amk_schedule_t& schedule, const amk_target_t& target) {
  return amk::lower(amk::build_decoder(model), schedule, target);
}

// Everything the tables hold, as bytes.
inline std::string table_bytes(const amk::Program& p) {
  std::string out;
  auto add = [&](const void* data, size_t nbytes) { out.append(static_cast<const char*>(data), nbytes); };
  add(p.buffers.data(), p.buffers.size() * sizeof p.buffers[0]);
  add(p.bindings.data(), p.bindings.size() * sizeof p.bindings[0]);
  add(p.counter_init.data(), p.counter_init.size() * sizeof p.counter_init[0]);
  add(p.tasks.data(), p.tasks.size() * sizeof p.tasks[0]);
  add(p.pages.data(), p.pages.size() * sizeof p.pages[0]);
  add(&p.launch, sizeof p.launch);
  add(&p.target, sizeof p.target);
  return out + p.buffer_name.bytes() + p.buffer_source.bytes() + p.task_label.bytes();
}

// Requires that fn throws Error with this status, and that its sentence holds `part`.
template <class Fn>
void expect_error(const char* file, int line, amk_status status, const std::string& part, Fn fn) {
  try {
    fn();
  } catch (const amk::Error& e) {
    check::equal(file, line, "status", static_cast<int>(e.status()), static_cast<int>(status));
    if (std::string(e.what()).find(part) == std::string::npos)
      check::fail(file, line, std::string("message \"") + e.what() + "\" lacks \"" + part + "\"");
    return;
  }
  check::fail(file, line, "nothing was thrown; expected: " + part);
}
#define EXPECT_ERROR(status, part, expr) expect_error(__FILE__, __LINE__, status, part, [&] { expr; })
