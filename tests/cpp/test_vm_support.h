// A bench for single ops: buffers in plain memory, one task at a time, each run judged against its declared footprint.
#pragma once

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "base/half.h"
#include "check.h"
#include "ops/op_spec.h"
#include "program/program.h"
#include "vm/ref_ops.h"

// splitmix64; uniform in [-1, 1).
struct TestRandom {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-52 - 1; }
  int between(int low, int high) { return low + static_cast<int>(next() % static_cast<uint64_t>(high - low + 1)); }
};

inline double read_number(int dtype, const uint8_t* p, int64_t i) {
  const auto get = [&]<class T>(T) {
    T v;
    std::memcpy(&v, p + i * static_cast<int64_t>(sizeof(T)), sizeof v);
    return v;
  };
  switch (dtype) {
    case AMK_DTYPE_F32: return get(float{});
    case AMK_DTYPE_BF16: return amk::bf16_to_f32(get(uint16_t{}));
    case AMK_DTYPE_F16: return amk::f16_to_f32(get(uint16_t{}));
    case AMK_DTYPE_I8: return get(int8_t{});
    default: return get(int32_t{});
  }
}

inline void write_number(int dtype, uint8_t* p, int64_t i, double value) {
  const auto put = [&]<class T>(T v) { std::memcpy(p + i * static_cast<int64_t>(sizeof(T)), &v, sizeof v); };
  switch (dtype) {
    case AMK_DTYPE_F32: return put(static_cast<float>(value));
    case AMK_DTYPE_BF16: return put(amk::f32_to_bf16(static_cast<float>(value)));
    case AMK_DTYPE_F16: return put(amk::f32_to_f16(static_cast<float>(value)));
    case AMK_DTYPE_I8: return put(static_cast<int8_t>(value));
    default: return put(static_cast<int32_t>(value));
  }
}

inline double rounded(int dtype, double value) {
  uint8_t bytes[4];
  write_number(dtype, bytes, 0, value);
  return read_number(dtype, bytes, 0);
}

// Largest relative error of one rounding to the type.
inline double unit_roundoff(int dtype) {
  return dtype == AMK_DTYPE_BF16 ? 0x1p-8 : dtype == AMK_DTYPE_F16 ? 0x1p-11 : 0x1p-24;
}

class OpLab {
 public:
  explicit OpLab(uint64_t seed) : random{seed} {}

  // A buffer of random numbers in [-scale, scale).
  int add(int kind, int dtype, const std::vector<int64_t>& shape, double scale = 1) {
    buffers.push_back(amk::make_buffer(dtype, AMK_SPACE_HBM, shape));
    bindings.push_back({kind, -1});
    bytes.emplace_back(static_cast<size_t>(amk::storage_bytes(dtype, buffers.back().numel) + 2 * kBand), uint8_t{0xA5});
    const int id = static_cast<int>(buffers.size()) - 1;
    for (int64_t i = 0; i < buffers[id].numel; ++i) put(id, i, random.uniform() * scale);
    return id;
  }
  int weight(int dtype, std::initializer_list<int64_t> shape) { return add(AMK_KIND_WEIGHT, dtype, shape); }
  int activation(int dtype, std::initializer_list<int64_t> shape) { return add(AMK_KIND_ACTIVATION, dtype, shape); }

  double at(int b, int64_t i) const { return read_number(buffers[b].dtype, bytes[b].data() + kBand, i); }
  void put(int b, int64_t i, double v) { write_number(buffers[b].dtype, bytes[b].data() + kBand, i, v); }

  // Runs the task, then once more with every byte it may not read made NaN: it must write the same again, and only
  // where its footprint says.
  void run(int op, const std::vector<int>& inputs, const std::vector<int>& outputs, const amk_params_t& params,
           int pos = 0) {
    amk_instruction_t task{};
    task.op = op;
    for (int b : inputs) task.inputs[task.n_inputs++] = b;
    for (int b : outputs) task.outputs[task.n_outputs++] = b;
    task.params = params;
    const amk::TaskView view{task, buffers.data(), bindings.data()};
    amk::Problem problem;
    if (!amk::op_check(view, &problem)) return check::fail(__FILE__, __LINE__, "unlawful test: " + problem.text);
    amk::AccessList footprint;
    amk::op_footprint(view, &footprint);

    std::vector<std::vector<char>> may_read, may_write;
    for (const auto& b : bytes) {
      may_read.emplace_back(b.size(), char{0});
      may_write.emplace_back(b.size(), char{0});
    }
    for (const amk::Access& a : footprint) {
      std::vector<char>& marks = a.write ? may_write[a.buffer] : may_read[a.buffer];
      for (int64_t r = 0; r < a.rows; ++r) {
        const int64_t first = kBand + a.offset_bytes + pos * a.offset_per_pos + r * a.stride_bytes;
        const int64_t length = a.row_bytes + pos * a.row_bytes_per_pos;
        for (int64_t i = 0; i < length; ++i) marks.at(static_cast<size_t>(first + i)) = 1;
      }
    }
    const auto before = bytes;
    call(view, pos);
    const auto result = bytes;
    // NaN everywhere but in what may be read; that includes the old contents of what is written.
    auto poisoned = before;
    for (size_t b = 0; b < bytes.size(); ++b)
      for (size_t i = 0; i < bytes[b].size(); ++i)
        if (!may_read[b][i]) poisoned[b][i] = 0xFF;
    bytes = poisoned;
    call(view, pos);
    int stray = 0, unstable = 0;
    for (size_t b = 0; b < bytes.size(); ++b)
      for (size_t i = 0; i < bytes[b].size(); ++i) {
        if (may_write[b][i])
          unstable += bytes[b][i] != result[b][i];
        else
          stray += result[b][i] != before[b][i] || bytes[b][i] != poisoned[b][i];
      }
    CHECK_EQ(stray, 0);
    CHECK_EQ(unstable, 0);
    bytes = result;
  }

  // |got - want| within `slack` plus one rounding of the result's type.
  void expect(int b, int64_t i, double want, double slack) const {
    const double got = at(b, i), limit = slack + unit_roundoff(buffers[b].dtype) * std::fabs(want) + 1e-7;
    if (std::fabs(got - want) <= limit) return;
    check::fail(__FILE__, __LINE__,
                amk::text("element %lld of buffer %d (%s): got %.9g, want %.9g within %.3g", (long long)i, b,
                          amk::dtype_name(buffers[b].dtype), got, want, limit));
  }

  TestRandom random;
  std::vector<amk_buffer_t> buffers;
  std::vector<amk_binding_t> bindings;
  std::vector<std::vector<uint8_t>> bytes;

  static constexpr int64_t kBand = 64;

 private:
  void call(const amk::TaskView& view, int pos) {
    amk::OpCall c{view, {}, {}, pos, scratch_};
    for (int i = 0; i < view.task.n_inputs; ++i) c.in[i] = bytes[view.task.inputs[i]].data() + kBand;
    for (int i = 0; i < view.task.n_outputs; ++i) c.out[i] = bytes[view.task.outputs[i]].data() + kBand;
    amk::run_op(c);
  }
  amk::Scratch scratch_;
};

constexpr int kComputeTypes[] = {AMK_DTYPE_F32, AMK_DTYPE_BF16, AMK_DTYPE_F16};
