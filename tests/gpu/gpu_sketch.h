// Small programs by hand: operands and tasks in the order they are added, task i on SM i modulo the grid.
// In: operands, parameters, which tasks to wait for. Out: an image; an Error with the first rejection. Repairs nothing.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "gpu_model.h"

namespace gpu_test {

class Sketch {
 public:
  static constexpr int32_t kKvBlock = 16;

  explicit Sketch(int32_t max_seq = 8192, int32_t grid = 3) {
    const amk_schedule_t s = amk::default_schedule();
    program_.target = h200(grid);
    amk_launch_t& l = program_.launch;
    l.grid = grid;
    l.threads_per_block = s.threads_per_block;
    l.smem_bytes_per_block = s.smem_bytes_per_block;
    l.pipelining_depth = s.pipelining_depth;
    l.cols_per_warp = s.cols_per_warp;
    l.cpasync = s.cpasync;
    l.cpa_stages = s.cpa_stages;
    l.cpa_cols = s.cpa_cols;
    l.max_seq = max_seq;
    l.steps_per_launch = 1;
    l.counter_reset = AMK_COUNTER_RESET_HOST;
    l.kv_block = kKvBlock;
  }

  int32_t weight(const std::string& name, int32_t dtype, std::initializer_list<int64_t> shape) {
    return add(name, AMK_KIND_WEIGHT, dtype, shape, name);
  }
  int32_t constant(const std::string& name, std::initializer_list<int64_t> shape) {
    return add(name, AMK_KIND_CONST, AMK_DTYPE_F32, shape, name);
  }
  int32_t input(const std::string& name, int32_t dtype, std::initializer_list<int64_t> shape) {
    return add(name, AMK_KIND_IO_INPUT, dtype, shape, "");
  }
  int32_t output(const std::string& name, int32_t dtype, std::initializer_list<int64_t> shape) {
    return add(name, AMK_KIND_IO_OUTPUT, dtype, shape, "");
  }
  int32_t cache(const std::string& name, int32_t dtype, std::initializer_list<int64_t> shape) {
    return add(name, AMK_KIND_KV_CACHE, dtype, shape, "");
  }
  int32_t state(const std::string& name, int32_t dtype, std::initializer_list<int64_t> shape) {
    return add(name, AMK_KIND_STATE, dtype, shape, "");
  }
  // In the arena, on a page of its own.
  int32_t scratch(const std::string& name, int32_t dtype, std::initializer_list<int64_t> shape) {
    const int32_t id = add(name, AMK_KIND_ACTIVATION, dtype, shape, "");
    const int64_t nbytes = program_.buffers.back().numel * amk::dtype_bits(dtype) / 8;
    program_.bindings.back().page = static_cast<int32_t>(program_.pages.size());
    program_.pages.push_back({AMK_SPACE_GLOBAL_SCRATCH, arena_, nbytes});
    arena_ += (nbytes + AMK_PAGE_ALIGN - 1) / AMK_PAGE_ALIGN * AMK_PAGE_ALIGN;
    return id;
  }

  // Returns the task's id; `after` are ids of tasks, each with a counter of its own.
  int32_t task(int32_t op, std::vector<int32_t> inputs, std::vector<int32_t> outputs, const amk_params_t& params,
               std::vector<int32_t> after = {}) {
    amk_instruction_t t{};
    const int32_t id = static_cast<int32_t>(program_.tasks.size());
    t.op = op;
    for (int32_t b : inputs) t.inputs[t.n_inputs++] = b;
    for (int32_t b : outputs) t.outputs[t.n_outputs++] = b;
    for (int32_t a : after) {
      t.wait_counter[t.n_waits] = a;
      t.wait_threshold[t.n_waits++] = 1;
    }
    t.out_counter = id;
    t.sm = id % program_.launch.grid;
    t.params = params;
    program_.tasks.push_back(t);
    program_.counter_init.push_back(0);
    program_.task_label.push("task " + std::to_string(id));
    return id;
  }

  Bytes image() const {
    amk::Judgement j = amk::validate(program_);
    if (!j.valid) {
      const amk::Rejection& r = j.report.entries().front();
      throw amk::Error(AMK_ERR_INTERNAL, amk::text("V%d: %s", r.code, r.text.c_str()));
    }
    return amk::pack(*j.valid).shared_bytes();
  }

 private:
  int32_t add(const std::string& name, int32_t kind, int32_t dtype, std::initializer_list<int64_t> shape,
              const std::string& source) {
    const int32_t space = kind == AMK_KIND_ACTIVATION ? AMK_SPACE_GLOBAL_SCRATCH : AMK_SPACE_HBM;
    program_.buffers.push_back(amk::make_buffer(dtype, space, shape));
    program_.bindings.push_back({kind, -1});
    program_.buffer_name.push(name);
    program_.buffer_source.push(source);
    return static_cast<int32_t>(program_.buffers.size()) - 1;
  }

  amk::Program program_;
  int64_t arena_ = 0;
};

}  // namespace gpu_test
