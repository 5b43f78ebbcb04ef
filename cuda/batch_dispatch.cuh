// Opcode -> op of several tokens. Those of hybrid models know one token only, and the host refuses a program that has
// both.
#pragma once

#include "batch_attention.cuh"
#include "batch_gemv.cuh"
#include "batch_ops.cuh"
#include "norm.cuh"
#include "test_faults.cuh"

namespace amk {

// As run_op.
template <int kThreads>
__device__ __forceinline__ bool run_batch_op(const BatchContext& c) {
  static_assert(AMK_OP_SIGMOID_MUL == 24, "an opcode was added: dispatch it here (nvcc does not warn)");
  switch (c.task.op) {
    case AMK_OP_NOP: return c.template await_inputs<kThreads>();
    case AMK_OP_COPY: return batch_copy<kThreads>(c);
    case AMK_OP_EMBED: return batch_embed<kThreads>(c);
    case AMK_OP_RMSNORM: return rmsnorm<kThreads>(c);
    case AMK_OP_GEMV_TILE: return batch_gemv<kThreads>(c);
    case AMK_OP_ATTENTION_TILE: return batch_attention<kThreads>(c);
    case AMK_OP_ROPE:
    case AMK_OP_KV_APPEND: return batch_heads<kThreads>(c);
    case AMK_OP_SILU_MUL: return batch_pairs<kThreads>(c, [](float a, float b) { return silu(a) * b; });
    case AMK_OP_ADD: return batch_pairs<kThreads>(c, [](float a, float b) { return a + b; });
    case AMK_OP_MUL: return batch_pairs<kThreads>(c, [](float a, float b) { return a * b; });
    case AMK_OP_SAMPLE_ARGMAX: return batch_argmax<kThreads>(c);
    case AMK_OP_ATTENTION_COMBINE: return batch_attention_combine<kThreads>(c);
    case AMK_OP_ARGMAX_COMBINE: return batch_argmax_combine<kThreads>(c);
    default:
      if (run_test_op<kThreads>(c)) return true;
      if (threadIdx.x == 0)
        raise_fault(c.machine.ledger, FaultKind::kUnknownOpcode, -(c.task.op + 1), c.task.task, -1, 0, 0);
      return false;
  }
}

}  // namespace amk
