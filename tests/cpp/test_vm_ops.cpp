// Every op but attention against its law in double precision, over random shapes with tails, and its footprint.
#include "base/error.h"
#include "test_vm_support.h"

namespace {

double silu(double v) { return v / (1 + std::exp(-v)); }

// RMS-normalised copy of count elements, rounded to the type; weight < 0 leaves them alone.
std::vector<double> normalised(const OpLab& lab, int x, int64_t first, int64_t count, int weight, float eps) {
  std::vector<double> out;
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) out.push_back(lab.at(x, first + i));
  if (weight < 0) return out;
  for (double v : out) squares += v * v;
  for (int64_t i = 0; i < count; ++i)
    out[i] = rounded(lab.buffers[x].dtype, out[i] * lab.at(weight, i) / std::sqrt(squares / count + eps));
  return out;
}

// One head at `first`, normalised where a weight is given, turned where inv_freq is.
std::vector<double> turned(const OpLab& lab, int x, int64_t first, int dim, int norm, float eps, int inv_freq,
                           int pos) {
  std::vector<double> in = normalised(lab, x, first, dim, norm, eps), out = in;
  if (inv_freq < 0) return out;
  for (int i = 0; i < dim / 2; ++i) {
    const double angle = pos * lab.at(inv_freq, i), a = in[i], b = in[i + dim / 2];
    out[i] = a * std::cos(angle) - b * std::sin(angle);
    out[i + dim / 2] = b * std::cos(angle) + a * std::sin(angle);
  }
  return out;
}

// A normalised element may round to its other neighbour in double than in f32.
double norm_slack(int dtype, int norm) { return norm < 0 ? 0 : 8 * unit_roundoff(dtype); }

void check_gemv(int dtype, int out_dtype, int flags, int seed) {
  OpLab lab(static_cast<uint64_t>(seed) * 977 + static_cast<uint64_t>(flags));
  amk_params_t p{};
  p.K = (dtype == AMK_DTYPE_F32 ? 4 : 8) * lab.random.between(1, 9);  // whole 16-byte vectors
  p.N = lab.random.between(1, 24);
  p.n_off = lab.random.between(0, p.N - 1);
  p.N_tile = lab.random.between(1, p.N - p.n_off);
  p.m_off = lab.random.between(0, 5);
  p.flags = flags;
  const bool pair = flags & AMK_FLAG_SILU_PAIR;
  const int64_t rows = pair ? 2 * p.N : p.N;
  const int x = lab.activation(dtype, {p.m_off + p.K + 3}), w = lab.weight(dtype, {rows, p.K});
  int norm = -1, bias = -1, residual = -1;
  if (flags & AMK_FLAG_NORM) norm = lab.weight(dtype, {p.K}), p.eps = 1e-5f;
  if (flags & AMK_FLAG_BIAS) bias = lab.weight(dtype, {rows});
  if (flags & AMK_FLAG_RESIDUAL) residual = lab.activation(dtype, {p.N});
  const int out = residual >= 0 && out_dtype == dtype && seed % 2 ? residual : lab.activation(out_dtype, {p.N});

  const std::vector<double> in = normalised(lab, x, p.m_off, p.K, norm, p.eps);
  std::vector<double> want, slack;
  for (int n = p.n_off; n < p.n_off + p.N_tile; ++n) {
    double magnitude = 0, y[2] = {0, 0};
    for (int half = 0; half < (pair ? 2 : 1); ++half) {
      const int64_t row = n + half * p.N;
      for (int64_t k = 0; k < p.K; ++k) {
        y[half] += lab.at(w, row * p.K + k) * in[k];
        magnitude = std::max(magnitude, std::fabs(lab.at(w, row * p.K + k) * in[k]));
      }
      if (bias >= 0) y[half] += lab.at(bias, row);
    }
    double value = pair ? silu(y[0]) * y[1] : y[0];
    if (residual >= 0) value += lab.at(residual, n);
    want.push_back(value);
    const double term = (norm_slack(dtype, norm) + 1e-5) * magnitude + 1e-6;
    slack.push_back(pair ? term * (2 + std::fabs(y[0]) + std::fabs(y[1])) : term);
  }
  std::vector<int> inputs = {x, w};
  for (int b : {norm, bias, residual})
    if (b >= 0) inputs.push_back(b);
  switch (inputs.size()) {
    case 2: lab.run(AMK_OP_GEMV_TILE, {x, w}, {out}, p); break;
    case 3: lab.run(AMK_OP_GEMV_TILE, {x, w, inputs[2]}, {out}, p); break;
    case 4: lab.run(AMK_OP_GEMV_TILE, {x, w, inputs[2], inputs[3]}, {out}, p); break;
    default: lab.run(AMK_OP_GEMV_TILE, {x, w, inputs[2], inputs[3], inputs[4]}, {out}, p);
  }
  for (int i = 0; i < p.N_tile; ++i) lab.expect(out, p.n_off + i, want[i], slack[i]);
}

}  // namespace

