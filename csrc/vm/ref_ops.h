// The ops of the reference machine, one file per family (ref_<family>.cpp), and the one entry that dispatches to them.
// In: one task, the addresses of its operands, the position. Out: its declared writes and nothing else. An op never
// synchronises, never sees another task, and computes the same bits on every machine: sums run in a fixed number of
// lanes, products are not contracted, exp, sin and cos are taken in double and rounded once.
#pragma once

#include <cstdint>
#include <vector>

#include "amk.h"
#include "ops/op_spec.h"

namespace amk {

// Memory that a worker keeps from task to task, so that ops do not allocate in steady state.
class Scratch {
 public:
  enum Slot { kX, kQuery, kRows, kAngles, kParts, kSlotCount };
  float* floats(Slot slot, int64_t count) {
    if (count > static_cast<int64_t>(buffers_[slot].size())) buffers_[slot].resize(static_cast<size_t>(count));
    return buffers_[slot].data();
  }

 private:
  std::vector<float> buffers_[kSlotCount];
};

struct OpCall {
  TaskView view;
  const uint8_t* in[AMK_MAX_INPUTS];
  uint8_t* out[AMK_MAX_OUTPUTS];
  int32_t pos;  // of the first token
  Scratch& scratch;

  const amk_params_t& params() const { return view.task.params; }
  int32_t tokens() const { return op_tokens(view.task); }
  // The row of token t in an operand that has one for each.
  template <class T>
  const T* in_row(int slot, int32_t t) const {
    return reinterpret_cast<const T*>(in[slot]) + t * (view.input(slot).numel / tokens());
  }
  template <class T>
  T* out_row(int slot, int32_t t) const {
    return reinterpret_cast<T*>(out[slot]) + t * (view.output(slot).numel / tokens());
  }
  float norm_plus() const { return params().flags & AMK_FLAG_NORM_PLUS_ONE ? 1.0f : 0.0f; }  // what norm weights lack
};

// Runs a task that passed op_check. INVALID_ARGUMENT for a token outside its table; INTERNAL for an opcode without
// code.
void run_op(const OpCall& call);

void ref_copy(const OpCall& call);
void ref_add(const OpCall& call);
void ref_mul(const OpCall& call);
void ref_silu_mul(const OpCall& call);
void ref_embed(const OpCall& call);
void ref_rmsnorm(const OpCall& call);
void ref_gemv(const OpCall& call);
void ref_rope(const OpCall& call);
void ref_kv_append(const OpCall& call);
void ref_attention(const OpCall& call);
void ref_attention_combine(const OpCall& call);
void ref_argmax(const OpCall& call);
void ref_argmax_combine(const OpCall& call);
void ref_causal_conv(const OpCall& call);
void ref_gdn_decode(const OpCall& call);
void ref_gated_rmsnorm(const OpCall& call);
void ref_sigmoid_mul(const OpCall& call);

}  // namespace amk
