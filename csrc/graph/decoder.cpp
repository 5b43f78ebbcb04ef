// The Llama family, one decode step: pre-norm blocks of grouped-query attention and a gated feed-forward network
// (Touvron et al. 2023, arXiv:2302.13971; Ainslie et al. 2023, arXiv:2305.13245; Shazeer 2020, arXiv:2002.05202),
// with the biases of Qwen2, the per-head query and key norms of Qwen3, and the output gate and the gated delta nets of
// Qwen3-Next (Yang et al. 2024, arXiv:2412.06464) where the model has them.
#include "graph/decoder.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/checked.h"
#include "base/dtype.h"
#include "base/error.h"

namespace amk {
namespace {

constexpr int32_t kMaxFfn = 1 << 24, kMaxHeads = 1 << 16, kMaxHeadDim = 1 << 12;
constexpr int32_t kAllFeatures = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS | AMK_MODEL_QK_NORM |
                                 AMK_MODEL_TIED_HEAD | AMK_MODEL_ATTENTION_GATE | AMK_MODEL_NORM_PLUS_ONE;
constexpr float kL2Eps = 1e-6f;

void check_range(const char* field, int64_t value, int64_t low, int64_t high) {
  AMK_CHECK(value >= low && value <= high, AMK_ERR_INVALID_ARGUMENT, "model.%s is %lld, allowed %lld..%lld", field,
            (long long)value, (long long)low, (long long)high);
}

// Kernels load rows of weights AMK_VECTOR_BYTES at a time (V5).
void check_row(const char* field, int32_t elements, int32_t dtype) {
  const int64_t bytes = storage_bytes(dtype, elements);
  AMK_CHECK(bytes % AMK_VECTOR_BYTES == 0, AMK_ERR_UNSUPPORTED,
            "model.%s is %d: a row of %lld bytes in %s, expected a multiple of %d bytes", field, elements,
            (long long)bytes, dtype_name(dtype), AMK_VECTOR_BYTES);
}

// A row of every quantised matrix is whole groups.
void check_groups(const amk_model_t& m) {
  const int32_t group = m.weight_group;
  if (group == 0) return;
  AMK_CHECK(group == AMK_MIN_WEIGHT_GROUP || group == AMK_MAX_WEIGHT_GROUP, AMK_ERR_INVALID_ARGUMENT,
            "model.weight_group is %d, allowed 0 (not quantised), %d or %d", group, AMK_MIN_WEIGHT_GROUP,
            AMK_MAX_WEIGHT_GROUP);
  const auto whole = [&](const char* what, int64_t columns) {
    AMK_CHECK(columns % group == 0, AMK_ERR_UNSUPPORTED, "model.%s is %lld: a quantised row is no whole groups of %d",
              what, (long long)columns, group);
  };
  whole("hidden", m.hidden);
  whole("n_heads times head_dim", int64_t{m.n_heads} * m.head_dim);
  whole("ffn", m.ffn);
  whole("linear_value_heads times linear_head_dim", int64_t{m.linear_value_heads} * m.linear_head_dim);
}

void check_tensor_bytes(const char* what, int64_t a, int64_t b, int64_t c, int32_t dtype) {
  int64_t numel = 0, bytes = 0;
  AMK_CHECK(
      checked_mul(a, b, &numel) && checked_mul(numel, c, &numel) && checked_mul(numel, dtype_bits(dtype) / 8, &bytes),
      AMK_ERR_INVALID_ARGUMENT, "model: the bytes of %s overflow 64 bits", what);
}

void check_linear_layers(const amk_model_t& m) {
  if (!m.full_attention_interval && !m.linear_key_heads && !m.linear_value_heads && !m.linear_head_dim && !m.conv_width)
    return;
  check_range("full_attention_interval", m.full_attention_interval, 1, INT32_MAX);
  check_range("linear_value_heads", m.linear_value_heads, 1, kMaxHeads);
  check_range("linear_key_heads", m.linear_key_heads, 1, m.linear_value_heads);
  check_range("linear_head_dim", m.linear_head_dim, 1, kMaxHeadDim);
  AMK_CHECK(m.conv_width >= 2 && m.conv_width <= AMK_MAX_CONV_WIDTH, AMK_ERR_UNSUPPORTED,
            "model.conv_width is %d, supported 2..%d", m.conv_width, AMK_MAX_CONV_WIDTH);
  AMK_CHECK(m.linear_value_heads % m.linear_key_heads == 0, AMK_ERR_UNSUPPORTED,
            "model.linear_value_heads is %d, which is not a multiple of model.linear_key_heads %d",
            m.linear_value_heads, m.linear_key_heads);
  check_row("linear_head_dim", m.linear_head_dim, m.dtype);
  const int64_t hq = m.linear_key_heads, hv = m.linear_value_heads, e = m.linear_head_dim;
  check_range("linear_key_heads and linear_value_heads: rows of w_gdn_in", 2 * (hq + hv) * e + 2 * hv, 1, INT32_MAX);
  check_tensor_bytes("w_gdn_in", 2 * (hq + hv) * e + 2 * hv, m.hidden, 1, m.dtype);
  check_tensor_bytes("a state", hv, e, e, AMK_DTYPE_F32);
}

void check_batch(const amk_model_t& m) {
  AMK_CHECK(m.batch >= 0 && m.batch <= AMK_MAX_BATCH, AMK_ERR_UNSUPPORTED,
            "model.batch is %d, supported 1..%d consecutive tokens of one sequence (0 is 1)", m.batch, AMK_MAX_BATCH);
  if (m.batch <= 1) return;
  AMK_CHECK(m.batch <= m.max_seq, AMK_ERR_INVALID_ARGUMENT, "model.batch is %d tokens, but model.max_seq is %d",
            m.batch, m.max_seq);
  AMK_CHECK(m.full_attention_interval == 0, AMK_ERR_UNSUPPORTED,
            "model.batch is %d with full_attention_interval %d: a hybrid decodes one token a step", m.batch,
            m.full_attention_interval);
  AMK_CHECK((m.features & AMK_MODEL_ATTENTION_GATE) == 0, AMK_ERR_UNSUPPORTED,
            "model.batch is %d with features 0x%x: an output gate is modelled for one token a step", m.batch,
            m.features);
}

void check_model(const amk_model_t& m) {
  AMK_CHECK(m.struct_size >= sizeof m, AMK_ERR_INVALID_ARGUMENT, "model.struct_size is %llu, expected %zu",
            (unsigned long long)m.struct_size, sizeof m);
  AMK_CHECK(dtype_bits(m.dtype) != 0, AMK_ERR_INVALID_ARGUMENT, "model.dtype is %d, which names no dtype", m.dtype);
  AMK_CHECK(is_compute_dtype(m.dtype), AMK_ERR_UNSUPPORTED, "model.dtype is %s, supported: f32, f16, bf16",
            dtype_name(m.dtype));
  check_range("layers", m.layers, 1, AMK_MAX_LAYERS);
  check_range("hidden", m.hidden, 1, AMK_MAX_HIDDEN);
  check_range("n_heads", m.n_heads, 1, kMaxHeads);
  check_range("n_kv_heads", m.n_kv_heads, 1, m.n_heads);
  check_range("head_dim", m.head_dim, 1, kMaxHeadDim);
  check_range("ffn", m.ffn, 1, kMaxFfn);
  check_range("vocab", m.vocab, 1, AMK_MAX_VOCAB);
  check_range("max_seq", m.max_seq, 1, AMK_MAX_SEQ);
  AMK_CHECK((m.features & ~kAllFeatures) == 0, AMK_ERR_INVALID_ARGUMENT, "model.features is 0x%x, allowed bits 0x%x",
            m.features, kAllFeatures);
  AMK_CHECK(m.n_heads % m.n_kv_heads == 0, AMK_ERR_UNSUPPORTED,
            "model.n_heads is %d, which is not a multiple of model.n_kv_heads %d", m.n_heads, m.n_kv_heads);
  AMK_CHECK(m.head_dim % 2 == 0, AMK_ERR_UNSUPPORTED, "model.head_dim is %d: a rotation needs an even one", m.head_dim);
  AMK_CHECK(std::isfinite(m.eps) && m.eps > 0, AMK_ERR_INVALID_ARGUMENT, "model.eps is %g, expected finite and > 0",
            (double)m.eps);
  check_row("hidden", m.hidden, m.dtype);
  check_row("ffn", m.ffn, m.dtype);
  check_row("head_dim", m.head_dim, m.dtype);
  const int64_t q = m.n_heads, g = m.n_kv_heads, d = m.head_dim;
  // The row ranges of the concatenated weights are 32-bit parameters of tasks.
  const int64_t heads = (m.features & AMK_MODEL_ATTENTION_GATE ? 2 * q : q) + 2 * g;
  check_range("n_heads and n_kv_heads: rows of wqkv", heads * d, 1, INT32_MAX);
  check_tensor_bytes("wqkv", heads, d, m.hidden, m.dtype);
  check_tensor_bytes("w_gate_up", 2, m.ffn, m.hidden, m.dtype);
  check_tensor_bytes("the embedding", m.vocab, m.hidden, 1, m.dtype);
  check_tensor_bytes("a cache", g, m.max_seq, d, m.dtype);
  check_linear_layers(m);
  check_groups(m);
  check_batch(m);
}

class DecoderBuilder {
 public:
  explicit DecoderBuilder(const amk_model_t& model) : m_(model) {
    graph_.dtype = m_.dtype;
    graph_.hidden = m_.hidden;
    graph_.n_heads = m_.n_heads;
    graph_.n_kv_heads = m_.n_kv_heads;
    graph_.head_dim = m_.head_dim;
    graph_.ffn = m_.ffn;
    graph_.vocab = m_.vocab;
    graph_.max_seq = m_.max_seq;
    graph_.linear_key_heads = m_.linear_key_heads;
    graph_.linear_value_heads = m_.linear_value_heads;
    graph_.linear_head_dim = m_.linear_head_dim;
    graph_.conv_width = m_.conv_width;
    graph_.eps = m_.eps;
    graph_.l2_eps = kL2Eps;
    graph_.norm_plus_one = has(AMK_MODEL_NORM_PLUS_ONE);
    graph_.weight_group = m_.weight_group;
    graph_.batch = std::max(m_.batch, 1);
  }

