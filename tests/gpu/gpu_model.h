// Models for the GPU tests: a description and a schedule become an image, random weights and random cache rows.
// In: amk_model_t, amk_schedule_t, an SM count. Out: bytes for both machines, equal weights bound to both.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/half.h"
#include "base/target.h"
#include "graph/decoder.h"
#include "lower/lower.h"
#include "lower/schedule.h"
#include "pack/image.h"
#include "validate/validate.h"
#include "vm/vm.h"

namespace gpu_test {

struct Random {
  uint64_t state;
  uint64_t next() {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  float uniform() { return static_cast<float>(static_cast<int64_t>(next() >> 40)) / 8388608.0f - 1.0f; }  // [-1, 1)
};

inline void put(int32_t dtype, uint8_t* at, int64_t i, float v) {
  if (dtype == AMK_DTYPE_I8) return void(at[i] = static_cast<uint8_t>(static_cast<int8_t>(v)));
  if (dtype == AMK_DTYPE_F32) return void(std::memcpy(at + 4 * i, &v, 4));
  const uint16_t bits = dtype == AMK_DTYPE_BF16 ? amk::f32_to_bf16(v) : amk::f32_to_f16(v);
  std::memcpy(at + 2 * i, &bits, 2);
}
inline float get(int32_t dtype, const uint8_t* at, int64_t i) {
  if (dtype == AMK_DTYPE_F32) {
    float v;
    std::memcpy(&v, at + 4 * i, 4);
    return v;
  }
  uint16_t bits;
  std::memcpy(&bits, at + 2 * i, 2);
  return dtype == AMK_DTYPE_BF16 ? amk::bf16_to_f32(bits) : amk::f16_to_f32(bits);
}

inline amk_target_t h200(int32_t sm_count) {
  for (int i = 0; i < amk::target_count(); ++i) {
    amk_target_t t = *amk::target_preset(i);
    if (std::strcmp(t.name, "h200") != 0) continue;
    t.sm_count = sm_count;
    return t;
  }
  throw amk::Error(AMK_ERR_INTERNAL, "no target h200");
}

using Bytes = std::shared_ptr<const std::vector<uint8_t>>;

inline Bytes make_image(const amk_model_t& model, const amk_schedule_t& schedule, int32_t sm_count) {
  const amk_target_t target = h200(sm_count);
  amk::check_schedule(schedule, target);
  amk::Judgement j = amk::validate(amk::lower(amk::build_decoder(model), schedule, target));
  if (!j.valid) {
    const amk::Rejection& r = j.report.entries().front();
    throw amk::Error(AMK_ERR_INTERNAL, amk::text("V%d: %s", r.code, r.text.c_str()));
  }
  return amk::pack(*j.valid).shared_bytes();
}

inline amk::ImageView view_of(const Bytes& bytes) { return amk::ImageView::of_own(bytes->data(), bytes->size()); }

// Aligned for bind.
struct Block {
  std::unique_ptr<uint8_t, void (*)(void*)> data{nullptr, std::free};
  int64_t nbytes = 0;
  explicit Block(int64_t n)
      : data(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>((n + 63) / 64 * 64))), std::free),
        nbytes(n) {}
};

// Every weight and constant of an image, by storage name.
inline std::map<std::string, Block> make_weights(const amk::ImageView& image, uint64_t seed) {
  std::map<std::string, Block> out;
  for (size_t b = 0; b < image.buffers.size(); ++b) {
    const int32_t kind = image.bindings[b].kind;
    if (kind != AMK_KIND_WEIGHT && kind != AMK_KIND_CONST) continue;
    const std::string name(image.storage_name.at(static_cast<size_t>(image.places[b].storage)));
    if (out.count(name)) continue;
    const amk_buffer_t& buffer = image.buffers[b];
    Block block(image.storages[static_cast<size_t>(image.places[b].storage)].nbytes);
    Random random{seed + std::hash<std::string>()(name)};
    const bool is_norm = name.find("norm") != std::string::npos, is_matrix = buffer.rank == 2;
    const float spread = is_matrix && name != "embed" ? 1.7f / std::sqrt(static_cast<float>(buffer.shape[1])) : 0.5f;
    // Of a quantised matrix: any 8 bits, -128 too, and positive scales that give it about the spread of the others.
    const bool is_scale = name.size() > 6 && name.compare(name.size() - 6, 6, "_scale") == 0;
    const float scale = spread / 127 / std::sqrt(static_cast<float>(AMK_MAX_WEIGHT_GROUP));
    for (int64_t i = 0; i < buffer.numel; ++i) {
      float v = random.uniform() * (is_norm ? 0.2f : spread) + (is_norm ? 1.0f : 0.0f);
      if (buffer.dtype == AMK_DTYPE_I8) v = random.uniform() * 128;
      if (is_scale) v = scale * (1 + random.uniform() / 2);
      if (kind == AMK_KIND_CONST) v = std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(buffer.numel));
      put(buffer.dtype, block.data.get(), i, v);
    }
    out.emplace(name, std::move(block));
  }
  return out;
}

inline void bind_all(amk::Vm& vm, const std::map<std::string, Block>& weights) {
  for (const auto& [name, block] : weights) vm.bind(name, block.data.get(), static_cast<uint64_t>(block.nbytes));
}

inline std::vector<uint8_t> read_buffer(amk::Vm& vm, const amk::ImageView& image, const std::string& name) {
  for (size_t b = 0; b < image.buffers.size(); ++b) {
    if (image.buffer_name.at(b) != name) continue;
    std::vector<uint8_t> out(static_cast<size_t>(image.places[b].nbytes));
    vm.read(name, 0, out.data(), out.size());
    return out;
  }
  throw amk::Error(AMK_ERR_INTERNAL, "no buffer " + name);
}

// The same random rows in every cache and every state of both machines.
inline void fill_caches(const amk::ImageView& image, std::initializer_list<amk::Vm*> vms, uint64_t seed) {
  for (size_t b = 0; b < image.buffers.size(); ++b) {
    if (image.bindings[b].kind != AMK_KIND_KV_CACHE && image.bindings[b].kind != AMK_KIND_STATE) continue;
    Random random{seed + b};
    std::vector<uint8_t> rows(static_cast<size_t>(image.places[b].nbytes));
    for (int64_t i = 0; i < image.buffers[b].numel; ++i) put(image.buffers[b].dtype, rows.data(), i, random.uniform());
    for (amk::Vm* vm : vms) vm->write(std::string(image.buffer_name.at(b)), 0, rows.data(), rows.size());
  }
}

inline amk_vm_options_t options(int32_t guard = 0, int32_t deadline_ms = 0) {
  amk_vm_options_t o{};
  o.struct_size = sizeof o;
  o.guard = guard;
  o.deadline_ms = deadline_ms;
  return o;
}

inline amk_model_t model(int32_t dtype, int32_t layers, int32_t hidden, int32_t heads, int32_t kv_heads, int32_t dim,
                         int32_t ffn, int32_t vocab, int32_t max_seq, int32_t features = 0) {
  amk_model_t m{};
  m.struct_size = sizeof m;
  m.dtype = dtype;
  m.layers = layers;
  m.hidden = hidden;
  m.n_heads = heads;
  m.n_kv_heads = kv_heads;
  m.head_dim = dim;
  m.ffn = ffn;
  m.vocab = vocab;
  m.max_seq = max_seq;
  m.features = features;
  m.eps = 1e-5f;
  return m;
}

}  // namespace gpu_test
