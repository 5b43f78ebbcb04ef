// The same step on the same state, again and again: the same bits in every output and every cache, and no memory lost.
// In: repeats=N (10,000), seconds=N (stop earlier, 120). Out: one line per model. Needs a GPU.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>

#include "gpu_pair.h"

using namespace gpu_test;

namespace {

// Everything a step writes that a caller can read: outputs and caches.
std::vector<uint8_t> everything(amk::Vm& vm, const amk::ImageView& image) {
  std::vector<uint8_t> out;
  for (size_t b = 0; b < image.buffers.size(); ++b) {
    const int32_t kind = image.bindings[b].kind;
    if (kind != AMK_KIND_IO_OUTPUT && kind != AMK_KIND_KV_CACHE) continue;
    const auto bytes = read_buffer(vm, image, std::string(image.buffer_name.at(b)));
    out.insert(out.end(), bytes.begin(), bytes.end());
  }
  return out;
}

void repeat(const char* name, const amk_model_t& m, int32_t pos, int count, double limit_s) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  // Poisoned before each step: an output that a step leaves alone is NaN, not the last step's.
  Pair p(make_image(m, amk::default_schedule(), 132), 1);
  const std::vector<int32_t> tokens(static_cast<size_t>(p.gpu->batch()), 17);
  p.gpu->write("token", 0, tokens.data(), tokens.size() * sizeof(int32_t));
  p.gpu->run(pos);
  const auto first = everything(*p.gpu, p.image);
  size_t free_before = 0, free_after = 0, total = 0;
  cudaMemGetInfo(&free_before, &total);
  int different = 0, done = 0;
  for (; done < count && std::chrono::duration<double>(Clock::now() - start).count() < limit_s; ++done) {
    p.gpu->run(pos);
    different += everything(*p.gpu, p.image) != first;
  }
  cudaMemGetInfo(&free_after, &total);
  report(different == 0 && free_before == free_after && done == count,
         amk::text("%s: %d of %d launches, %d differ in one of %zu bytes, device memory %+lld bytes", name, done, count,
                   different, first.size(), (long long)free_before - (long long)free_after));
}

}  // namespace

int main(int argc, char** argv) {
  int repeats = 10000, seconds = 120;
  for (int i = 1; i < argc; ++i) {
    std::sscanf(argv[i], "repeats=%d", &repeats);
    std::sscanf(argv[i], "seconds=%d", &seconds);
  }
  try {
    repeat("bf16, qk norm", model(AMK_DTYPE_BF16, 2, 1024, 16, 8, 64, 3072, 8192, 256, AMK_MODEL_QK_NORM), 200, repeats,
           seconds);
    amk_model_t batched = model(AMK_DTYPE_BF16, 2, 1024, 16, 8, 128, 6144, 8192, 256, AMK_MODEL_QK_NORM);
    batched.batch = 16;
    repeat("bf16, 16 tokens a step", batched, 200, repeats / 10, seconds);
    repeat("f32, every bias",
           model(AMK_DTYPE_F32, 1, 512, 8, 2, 64, 1024, 1001, 128,
                 AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS),
           100, repeats / 10, seconds);
  } catch (const amk::Error& e) {
    report(false, amk::text("status %d: ", e.status()) + e.what());
  }
  std::printf("gpu_repeat: %d failures\n", failures);
  return failures;
}