TEST(gemv_with_every_set_of_flags) {
  constexpr int kFlags = AMK_FLAG_NORM | AMK_FLAG_BIAS | AMK_FLAG_SILU_PAIR | AMK_FLAG_RESIDUAL;
  for (int dtype : kComputeTypes)
    for (int flags = 0; flags <= kFlags; ++flags) {
      if (flags & ~kFlags) continue;
      for (int seed = 0; seed < 12; ++seed) check_gemv(dtype, seed % 3 ? dtype : AMK_DTYPE_F32, flags, seed);
    }
}

TEST(rmsnorm_of_rows) {
  for (int dtype : kComputeTypes)
    for (int seed = 0; seed < 30; ++seed) {
      OpLab lab(static_cast<uint64_t>(seed));
      amk_params_t p{};
      p.hidden = lab.random.between(1, 70);
      p.M_tile = lab.random.between(1, 3);
      p.m_off = lab.random.between(0, 9);
      p.n_off = lab.random.between(0, 9);
      p.eps = 1e-6f;
      const int64_t count = int64_t{p.M_tile} * p.hidden;
      const int x = lab.activation(dtype, {p.m_off + count + 2}), w = lab.weight(dtype, {p.hidden});
      const int out = lab.activation(dtype, {p.n_off + count + 2});
      lab.run(AMK_OP_RMSNORM, {x, w}, {out}, p);
      for (int r = 0; r < p.M_tile; ++r) {
        const auto want = normalised(lab, x, p.m_off + r * p.hidden, p.hidden, w, p.eps);
        for (int j = 0; j < p.hidden; ++j)
          lab.expect(out, p.n_off + r * p.hidden + j, want[j], 2 * unit_roundoff(dtype) * std::fabs(want[j]) + 1e-6);
      }
    }
}

TEST(rope_and_its_norm) {
  for (int dtype : kComputeTypes)
    for (int seed = 0; seed < 40; ++seed) {
      OpLab lab(static_cast<uint64_t>(seed));
      amk_params_t p{};
      p.head_dim = 2 * lab.random.between(1, 20);
      p.n_heads = lab.random.between(1, 4);
      p.m_off = lab.random.between(0, 9);
      p.n_off = lab.random.between(0, 9);
      const int pos = seed % 4 == 0 ? 0 : lab.random.between(1, 20000);
      const int64_t count = int64_t{p.n_heads} * p.head_dim;
      const int x = lab.activation(dtype, {p.m_off + count + 1});
      const int freq = lab.add(AMK_KIND_CONST, AMK_DTYPE_F32, {p.head_dim / 2});
      const int out = lab.activation(dtype, {p.n_off + count + 1});
      const int norm = seed % 2 ? lab.weight(dtype, {p.head_dim}) : -1;
      if (norm >= 0) {
        p.flags = AMK_FLAG_NORM;
        p.eps = 1e-5f;
        lab.run(AMK_OP_ROPE, {x, freq, norm}, {out}, p, pos);
      } else {
        lab.run(AMK_OP_ROPE, {x, freq}, {out}, p, pos);
      }
      for (int h = 0; h < p.n_heads; ++h) {
        const auto want = turned(lab, x, p.m_off + h * p.head_dim, p.head_dim, norm, p.eps, freq, pos);
        for (int i = 0; i < p.head_dim; ++i)
          lab.expect(out, p.n_off + h * p.head_dim + i, want[i], 4 * norm_slack(dtype, norm) + 1e-6);
      }
    }
}

