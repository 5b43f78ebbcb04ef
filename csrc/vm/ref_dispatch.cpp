// Opcode -> op.
#include "base/error.h"
#include "vm/ref_ops.h"

namespace amk {

void run_op(const OpCall& call) {
  static_assert(AMK_OP_SIGMOID_MUL == 24, "an opcode was added: dispatch it here");
  switch (call.view.task.op) {
    case AMK_OP_NOP: return;
    case AMK_OP_COPY: return ref_copy(call);
    case AMK_OP_EMBED: return ref_embed(call);
    case AMK_OP_RMSNORM: return ref_rmsnorm(call);
    case AMK_OP_GEMV_TILE: return ref_gemv(call);
    case AMK_OP_ATTENTION_TILE: return ref_attention(call);
    case AMK_OP_ROPE: return ref_rope(call);
    case AMK_OP_SILU_MUL: return ref_silu_mul(call);
    case AMK_OP_ADD: return ref_add(call);
    case AMK_OP_MUL: return ref_mul(call);
    case AMK_OP_KV_APPEND: return ref_kv_append(call);
    case AMK_OP_SAMPLE_ARGMAX: return ref_argmax(call);
    case AMK_OP_ATTENTION_COMBINE: return ref_attention_combine(call);
    case AMK_OP_ARGMAX_COMBINE: return ref_argmax_combine(call);
    case AMK_OP_CAUSAL_CONV: return ref_causal_conv(call);
    case AMK_OP_GDN_DECODE: return ref_gdn_decode(call);
    case AMK_OP_GATED_RMSNORM: return ref_gated_rmsnorm(call);
    case AMK_OP_SIGMOID_MUL: return ref_sigmoid_mul(call);
    default: throw Error(AMK_ERR_INTERNAL, text("opcode %d has no code in the reference machine", call.view.task.op));
  }
}

}  // namespace amk