  Graph build() {
    const int32_t token = graph_.add_tensor("token", AMK_KIND_IO_INPUT, AMK_DTYPE_I32, {graph_.batch});
    const int32_t embed = weight("embed", {m_.vocab, m_.hidden});
    inv_freq_ = graph_.add_tensor("rope_inv_freq", AMK_KIND_CONST, AMK_DTYPE_F32, {m_.head_dim / 2});
    int32_t x = activation("x", m_.hidden);
    Node& node = push(NodeKind::kEmbed, "embed", token, x);
    node.weight = embed;
    for (int32_t i = 0; i < m_.layers; ++i) {
      layer_ = "layers." + std::to_string(i) + ".";
      const bool is_linear = m_.full_attention_interval > 0 && (i + 1) % m_.full_attention_interval != 0;
      x = feed_forward(is_linear ? linear_attention(x) : attention(x, i));
    }
    layer_.clear();
    head(x, embed);
    graph_.drop_unused_tensors();  // the table of a model that turns no head
    return std::move(graph_);
  }

 private:
  bool has(amk_model_feature feature) const { return m_.features & feature; }

  int32_t weight(const char* name, std::initializer_list<int64_t> shape) {
    return graph_.add_tensor(layer_ + name, AMK_KIND_WEIGHT, m_.dtype, shape);
  }
  // A matrix of a linear and, where the model is quantised, its scales.
  struct Matrix {
    int32_t weight, scale;
  };
  Matrix matrix(const char* name, int64_t rows, int64_t columns) {
    if (m_.weight_group == 0) return {weight(name, {rows, columns}), kNoTensor};
    return {graph_.add_tensor(layer_ + name, AMK_KIND_WEIGHT, AMK_DTYPE_I8, {rows, columns}),
            weight((std::string(name) + "_scale").c_str(), {rows, columns / m_.weight_group})};
  }
  int32_t activation(const char* name, int64_t elements) {
    return per_token(layer_ + name, AMK_KIND_ACTIVATION, m_.dtype, elements);
  }
  int32_t per_token(const std::string& name, int32_t kind, int32_t dtype, int64_t elements) {
    if (graph_.batch == 1) return graph_.add_tensor(name, kind, dtype, {elements});
    return graph_.add_tensor(name, kind, dtype, {graph_.batch, elements});
  }
  // The reference holds until the next push.
  Node& push(NodeKind kind, const char* name, int32_t x, int32_t out) {
    Node node{};
    node.kind = kind;
    node.name = layer_ + name;
    node.x = x;
    node.out = out;
    graph_.nodes.push_back(std::move(node));
    return graph_.nodes.back();
  }
  void linear(const char* name, int32_t x, Matrix matrix, int32_t bias, int32_t out, int32_t row_first,
              int32_t row_count) {
    Node& node = push(NodeKind::kLinear, name, x, out);
    node.weight = matrix.weight;
    node.scale = matrix.scale;
    node.bias = bias;
    node.row_first = row_first;
    node.row_count = row_count;
  }
  int32_t rmsnorm(const char* name, int32_t x, const char* out_name) {
    const int32_t norm = weight(name, {m_.hidden});
    const int32_t out = activation(out_name, m_.hidden);
    push(NodeKind::kRmsNorm, name, x, out).norm = norm;
    return out;
  }
  int32_t add(const char* name, int32_t x, int32_t residual, const char* out_name) {
    const int32_t out = activation(out_name, m_.hidden);
    push(NodeKind::kAdd, name, x, out).residual = residual;
    return out;
  }

