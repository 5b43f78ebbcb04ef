// One image on both machines, equal weights and equal cache rows, and what "equal results" means.
// In: an image. Out: differences, and one line per case on stdout.
#pragma once

#include <algorithm>
#include <cstdio>

#include "gpu_model.h"

namespace gpu_test {

inline int failures = 0;

inline void report(bool ok, const std::string& line) {
  std::printf("%s %s\n", ok ? "ok  " : "FAIL", line.c_str());
  std::fflush(stdout);
  failures += !ok;
}

// max |a - b| / max |b|; infinite where a is not a number. at_least: the size of the terms that were summed, where a
// sum of one or few outputs may cancel to less.
inline double error_of(int32_t dtype, const uint8_t* a, const uint8_t* b, int64_t count, double at_least = 1e-30) {
  double worst = 0, largest = at_least;
  for (int64_t i = 0; i < count; ++i) {
    const double x = get(dtype, a, i), y = get(dtype, b, i);
    if (x == y && !std::isfinite(y)) continue;  // the maximum of an empty split is -inf
    if (!(std::isfinite(x) && std::isfinite(y))) return INFINITY;
    worst = std::max(worst, std::abs(x - y));
    largest = std::max(largest, std::abs(y));
  }
  return worst / largest;
}

// f32: the sums differ only in their order. 16-bit types: each layer rounds about ten times to 2^-8 (bf16) or 2^-11,
// and a rounding that falls the other way is carried on.
inline double limit_of(int32_t dtype) { return dtype == AMK_DTYPE_F32 ? 1e-5 : dtype == AMK_DTYPE_BF16 ? 3e-2 : 4e-3; }

// Where a step is scored: the first positions, around the edge of a cache block, and two far ones, below `rows`.
inline std::vector<int32_t> positions_below(int32_t rows, int32_t kv_block) {
  std::vector<int32_t> out;
  for (int32_t pos : {0, 1, 17, kv_block - 1, kv_block, 1023, 8191})
    if (pos < rows) out.push_back(pos);
  return out;
}

struct Pair {
  Bytes bytes;
  amk::ImageView image;
  std::map<std::string, Block> weights;
  std::unique_ptr<amk::Vm> reference, gpu;
  Pair(const Bytes& image_bytes, int32_t guard, int32_t deadline_ms = 0, uint64_t seed = 7)
      : bytes(image_bytes),
        image(view_of(bytes)),
        weights(make_weights(image, seed)),
        reference(amk::make_reference_vm(bytes, options())),
        gpu(amk::make_cuda_vm(bytes, options(guard, deadline_ms), 0)) {
    bind_all(*reference, weights);
    bind_all(*gpu, weights);
    fill_caches(image, {reference.get(), gpu.get()}, seed + 4);
  }
  void write(const std::string& name, const void* data, size_t nbytes) {
    reference->write(name, 0, data, nbytes);
    gpu->write(name, 0, data, nbytes);
  }
  void token(int32_t t) { write("token", &t, sizeof t); }
};

}  // namespace gpu_test
