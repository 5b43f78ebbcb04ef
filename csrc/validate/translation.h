// The state of the symbolic execution behind V17, shared by its files and nobody else.
// In: a program that passed every other proof, in one topological order. Out: rejections under V17. Since
// happens-before is the same in every execution (V8, V9) and each read sees the bytes last written as the buffer it
// names (V11..V16), following the contents of each buffer through one order speaks for all of them. The rules must
// accept a task only if its opcode's law makes its result exactly a part of a value of the decoder.
#pragma once

#include <optional>
#include <vector>

#include "validate/proofs.h"
#include "validate/translation_contents.h"

namespace amk {

class Translation {
 public:
  Translation(const Program& program, const Decoder& decoder, Report* report);
  void run(const TaskOrder& order);

 private:
  // What `count` elements hold: value from element `at` on, all of them; or several things.
  struct Reading {
    Value value;
    int64_t at = 0, count = 0;
    bool one = true, refused = false;
    Value second;  // the next thing, where it is not one
  };
  struct Rotation {
    Value value;
    int64_t at;
  };
  // How a layer's attention is cut; the first tile says it for all.
  struct Splits {
    int32_t count = 0, block = 0;
  };
  // A part of a value that a task computed.
  struct Tile {
    Value value;
    int64_t first, end;
    int32_t task;
  };
  struct Scan {
    int64_t first, end;
  };

  // translation.cpp: buffers, the walk, the end of the step
  void bind_buffers();
  void bind(int32_t buffer);
  void step(int32_t task);
  bool apply(const amk_instruction_t& task);
  void refuse_outputs(const amk_instruction_t& task);
  void check_tiles();
  void check_outputs();

  Reading read(int32_t buffer, int64_t first, int64_t count) const;
  void write(int32_t buffer, int64_t first, int64_t count, Value value, int64_t at);
  // The row of token t in an operand of the current task that has a row for each: its first element.
  int64_t row(int32_t buffer, int32_t t) const { return t * (p_.buffers[buffer].numel / tokens_); }
  Reading read_row(int32_t buffer, int32_t t, int64_t first, int64_t count) const {
    return read(buffer, row(buffer, t) + first, count);
  }
  bool compute_row(int32_t buffer, int64_t first, int64_t count, Value value, int64_t at) {
    return compute(buffer, row(buffer, value.token) + first, count, value, at);
  }
  // Calls fn(t) for each token of the current task until one fails.
  template <class Fn>
  bool for_tokens(Fn fn) {
    for (int32_t t = 0; t < tokens_; ++t)
      if (!fn(t)) return false;
    return true;
  }
  // Rows [pos, pos + B) of kv heads [head, head + heads) of a cache, as runs of what one token left: fn(t, first of the
  // run in the contents, first in the token's heads, count) until one fails.
  template <class Fn>
  bool for_cache_rows(int64_t head, int64_t heads, Fn fn) const {
    const int64_t width = d_.head_dim(), batch = d_.batch();
    if (batch == 1) return fn(0, head * width, head * width, heads * width);
    for (int64_t h = head; h < head + heads; ++h)
      for (int32_t t = 0; t < batch; ++t)
        if (!fn(t, (h * batch + t) * width, h * width, width)) return false;
    return true;
  }
  // Records that the task computes value[at, at + count).
  void add_tile(Value value, int64_t at, int64_t count);
  bool compute(int32_t buffer, int64_t first, int64_t count, Value value, int64_t at);
  bool is_dtype(int32_t buffer, Value value);

  // Each of these is true when it holds and a rejection of the current task otherwise.
  bool holds(const Reading& got, Value value, int64_t at, const char* what, Value of);
  bool number(const char* what, double got, double want, Value of);
  bool fail(int32_t buffer, std::string sentence);
  std::string reading_text(const Reading& r) const;
  std::string tile_text(const Tile& tile, int64_t end) const;  // its part before `end`

  // translation_ops.cpp: one rule per opcode
  bool copy(const amk_instruction_t& t);
  bool embed(const amk_instruction_t& t);
  bool rmsnorm(const amk_instruction_t& t);
  bool gemv(const amk_instruction_t& t);
  bool attention(const amk_instruction_t& t);
  bool combine(const amk_instruction_t& t);
  bool rope(const amk_instruction_t& t);
  bool append(const amk_instruction_t& t);
  bool silu_mul(const amk_instruction_t& t);
  bool add(const amk_instruction_t& t);
  bool scan(const amk_instruction_t& t);
  bool pick(const amk_instruction_t& t);
  bool entries_cover(const amk_instruction_t& t, int32_t token);
  bool norm_weight_plus(const amk_instruction_t& t, Value out);  // whether weights are used as 1 + w, as the model says
  // What attention reads of this step: q rows and the caches' rows, turned; or raw rows that it turns itself.
  bool turned_heads(const amk_instruction_t& t, Value out);
  bool raw_heads(const amk_instruction_t& t, Value out);
  bool head_norm_weight(const amk_instruction_t& t, int slot, Value rotated);
  // What a rotation of [m_off, + heads * D) of a token's row of input 0 gives; inv_freq and norm are slots, norm -1
  // without one.
  std::optional<Rotation> rotate(const amk_instruction_t& t, int32_t token, int32_t heads, int inv_freq, int norm);

  // translation_gdn.cpp: the rules of linear attention, and of the gate behind full attention
  bool causal_conv(const amk_instruction_t& t);
  bool gdn(const amk_instruction_t& t);
  bool gated_norm(const amk_instruction_t& t);
  bool sigmoid_mul(const amk_instruction_t& t);

  const Program& p_;
  const Decoder& d_;
  Report* report_;
  std::vector<Value> bound_;  // per buffer: what it is, where it is bound from outside
  std::vector<Contents> contents_;
  std::vector<int32_t> k_cache_, v_cache_, conv_state_, gdn_state_;  // per layer; -1 where a layer has none
  int32_t logits_ = -1, next_token_ = -1;
  std::vector<Splits> splits_;  // per layer
  std::vector<Scan> scans_;
  std::vector<Tile> tiles_;
  bool picked_ = false;
  int64_t writes_ = 0;
  int32_t task_ = -1, tokens_ = 1;  // of the current step
};

}  // namespace amk