  int32_t attention(int32_t x, int32_t layer) {
    const int32_t d = m_.head_dim, q_rows = m_.n_heads * d, kv_rows = m_.n_kv_heads * d;
    const int32_t normed = rmsnorm("attn_norm", x, "attn_in");
    const bool gated = has(AMK_MODEL_ATTENTION_GATE);
    const int32_t gate_first = q_rows + 2 * kv_rows, rows = gate_first + (gated ? q_rows : 0);
    const Matrix wqkv = matrix("wqkv", rows, m_.hidden);
    const int32_t bqkv = has(AMK_MODEL_QKV_BIAS) ? weight("bqkv", {rows}) : kNoTensor;
    const int32_t qkv = activation("qkv", rows);
    linear("q", normed, wqkv, bqkv, qkv, 0, q_rows);
    linear("k", normed, wqkv, bqkv, qkv, q_rows, kv_rows);
    linear("v", normed, wqkv, bqkv, qkv, q_rows + kv_rows, kv_rows);
    if (gated) linear("attn_gate", normed, wqkv, bqkv, qkv, gate_first, q_rows);

    const bool qk_norm = has(AMK_MODEL_QK_NORM);
    const int32_t q_rotated = activation("q_rotated", q_rows), k_rotated = activation("k_rotated", kv_rows);
    const int32_t q_norm = qk_norm ? weight("q_norm", {d}) : kNoTensor;
    const int32_t k_norm = qk_norm ? weight("k_norm", {d}) : kNoTensor;
    rotate("rope_q", qkv, 0, m_.n_heads, q_norm, q_rotated);
    rotate("rope_k", qkv, q_rows, m_.n_kv_heads, k_norm, k_rotated);
    const int32_t k_cache = cache(layer, "k"), v_cache = cache(layer, "v");
    push(NodeKind::kKvAppend, "append_k", k_rotated, k_cache).heads = m_.n_kv_heads;
    Node& append_v = push(NodeKind::kKvAppend, "append_v", qkv, v_cache);
    append_v.heads = m_.n_kv_heads;
    append_v.x_first = q_rows + kv_rows;

    int32_t attended = activation("attended", q_rows);
    Node& node = push(NodeKind::kAttention, "attention", q_rotated, attended);
    node.k_cache = k_cache;
    node.v_cache = v_cache;
    node.heads = m_.n_heads;
    if (gated) {
      const int32_t out = activation("attended_gated", q_rows);
      Node& gate = push(NodeKind::kSigmoidMul, "attn_gate_mul", attended, out);
      gate.gates = qkv;
      gate.x_first = gate_first;
      attended = out;
    }

    const Matrix wo = matrix("wo", m_.hidden, q_rows);
    const int32_t bo = has(AMK_MODEL_O_BIAS) ? weight("bo", {m_.hidden}) : kNoTensor;
    const int32_t projected = activation("attn_out", m_.hidden);
    linear("o", attended, wo, bo, projected, 0, m_.hidden);
    return add("o_add", projected, x, "x_mid");
  }
  // Rows of gdn_in: q, k, v (which the convolution sees), z, b, a.
  int32_t linear_attention(int32_t x) {
    const int32_t e = m_.linear_head_dim, values = m_.linear_value_heads * e;
    const int32_t channels = 2 * m_.linear_key_heads * e + values, gates_first = channels + values;
    const int32_t rows = gates_first + 2 * m_.linear_value_heads;
    const int32_t normed = rmsnorm("attn_norm", x, "attn_in");
    const Matrix w_in = matrix("w_gdn_in", rows, m_.hidden);
    const int32_t in = activation("gdn_in", rows);
    linear("gdn_in", normed, w_in, kNoTensor, in, 0, rows);

    const int32_t conv_w = weight("conv_w", {channels, m_.conv_width});
    const int32_t convolved = activation("gdn_conv", channels);
    Node& conv = push(NodeKind::kCausalConv, "gdn_conv", in, convolved);
    conv.weight = conv_w;
    conv.state = state("conv_state", m_.dtype, {channels, m_.conv_width - 1});

    const int32_t attended = activation("gdn_attended", values);
    const int32_t a_log = per_head("a_log"), dt_bias = per_head("dt_bias");
    Node& gdn = push(NodeKind::kGdn, "gdn", convolved, attended);
    gdn.gates = in;
    gdn.x_first = gates_first;
    gdn.a_log = a_log;
    gdn.dt_bias = dt_bias;
    gdn.state = state("gdn_state", AMK_DTYPE_F32, {m_.linear_value_heads, e, e});

    const int32_t gdn_norm = weight("gdn_norm", {e});
    const int32_t gated = activation("gdn_gated", values);
    Node& norm = push(NodeKind::kGatedNorm, "gdn_norm", attended, gated);
    norm.norm = gdn_norm;
    norm.gates = in;
    norm.x_first = channels;

    const Matrix w_out = matrix("w_gdn_out", m_.hidden, values);
    const int32_t projected = activation("gdn_out", m_.hidden);
    linear("gdn_out", gated, w_out, kNoTensor, projected, 0, m_.hidden);
    return add("gdn_out_add", projected, x, "x_mid");
  }
  int32_t per_head(const char* name) {
    return graph_.add_tensor(layer_ + name, AMK_KIND_WEIGHT, AMK_DTYPE_F32, {m_.linear_value_heads});
  }
  int32_t state(const char* name, int32_t dtype, std::initializer_list<int64_t> shape) {
    return graph_.add_tensor(layer_ + name, AMK_KIND_STATE, dtype, shape);
  }
  void rotate(const char* name, int32_t x, int32_t x_first, int32_t heads, int32_t norm, int32_t out) {
    Node& node = push(NodeKind::kRope, name, x, out);
    node.inv_freq = inv_freq_;
    node.norm = norm;
    node.x_first = x_first;
    node.heads = heads;
  }
  int32_t cache(int32_t layer, const char* which) {
    return graph_.add_tensor("kv." + std::to_string(layer) + "." + which, AMK_KIND_KV_CACHE, m_.dtype,
                             {m_.n_kv_heads, m_.max_seq, m_.head_dim});
  }

