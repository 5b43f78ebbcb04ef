// What the checks of all opcodes are written with: a first broken rule, and helpers that each hold or report one.
// In: a task with its tables. Out: true, or the Problem. Only the law's own files include this.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "base/dtype.h"
#include "base/error.h"
#include "ops/op_spec.h"

namespace amk {

inline bool is_immutable(int32_t kind) {
  return kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST || kind == AMK_KIND_IO_INPUT;
}

// Slots, as bits, in which an opcode has a cache or a state; in no other slot may one stand.
struct LastingSlots {
  uint32_t cache_inputs = 0, cache_outputs = 0, state_inputs = 0, state_outputs = 0;
};

// Collects the first broken rule. Each helper returns true when its rule holds, so checks chain with &&.
class Checker {
 public:
  // tokens is right once the signature was checked.
  Checker(const TaskView& view, Problem* problem)
      : v(view), p(view.task.params), tokens(op_tokens(view.task)), problem_(problem) {}

  bool fail(int code, int32_t buffer, std::string message) {
    problem_->code = code;
    problem_->buffer = buffer;
    problem_->text = text("%s: %s", op_name(v.task.op), message.c_str());
    return false;
  }
  bool in_dtype(int slot, int32_t want, const char* what) {
    return v.input(slot).dtype == want || bad_dtype(v.task.inputs[slot], v.input(slot), want, what);
  }
  bool out_dtype(int slot, int32_t want, const char* what) {
    return v.output(slot).dtype == want || bad_dtype(v.task.outputs[slot], v.output(slot), want, what);
  }
  bool compute_dtype(int slot, const char* what) {
    if (is_compute_dtype(v.input(slot).dtype)) return true;
    return fail(3, v.task.inputs[slot],
                text("%s has dtype %s, expected f32, f16 or bf16", what, dtype_name(v.input(slot).dtype)));
  }
  // Operand kinds: a cache or a state appears only where one is meant.
  bool plain_operands(const LastingSlots& lasting) {
    for (int i = 0; i < v.task.n_inputs; ++i) {
      const bool kept = is_kind("input", i, v.task.inputs[i], AMK_KIND_KV_CACHE, lasting.cache_inputs) &&
                        is_kind("input", i, v.task.inputs[i], AMK_KIND_STATE, lasting.state_inputs);
      if (!kept) return false;
    }
    for (int i = 0; i < v.task.n_outputs; ++i) {
      const bool kept = is_kind("output", i, v.task.outputs[i], AMK_KIND_KV_CACHE, lasting.cache_outputs) &&
                        is_kind("output", i, v.task.outputs[i], AMK_KIND_STATE, lasting.state_outputs);
      if (!kept) return false;
    }
    return true;
  }
  // The state that a task reads is the one that it writes.
  bool same_state(int input, int output) {
    return v.task.inputs[input] == v.task.outputs[output] ||
           fail(3, v.task.outputs[output],
                text("it reads the state of buffer %d and writes that of buffer %d, expected one buffer",
                     v.task.inputs[input], v.task.outputs[output]));
  }
  bool immutable(int slot, const char* what) {
    if (is_immutable(v.input_kind(slot))) return true;
    return fail(3, v.task.inputs[slot], text("%s must be a WEIGHT, CONST or IO_INPUT buffer", what));
  }
  bool positive(const char* name, int32_t value) {
    return value >= 1 || fail(4, -1, text("%s is %d, expected >= 1", name, value));
  }
  bool equal(const char* name, int64_t value, const char* what, int64_t want, int32_t buffer) {
    return value == want ||
           fail(4, buffer, text("%s is %lld, but %s is %lld", name, (long long)value, what, (long long)want));
  }
  // V5 for a tile: [first, first + count) lies in [0, limit). Wide arithmetic: any int32 values are fine here.
  bool within(const char* what, int64_t first, __int128 count, int64_t limit, int32_t buffer = -1) {
    if (first >= 0 && count >= 0 && first + count <= limit) return true;
    return fail(5, buffer,
                text("%s: elements [%lld, %lld) of %lld", what, (long long)first, (long long)(first + count),
                     (long long)limit));
  }
  // The same for the columns of an operand that has a row for each token.
  bool in_range(int slot, const char* what, int64_t first, __int128 count) {
    const amk_buffer_t& b = v.input(slot);
    return has_rows(b, v.task.inputs[slot], what) && within(what, first, count, b.numel / tokens, v.task.inputs[slot]);
  }
  bool out_range(int slot, const char* what, int64_t first, __int128 count) {
    const amk_buffer_t& b = v.output(slot);
    return has_rows(b, v.task.outputs[slot], what) &&
           within(what, first, count, b.numel / tokens, v.task.outputs[slot]);
  }
  // [B, W] where there are several tokens.
  bool has_rows(const amk_buffer_t& b, int32_t id, const char* what) {
    if (tokens == 1 || (b.rank == 2 && b.shape[0] == tokens)) return true;
    return fail(4, id,
                text("%s has shape %s, expected [%d, width]: a row for each token", what, dims(b).c_str(), tokens));
  }
  bool finite_positive(const char* name, float value) {
    return (std::isfinite(value) && value > 0) ||
           fail(4, -1, text("%s is %g, expected a finite number > 0", name, (double)value));
  }
  bool shape(const amk_buffer_t& b, int32_t id, const char* what, int rank, int64_t d0, int64_t d1, int64_t d2 = 0) {
    amk_buffer_t want{};
    want.rank = rank;
    want.shape[0] = d0, want.shape[1] = d1, want.shape[2] = d2;
    return same_shape(b, id, what, want);
  }
  // [d0, d1, d2], behind the tokens where there are several.
  bool partial(const amk_buffer_t& b, int32_t id, const char* what, int64_t d0, int64_t d1, int64_t d2) {
    if (tokens == 1) return shape(b, id, what, 3, d0, d1, d2);
    amk_buffer_t want{};
    want.rank = 4;
    want.shape[0] = tokens, want.shape[1] = d0, want.shape[2] = d1, want.shape[3] = d2;
    return same_shape(b, id, what, want);
  }
  // The width of an operand that has a row for each token.
  bool width_in(int slot, const char* what, int64_t want) {
    const amk_buffer_t& b = v.input(slot);
    return has_rows(b, v.task.inputs[slot], "input") && width(b, v.task.inputs[slot], what, want);
  }
  bool width_out(int slot, const char* what, int64_t want) {
    const amk_buffer_t& b = v.output(slot);
    return has_rows(b, v.task.outputs[slot], "output") && width(b, v.task.outputs[slot], what, want);
  }
  bool numel_in(int slot, const char* what, int64_t want) {
    return equal("numel", v.input(slot).numel, what, want, v.task.inputs[slot]);
  }
  bool numel_out(int slot, const char* what, int64_t want) {
    return equal("numel", v.output(slot).numel, what, want, v.task.outputs[slot]);
  }
  bool head_groups() {
    if (!(positive("n_heads", p.n_heads) && positive("n_kv_heads", p.n_kv_heads))) return false;
    return p.n_heads % p.n_kv_heads == 0 ||
           fail(4, -1, text("n_heads %d is not a multiple of n_kv_heads %d", p.n_heads, p.n_kv_heads));
  }
  bool even_head_dim() {
    return positive("head_dim", p.head_dim) &&
           (p.head_dim % 2 == 0 || fail(4, -1, text("head_dim is %d, expected an even number", p.head_dim)));
  }