TEST(kv_append_in_all_its_forms) {
  for (int dtype : kComputeTypes)
    for (int seed = 0; seed < 40; ++seed) {
      OpLab lab(static_cast<uint64_t>(seed));
      amk_params_t p{};
      p.head_dim = 2 * lab.random.between(1, 20);
      p.n_kv_heads = lab.random.between(1, 4);
      p.n_off = lab.random.between(0, p.n_kv_heads - 1);
      p.N_tile = lab.random.between(1, p.n_kv_heads - p.n_off);
      p.K = lab.random.between(1, 9);
      p.m_off = lab.random.between(0, 9);
      const int pos = lab.random.between(0, p.K - 1);
      const int src = lab.activation(dtype, {p.m_off + p.N_tile * p.head_dim + 1});
      const int cache = lab.add(AMK_KIND_KV_CACHE, dtype, {p.n_kv_heads, p.K, p.head_dim});
      const int freq = seed & 1 ? lab.add(AMK_KIND_CONST, AMK_DTYPE_F32, {p.head_dim / 2}) : -1;
      const int norm = seed & 2 ? lab.weight(dtype, {p.head_dim}) : -1;
      p.flags = (freq >= 0 ? AMK_FLAG_ROPE : 0) | (norm >= 0 ? AMK_FLAG_NORM : 0);
      p.eps = norm >= 0 ? 1e-5f : 0.0f;
      if (freq >= 0 && norm >= 0)
        lab.run(AMK_OP_KV_APPEND, {src, freq, norm}, {cache}, p, pos);
      else if (freq >= 0)
        lab.run(AMK_OP_KV_APPEND, {src, freq}, {cache}, p, pos);
      else if (norm >= 0)
        lab.run(AMK_OP_KV_APPEND, {src, norm}, {cache}, p, pos);
      else
        lab.run(AMK_OP_KV_APPEND, {src}, {cache}, p, pos);
      for (int i = 0; i < p.N_tile; ++i) {
        const auto want = turned(lab, src, p.m_off + i * p.head_dim, p.head_dim, norm, p.eps, freq, pos);
        for (int j = 0; j < p.head_dim; ++j)
          lab.expect(cache, (int64_t{p.n_off + i} * p.K + pos) * p.head_dim + j, want[j],
                     4 * norm_slack(dtype, norm) + 1e-6);
      }
    }
}

TEST(elementwise_with_and_without_place) {
  for (int dtype : kComputeTypes)
    for (int seed = 0; seed < 20; ++seed) {
      OpLab lab(static_cast<uint64_t>(seed));
      amk_params_t p{};
      const int n = lab.random.between(1, 40);
      p.n_off = lab.random.between(0, n - 1);
      p.N_tile = lab.random.between(1, n - p.n_off);
      const int op = seed % 2 ? AMK_OP_ADD : AMK_OP_MUL;
      const int a = lab.activation(dtype, {n}), b = lab.activation(dtype, {n});
      const int out = seed % 5 == 0 ? a : seed % 5 == 1 ? b : lab.activation(dtype, {n});
      std::vector<double> want;
      for (int i = 0; i < n; ++i)
        want.push_back(op == AMK_OP_ADD ? lab.at(a, i) + lab.at(b, i) : lab.at(a, i) * lab.at(b, i));
      lab.run(op, {a, b}, {out}, p);
      for (int i = p.n_off; i < p.n_off + p.N_tile; ++i) lab.expect(out, i, want[i], 0);

      amk_params_t s{};
      s.N = n;
      s.n_off = p.n_off;
      s.N_tile = p.N_tile;
      const int gate_up = lab.add(AMK_KIND_ACTIVATION, dtype, {2 * n}, 8), act = lab.activation(dtype, {n});
      lab.run(AMK_OP_SILU_MUL, {gate_up}, {act}, s);
      for (int i = s.n_off; i < s.n_off + s.N_tile; ++i) {
        const double y = silu(lab.at(gate_up, i)) * lab.at(gate_up, n + i);
        lab.expect(act, i, y, 1e-6 * std::fabs(y) + 1e-7);
      }
    }
}

TEST(copy_moves_bits_of_any_type) {
  for (int dtype = 0; dtype < amk::kDtypeCount; ++dtype) {
    if (amk::dtype_bits(dtype) < 8) continue;
    OpLab lab(static_cast<uint64_t>(dtype));
    const int in = lab.activation(AMK_DTYPE_F32, {20}), out = lab.activation(AMK_DTYPE_F32, {20});
    lab.buffers[in] = lab.buffers[out] = amk::make_buffer(dtype, AMK_SPACE_HBM, {20});
    amk_params_t p{};
    p.m_off = 3;
    p.n_off = 7;
    p.N_tile = 11;
    lab.run(AMK_OP_COPY, {in}, {out}, p);
    const size_t width = static_cast<size_t>(amk::dtype_bits(dtype)) / 8;
    CHECK(std::memcmp(&lab.bytes[in][64 + 3 * width], &lab.bytes[out][64 + 7 * width], 11 * width) == 0);
  }
}

