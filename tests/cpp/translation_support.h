// Lowered programs and ways to change one thing in them, for the tests of V17.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lower_models.h"
#include "validate/validate.h"

struct Edited {
  amk_model_t model;
  amk::Program program;

  Edited(const amk_model_t& m, int32_t fusion, int32_t pages = AMK_PAGES_NONE, int32_t kv_block = 16) : model(m) {
    amk_schedule_t s = amk::default_schedule();
    s.fusion = fusion;
    s.page_policy = pages;
    s.attention_kv_block = kv_block;
    program = lower_model(m, s, small_target(4));
  }

  int buffer(const std::string& name) const {
    for (size_t i = 0; i < program.buffers.size(); ++i)
      if (program.buffer_name.at(static_cast<int64_t>(i)) == name) return static_cast<int>(i);
    throw std::runtime_error("no buffer " + name);
  }
  // Tasks of one op: labels "name[i]". Valid until tasks are inserted.
  std::vector<int> tasks(const std::string& name) const {
    std::vector<int> out;
    for (size_t i = 0; i < program.tasks.size(); ++i) {
      const std::string_view label = program.task_label.at(static_cast<int64_t>(i));
      if (label.substr(0, label.find('[')) == name) out.push_back(static_cast<int>(i));
    }
    if (out.empty()) throw std::runtime_error("no op " + name);
    return out;
  }
  amk_instruction_t& task(const std::string& name, int i = 0) { return program.tasks[tasks(name).at(i)]; }
  template <class F>
  void each(const std::string& name, F change) {
    for (int t : tasks(name)) change(program.tasks[t]);
  }
  // Every task that reads `from` reads `to`.
  void rewire(const std::string& from, const std::string& to) {
    const int old_id = buffer(from), new_id = buffer(to);
    for (amk_instruction_t& t : program.tasks)
      for (int i = 0; i < t.n_inputs; ++i)
        if (t.inputs[i] == old_id) t.inputs[i] = new_id;
  }
  void swap_inputs(const std::string& a, const std::string& b) {
    const int x = buffer(a), y = buffer(b);
    for (amk_instruction_t& t : program.tasks)
      for (int i = 0; i < t.n_inputs; ++i)
        if (t.inputs[i] == x || t.inputs[i] == y) t.inputs[i] = t.inputs[i] == x ? y : x;
  }
  void rename(amk::Strings amk::Program::* table, int id, const std::string& name) {
    amk::Strings out;
    for (size_t i = 0; i < program.buffers.size(); ++i)
      out.push(static_cast<int>(i) == id ? std::string_view(name) : (program.*table).at(static_cast<int64_t>(i)));
    program.*table = out;
  }
  void set_source(const std::string& name, const std::string& source) {
    rename(&amk::Program::buffer_source, buffer(name), source);
  }
  void swap_sources(const std::string& a, const std::string& b) { set_source(a, b), set_source(b, a); }
  void swap_names(const std::string& a, const std::string& b) {
    const int x = buffer(a), y = buffer(b);
    rename(&amk::Program::buffer_name, x, b);
    rename(&amk::Program::buffer_name, y, a);
  }
  // A flag off, and its operand with it.
  static void drop_flag(amk_instruction_t& t, int32_t flag, int slot) {
    t.params.flags &= ~flag;
    for (int i = slot; i + 1 < t.n_inputs; ++i) t.inputs[i] = t.inputs[i + 1];
    t.inputs[--t.n_inputs] = 0;
  }
  int add_buffer(const std::string& name, int kind, const amk_buffer_t& like) {
    amk_buffer_t b = like;
    int page = -1;
    b.space = kind == AMK_KIND_ACTIVATION ? AMK_SPACE_GLOBAL_SCRATCH : AMK_SPACE_HBM;
    if (kind == AMK_KIND_ACTIVATION) {
      int64_t end = 0;
      for (const amk_page_t& p : program.pages) end = std::max(end, p.offset + p.nbytes);
      page = static_cast<int>(program.pages.size());
      program.pages.push_back({AMK_SPACE_GLOBAL_SCRATCH, (end + 255) / 256 * 256, b.numel * 4});
    }
    program.buffers.push_back(b);
    program.bindings.push_back({kind, page});
    program.buffer_name.push(name);
    program.buffer_source.push("");
    return static_cast<int>(program.buffers.size()) - 1;
  }
  int add_counter() {
    program.counter_init.push_back(0);
    return static_cast<int>(program.counter_init.size()) - 1;
  }
  // `fresh` tasks between the producers of the ops named and the ops themselves: they wait for what those waited for,
  // and those wait for them alone. In between, queue order.
  void insert_before(const std::string& name, std::vector<amk_instruction_t> fresh) {
    const int at = tasks(name).front(), counter = add_counter();
    amk_instruction_t waits = program.tasks[at];
    for (size_t i = 0; i < fresh.size(); ++i) {
      fresh[i].sm = 0;
      fresh[i].out_counter = counter;
      fresh[i].n_waits = i ? 0 : waits.n_waits;
      for (int w = 0; w < AMK_MAX_WAITS; ++w) {
        fresh[i].wait_counter[w] = i ? 0 : waits.wait_counter[w];
        fresh[i].wait_threshold[w] = i ? 0 : waits.wait_threshold[w];
      }
    }
    each(name, [&](amk_instruction_t& t) {
      for (int w = 0; w < AMK_MAX_WAITS; ++w) t.wait_counter[w] = t.wait_threshold[w] = 0;
      t.n_waits = 1;
      t.wait_counter[0] = counter;
      t.wait_threshold[0] = static_cast<int>(fresh.size());
    });
    program.tasks.insert(program.tasks.begin() + at, fresh.begin(), fresh.end());
  }
};

inline amk_instruction_t copy_task(int from, int to, int count, int m_off = 0, int n_off = 0) {
  amk_instruction_t t{};
  t.op = AMK_OP_COPY;
  t.n_inputs = t.n_outputs = 1;
  t.inputs[0] = from;
  t.outputs[0] = to;
  t.params.N_tile = count;
  t.params.m_off = m_off;
  t.params.n_off = n_off;
  return t;
}

// "V17: sentence" of the first rejection; "accepted" without one.
inline std::string verdict(const amk::Judgement& j) {
  if (j.report.ok()) return "accepted";
  return "V" + std::to_string(j.report.entries()[0].code) + ": " + j.report.entries()[0].text;
}
inline std::string model_verdict(const Edited& e) { return verdict(amk::validate_model(e.program, e.model)); }
