// Small programs by hand, for the tests: buffers, counters, tasks. Nothing here judges or repairs.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>

#include "base/dtype.h"
#include "base/target.h"
#include "program/program.h"

struct ProgramBuilder {
  amk::Program program;

  explicit ProgramBuilder(int grid = 4, int max_seq = 16) {
    program.target = *amk::target_preset(1);
    program.launch.grid = grid;
    program.launch.threads_per_block = 256;
    program.launch.max_seq = max_seq;
    program.launch.steps_per_launch = 1;
    program.launch.kv_block = 16;
  }
  // page = -1: storage of its own, or the one `source` names.
  int buffer(const std::string& name, int kind, int dtype, std::initializer_list<int64_t> shape, int page = -1,
             const std::string& source = "") {
    const int space = page >= 0 ? AMK_SPACE_GLOBAL_SCRATCH : AMK_SPACE_HBM;
    program.buffers.push_back(amk::make_buffer(dtype, space, shape));
    program.bindings.push_back({kind, page});
    program.buffer_name.push(name);
    const bool external = kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST;
    program.buffer_source.push(source.empty() && external ? name : source);
    return static_cast<int>(program.buffers.size()) - 1;
  }
  // An activation on a page of its own.
  int activation(const std::string& name, int dtype, std::initializer_list<int64_t> shape) {
    const amk_buffer_t b = amk::make_buffer(dtype, AMK_SPACE_GLOBAL_SCRATCH, shape);
    return buffer(name, AMK_KIND_ACTIVATION, dtype, shape, page(amk::storage_bytes(dtype, b.numel)));
  }
  // A page behind the last one.
  int page(int64_t nbytes) {
    int64_t offset = 0;
    for (const amk_page_t& p : program.pages) offset = std::max(offset, p.offset + p.nbytes);
    offset = (offset + AMK_PAGE_ALIGN - 1) / AMK_PAGE_ALIGN * AMK_PAGE_ALIGN;
    program.pages.push_back({AMK_SPACE_GLOBAL_SCRATCH, offset, nbytes});
    return static_cast<int>(program.pages.size()) - 1;
  }
  int counter() {
    program.counter_init.push_back(0);
    return static_cast<int>(program.counter_init.size()) - 1;
  }
  int task(int sm, int op, std::initializer_list<int> inputs, std::initializer_list<int> outputs, amk_params_t params,
           int out_counter, std::initializer_list<std::pair<int, int>> waits = {}) {
    amk_instruction_t t{};
    t.op = op;
    t.sm = sm;
    t.out_counter = out_counter;
    t.params = params;
    for (int b : inputs) t.inputs[t.n_inputs++] = b;
    for (int b : outputs) t.outputs[t.n_outputs++] = b;
    for (auto [c, threshold] : waits) {
      t.wait_counter[t.n_waits] = c;
      t.wait_threshold[t.n_waits++] = threshold;
    }
    program.tasks.push_back(t);
    return static_cast<int>(program.tasks.size()) - 1;
  }
};
