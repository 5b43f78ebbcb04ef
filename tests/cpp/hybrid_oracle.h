// A hybrid decoder in double precision, written from the architecture, for f32 models: every layer kept as its whole
// past (keys, values, convolution inputs) or as its state. It shares nothing with the graph, the lowering or the ops.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "amk.h"
#include "test_vm_machine.h"

class HybridOracle {
 public:
  using Row = std::vector<double>;

  HybridOracle(const amk_model_t& model, Weights& weights) : m_(model), w_(weights), layers_(model.layers) {
    for (Layer& layer : layers_)
      layer.state.assign(static_cast<size_t>(m_.linear_value_heads) * m_.linear_head_dim * m_.linear_head_dim, 0.0);
  }

  // The logits of the next position.
  Row step(int token) {
    Row x = row("embed", token, m_.hidden);
    for (int i = 0; i < m_.layers; ++i) {
      layer_ = "layers." + std::to_string(i) + ".";
      const Row in = norm(x, layer_ + "attn_norm");
      const bool full = m_.full_attention_interval == 0 || (i + 1) % m_.full_attention_interval == 0;
      add(x, full ? attention(in, layers_[i]) : linear_attention(in, layers_[i]));
      const Row y = times("w_gate_up", norm(x, layer_ + "mlp_norm"));
      Row act(static_cast<size_t>(m_.ffn));
      for (int j = 0; j < m_.ffn; ++j) act[j] = y[j] * sigmoid(y[j]) * y[m_.ffn + j];
      add(x, times("w_down", act));
    }
    ++pos_;
    layer_.clear();
    return times("lm_head", norm(x, "final_norm"));
  }

 private:
  struct Layer {
    std::vector<Row> keys, values;  // per position, all kv heads
    std::vector<Row> inputs;        // of the convolution, per position
    Row state;
  };