  int32_t feed_forward(int32_t x) {
    const bool biased = has(AMK_MODEL_MLP_BIAS);
    const int32_t normed = rmsnorm("mlp_norm", x, "mlp_in");
    const Matrix w_gate_up = matrix("w_gate_up", 2 * int64_t{m_.ffn}, m_.hidden);
    const int32_t b_gate_up = biased ? weight("b_gate_up", {2 * int64_t{m_.ffn}}) : kNoTensor;
    const int32_t gate_up = activation("gate_up", 2 * int64_t{m_.ffn});
    linear("gate", normed, w_gate_up, b_gate_up, gate_up, 0, m_.ffn);
    linear("up", normed, w_gate_up, b_gate_up, gate_up, m_.ffn, m_.ffn);
    const int32_t act = activation("act", m_.ffn);
    push(NodeKind::kSiluMul, "silu_mul", gate_up, act);
    const Matrix w_down = matrix("w_down", m_.hidden, m_.ffn);
    const int32_t b_down = biased ? weight("b_down", {m_.hidden}) : kNoTensor;
    const int32_t projected = activation("mlp_out", m_.hidden);
    linear("down", act, w_down, b_down, projected, 0, m_.hidden);
    return add("down_add", projected, x, "x");
  }

  void head(int32_t x, int32_t embed) {
    const int32_t normed = rmsnorm("final_norm", x, "head_in");
    const Matrix lm_head = has(AMK_MODEL_TIED_HEAD) ? Matrix{embed, kNoTensor} : matrix("lm_head", m_.vocab, m_.hidden);
    const int32_t logits = per_token("logits", AMK_KIND_IO_OUTPUT, AMK_DTYPE_F32, m_.vocab);
    linear("lm_head", normed, lm_head, kNoTensor, logits, 0, m_.vocab);
    const int32_t next = graph_.add_tensor("next_token", AMK_KIND_IO_OUTPUT, AMK_DTYPE_I32, {graph_.batch});
    push(NodeKind::kArgmax, "argmax", logits, next);
  }

  const amk_model_t& m_;
  Graph graph_;
  std::string layer_;
  int32_t inv_freq_ = kNoTensor;
};

}  // namespace

Graph build_decoder(const amk_model_t& model) {
  check_model(model);
  return DecoderBuilder(model).build();
}

}  // namespace amk
