// Figures of the reference machine and of packing: medians, printed. Optional argument: layers (16 = a 1.24 G model).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "base/blake2b.h"
#include "base/target.h"
#include "graph/decoder.h"
#include "lower/lower.h"
#include "lower/schedule.h"
#include "pack/image.h"
#include "vm/vm.h"

namespace {

template <class F>
double median_ms(int rounds, F f) {
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct alignas(16) Vector {
  uint8_t bytes[16];
};

void bench_hash() {
  const std::vector<uint8_t> data(64u << 20, 1);
  const double ms = median_ms(5, [&] { amk::blake2b_256(data.data(), data.size()); });
  std::printf("blake2b-256 of 64 MiB: %.0f ms, %.2f GB/s\n", ms, static_cast<double>(data.size()) / ms / 1e6);
}

// Llama-3.2-1B's shape in bf16.
void bench_model(int layers, int dtype, const char* name) {
  amk_model_t model{};
  model.struct_size = sizeof model;
  model.dtype = dtype;
  model.layers = layers;
  model.hidden = 2048;
  model.n_heads = 32;
  model.n_kv_heads = 8;
  model.head_dim = 64;
  model.ffn = 8192;
  model.vocab = 128256;
  model.max_seq = 4096;
  model.features = AMK_MODEL_TIED_HEAD;
  model.eps = 1e-5f;
  amk::Judgement judged =
      amk::validate(amk::lower(amk::build_decoder(model), amk::default_schedule(), *amk::target_preset(1)));
  if (!judged.valid) throw std::runtime_error(judged.report.entries()[0].text);
  const amk::Image image = amk::pack(*judged.valid);
  std::printf("%s, %d layers: %zu tasks, %.1f MB image; pack %.1f ms, open %.1f ms\n", name, layers,
              image.view().tasks.size(), static_cast<double>(image.bytes().size()) / 1e6,
              median_ms(5, [&] { amk::pack(*judged.valid); }),
              median_ms(5, [&] { amk::Image::open(image.bytes().data(), image.bytes().size()); }));
  // One block of bytes serves as every weight: the time is that of reading, and nothing depends on the values.
  const amk::ImageView v = image.view();
  std::vector<std::vector<Vector>> weights;
  double weight_bytes = 0;
  for (size_t s = 0; s < v.storages.size(); ++s) {
    if (v.storages[s].kind != AMK_KIND_WEIGHT && v.storages[s].kind != AMK_KIND_CONST) continue;
    weights.emplace_back(static_cast<size_t>(v.storages[s].nbytes + 15) / 16);
    uint32_t state = static_cast<uint32_t>(s);
    auto* words = reinterpret_cast<uint16_t*>(weights.back().data());
    for (int64_t i = 0; i < v.storages[s].nbytes / 2; ++i) {
      state = state * 1664525 + 1013904223;
      words[i] = static_cast<uint16_t>((state >> 24 & 0x807f) | (dtype == AMK_DTYPE_F16 ? 0x2000 : 0x3c00));
    }
    weight_bytes += static_cast<double>(v.storages[s].nbytes);
  }
  for (int threads : {0, 1, 2}) {
    amk_vm_options_t options{};
    options.struct_size = sizeof options;
    options.threads = threads;
    const auto vm = amk::make_reference_vm(image.shared_bytes(), options);
    size_t next = 0;
    for (size_t s = 0; s < v.storages.size(); ++s)
      if (v.storages[s].kind == AMK_KIND_WEIGHT || v.storages[s].kind == AMK_KIND_CONST)
        vm->bind(std::string(v.storage_name.at(s)), weights[next++].data(),
                 static_cast<uint64_t>(v.storages[s].nbytes));
    const int32_t token = 7;
    vm->write("token", 0, &token, sizeof token);
    for (int pos : {0, 1023}) {
      const double ms = median_ms(5, [&] { vm->run(pos); });
      std::printf("  threads %d, position %4d: %.0f ms per token, %.2f GB/s of weights\n", threads, pos, ms,
                  weight_bytes / ms / 1e6);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int layers = argc > 1 ? std::atoi(argv[1]) : 16;
  bench_hash();
  bench_model(layers, AMK_DTYPE_BF16, "1B shape, bf16");
  return 0;
}
