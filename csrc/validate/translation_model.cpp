#include "validate/translation_model.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/dtype.h"
#include "base/error.h"

namespace amk {
namespace {

constexpr int32_t kMaxDim = 1 << 24;  // heads, head width, feed-forward width: products of two then fit 64 bits

enum Scope : uint8_t { kNone, kModel, kLayer };

struct WhatRow {
  What what;
  Scope scope;
  const char* name;
};

// One row per What, in its order.
constexpr WhatRow kRows[] = {
    {What::kUnknown, kNone, "nothing that the model has"},
    {What::kRefused, kNone, "a refused result"},
    {What::kToken, kModel, "token"},
    {What::kEmbed, kModel, "embed"},
    {What::kInvFreq, kModel, "rope_inv_freq"},
    {What::kFinalNorm, kModel, "final_norm"},
    {What::kLmHead, kModel, "lm_head"},
    {What::kLmHeadScale, kModel, "lm_head_scale"},
    {What::kAttnNorm, kLayer, "attn_norm"},
    {What::kWqkv, kLayer, "wqkv"},
    {What::kBqkv, kLayer, "bqkv"},
    {What::kQNorm, kLayer, "q_norm"},
    {What::kKNorm, kLayer, "k_norm"},
    {What::kWo, kLayer, "wo"},
    {What::kBo, kLayer, "bo"},
    {What::kMlpNorm, kLayer, "mlp_norm"},
    {What::kWGateUp, kLayer, "w_gate_up"},
    {What::kBGateUp, kLayer, "b_gate_up"},
    {What::kWDown, kLayer, "w_down"},
    {What::kBDown, kLayer, "b_down"},
    {What::kWGdnIn, kLayer, "w_gdn_in"},
    {What::kConvW, kLayer, "conv_w"},
    {What::kALog, kLayer, "a_log"},
    {What::kDtBias, kLayer, "dt_bias"},
    {What::kGdnNorm, kLayer, "gdn_norm"},
    {What::kWGdnOut, kLayer, "w_gdn_out"},
    {What::kWqkvScale, kLayer, "wqkv_scale"},
    {What::kWoScale, kLayer, "wo_scale"},
    {What::kWGateUpScale, kLayer, "w_gate_up_scale"},
    {What::kWDownScale, kLayer, "w_down_scale"},
    {What::kWGdnInScale, kLayer, "w_gdn_in_scale"},
    {What::kWGdnOutScale, kLayer, "w_gdn_out_scale"},
    {What::kKCache, kLayer, "k"},
    {What::kVCache, kLayer, "v"},
    {What::kConvState, kLayer, "conv_state"},
    {What::kGdnState, kLayer, "gdn_state"},
    {What::kX, kLayer, "x"},
    {What::kAttnIn, kLayer, "attn_in"},
    {What::kQkv, kLayer, "qkv"},
    {What::kQNormed, kLayer, "q_normed"},
    {What::kKNormed, kLayer, "k_normed"},
    {What::kQRotated, kLayer, "q_rotated"},
    {What::kKRotated, kLayer, "k_rotated"},
    {What::kPartO, kLayer, "attention.part_o"},
    {What::kPartMl, kLayer, "attention.part_ml"},
    {What::kAttended, kLayer, "attended"},
    {What::kAttendedGated, kLayer, "attended_gated"},
    {What::kAttnOut, kLayer, "attn_out"},
    {What::kGdnIn, kLayer, "gdn_in"},
    {What::kGdnConv, kLayer, "gdn_conv"},
    {What::kGdnAttended, kLayer, "gdn_attended"},
    {What::kGdnGated, kLayer, "gdn_gated"},
    {What::kGdnOut, kLayer, "gdn_out"},
    {What::kConvStateNext, kLayer, "conv_state after the step"},
    {What::kGdnStateNext, kLayer, "gdn_state after the step"},
    {What::kXMid, kLayer, "x_mid"},
    {What::kMlpIn, kLayer, "mlp_in"},
    {What::kGateUp, kLayer, "gate_up"},
    {What::kAct, kLayer, "act"},
    {What::kMlpOut, kLayer, "mlp_out"},
    {What::kHeadIn, kModel, "head_in"},
    {What::kLogits, kModel, "logits"},
    {What::kBestValue, kModel, "best_value"},
    {What::kBestIndex, kModel, "best_index"},
    {What::kNextToken, kModel, "next_token"},
};
static_assert(sizeof(kRows) / sizeof(kRows[0]) == kWhatCount, "a value was added: give it its row here");

constexpr bool rows_are_in_order() {
  for (int i = 0; i < kWhatCount; ++i)
    if (static_cast<int>(kRows[i].what) != i) return false;
  return true;
}
static_assert(rows_are_in_order());

void check_range(const char* field, int64_t value, int64_t low, int64_t high) {
  AMK_CHECK(value >= low && value <= high, AMK_ERR_INVALID_ARGUMENT, "model.%s is %lld, allowed %lld..%lld", field,
            (long long)value, (long long)low, (long long)high);
}

// "7.rest" -> 7, and the rest in *tail. -1 when the text does not start with one canonical number and a dot.
int32_t take_layer(std::string_view text, std::string_view* tail) {
  int32_t layer = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  const size_t digits = static_cast<size_t>(end - text.data());
  if (error != std::errc() || layer < 0 || digits >= text.size() || *end != '.') return -1;
  if (text[0] == '-' || (digits > 1 && text[0] == '0')) return -1;
  *tail = text.substr(digits + 1);
  return layer;
}

What find_what(std::string_view name, Scope scope, What first, What last) {
  for (int i = static_cast<int>(first); i <= static_cast<int>(last); ++i)
    if (kRows[i].scope == scope && name == kRows[i].name) return kRows[i].what;
  return What::kUnknown;
}

}  // namespace

Decoder::Decoder(const amk_model_t& model) : m_(model) {
  m_.batch = std::max(m_.batch, 1);
  AMK_CHECK(is_compute_dtype(m_.dtype), AMK_ERR_INVALID_ARGUMENT, "model.dtype is %s, expected f32, f16 or bf16",
            dtype_name(m_.dtype));
  check_range("layers", m_.layers, 1, AMK_MAX_LAYERS);
  check_range("hidden", m_.hidden, 1, AMK_MAX_HIDDEN);
  check_range("n_heads", m_.n_heads, 1, kMaxDim);
  check_range("n_kv_heads", m_.n_kv_heads, 1, m_.n_heads);
  check_range("head_dim", m_.head_dim, 2, kMaxDim);
  check_range("ffn", m_.ffn, 1, kMaxDim);
  check_range("vocab", m_.vocab, 1, AMK_MAX_VOCAB);
  check_range("max_seq", m_.max_seq, 1, AMK_MAX_SEQ);
  AMK_CHECK(m_.n_heads % m_.n_kv_heads == 0, AMK_ERR_INVALID_ARGUMENT,
            "model.n_heads is %d, expected a multiple of n_kv_heads %d", m_.n_heads, m_.n_kv_heads);
  AMK_CHECK(m_.head_dim % 2 == 0, AMK_ERR_INVALID_ARGUMENT, "model.head_dim is %d, expected an even one", m_.head_dim);
  AMK_CHECK(std::isfinite(m_.eps) && m_.eps > 0, AMK_ERR_INVALID_ARGUMENT, "model.eps is %g, expected finite and > 0",
            static_cast<double>(m_.eps));
  AMK_CHECK(model.batch >= 0 && model.batch <= AMK_MAX_BATCH, AMK_ERR_UNSUPPORTED,
            "model.batch is %d, supported 1..%d (0 is 1)", model.batch, AMK_MAX_BATCH);
  AMK_CHECK(m_.batch <= m_.max_seq, AMK_ERR_INVALID_ARGUMENT, "model.batch is %d, but max_seq is %d", m_.batch,
            m_.max_seq);
  AMK_CHECK(m_.batch == 1 || m_.full_attention_interval == 0, AMK_ERR_UNSUPPORTED,
            "model.batch is %d with full_attention_interval %d: a hybrid decodes one token a step", m_.batch,
            m_.full_attention_interval);
  AMK_CHECK(m_.batch == 1 || !has_output_gate(), AMK_ERR_UNSUPPORTED,
            "model.batch is %d with features 0x%x: an output gate is modelled for one token a step", m_.batch,
            m_.features);
  if (is_quantised()) {
    AMK_CHECK(m_.weight_group == AMK_MIN_WEIGHT_GROUP || m_.weight_group == AMK_MAX_WEIGHT_GROUP,
              AMK_ERR_INVALID_ARGUMENT, "model.weight_group is %d, expected 0, %d or %d", m_.weight_group,
              AMK_MIN_WEIGHT_GROUP, AMK_MAX_WEIGHT_GROUP);
    AMK_CHECK(m_.hidden % m_.weight_group == 0 && m_.ffn % m_.weight_group == 0 && k_first() % m_.weight_group == 0,
              AMK_ERR_INVALID_ARGUMENT, "model: rows of %d, %lld and %d columns, expected whole groups of %d",
              m_.hidden, (long long)k_first(), m_.ffn, m_.weight_group);
  }
  constexpr int32_t kKnown = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS | AMK_MODEL_QK_NORM |
                             AMK_MODEL_TIED_HEAD | AMK_MODEL_ATTENTION_GATE | AMK_MODEL_NORM_PLUS_ONE;
  AMK_CHECK((m_.features & ~kKnown) == 0, AMK_ERR_INVALID_ARGUMENT, "model.features is 0x%x, allowed bits 0x%x",
            m_.features, kKnown);
  if (!(m_.full_attention_interval | m_.linear_key_heads | m_.linear_value_heads | m_.linear_head_dim | m_.conv_width))
    return;
  check_range("full_attention_interval", m_.full_attention_interval, 1, INT32_MAX);
  check_range("linear_value_heads", m_.linear_value_heads, 1, kMaxDim);
  check_range("linear_key_heads", m_.linear_key_heads, 1, m_.linear_value_heads);
  check_range("linear_head_dim", m_.linear_head_dim, 1, kMaxDim);
  check_range("conv_width", m_.conv_width, 2, AMK_MAX_CONV_WIDTH);
  AMK_CHECK(m_.linear_value_heads % m_.linear_key_heads == 0, AMK_ERR_INVALID_ARGUMENT,
            "model.linear_value_heads is %d, expected a multiple of linear_key_heads %d", m_.linear_value_heads,
            m_.linear_key_heads);
  AMK_CHECK(!is_quantised() || values() % m_.weight_group == 0, AMK_ERR_INVALID_ARGUMENT,
            "model: rows of w_gdn_out of %lld columns, expected whole groups of %d", (long long)values(),
            m_.weight_group);
}

bool Decoder::is_there(Value value) const {
  const bool full = !is_linear(value.layer);
  switch (value.what) {
    case What::kLmHead: return !has(AMK_MODEL_TIED_HEAD);
    case What::kLmHeadScale: return is_quantised() && !has(AMK_MODEL_TIED_HEAD);
    case What::kWGateUpScale:
    case What::kWDownScale: return is_quantised();
    case What::kWqkvScale:
    case What::kWoScale: return full && is_quantised();
    case What::kWGdnInScale:
    case What::kWGdnOutScale: return !full && is_quantised();
    case What::kWqkv:
    case What::kWo:
    case What::kKCache:
    case What::kVCache: return full;
    case What::kBqkv: return full && has(AMK_MODEL_QKV_BIAS);
    case What::kBo: return full && has(AMK_MODEL_O_BIAS);
    case What::kBGateUp:
    case What::kBDown: return has(AMK_MODEL_MLP_BIAS);
    case What::kQNorm:
    case What::kKNorm: return full && has_head_norms();
    case What::kWGdnIn:
    case What::kConvW:
    case What::kALog:
    case What::kDtBias:
    case What::kGdnNorm:
    case What::kWGdnOut:
    case What::kConvState:
    case What::kGdnState: return !full;
    default: return true;
  }
}

BoundTensor Decoder::bound(std::string_view source) const {
  constexpr std::string_view kPrefix = "layers.";
  Value value;
  std::string_view tail;
  if (source.substr(0, kPrefix.size()) != kPrefix) {
    value.what = find_what(source, kModel, What::kToken, What::kLmHeadScale);
  } else {
    const int32_t layer = take_layer(source.substr(kPrefix.size()), &tail);
    if (layer >= 0 && layer < m_.layers) value = {find_what(tail, kLayer, What::kAttnNorm, What::kWGdnOutScale), layer};
  }
  if (!is_there(value)) return {};
  const auto vector = [&](int64_t n) { return BoundTensor{value, m_.dtype, 1, {n, 0, 0}}; };
  const auto table = [&](int64_t rows, int64_t columns) { return BoundTensor{value, m_.dtype, 2, {rows, columns, 0}}; };
  const auto matrix = [&](int64_t rows, int64_t columns) {
    return BoundTensor{value, is_quantised() ? AMK_DTYPE_I8 : m_.dtype, 2, {rows, columns, 0}};
  };
  const auto scales = [&](int64_t rows, int64_t columns) { return table(rows, columns / m_.weight_group); };
  switch (value.what) {
    case What::kToken: return {value, AMK_DTYPE_I32, 1, {m_.batch, 0, 0}};
    case What::kInvFreq: return {value, AMK_DTYPE_F32, 1, {m_.head_dim / 2, 0, 0}};
    case What::kEmbed: return table(m_.vocab, m_.hidden);
    case What::kLmHead: return matrix(m_.vocab, m_.hidden);
    case What::kWqkv: return matrix(qkv_end(), m_.hidden);
    case What::kWo: return matrix(m_.hidden, k_first());
    case What::kWGateUp: return matrix(2 * ffn(), m_.hidden);
    case What::kWDown: return matrix(m_.hidden, m_.ffn);
    case What::kWGdnIn: return matrix(gdn_end(), m_.hidden);
    case What::kConvW: return table(z_first(), m_.conv_width);
    case What::kWGdnOut: return matrix(m_.hidden, values());
    case What::kALog:
    case What::kDtBias: return {value, AMK_DTYPE_F32, 1, {value_heads(), 0, 0}};
    case What::kGdnNorm: return vector(linear_head_dim());
    case What::kLmHeadScale: return scales(m_.vocab, m_.hidden);
    case What::kWqkvScale: return scales(qkv_end(), m_.hidden);
    case What::kWoScale: return scales(m_.hidden, k_first());
    case What::kWGateUpScale: return scales(2 * ffn(), m_.hidden);
    case What::kWDownScale: return scales(m_.hidden, m_.ffn);
    case What::kWGdnInScale: return scales(gdn_end(), m_.hidden);
    case What::kWGdnOutScale: return scales(m_.hidden, values());
    case What::kBqkv: return vector(qkv_end());
    case What::kQNorm:
    case What::kKNorm: return vector(m_.head_dim);
    case What::kBGateUp: return vector(2 * ffn());
    case What::kFinalNorm:
    case What::kAttnNorm:
    case What::kBo:
    case What::kMlpNorm:
    case What::kBDown: return vector(m_.hidden);
    default: return {};
  }
}

BoundTensor Decoder::output(std::string_view name) const {
  const Value logits{What::kLogits, 0};
  if (name == "logits" && m_.batch > 1) return {logits, AMK_DTYPE_F32, 2, {m_.batch, m_.vocab, 0}};
  if (name == "logits") return {logits, AMK_DTYPE_F32, 1, {m_.vocab, 0, 0}};
  if (name == "next_token") return {{What::kNextToken, 0}, AMK_DTYPE_I32, 1, {m_.batch, 0, 0}};
  return {};
}

BoundTensor Decoder::cache(std::string_view name) const {
  std::string_view tail;
  const int32_t layer = name.substr(0, 3) == "kv." ? take_layer(name.substr(3), &tail) : -1;
  const What what = find_what(tail, kLayer, What::kKCache, What::kVCache);
  if (layer < 0 || layer >= m_.layers || what == What::kUnknown || !is_there({what, layer})) return {};
  return {{what, layer}, m_.dtype, 3, {m_.n_kv_heads, m_.max_seq, m_.head_dim}};
}

BoundTensor Decoder::state(std::string_view name) const {
  std::string_view tail;
  const int32_t layer = name.substr(0, 7) == "layers." ? take_layer(name.substr(7), &tail) : -1;
  const What what = find_what(tail, kLayer, What::kConvState, What::kGdnState);
  if (layer < 0 || layer >= m_.layers || what == What::kUnknown || !is_there({what, layer})) return {};
  if (what == What::kConvState) return {{what, layer}, m_.dtype, 2, {z_first(), m_.conv_width - 1, 0}};
  return {{what, layer}, AMK_DTYPE_F32, 3, {value_heads(), linear_head_dim(), linear_head_dim()}};
}

Linear Decoder::linear(Value matrix) const {
  const int32_t i = matrix.layer;
  const auto of = [&](What what) { return is_there({what, i}) ? Value{what, i} : Value{}; };
  Linear l;
  switch (matrix.what) {
    case What::kWqkv:
      l.input = of(What::kAttnIn), l.raw = of(What::kX), l.norm = of(What::kAttnNorm);
      l.bias = of(What::kBqkv), l.out = of(What::kQkv);
      l.scale = of(What::kWqkvScale);
      break;
    case What::kWo:
      l.input = of(has_output_gate() ? What::kAttendedGated : What::kAttended);
      l.bias = of(What::kBo), l.out = of(What::kAttnOut);
      l.residual = of(What::kX), l.sum = of(What::kXMid);
      l.scale = of(What::kWoScale);
      break;
    case What::kWGdnIn:
      l.input = of(What::kAttnIn), l.raw = of(What::kX), l.norm = of(What::kAttnNorm), l.out = of(What::kGdnIn);
      l.scale = of(What::kWGdnInScale);
      break;
    case What::kWGdnOut:
      l.input = of(What::kGdnGated), l.out = of(What::kGdnOut);
      l.residual = of(What::kX), l.sum = of(What::kXMid);
      l.scale = of(What::kWGdnOutScale);
      break;
    case What::kWGateUp:
      l.input = of(What::kMlpIn), l.raw = of(What::kXMid), l.norm = of(What::kMlpNorm);
      l.bias = of(What::kBGateUp), l.out = of(What::kGateUp), l.pair_out = of(What::kAct);
      l.scale = of(What::kWGateUpScale);
      break;
    case What::kWDown:
      l.input = of(What::kAct), l.bias = of(What::kBDown), l.out = of(What::kMlpOut);
      l.residual = of(What::kXMid), l.sum = {What::kX, i + 1};
      l.scale = of(What::kWDownScale);
      break;
    case What::kEmbed:
    case What::kLmHead:
      if ((matrix.what == What::kEmbed) != has(AMK_MODEL_TIED_HEAD)) break;
      l.input = {What::kHeadIn, 0}, l.raw = {What::kX, m_.layers}, l.norm = {What::kFinalNorm, 0};
      l.out = {What::kLogits, 0};
      if (matrix.what == What::kLmHead) l.scale = of(What::kLmHeadScale);
      break;
    default: break;
  }
  return l;
}

Norm Decoder::norm(Value x) const {
  if (x.what == What::kX && x.layer == m_.layers) return {{What::kFinalNorm, 0}, {What::kHeadIn, 0, x.token}};
  if (x.what == What::kX) return {{What::kAttnNorm, x.layer}, {What::kAttnIn, x.layer, x.token}};
  if (x.what == What::kXMid) return {{What::kMlpNorm, x.layer}, {What::kMlpIn, x.layer, x.token}};
  return {};
}

Value Decoder::sum(Value a, Value b) const {
  if (a.layer != b.layer || a.token != b.token) return {};
  const auto are = [&](What x, What y) { return (a.what == x && b.what == y) || (a.what == y && b.what == x); };
  if (are(What::kX, What::kAttnOut) || are(What::kX, What::kGdnOut)) return {What::kXMid, a.layer, a.token};
  if (are(What::kXMid, What::kMlpOut)) return {What::kX, a.layer + 1, a.token};
  return {};
}

int32_t Decoder::dtype(Value value) const {
  switch (value.what) {
    case What::kPartO:
    case What::kPartMl:
    case What::kLogits:
    case What::kGdnStateNext:
    case What::kBestValue: return AMK_DTYPE_F32;
    case What::kBestIndex:
    case What::kNextToken: return AMK_DTYPE_I32;
    default: return m_.dtype;
  }
}

float Decoder::attention_scale() const { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(m_.head_dim))); }

