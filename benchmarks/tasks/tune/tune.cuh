// What the tuners share: operands in rotation, so that every launch finds its own cold, and one clock.
// Operands come from tensors, by way of what the C entry reads, so a field that it sets is never missing.
// In: a function that enqueues launch i on a stream. Out: microseconds per launch, the median over trials of a captured
// graph. Programs of their own, not part of any library: they print, and stop at the first error.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "amk_task.h"
#include "row_vectors.cuh"

namespace amk::task {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

// A tensor without gaps, as it crosses the C border.
inline amk_task_tensor_t tensor(void* data, int32_t dtype, std::initializer_list<int64_t> shape) {
  amk_task_tensor_t t{data, dtype, static_cast<int32_t>(shape.size()), {}, {}};
  std::copy(shape.begin(), shape.end(), t.shape);
  int64_t stride = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    t.stride[i] = stride;
    stride *= t.shape[i];
  }
  return t;
}

// Operands that the entry would refuse, or would read element by element, are a mistake of the tuner.
template <class Operands>
void require_vectors(int32_t status, const Operands& o) {
  if (status == 0 && o.is_vector) return;
  std::fprintf(stderr, "operands: status %d, read 16 bytes at a time: %d\n", status, status == 0 && o.is_vector);
  std::exit(1);
}

constexpr int kTrials = 9, kCacheMultiple = 4, kMostLaunches = 400;
constexpr float kSampleUs = 2000;

// Numbers in [-2, 2), different for every element and seed.
template <class T>
__global__ void fill(T* p, size_t n, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed * 40503u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    p[i] = from_f32<T>(static_cast<float>(h >> 8) * 0x1p-22f - 2.0f);
  }
}

// The largest |a - b| / (1 + |a|), as the bits of a float that is not negative: they order like integers.
template <class T>
__global__ void furthest(const T* a, const T* b, size_t n, unsigned* out) {
  float most = 0;
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
    const float x = to_f32(a[i]), y = to_f32(b[i]), away = fabsf(x - y) / (1 + fabsf(x));
    most = away <= most ? most : isnan(away) ? INFINITY : away;
  }
  atomicMax(out, __float_as_uint(most));
}

template <class T>
float distance(const T* a, const T* b, size_t n) {
  unsigned *at, bits = 0;
  check(cudaMalloc(&at, sizeof bits), "cudaMalloc");
  check(cudaMemset(at, 0, sizeof bits), "cudaMemset");
  furthest<<<1024, 256>>>(a, b, n, at);
  check(cudaMemcpy(&bits, at, sizeof bits, cudaMemcpyDeviceToHost), "furthest");
  check(cudaFree(at), "cudaFree");
  float value;
  static_assert(sizeof value == sizeof bits);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <int kAhead, Reuse kReuse>
__global__ void __launch_bounds__(256) copy_pieces(const char* from, char* to, size_t vectors) {
  const size_t first = blockIdx.x * size_t{256 * kAhead} + threadIdx.x;
  uint4 v[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    if (first + j * 256 < vectors) v[j] = load16<kReuse>(from + (first + j * 256) * kVectorBytes);
  }
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    if (first + j * 256 < vectors) store16<kReuse>(to + (first + j * 256) * kVectorBytes, v[j]);
  }
}

class Clock {
 public:
  Clock() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  ~Clock() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }

  // enqueue(i, stream): the status of launch i.
  float us_per_launch(const std::function<int32_t(int, cudaStream_t)>& enqueue) {
    const float once = sample(enqueue, 8, 3);
    return sample(enqueue, std::clamp(static_cast<int>(kSampleUs / once), 8, kMostLaunches), kTrials);
  }

 private:
  float sample(const std::function<int32_t(int, cudaStream_t)>& enqueue, int launches, int trials) {
    cudaGraph_t graph;
    cudaGraphExec_t program;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), "begin capture");
    for (int i = 0; i < launches; ++i) {
      const int32_t status = enqueue(i, stream_);
      if (status != 0) {
        std::fprintf(stderr, "launch: status %d\n", status);
        std::exit(1);
      }
    }
    check(cudaStreamEndCapture(stream_, &graph), "end capture");
    check(cudaGraphInstantiate(&program, graph, 0), "instantiate");
    std::vector<float> found;
    for (int t = -1; t < trials; ++t) {
      float ms;
      check(cudaEventRecord(begin_, stream_), "record");
      check(cudaGraphLaunch(program, stream_), "launch");
      check(cudaEventRecord(end_, stream_), "record");
      check(cudaEventSynchronize(end_), "a candidate");
      check(cudaEventElapsedTime(&ms, begin_, end_), "elapsed");
      if (t >= 0) found.push_back(ms * 1000 / static_cast<float>(launches));
    }
    check(cudaGraphExecDestroy(program), "destroy");
    check(cudaGraphDestroy(graph), "destroy");
    std::sort(found.begin(), found.end());
    return found[found.size() / 2];
  }

  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
};