  static double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
  static void add(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  double weight(const std::string& name, int64_t i) { return read_number(AMK_DTYPE_F32, w_.at(name), i); }
  Row row(const std::string& name, int64_t r, int64_t count) {
    Row out;
    for (int64_t i = 0; i < count; ++i) out.push_back(weight(name, r * count + i));
    return out;
  }
  Row times(const char* name, const Row& x) {
    const std::string matrix = layer_ + name;
    const int64_t columns = static_cast<int64_t>(x.size()),
                  rows = static_cast<int64_t>(w_.nbytes(matrix)) / 4 / columns;
    Row out;
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < columns; ++c) sum += weight(matrix, r * columns + c) * x[static_cast<size_t>(c)];
      out.push_back(sum);
    }
    return out;
  }
  Row norm(const Row& x, const std::string& name) {
    const double plus = m_.features & AMK_MODEL_NORM_PLUS_ONE ? 1 : 0;
    double squares = 0;
    for (double v : x) squares += v * v;
    Row out;
    for (size_t i = 0; i < x.size(); ++i)
      out.push_back(x[i] / std::sqrt(squares / static_cast<double>(x.size()) + m_.eps) *
                    (plus + weight(name, static_cast<int64_t>(i))));
    return out;
  }
  Row turned(const Row& all, int first, const char* norm_name) {
    const int d = m_.head_dim;
    Row head(all.begin() + first, all.begin() + first + d);
    if (m_.features & AMK_MODEL_QK_NORM) head = norm(head, layer_ + norm_name);
    Row out = head;
    for (int i = 0; i < d / 2; ++i) {
      const double angle = pos_ * weight("rope_inv_freq", i);
      out[i] = head[i] * std::cos(angle) - head[i + d / 2] * std::sin(angle);
      out[i + d / 2] = head[i + d / 2] * std::cos(angle) + head[i] * std::sin(angle);
    }
    return out;
  }

  Row attention(const Row& in, Layer& layer) {
    const int d = m_.head_dim, q_rows = m_.n_heads * d, kv = m_.n_kv_heads * d;
    const Row qkv = times("wqkv", in);
    Row keys, attended;
    for (int g = 0; g < m_.n_kv_heads; ++g)
      for (double v : turned(qkv, q_rows + g * d, "k_norm")) keys.push_back(v);
    layer.keys.push_back(keys);
    layer.values.emplace_back(qkv.begin() + q_rows + kv, qkv.begin() + q_rows + 2 * kv);
    for (int h = 0; h < m_.n_heads; ++h) {
      const int g = h / (m_.n_heads / m_.n_kv_heads);
      const Row q = turned(qkv, h * d, "q_norm");
      Row out(static_cast<size_t>(d), 0.0);
      double sum = 0;
      for (size_t r = 0; r < layer.keys.size(); ++r) {
        double score = 0;
        for (int i = 0; i < d; ++i) score += q[i] * layer.keys[r][g * d + i];
        const double share = std::exp(score / std::sqrt(d));
        sum += share;
        for (int i = 0; i < d; ++i) out[i] += share * layer.values[r][g * d + i];
      }
      for (int i = 0; i < d; ++i) {
        const bool gated = m_.features & AMK_MODEL_ATTENTION_GATE;
        attended.push_back(out[i] / sum * (gated ? sigmoid(qkv[q_rows + 2 * kv + h * d + i]) : 1));
      }
    }
    return times("wo", attended);
  }

  Row linear_attention(const Row& in, Layer& layer) {
    const int e = m_.linear_head_dim, hq = m_.linear_key_heads, hv = m_.linear_value_heads, width = m_.conv_width;
    const int channels = (2 * hq + hv) * e;
    const Row rows = times("w_gdn_in", in);
    layer.inputs.emplace_back(rows.begin(), rows.begin() + channels);
    Row mixed;
    for (int c = 0; c < channels; ++c) {
      double sum = 0;
      for (int j = 0; j < width; ++j) {
        const int at = static_cast<int>(layer.inputs.size()) - width + j;
        if (at >= 0) sum += weight(layer_ + "conv_w", c * width + j) * layer.inputs[at][c];
      }
      mixed.push_back(sum * sigmoid(sum));
    }
    Row gated;
    for (int h = 0; h < hv; ++h) {
      const Row q = unit(mixed, h / (hv / hq) * e), k = unit(mixed, (hq + h / (hv / hq)) * e);
      const double b = rows[channels + hv * e + h], a = rows[channels + hv * e + hv + h];
      const double rate = std::log1p(std::exp(a + weight(layer_ + "dt_bias", h)));
      const double decay = std::exp(-std::exp(weight(layer_ + "a_log", h)) * rate);
      Row out;
      double squares = 0;
      for (int i = 0; i < e; ++i) {
        double* s = &layer.state[static_cast<size_t>((h * e + i) * e)];
        double seen = 0, o = 0;
        for (int j = 0; j < e; ++j) seen += (s[j] *= decay) * k[j];
        for (int j = 0; j < e; ++j) o += (s[j] += sigmoid(b) * (mixed[(2 * hq + h) * e + i] - seen) * k[j]) * q[j];
        out.push_back(o / std::sqrt(e));
        squares += out.back() * out.back();
      }
      for (int i = 0; i < e; ++i) {
        const double z = rows[channels + h * e + i];
        gated.push_back(out[i] / std::sqrt(squares / e + m_.eps) * weight(layer_ + "gdn_norm", i) * z * sigmoid(z));
      }
    }
    return times("w_gdn_out", gated);
  }
  Row unit(const Row& all, int first) {
    Row out(all.begin() + first, all.begin() + first + m_.linear_head_dim);
    double squares = 0;
    for (double v : out) squares += v * v;
    for (double& v : out) v /= std::sqrt(squares + 1e-6);
    return out;
  }

  const amk_model_t m_;
  Weights& w_;
  std::vector<Layer> layers_;
  std::string layer_;
  int pos_ = 0;
};
