// The decoder that an amk_model_t describes, as named values and the equations between them, written from the
// architecture for the judge alone (V17).
// In: an amk_model_t. Out: which buffers it binds, and for each matrix, normalisation and sum what it is applied to and
// what comes out. Must never include csrc/graph or csrc/lower: a mistake there must not be repeated here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "amk.h"

namespace amk {

enum class What : uint8_t {
  kUnknown,  // nobody wrote it, or it is no value of the decoder
  kRefused,  // the result of a task that was refused already
  // Bound from outside.
  kToken,
  kEmbed,
  kInvFreq,
  kFinalNorm,
  kLmHead,
  kLmHeadScale,  // the scales of a matrix, here and below: only with quantised weights
  kAttnNorm,
  kWqkv,
  kBqkv,
  kQNorm,
  kKNorm,
  kWo,
  kBo,
  kMlpNorm,
  kWGateUp,
  kBGateUp,
  kWDown,
  kBDown,
  kWGdnIn,
  kConvW,
  kALog,
  kDtBias,
  kGdnNorm,
  kWGdnOut,
  kWqkvScale,
  kWoScale,
  kWGateUpScale,
  kWDownScale,
  kWGdnInScale,
  kWGdnOutScale,
  kKCache,
  kVCache,
  kConvState,  // as the last step left them
  kGdnState,
  // Computed, in the order of computation. X of layer 0 is the embedding, X of layer i + 1 what layer i leaves.
  kX,
  kAttnIn,
  kQkv,      // q, k and v rows, and with an output gate its rows
  kQNormed,  // only with head norms
  kKNormed,
  kQRotated,
  kKRotated,
  kPartO,
  kPartMl,
  kAttended,
  kAttendedGated,  // only with an output gate
  kAttnOut,
  kGdnIn,    // q, k, v, z, b and a rows
  kGdnConv,  // q, k and v after the convolution
  kGdnAttended,
  kGdnGated,
  kGdnOut,
  kConvStateNext,  // as this step leaves them
  kGdnStateNext,
  kXMid,
  kMlpIn,
  kGateUp,
  kAct,
  kMlpOut,
  kHeadIn,
  kLogits,
  kBestValue,  // element i: of the range that the i-th scan of the logits covers
  kBestIndex,
  kNextToken
};
constexpr int kWhatCount = static_cast<int>(What::kNextToken) + 1;

struct Value {
  What what = What::kUnknown;
  int32_t layer = 0;  // 0 where there is one for the whole model
  int32_t token = 0;  // of a computed value: of the step's tokens the one that it belongs to
  Value of(int32_t t) const { return {what, layer, t}; }
  bool operator==(const Value&) const = default;
  explicit operator bool() const { return what != What::kUnknown; }
};

// A buffer that is bound or read from outside.
struct BoundTensor {
  Value value;
  int32_t dtype = 0, rank = 0;
  int64_t shape[3] = {0, 0, 0};
};

// out = matrix * input (+ bias); input = norm of raw; pair_out = silu(first half) * second half; sum = out + residual;
// scale is of the matrix. What is unset is not part of the decoder.
struct Linear {
  Value input, raw, norm, bias, out, pair_out, residual, sum, scale;
};

struct Norm {
  Value weight, out;
};

class Decoder {
 public:
  // Error INVALID_ARGUMENT for a model outside its domain; UNSUPPORTED for a batch that is not modelled.
  explicit Decoder(const amk_model_t& model);

  // By source name, by output name, by cache name, by state name; the value is unset for a name that the model does not
  // have.
  BoundTensor bound(std::string_view source) const;
  BoundTensor output(std::string_view name) const;
  BoundTensor cache(std::string_view name) const;
  BoundTensor state(std::string_view name) const;

  Linear linear(Value matrix) const;  // of the first token; out is unset when the value is no matrix of a linear
  Norm norm(Value x) const;           // of the whole vector; out is unset when x is not normalised
  Value sum(Value a, Value b) const;  // unset when the decoder does not add them
  int32_t dtype(Value value) const;   // of a computed value

  int64_t hidden() const { return m_.hidden; }
  int64_t head_dim() const { return m_.head_dim; }
  int64_t ffn() const { return m_.ffn; }
  int64_t vocab() const { return m_.vocab; }
  int32_t layers() const { return m_.layers; }
  int32_t n_heads() const { return m_.n_heads; }
  int32_t n_kv_heads() const { return m_.n_kv_heads; }
  int32_t max_seq() const { return m_.max_seq; }
  int32_t batch() const { return m_.batch; }                // tokens of a step, at least 1
  int32_t weight_group() const { return m_.weight_group; }  // of matrices that have a scale
  bool is_quantised() const { return m_.weight_group != 0; }
  float eps() const { return m_.eps; }
  float attention_scale() const;  // 1 / sqrt(D)
  bool has_head_norms() const { return has(AMK_MODEL_QK_NORM); }
  bool has_output_gate() const { return has(AMK_MODEL_ATTENTION_GATE); }
  bool has_norm_plus_one() const { return has(AMK_MODEL_NORM_PLUS_ONE); }
  // Rows of kQkv: q [0, k_first), k [k_first, v_first), v [v_first, gate_first), gate [gate_first, qkv_end).
  int64_t k_first() const { return int64_t{m_.n_heads} * m_.head_dim; }
  int64_t v_first() const { return k_first() + kv_size(); }
  int64_t gate_first() const { return v_first() + kv_size(); }
  int64_t qkv_end() const { return gate_first() + (has_output_gate() ? k_first() : 0); }
  int64_t kv_size() const { return int64_t{m_.n_kv_heads} * m_.head_dim; }

  // Linear attention: every layer but each full_attention_interval-th.
  bool is_linear(int32_t layer) const {
    return m_.full_attention_interval != 0 && layer % m_.full_attention_interval != m_.full_attention_interval - 1;
  }
  int32_t key_heads() const { return m_.linear_key_heads; }
  int32_t value_heads() const { return m_.linear_value_heads; }
  int64_t linear_head_dim() const { return m_.linear_head_dim; }
  float linear_scale() const;             // 1 / sqrt(E)
  float l2_eps() const { return 1e-6f; }  // of q and k in linear attention
  // Rows of kGdnIn: q, k and v [0, z_first), z [z_first, b_first), b [b_first, a_first), a [a_first, gdn_end).
  int64_t values() const { return value_heads() * linear_head_dim(); }
  int64_t z_first() const { return 2 * key_heads() * linear_head_dim() + values(); }
  int64_t b_first() const { return z_first() + values(); }
  int64_t a_first() const { return b_first() + value_heads(); }
  int64_t gdn_end() const { return a_first() + value_heads(); }

  std::string name(Value value) const;                                      // "layers.7.wqkv"
  std::string range_text(Value value, int64_t first, int64_t count) const;  // "layers.7.qkv[0, 64) (q rows)"

 private:
  bool has(int32_t feature) const { return m_.features & feature; }
  bool is_there(Value value) const;

  amk_model_t m_;
};

}  // namespace amk
