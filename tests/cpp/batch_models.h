// Decoders of B tokens a step, and what a machine leaves when it decodes a text with one.
#pragma once

#include <map>

#include "test_vm_machine.h"
#include "translation_support.h"

inline amk_model_t with_batch(amk_model_t m, int32_t batch) {
  m.batch = batch;
  return m;
}
inline amk_model_t with_group(amk_model_t m, int32_t group) {
  m.weight_group = group;
  return m;
}

constexpr int32_t kEveryBias = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;

// Every dense decoder there is: all types, grouped or not, head norms, biases, a tied head, odd sizes; quantised.
inline std::vector<amk_model_t> dense_models() {
  return {
      make_model(AMK_DTYPE_F32, 2, 64, 4, 4, 16, 128, 256, 64),
      make_model(AMK_DTYPE_BF16, 2, 128, 4, 2, 32, 256, 512, 64),
      make_model(AMK_DTYPE_BF16, 2, 64, 4, 2, 32, 128, 256, 64, AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD),
      make_model(AMK_DTYPE_F16, 2, 72, 6, 3, 24, 136, 1003, 64, kEveryBias),
      make_model(AMK_DTYPE_F32, 1, 64, 4, 1, 16, 1032, 2001, 48, kEveryBias | AMK_MODEL_QK_NORM),
      make_model(AMK_DTYPE_F32, 2, 64, 4, 2, 16, 128, 256, 64, AMK_MODEL_NORM_PLUS_ONE | AMK_MODEL_QK_NORM),
      with_group(make_model(AMK_DTYPE_F32, 1, 64, 4, 4, 16, 128, 256, 64), 64),
      with_group(make_model(AMK_DTYPE_BF16, 2, 128, 4, 2, 32, 256, 512, 64), 128),
      with_group(make_model(AMK_DTYPE_F16, 1, 64, 4, 2, 32, 192, 515, 64, kEveryBias | AMK_MODEL_QK_NORM), 64),
  };
}

struct Decoded {
  std::vector<float> logits;     // [tokens, V]
  std::vector<int32_t> choices;  // after each token
  std::map<std::string, std::vector<uint8_t>> caches;
};

// A program with its machine and weights; those of one model are the same for every batch and schedule.
struct Decoding {
  Decoding(const amk_model_t& m, const amk::Program& program, uint64_t seed = 0, int threads = 0)
      : model(m),
        batch(std::max(m.batch, 1)),
        image(amk::pack(must_validate(program))),
        weights(image, 23, m.weight_group ? 0.02 : 0.25),
        vm(make_vm(image, seed, threads)) {
    weights.bind(*vm);
  }
  // The tokens at positions from `pos` on, a step for each `batch` of them.
  void run(const std::vector<int32_t>& tokens, int32_t pos, Decoded* out) {
    for (size_t i = 0; i < tokens.size(); i += static_cast<size_t>(batch)) {
      std::vector<int32_t> next(static_cast<size_t>(batch), -2);
      vm->decode_batch(&tokens[i], batch, pos + static_cast<int32_t>(i), next.data());
      out->choices.insert(out->choices.end(), next.begin(), next.end());
      const size_t at = out->logits.size(), count = static_cast<size_t>(batch) * static_cast<size_t>(model.vocab);
      out->logits.resize(at + count);
      vm->read("logits", 0, &out->logits[at], count * sizeof(float));
    }
  }
  void read_caches(Decoded* out) {
    const amk::ImageView v = image.view();
    for (size_t b = 0; b < v.buffers.size(); ++b) {
      if (v.bindings[b].kind != AMK_KIND_KV_CACHE) continue;
      const std::string name(v.buffer_name.at(b));
      out->caches[name].resize(static_cast<size_t>(v.places[b].nbytes));
      vm->read(name, 0, out->caches[name].data(), out->caches[name].size());
    }
  }

  amk_model_t model;
  int32_t batch;
  amk::Image image;
  Weights weights;
  std::unique_ptr<amk::Vm> vm;
};

inline std::vector<int32_t> some_tokens(const amk_model_t& m, int count, uint64_t seed = 5) {
  TestRandom random{seed};
  std::vector<int32_t> out;
  for (int i = 0; i < count; ++i) out.push_back(random.between(0, m.vocab - 1));
  return out;
}

// kv_block 1024: all rows are one split, whatever the position.
inline amk::Program lower_batch(const amk_model_t& m, int32_t fusion, int32_t pages, int32_t kv_block, int32_t sms) {
  amk_schedule_t s = amk::default_schedule();
  s.fusion = fusion;
  s.page_policy = pages;
  s.attention_kv_block = kv_block;
  return lower_model(m, s, small_target(sms));
}

inline Decoded decode_text(const amk_model_t& m, const amk::Program& program, const std::vector<int32_t>& tokens,
                           uint64_t seed = 0, int threads = 0) {
  Decoded out;
  Decoding decoding(m, program, seed, threads);
  decoding.run(tokens, 0, &out);
  decoding.read_caches(&out);
  return out;
}
