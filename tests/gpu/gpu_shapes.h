// Whole models to time: three shapes, random weights that every layer shares in host memory and has its own copy of on
// the device, so that every byte is streamed.
// In: a shape, a schedule, the live device. Out: a proved program, its image, a machine that holds weights and a cache.
#pragma once

#include <algorithm>

#include "gpu_model.h"
#include "vm/device.h"

namespace gpu_test {

struct Shape {
  const char* name;
  int32_t layers, hidden, heads, kv_heads, dim, ffn, vocab, features;
};
constexpr Shape kShapes[] = {
    {"0.6B", 28, 1024, 16, 8, 128, 3072, 151936, AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD},
    {"1B", 16, 2048, 32, 8, 64, 8192, 128256, AMK_MODEL_TIED_HEAD},
    {"8B", 32, 4096, 32, 8, 128, 14336, 128256, 0},
};
constexpr int32_t kContexts[] = {1, 1024, 8192};
constexpr int kSteps = 60, kWarmUp = 10;
constexpr int32_t kMaxSeq = 8192 + kSteps + kWarmUp + AMK_MAX_BATCH;

// The shape that a word of the command line names, or null.
inline const Shape* find_shape(const char* word) {
  for (const Shape& s : kShapes)
    if (std::strcmp(word, s.name) == 0) return &s;
  return nullptr;
}

// Random bf16 in [-spread, spread), the same 16 MB again and again.
inline void fill(uint8_t* at, int64_t nbytes, float spread) {
  constexpr int64_t kPeriod = 16 << 20;
  Random random{3};
  for (int64_t i = 0; i < std::min(nbytes, kPeriod) / 2; ++i) put(AMK_DTYPE_BF16, at, i, random.uniform() * spread);
  for (int64_t done = kPeriod; done < nbytes; done += kPeriod)
    std::memcpy(at + done, at, std::min(kPeriod, nbytes - done));
}

struct Lowered {
  amk::Program program;
  amk::ValidProgram valid;
  Bytes bytes;
  amk::ImageView image;
};
// group: of quantised matrices, a head of its own among them; 0: none is quantised. batch: tokens of a step.
inline Lowered lower_shape(const Shape& s, const amk_schedule_t& schedule, int32_t group, int32_t batch = 1) {
  amk_model_t m =
      model(AMK_DTYPE_BF16, s.layers, s.hidden, s.heads, s.kv_heads, s.dim, s.ffn, s.vocab, kMaxSeq, s.features);
  m.weight_group = group;
  m.batch = batch;
  if (group) m.features &= ~AMK_MODEL_TIED_HEAD;
  const amk_target_t target = h200(amk::query_device(0).sm_count);
  amk::check_schedule(schedule, target);
  amk::Program program = amk::lower(amk::build_decoder(m), schedule, target);
  amk::Judgement judged = amk::validate(program);
  if (!judged.valid) throw amk::Error(AMK_ERR_INTERNAL, judged.report.entries().front().text);
  const Bytes bytes = amk::pack(*judged.valid).shared_bytes();
  return {std::move(program), *judged.valid, bytes, view_of(bytes)};
}

// Host memory that stands in for every weight of a shape. It must live until the machine's prepare().
class ShapeWeights {
 public:
  ShapeWeights(const Shape& s, const amk::ImageView& image, int32_t group)
      : random_(largest(image)), scales_(group ? largest(image) : 64), constants_(4096), ones_(1 << 20) {
    fill(random_.data.get(), random_.nbytes, 0.05f);
    fill(scales_.data.get(), scales_.nbytes, 0.0005f);
    for (int64_t i = 0; i < 1024; ++i)
      put(AMK_DTYPE_F32, constants_.data.get(), i, std::pow(10000.0f, -float(i) / s.dim * 2));
    for (int64_t i = 0; i < ones_.nbytes / 2; ++i) put(AMK_DTYPE_BF16, ones_.data.get(), i, 1.0f);
  }

  // Binds all of an image, fills its caches, and uploads.
  void load(amk::Vm& vm, const amk::ImageView& image) const {
    for (size_t i = 1; i < image.storages.size(); ++i) {
      const amk::ImageStorage& storage = image.storages[i];
      const std::string name(image.storage_name.at(i));
      const bool is_norm = name.find("norm") != std::string::npos;
      if (storage.kind == AMK_KIND_CONST) vm.bind(name, constants_.data.get(), (uint64_t)storage.nbytes);
      const bool is_scale = name.find("_scale") != std::string::npos;
      const Block& values = is_norm ? ones_ : is_scale ? scales_ : random_;
      if (storage.kind == AMK_KIND_WEIGHT) vm.bind(name, values.data.get(), (uint64_t)storage.nbytes);
      if (storage.kind == AMK_KIND_KV_CACHE) vm.write(name, 0, random_.data.get(), (uint64_t)storage.nbytes);
    }
    vm.prepare();
  }

 private:
  static int64_t largest(const amk::ImageView& image) {
    int64_t most = 0;
    for (const amk::ImageStorage& storage : image.storages) most = std::max(most, storage.nbytes);
    return most;
  }

  Block random_, scales_, constants_, ones_;
};

}  // namespace gpu_test