  const TaskView& v;
  const amk_params_t& p;
  const int32_t tokens;

 private:
  static std::string dims(const amk_buffer_t& b) {
    std::string got = "[";
    for (int i = 0; i < b.rank && i < AMK_MAX_RANK; ++i) got += text(i ? ", %lld" : "%lld", (long long)b.shape[i]);
    return got + "]";
  }
  bool same_shape(const amk_buffer_t& b, int32_t id, const char* what, const amk_buffer_t& want) {
    if (b.rank == want.rank && std::equal(want.shape, want.shape + want.rank, b.shape)) return true;
    return fail(4, id, text("%s has shape %s, expected %s", what, dims(b).c_str(), dims(want).c_str()));
  }
  bool width(const amk_buffer_t& b, int32_t id, const char* what, int64_t want) {
    return equal(tokens == 1 ? "numel" : "the width", b.numel / tokens, what, want, id);
  }
  bool bad_dtype(int32_t buffer, const amk_buffer_t& b, int32_t want, const char* what) {
    return fail(3, buffer, text("%s has dtype %s, expected %s", what, dtype_name(b.dtype), dtype_name(want)));
  }
  bool is_kind(const char* side, int slot, int32_t buffer, int32_t kind, uint32_t wanted_slots) {
    const bool wanted = wanted_slots >> slot & 1;
    if ((v.bindings[buffer].kind == kind) == wanted) return true;
    const bool is_cache = kind == AMK_KIND_KV_CACHE;
    const char* what = is_cache ? "KV_CACHE" : "STATE";
    if (wanted) return fail(3, buffer, text("%s %d must be a %s buffer", side, slot, what));
    return fail(
        3, buffer,
        text("%s %d is a %s buffer; only %s may touch %s", side, slot, what,
             is_cache ? "attention and KV_APPEND" : "CAUSAL_CONV and GDN_DECODE", is_cache ? "the cache" : "a state"));
  }
  Problem* problem_;
};

// check_gdn.cpp: a gated delta net and the ops around it.
bool check_causal_conv(Checker& c);
bool check_gdn_decode(Checker& c);
bool check_gated_rmsnorm(Checker& c);
bool check_sigmoid_mul(Checker& c);

}  // namespace amk
