// Opcode -> op.
#pragma once

#include "attention.cuh"
#include "elementwise.cuh"
#include "embed.cuh"
#include "gemv.cuh"
#include "hybrid_ops.cuh"
#include "norm.cuh"
#include "rope.cuh"
#include "sample.cuh"
#include "test_faults.cuh"

namespace amk {

// False: the launch is over, leave. An opcode without code ends it, with -(op + 1) for the host.
template <int kThreads>
__device__ __forceinline__ bool run_op(const TaskContext& c) {
  static_assert(AMK_OP_SIGMOID_MUL == 24, "an opcode was added: dispatch it here (nvcc does not warn)");
  switch (c.task.op) {
    case AMK_OP_NOP: return c.await_inputs<kThreads>();
    case AMK_OP_COPY: return copy<kThreads>(c);
    case AMK_OP_EMBED: return embed<kThreads>(c);
    case AMK_OP_RMSNORM: return rmsnorm<kThreads>(c);
    case AMK_OP_GEMV_TILE: return gemv<kThreads>(c);
    case AMK_OP_ATTENTION_TILE: return attention<kThreads>(c);
    case AMK_OP_ROPE: return rope<kThreads>(c);
    case AMK_OP_SILU_MUL: return silu_mul<kThreads>(c);
    case AMK_OP_ADD: return add<kThreads>(c);
    case AMK_OP_MUL: return mul<kThreads>(c);
    case AMK_OP_KV_APPEND: return kv_append<kThreads>(c);
    case AMK_OP_SAMPLE_ARGMAX: return sample_argmax<kThreads>(c);
    case AMK_OP_ATTENTION_COMBINE: return attention_combine<kThreads>(c);
    case AMK_OP_ARGMAX_COMBINE: return argmax_combine<kThreads>(c);
    case AMK_OP_CAUSAL_CONV: return causal_conv<kThreads>(c);
    case AMK_OP_GDN_DECODE: return gdn_decode<kThreads>(c);
    case AMK_OP_GATED_RMSNORM: return gated_rmsnorm<kThreads>(c);
    case AMK_OP_SIGMOID_MUL: return sigmoid_mul<kThreads>(c);
    default:
      if (run_test_op<kThreads>(c)) return true;
      if (ptx::thread_id() == 0)
        raise_fault(c.machine.ledger, FaultKind::kUnknownOpcode, -(c.task.op + 1), c.task.task, -1, 0, 0);
      return false;
  }
}

}  // namespace amk