float Decoder::linear_scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(m_.linear_head_dim)));
}

std::string Decoder::name(Value value) const {
  const WhatRow& row = kRows[static_cast<int>(value.what)];
  if (value.what == What::kX) return value.layer ? text("layers.%d.x", value.layer - 1) : "x";
  if (value.what == What::kKCache || value.what == What::kVCache) return text("kv.%d.%s", value.layer, row.name);
  return row.scope == kLayer ? text("layers.%d.%s", value.layer, row.name) : row.name;
}

std::string Decoder::range_text(Value value, int64_t first, int64_t count) const {
  if (kRows[static_cast<int>(value.what)].scope == kNone) return name(value);
  const int64_t end = first + count;
  const char* rows = "";
  if (value.what == What::kQkv) {
    if (end <= k_first())
      rows = " (q rows)";
    else if (first >= k_first() && end <= v_first())
      rows = " (k rows)";
    else if (first >= v_first() && end <= gate_first())
      rows = " (v rows)";
    else if (first >= gate_first())
      rows = " (gate rows)";
  }
  if (value.what == What::kGdnIn) {
    if (end <= z_first())
      rows = " (q, k and v rows)";
    else if (first >= z_first() && end <= b_first())
      rows = " (z rows)";
    else if (first >= b_first() && end <= a_first())
      rows = " (b rows)";
    else if (first >= a_first())
      rows = " (a rows)";
  }
  const std::string of_token = m_.batch > 1 && value.what >= What::kX ? text(" of token %d", value.token) : "";
  return name(value) + text("[%lld, %lld)%s", (long long)first, (long long)end, rows) + of_token;
}

}  // namespace amk