TEST(embed_copies_columns_of_the_tokens_row) {
  for (int dtype : kComputeTypes)
    for (int token : {0, 3, 6, -1, 7, 1 << 30}) {
      OpLab lab(1);
      const int id = lab.add(AMK_KIND_IO_INPUT, AMK_DTYPE_I32, {1}), table = lab.weight(dtype, {7, 12});
      const int out = lab.activation(dtype, {12});
      lab.put(id, 0, token);
      amk_params_t p{};
      p.vocab = 7;
      p.hidden = 12;
      p.n_off = 5;
      p.N_tile = 6;
      if (token < 0 || token >= 7) {
        try {
          lab.run(AMK_OP_EMBED, {id, table}, {out}, p);
          CHECK(!"a token outside the table was accepted");
        } catch (const amk::Error& e) {
          CHECK_EQ(e.status(), AMK_ERR_INVALID_ARGUMENT);
        }
        continue;
      }
      lab.run(AMK_OP_EMBED, {id, table}, {out}, p);
      for (int i = 5; i < 11; ++i) CHECK_EQ(lab.at(out, i), lab.at(table, token * 12 + i));
    }
}

TEST(argmax_ties_nan_and_infinities) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const struct {
    std::vector<float> logits;
    int want;
  } kCases[] = {{{1, 3, 2, 3, 0}, 1},     {{-1, -1, -1, -1, -1}, 0}, {{-inf, -inf, -inf, -inf, -inf}, 0},
                {{0, 1, 2, 3, 4}, 4},     {{0, nan, 5, 6, 7}, -1},   {{0, 1, 2, 3, nan}, -1},
                {{0, 0, inf, 0, inf}, 2}, {{5, 1, 1, 1, 5}, 0},      {{-0.0f, 0, 0, 0, 0}, 0}};
  for (const auto& c : kCases)
    for (const std::vector<int>& cuts : std::vector<std::vector<int>>{{0, 5}, {0, 2, 5}, {0, 1, 2, 3, 4, 5}}) {
      OpLab lab(1);
      const int entries = static_cast<int>(cuts.size()) - 1;
      const int logits = lab.activation(AMK_DTYPE_F32, {5});
      const int value = lab.activation(AMK_DTYPE_F32, {entries}), index = lab.activation(AMK_DTYPE_I32, {entries});
      const int token = lab.add(AMK_KIND_IO_OUTPUT, AMK_DTYPE_I32, {1});
      for (int i = 0; i < 5; ++i) lab.put(logits, i, c.logits[static_cast<size_t>(i)]);
      for (int d = 0; d < entries; ++d) {
        amk_params_t p{};
        p.vocab = 5;
        p.M = entries;
        p.dim = entries - 1 - d;  // entries need not be in the order of their ranges
        p.n_off = cuts[d];
        p.N_tile = cuts[d + 1] - cuts[d];
        lab.run(AMK_OP_SAMPLE_ARGMAX, {logits}, {value, index}, p);
      }
      amk_params_t p{};
      p.M = entries;
      lab.run(AMK_OP_ARGMAX_COMBINE, {value, index}, {token}, p);
      CHECK_EQ(lab.at(token, 0), c.want);
    }
}

TEST(an_opcode_without_code_is_refused) {
  amk_instruction_t task{};
  task.op = AMK_OP_FUSED;
  amk::Scratch scratch;
  try {
    amk::run_op({{task, nullptr, nullptr}, {}, {}, 0, scratch});
    CHECK(!"ran");
  } catch (const amk::Error& e) {
    CHECK_EQ(e.status(), AMK_ERR_INTERNAL);
  }
  for (int op = 0; op <= AMK_OP_SIGMOID_MUL; ++op) {
    if (amk::op_supported(op)) continue;
    task.op = op;
    bool refused = false;
    try {
      amk::run_op({{task, nullptr, nullptr}, {}, {}, 0, scratch});
    } catch (const amk::Error&) {
      refused = true;
    }
    CHECK(refused);
  }
}
