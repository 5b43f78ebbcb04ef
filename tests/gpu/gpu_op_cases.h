// Cases of opcodes: a sketch is run on both machines and everything that it writes is compared.
#pragma once

#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gpu_pair.h"
#include "gpu_sketch.h"

namespace gpu_test {

inline bool few = false;         // one case of each opcode and type, for a sanitizer
inline int32_t deadline_ms = 0;  // 0: the machine's own

// One line per opcode: cases, the largest error over its limit, the first case that failed.
struct Line {
  std::string name, first_failure;
  int cases = 0;
  double worst = 0;
  explicit Line(std::string n) : name(std::move(n)) {}
  ~Line() {
    report(first_failure.empty() && cases > 0,
           amk::text("%-18s %3d cases, error at most %.2f of the limit%s%s", name.c_str(), cases, worst,
                     first_failure.empty() ? "" : ": ", first_failure.c_str()));
  }
  void fail(const std::string& what) {
    if (first_failure.empty()) first_failure = what;
  }
};

// One rounding of a value that another order of summation may have moved.
inline double one_rounding(int32_t dtype) {
  return dtype == AMK_DTYPE_F32 ? 1e-5 : dtype == AMK_DTYPE_BF16 ? 1.0 / 128 : 1.0 / 1024;
}

// Runs the sketch on both machines at each position (none given: all, up to 8,191) and compares every output, cache and
// state. Limit 0: equal bytes.
inline void check(Line& line, const std::string& what, const Sketch& sketch, double limit,
                  std::vector<int32_t> positions = {}, const std::map<std::string, std::vector<int32_t>>& integers = {},
                  double term_size = 1e-30) {
  ++line.cases;
  if (positions.empty()) positions = positions_below(8192, Sketch::kKvBlock);
  if (few) positions = {0, 17};
  try {
    Pair p(sketch.image(), 1, deadline_ms, static_cast<uint64_t>(line.cases));
    for (size_t b = 0; b < p.image.buffers.size(); ++b) {
      if (p.image.bindings[b].kind != AMK_KIND_IO_INPUT) continue;
      const std::string name(p.image.buffer_name.at(b));
      const amk_buffer_t& buffer = p.image.buffers[b];
      std::vector<uint8_t> bytes(static_cast<size_t>(p.image.places[b].nbytes));
      Random random{b + 100 * static_cast<uint64_t>(line.cases)};
      if (integers.count(name)) {
        std::memcpy(bytes.data(), integers.at(name).data(), bytes.size());
      } else if (buffer.dtype == AMK_DTYPE_F32 || buffer.dtype == AMK_DTYPE_F16 || buffer.dtype == AMK_DTYPE_BF16) {
        for (int64_t i = 0; i < buffer.numel; ++i) put(buffer.dtype, bytes.data(), i, random.uniform());
      } else {
        for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
      }
      p.write(name, bytes.data(), bytes.size());
    }
    for (int32_t pos : positions) {
      p.reference->run(pos);
      p.gpu->run(pos);
      for (size_t b = 0; b < p.image.buffers.size(); ++b) {
        const int32_t kind = p.image.bindings[b].kind, dtype = p.image.buffers[b].dtype;
        if (kind != AMK_KIND_IO_OUTPUT && kind != AMK_KIND_KV_CACHE && kind != AMK_KIND_STATE) continue;
        const std::string name(p.image.buffer_name.at(b));
        const auto x = read_buffer(*p.gpu, p.image, name), y = read_buffer(*p.reference, p.image, name);
        if (limit == 0 || !(dtype == AMK_DTYPE_F32 || dtype == AMK_DTYPE_F16 || dtype == AMK_DTYPE_BF16)) {
          if (x != y) line.fail(what + ", " + name + ": other bytes");
          continue;
        }
        // A state is never rounded to T on its way; its error is carried from position to position.
        const double allowed = kind == AMK_KIND_STATE ? 1e-5 : limit;
        const double error = error_of(dtype, x.data(), y.data(), p.image.buffers[b].numel, term_size) / allowed;
        line.worst = std::max(line.worst, error);
        if (!(error <= 1))
          line.fail(amk::text("%s, %s at position %d: %.2g of the limit", what.c_str(), name.c_str(), pos, error));
      }
    }
  } catch (const amk::Error& e) {
    line.fail(amk::text("%s: %d ", what.c_str(), e.status()) + e.what());
  }
}

inline const std::vector<int32_t> kTypes{AMK_DTYPE_F32, AMK_DTYPE_F16, AMK_DTYPE_BF16};

// [0, total) cut at odd places.
inline std::vector<std::pair<int32_t, int32_t>> cuts(int32_t total) {
  std::vector<std::pair<int32_t, int32_t>> out;
  for (int32_t first = 0, step = 1; first < total; step = step * 3 + 2) {
    const int32_t count = std::min(step, total - first);
    out.push_back({first, count});
    first += count;
  }
  return out;
}

// Of a hybrid model: gpu_ops_hybrid.cpp.
void hybrid_ops();
// Of several tokens: gpu_ops_batch.cpp.
void batch_ops();

}  // namespace gpu_test
