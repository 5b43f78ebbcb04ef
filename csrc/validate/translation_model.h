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
  kWqkvScale,
  kWoScale,
  kWGateUpScale,
  kWDownScale,
  kKCache,
  kVCache,
  // Computed, in the order of computation. X of layer 0 is the embedding, X of layer i + 1 what layer i leaves.
  kX,
  kAttnIn,
  kQkv,      // q, k and v rows
  kQNormed,  // only with head norms
  kKNormed,
  kQRotated,
  kKRotated,
  kPartO,
  kPartMl,
  kAttended,
  kAttnOut,
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
  // Error INVALID_ARGUMENT for a model outside its domain.
  explicit Decoder(const amk_model_t& model);

  // By source name, by output name, by cache name; the value is unset for a name that the model does not have.
  BoundTensor bound(std::string_view source) const;
  BoundTensor output(std::string_view name) const;
  BoundTensor cache(std::string_view name) const;

  Linear linear(Value matrix) const;  // out is unset when the value is no matrix of a linear
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
  int32_t weight_group() const { return m_.weight_group; }  // of matrices that have a scale
  float eps() const { return m_.eps; }
  float attention_scale() const;  // 1 / sqrt(D)
  bool has_head_norms() const { return has(AMK_MODEL_QK_NORM); }
  // Rows of kQkv: q [0, k_first), k [k_first, v_first), v [v_first, qkv_end).
  int64_t k_first() const { return int64_t{m_.n_heads} * m_.head_dim; }
  int64_t v_first() const { return k_first() + kv_size(); }
  int64_t qkv_end() const { return v_first() + kv_size(); }
  int64_t kv_size() const { return int64_t{m_.n_kv_heads} * m_.head_dim; }

  std::string name(Value value) const;                                      // "layers.7.wqkv"
  std::string range_text(Value value, int64_t first, int64_t count) const;  // "layers.7.qkv[0, 64) (q rows)"

 private:
  bool has(int32_t feature) const { return m_.features & feature; }
  bool is_there(What what) const;

  amk_model_t m_;
};

}  // namespace amk