// Device memory for `sets` copies of what one launch touches.
class Pool {
 public:
  explicit Pool(size_t set_bytes) : set_bytes_((set_bytes + 255) / 256 * 256) {
    cudaDeviceProp device;
    check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
    sm_count_ = device.multiProcessorCount;
    sets_ = 1 + static_cast<int>(size_t{kCacheMultiple} * static_cast<size_t>(device.l2CacheSize) / set_bytes_);
    check(cudaMalloc(&memory_, set_bytes_ * static_cast<size_t>(sets_)), "cudaMalloc");
  }
  Pool(const Pool&) = delete;
  ~Pool() { cudaFree(memory_); }
  char* set(int i) const { return memory_ + static_cast<size_t>(i % sets_) * set_bytes_; }
  int sets() const { return sets_; }
  int sm_count() const { return sm_count_; }

  // The fastest plain copy of `bytes` read and written in all, half each, cold.
  float copy_us(Clock& clock, size_t bytes) const {
    const size_t vectors = bytes / 2 / kVectorBytes, half = set_bytes_ / 2 / kVectorBytes * kVectorBytes;
    if (vectors * kVectorBytes > half) {
      std::fprintf(stderr, "copy: a set is smaller than what it stands for\n");
      std::exit(1);
    }
    float best = INFINITY;
    const auto try_one = [&](auto kernel, int ahead) {
      const unsigned blocks = static_cast<unsigned>((vectors + 256 * ahead - 1) / (256 * ahead));
      best = std::min(best, clock.us_per_launch([&](int i, cudaStream_t stream) {
        kernel<<<blocks, 256, 0, stream>>>(set(i), set(i) + half, vectors);
        return static_cast<int32_t>(cudaGetLastError());
      }));
    };
    try_one(copy_pieces<1, Reuse::kKeep>, 1);
    try_one(copy_pieces<2, Reuse::kStream>, 2);
    try_one(copy_pieces<4, Reuse::kKeep>, 4);
    try_one(copy_pieces<4, Reuse::kStream>, 4);
    return best;
  }

 private:
  size_t set_bytes_;
  char* memory_ = nullptr;
  int sets_ = 1, sm_count_ = 0;
};

// What was found for one shape. away: the largest distance from the element kernel's result.
struct Finding {
  const char* plan;
  float us, away;
};
// A rounded result is at most one unit of bf16 from another rounding of nearly the same value.
constexpr float kMostAway = 0x1p-6f, kNearlyBest = 1.15f;
// The plan that the solution itself takes: always printed.
constexpr const char* kDispatched = "dispatched";

inline void print_header() { std::printf("%-26s %9s %7s  %-10s %s\n", "row", "us", "% copy", "ok", "plan"); }

inline void print_refusal(const char* shape, const char* plan, int32_t status) {
  std::printf("%-26s %9s %7s  %-10d %s\n", shape, "-", "-", status, plan);
}

// The copy, then the plans from the fastest on: those within 15 % of it, or all. What is wrong is always there.
inline void print_findings(const char* shape, size_t bytes, float copy_us, std::vector<Finding> found, bool is_all) {
  std::sort(found.begin(), found.end(), [](const Finding& a, const Finding& b) { return a.us < b.us; });
  float best = INFINITY;
  for (const Finding& f : found) {
    if (f.away <= kMostAway) best = std::min(best, f.us);
  }
  std::printf("%-26s %9.2f %7.1f  %-10s the fastest copy of as many bytes, %.0f GB/s\n", shape, copy_us, 100.0, "-",
              static_cast<double>(bytes) / copy_us * 1e-3);
  for (const Finding& f : found) {
    const bool is_right = f.away <= kMostAway, is_dispatched = std::strcmp(f.plan, kDispatched) == 0;
    if (!is_all && is_right && !is_dispatched && f.us > kNearlyBest * best) continue;
    char off[32] = "yes";
    if (!is_right) std::snprintf(off, sizeof off, "off %.0e", f.away);
    std::printf("%-26s %9.2f %7.1f  %-10s %s%s\n", shape, f.us, 100 * copy_us / f.us, off, f.plan,
                is_right && f.us == best ? "  <- best" : "");
  }
  std::fflush(stdout);
}

// Takes --all out of the arguments: whether it was there.
inline bool take_all(int& argc, char** argv) {
  char** const end = std::remove_if(argv + 1, argv + argc, [](const char* a) { return std::strcmp(a, "--all") == 0; });
  const bool found = end != argv + argc;
  argc = static_cast<int>(end - argv);
  return found;
}

// The rows that arguments ask for, by a part of their names; all of them where there are no arguments.
class Asked {
 public:
  Asked(int argc, char** argv) : parts_(argv + 1, argv + argc), is_found_(parts_.size()) {}

  bool has(const char* name) {
    bool found = parts_.empty();
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (!std::strstr(name, parts_[i])) continue;
      found = is_found_[i] = true;
    }
    return found;
  }
  // What main returns behind its last row: 2, and a line, if an argument is in no row's name.
  int status() const {
    int worst = 0;
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (is_found_[i]) continue;
      std::fprintf(stderr, "no row's name holds '%s'\n", parts_[i]);
      worst = 2;
    }
    return worst;
  }

 private:
  std::vector<const char*> parts_;
  std::vector<bool> is_found_;
};

}  // namespace amk::task
