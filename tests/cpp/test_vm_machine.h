// Programs and machines for the tests of the image and of the reference machine.
#pragma once

#include <map>
#include <memory>

#include "base/error.h"
#include "check.h"
#include "pack/image.h"
#include "program_builder.h"
#include "test_vm_support.h"
#include "validate/validate.h"
#include "vm/vm.h"

inline amk::ValidProgram must_validate(amk::Program program) {
  amk::Judgement j = amk::validate(std::move(program));
  for (const amk::Rejection& r : j.report.entries()) check::fail("rejected", r.code, r.text);
  return j.valid.value();
}

// One attention layer without projections, by hand, on two queues: token -> embed -> cache -> attention -> logits ->
// next token. max_seq 16, vocab 8, one head of 16.
inline amk::Program mini_program() {
  ProgramBuilder b(2, 16);
  constexpr int kF32 = AMK_DTYPE_F32, kI32 = AMK_DTYPE_I32;
  const int token = b.buffer("token", AMK_KIND_IO_INPUT, kI32, {1});
  const int embed = b.buffer("embed", AMK_KIND_WEIGHT, kF32, {8, 16}),
            freq = b.buffer("freq", AMK_KIND_CONST, kF32, {8});
  const int k = b.buffer("kv.0.k", AMK_KIND_KV_CACHE, kF32, {1, 16, 16});
  const int v = b.buffer("kv.0.v", AMK_KIND_KV_CACHE, kF32, {1, 16, 16});
  const int logits = b.buffer("logits", AMK_KIND_IO_OUTPUT, kF32, {8});
  const int next = b.buffer("next_token", AMK_KIND_IO_OUTPUT, kI32, {1});
  const int x = b.activation("x", kF32, {16}), o = b.activation("part_o", kF32, {1, 2, 16});
  const int ml = b.activation("part_ml", kF32, {1, 2, 2}), y = b.activation("y", kF32, {16});
  const int best = b.activation("best_value", kF32, {2}), index = b.activation("best_index", kI32, {2});
  int c[7];
  for (int& id : c) id = b.counter();

  amk_params_t p{};
  p.vocab = 8, p.hidden = 16, p.N_tile = 16;
  b.task(0, AMK_OP_EMBED, {token, embed}, {x}, p, c[0]);
  p = {};
  p.n_kv_heads = 1, p.head_dim = 16, p.K = 16, p.N_tile = 1, p.flags = AMK_FLAG_ROPE;
  b.task(0, AMK_OP_KV_APPEND, {x, freq}, {k}, p, c[1], {{c[0], 1}});
  p.flags = 0;
  b.task(1, AMK_OP_KV_APPEND, {x}, {v}, p, c[1], {{c[0], 1}});
  for (int d = 0; d < 2; ++d) {
    p = {};
    p.n_heads = p.n_kv_heads = 1, p.head_dim = 16, p.K = 16, p.M = 2, p.M_tile = 4, p.N_tile = 1, p.dim = d;
    p.scale = 0.25f;
    b.task(d, AMK_OP_ATTENTION_TILE, {x, k, v}, {o, ml}, p, c[2], {{c[1], 2}});
  }
  p = {};
  p.n_heads = 1, p.head_dim = 16, p.M = 2, p.N_tile = 1;
  b.task(1, AMK_OP_ATTENTION_COMBINE, {o, ml}, {y}, p, c[3], {{c[2], 2}});
  for (int d = 0; d < 2; ++d) {
    p = {};
    p.K = 16, p.N = 8, p.N_tile = 4, p.n_off = 4 * d;
    b.task(d, AMK_OP_GEMV_TILE, {y, embed}, {logits}, p, c[4], {{c[3], 1}});
  }
  for (int d = 0; d < 2; ++d) {
    p = {};
    p.vocab = 8, p.N_tile = 4, p.n_off = 4 * d, p.M = 2, p.dim = d;
    b.task(d, AMK_OP_SAMPLE_ARGMAX, {logits}, {best, index}, p, c[5], {{c[4], 2}});
  }
  p = {};
  p.M = 2;
  b.task(0, AMK_OP_ARGMAX_COMBINE, {best, index}, {next}, p, c[6], {{c[5], 2}});
  for (size_t i = 0; i < b.program.tasks.size(); ++i) b.program.task_label.push(amk::text("task %zu", i));
  return b.program;
}

// 16-byte aligned bytes for weights.
class Weights {
 public:
  // Random values for every weight and constant of the image; the same for the same seed.
  Weights(const amk::Image& image, uint64_t seed, double scale = 0.5) {
    TestRandom random{seed};
    const amk::ImageView v = image.view();
    for (size_t b = 0; b < v.buffers.size(); ++b) {
      const int kind = v.bindings[b].kind;
      const std::string name(v.buffer_source.at(b));
      if ((kind != AMK_KIND_WEIGHT && kind != AMK_KIND_CONST) || data_.count(name)) continue;
      std::vector<Vector>& bytes = data_[name];
      nbytes_[name] = static_cast<uint64_t>(v.places[b].nbytes);
      bytes.resize((nbytes_[name] + 15) / 16);
      for (int64_t i = 0; i < v.buffers[b].numel; ++i)
        write_number(v.buffers[b].dtype, bytes[0].bytes, i,
                     random.uniform() * (v.buffers[b].dtype == AMK_DTYPE_I8 ? 127 : scale));
    }
  }
  void bind(amk::Vm& vm) {
    for (auto& [name, bytes] : data_) vm.bind(name, bytes[0].bytes, nbytes_[name]);
  }
  uint8_t* at(const std::string& name) { return data_.at(name)[0].bytes; }
  uint64_t nbytes(const std::string& name) const { return nbytes_.at(name); }

 private:
  struct alignas(16) Vector {
    uint8_t bytes[16];
  };
  std::map<std::string, std::vector<Vector>> data_;
  std::map<std::string, uint64_t> nbytes_;
};

inline std::unique_ptr<amk::Vm> make_vm(const amk::Image& image, uint64_t seed = 0, int threads = 0, int guard = 1) {
  amk_vm_options_t options{};
  options.struct_size = sizeof options;
  options.seed = seed;
  options.threads = threads;
  options.guard = guard;
  return amk::make_reference_vm(image.shared_bytes(), options);
}

// Status and message of what f throws; AMK_OK when it throws nothing.
template <class F>
std::pair<int, std::string> thrown(F f) {
  try {
    f();
  } catch (const amk::Error& e) {
    return {e.status(), e.what()};
  }
  return {AMK_OK, ""};
}
#define CHECK_THROWS(want_status, want_text, ...)                                       \
  do {                                                                                  \
    const auto [got_status, got_text] = thrown([&] { __VA_ARGS__; });                   \
    CHECK_EQ(got_status, static_cast<int>(want_status));                                \
    if (got_text.find(want_text) == std::string::npos)                                  \
      check::fail(__FILE__, __LINE__, "message \"" + got_text + "\" lacks " want_text); \
  } while (0)
