// Graph: what one decode step computes, as nodes over named tensors. No tiles, no SMs, no addresses.
// In: built by graph/decoder.cpp. Out: read (and fused, on a copy) by csrc/lower. It must never know a schedule.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "amk.h"

namespace amk {

// A row-major tensor. Weights, constants, the cache, inputs and outputs are bound from outside by name.
struct Tensor {
  std::string name;
  int32_t kind = AMK_KIND_ACTIVATION;
  int32_t dtype = AMK_DTYPE_F32;
  int32_t rank = 0;
  std::array<int64_t, AMK_MAX_RANK> shape{};
  int64_t width() const { return shape[rank - 1]; }  // of a vector, or of the row of each token
};

enum class NodeKind : uint8_t {
  kEmbed,      // out [H] = weight[token x, :]; this and all below for each token of the step
  kRmsNorm,    // out = normalise(x) * norm
  kLinear,     // out[r] = weight[r, :] . x for the rows [row_first, row_first + row_count)
  kRope,       // out = rotate(x), `heads` heads from element x_first of x
  kKvAppend,   // the token's row of every kv head of the cache `out` = x, from element x_first of x
  kAttention,  // out = attention of the rotated query x over k_cache and v_cache; with inv_freq x is the raw q, k and v
  kCausalConv,  // out [C] = silu of the short convolution of x[x_first ...] and what `state` kept of it; state moves on
  kGdn,         // out = linear attention of x (q, k and v of all heads) with ba at x_first of `gates`; state moves on
  kGatedNorm,   // out = normalise(each head of x) * norm * silu(gates[x_first + i])
  kSigmoidMul,  // out[i] = x[i] * sigmoid(gates[x_first + i])
  kSiluMul,     // out[i] = silu(x[i]) * x[F + i]
  kAdd,         // out = residual + x
  kArgmax       // out = index of the largest of x
};

constexpr int32_t kNoTensor = -1;

// Operands are tensor ids; one that is kNoTensor is not part of the computation. `norm`, `bias` and `residual` come
// from the model (bias, a head norm before a rotation) or from a fusion.
struct Node {
  NodeKind kind;
  std::string name;  // "layers.3.gate"; the label of its tasks
  int32_t x = kNoTensor, weight = kNoTensor, out = kNoTensor;
  int32_t k_cache = kNoTensor, v_cache = kNoTensor;
  int32_t inv_freq = kNoTensor;  // kRope; kKvAppend and kAttention that rotate first
  int32_t norm = kNoTensor;      // x is RMS-normalised first: all of it, or each head
  int32_t scale = kNoTensor;     // kLinear: of a quantised weight
  int32_t k_norm = kNoTensor;    // kAttention that rotates first: of the key, where norm is of the queries
  int32_t gates = kNoTensor;     // kGdn (b, then a), kGatedNorm (z), kSigmoidMul
  int32_t a_log = kNoTensor, dt_bias = kNoTensor;  // kGdn
  int32_t state = kNoTensor;                       // kCausalConv, kGdn: read, and written where it was read
  int32_t bias = kNoTensor;
  int32_t residual = kNoTensor;  // kAdd; kLinear that adds it
  bool silu_pair = false;        // kLinear: row r of the gate half with row r of the up half
  int32_t row_first = 0, row_count = 0;
  int32_t x_first = 0, heads = 0;
};

// Dimension letters as in amk.h.
struct Graph {
  int32_t dtype = AMK_DTYPE_F32;
  int32_t hidden = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0, max_seq = 0;
  int32_t linear_key_heads = 0, linear_value_heads = 0, linear_head_dim = 0, conv_width = 0;
  int32_t batch = 1;           // B, tokens of the step: with more than one, activations are [B, width]
  int32_t weight_group = 0;    // of the quantised weights; 0: none are
  float eps = 0, l2_eps = 0;   // of the norms; of q and k in linear attention
  bool norm_plus_one = false;  // norm weights are used as 1 + w, except a kGatedNorm's
  std::vector<Tensor> tensors;
  std::vector<Node> nodes;  // in an order of computation: producers first

  int32_t add_tensor(std::string name, int32_t kind, int32_t dtype, std::initializer_list<int64_t> shape);
  // How many operands read each tensor.
  std::vector<int32_t> reader_counts() const;
  // Forgets the tensors that no node names, and renumbers the rest.
  void drop_unused_tensors();
};

// The tensors a node reads: fn(id) for each, a reference where the node is not const.
template <class N, class Fn>
void for_inputs(N& node, Fn fn) {
  for (auto* id : {&node.x, &node.weight, &node.scale, &node.k_cache, &node.v_cache, &node.inv_freq, &node.norm,
                   &node.k_norm, &node.gates, &node.a_log, &node.dt_bias, &node.state, &node.bias, &node.residual})
    if (*id != kNoTensor) fn(*id);
}

}  // namespace amk
