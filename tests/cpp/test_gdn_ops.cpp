// The ops of linear attention, and norms of 1 + w, against their laws in double precision, over random shapes, and
// their footprints. A state is checked after several steps: what one leaves is what the next reads.
#include "test_vm_support.h"

namespace {

double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
double silu(double v) { return v * sigmoid(v); }
double softplus(double v) { return std::log1p(std::exp(v)); }

int state_of(OpLab& lab, int dtype, std::initializer_list<int64_t> shape, double scale) {
  return lab.add(AMK_KIND_STATE, dtype, shape, scale);
}

std::vector<double> head(const OpLab& lab, int b, int64_t first, int dim, bool l2, double eps) {
  std::vector<double> out;
  double squares = 0;
  for (int i = 0; i < dim; ++i) out.push_back(lab.at(b, first + i));
  for (double v : out) squares += v * v;
  for (double& v : out) v /= l2 ? std::sqrt(squares + eps) : 1;
  return out;
}

void check_conv(int dtype, int seed) {
  OpLab lab(static_cast<uint64_t>(seed));
  amk_params_t p{};
  p.K = lab.random.between(2, AMK_MAX_CONV_WIDTH);
  p.N = lab.random.between(1, 40);
  p.n_off = lab.random.between(0, p.N - 1);
  p.N_tile = lab.random.between(1, p.N - p.n_off);
  p.m_off = lab.random.between(0, 5);
  const int x = lab.activation(dtype, {p.m_off + p.N + 2}), w = lab.weight(dtype, {p.N, p.K});
  const int state = state_of(lab, dtype, {p.N, p.K - 1}, 1), y = lab.activation(dtype, {p.N});
  std::vector<std::vector<double>> past(static_cast<size_t>(p.N));  // per channel, oldest first
  for (int c = 0; c < p.N; ++c)
    for (int j = 0; j + 1 < p.K; ++j) past[c].push_back(lab.at(state, c * (p.K - 1) + j));
  for (int step = 0; step < p.K + 2; ++step) {
    for (int64_t i = 0; i < lab.buffers[x].numel; ++i) lab.put(x, i, lab.random.uniform());
    lab.run(AMK_OP_CAUSAL_CONV, {x, w, state}, {y, state}, p);
    for (int c = p.n_off; c < p.n_off + p.N_tile; ++c) {
      past[c].push_back(lab.at(x, p.m_off + c));
      double sum = 0;
      for (int j = 0; j < p.K; ++j) sum += lab.at(w, c * p.K + j) * past[c][past[c].size() - p.K + j];
      lab.expect(y, c, silu(sum), 1e-5);
    }
    for (int c = 0; c < p.N; ++c)  // channels of other tiles stay as they were
      for (int j = 0; j + 1 < p.K; ++j)
        CHECK_EQ(lab.at(state, c * (p.K - 1) + j), past[c][past[c].size() - (p.K - 1) + j]);
  }
}

void check_gdn(int dtype, int seed, bool l2) {
  OpLab lab(static_cast<uint64_t>(seed) * 31 + l2);
  amk_params_t p{};
  p.head_dim = (dtype == AMK_DTYPE_F32 ? 4 : 8) * lab.random.between(1, 4);
  p.n_kv_heads = lab.random.between(1, 3);
  p.n_heads = p.n_kv_heads * lab.random.between(1, 3);
  p.n_off = lab.random.between(0, p.n_heads - 1);
  p.N_tile = lab.random.between(1, p.n_heads - p.n_off);
  p.m_off = lab.random.between(0, 4);
  p.scale = 0.3f;
  if (l2) p.flags = AMK_FLAG_L2_NORM, p.eps = 1e-6f;
  const int dim = p.head_dim, hq = p.n_kv_heads, hv = p.n_heads;
  const int qkv = lab.activation(dtype, {(2 * hq + hv) * dim}), ba = lab.activation(dtype, {p.m_off + 2 * hv + 1});
  const int a_log = lab.weight(AMK_DTYPE_F32, {hv}), dt = lab.weight(AMK_DTYPE_F32, {hv});
  const int state = state_of(lab, AMK_DTYPE_F32, {hv, dim, dim}, 0.5), out = lab.activation(dtype, {hv * dim});
  std::vector<double> s;
  for (int64_t i = 0; i < lab.buffers[state].numel; ++i) s.push_back(lab.at(state, i));
  const auto element = [&](int h, int i, int j) -> double& { return s[static_cast<size_t>((h * dim + i) * dim + j)]; };
  for (int step = 0; step < 3; ++step) {
    for (int64_t i = 0; i < lab.buffers[qkv].numel; ++i) lab.put(qkv, i, lab.random.uniform());
    for (int64_t i = 0; i < lab.buffers[ba].numel; ++i) lab.put(ba, i, 3 * lab.random.uniform());
    lab.run(AMK_OP_GDN_DECODE, {qkv, ba, a_log, dt, state}, {out, state}, p);
    for (int h = p.n_off; h < p.n_off + p.N_tile; ++h) {
      const int g = h / (hv / hq);
      const auto q = head(lab, qkv, g * dim, dim, l2, p.eps), k = head(lab, qkv, (hq + g) * dim, dim, l2, p.eps);
      const double beta = sigmoid(lab.at(ba, p.m_off + h));
      const double decay =
          std::exp(-std::exp(lab.at(a_log, h)) * softplus(lab.at(ba, p.m_off + hv + h) + lab.at(dt, h)));
      for (int i = 0; i < dim; ++i) {
        double seen = 0, o = 0;
        for (int j = 0; j < dim; ++j) seen += (element(h, i, j) *= decay) * k[j];
        const double delta = beta * (lab.at(qkv, (2 * hq + h) * dim + i) - seen);
        for (int j = 0; j < dim; ++j) o += (element(h, i, j) += delta * k[j]) * q[j];
        lab.expect(out, h * dim + i, p.scale * o, 2e-5);
      }
    }
    for (size_t i = 0; i < s.size(); ++i) lab.expect(state, static_cast<int64_t>(i), s[i], 2e-5);
  }
}

}  // namespace

TEST(convolution_over_steps) {
  for (int dtype : kComputeTypes)
    for (int seed = 0; seed < 25; ++seed) check_conv(dtype, seed);
}

TEST(delta_rule_over_steps) {
  for (int dtype : kComputeTypes)
    for (int seed = 0; seed < 15; ++seed)
      for (bool l2 : {false, true}) check_gdn(dtype, seed, l2);
}

// softplus and exp at the ends of f32: a decay of 0 or 1 and no NaN.
TEST(decay_of_extreme_gates) {
  for (double a : {-1e4, -90.0, 0.0, 90.0, 1e4})
    for (double log : {-100.0, 0.0, 80.0}) {
      OpLab lab(3);
      amk_params_t p{};
      p.head_dim = 4, p.n_heads = p.n_kv_heads = p.N_tile = 1, p.scale = 1;
      const int qkv = lab.activation(AMK_DTYPE_F32, {12}), ba = lab.activation(AMK_DTYPE_F32, {2});
      const int a_log = lab.weight(AMK_DTYPE_F32, {1}), dt = lab.weight(AMK_DTYPE_F32, {1});
      const int state = lab.add(AMK_KIND_STATE, AMK_DTYPE_F32, {1, 4, 4}), out = lab.activation(AMK_DTYPE_F32, {4});
      lab.put(ba, 0, -1e4);  // beta 0: the state only decays
      lab.put(ba, 1, a), lab.put(a_log, 0, log), lab.put(dt, 0, 0);
      const double before = lab.at(state, 5), soft = a > 0 ? a + std::log1p(std::exp(-a)) : std::log1p(std::exp(a));
      lab.run(AMK_OP_GDN_DECODE, {qkv, ba, a_log, dt, state}, {out, state}, p);
      lab.expect(state, 5, before * std::exp(-std::exp(log) * soft), 1e-6);
    }
}

TEST(gated_norm_of_heads) {
  for (int dtype : kComputeTypes)
    for (int seed = 0; seed < 30; ++seed) {
      OpLab lab(static_cast<uint64_t>(seed));
      amk_params_t p{};
      p.head_dim = lab.random.between(1, 33);
      p.n_heads = lab.random.between(1, 5);
      p.n_off = lab.random.between(0, p.n_heads - 1);
      p.N_tile = lab.random.between(1, p.n_heads - p.n_off);
      p.m_off = lab.random.between(0, 7);
      p.eps = 1e-5f;
      const int64_t count = int64_t{p.n_heads} * p.head_dim;
      const int o = lab.activation(dtype, {count}), z = lab.add(AMK_KIND_ACTIVATION, dtype, {p.m_off + count + 1}, 4);
      const int w = lab.weight(dtype, {p.head_dim}), out = lab.activation(dtype, {count});
      lab.run(AMK_OP_GATED_RMSNORM, {o, z, w}, {out}, p);
      for (int64_t h = p.n_off; h < p.n_off + p.N_tile; ++h) {
        double squares = 0;
        for (int j = 0; j < p.head_dim; ++j) squares += std::pow(lab.at(o, h * p.head_dim + j), 2);
        for (int j = 0; j < p.head_dim; ++j) {
          const int64_t i = h * p.head_dim + j;
          const double y =
              lab.at(o, i) / std::sqrt(squares / p.head_dim + p.eps) * lab.at(w, j) * silu(lab.at(z, p.m_off + i));
          lab.expect(out, i, y, 1e-5 * std::fabs(y) + 1e-6);
        }
      }
    }
}

TEST(sigmoid_gate_with_and_without_place) {
  for (int dtype : kComputeTypes)
    for (int seed = 0; seed < 20; ++seed) {
      OpLab lab(static_cast<uint64_t>(seed));
      amk_params_t p{};
      const int n = lab.random.between(1, 40);
      p.n_off = lab.random.between(0, n - 1);
      p.N_tile = lab.random.between(1, n - p.n_off);
      p.m_off = lab.random.between(0, 9);
      const int a = lab.activation(dtype, {n}), b = lab.add(AMK_KIND_ACTIVATION, dtype, {p.m_off + n}, 8);
      const int out = seed % 2 ? a : lab.activation(dtype, {n});
      std::vector<double> want;
      for (int i = 0; i < n; ++i) want.push_back(lab.at(a, i) * sigmoid(lab.at(b, p.m_off + i)));
      lab.run(AMK_OP_SIGMOID_MUL, {a, b}, {out}, p);
      for (int i = p.n_off; i < p.n_off + p.N_tile; ++i) lab.expect(out, i, want[i], 1e-6);
    }
}

// Each op that normalises gives with w as 1 + w the bits that it gives plainly with weights of 1 + w. Weights are
// multiples of 1/64, so that 1 + w is exact in every type.
TEST(norms_of_one_plus_w) {
  for (int dtype : kComputeTypes)
    for (int seed = 0; seed < 10; ++seed) {
      OpLab lab(static_cast<uint64_t>(seed));
      const int x = lab.activation(dtype, {64}), freq = lab.add(AMK_KIND_CONST, AMK_DTYPE_F32, {8});
      const int matrix = lab.weight(dtype, {8, 16}), less = lab.weight(dtype, {16}), full = lab.weight(dtype, {16});
      const auto cache = [&] { return lab.add(AMK_KIND_KV_CACHE, dtype, {1, 8, 16}); };
      const int k = cache(), v = cache();
      for (int i = 0; i < 16; ++i) {
        const double w = lab.random.between(-40, 40) / 64.0;
        lab.put(less, i, w), lab.put(full, i, 1 + w);
      }
      // The last `norms` inputs are norm weights, and outputs[0] is compared.
      const auto both = [&](int op, std::vector<int> inputs, int norms, amk_params_t p, std::vector<int> plain,
                            std::vector<int> plus) {
        const size_t others = inputs.size();
        inputs.resize(others + static_cast<size_t>(norms), full);
        lab.run(op, inputs, plain, p, 5);
        std::fill(inputs.begin() + static_cast<std::ptrdiff_t>(others), inputs.end(), less);
        p.flags |= AMK_FLAG_NORM_PLUS_ONE;
        lab.run(op, inputs, plus, p, 5);
        int different = 0;
        const int64_t row = op == AMK_OP_KV_APPEND ? 5 * 16 : 0;
        const int64_t count = op == AMK_OP_KV_APPEND ? 16 : lab.buffers[plain[0]].numel;
        for (int64_t i = row; i < row + count; ++i) different += lab.at(plain[0], i) != lab.at(plus[0], i);
        CHECK_EQ(different, 0);
      };
      const auto vector = [&](int64_t n) { return lab.activation(dtype, {n}); };
      const auto part = [&](int64_t n) { return lab.activation(AMK_DTYPE_F32, {1, 1, n}); };
      amk_params_t p{};
      p.eps = 1e-5f;
      amk_params_t rms = p, gemv = p, rope = p, append = p, attend = p;
      rms.hidden = 16, rms.M_tile = 2;
      both(AMK_OP_RMSNORM, {x}, 1, rms, {vector(32)}, {vector(32)});
      gemv.K = 16, gemv.N = gemv.N_tile = 8, gemv.flags = AMK_FLAG_NORM;
      both(AMK_OP_GEMV_TILE, {x, matrix}, 1, gemv, {vector(8)}, {vector(8)});
      rope.n_heads = 2, rope.head_dim = 16, rope.flags = AMK_FLAG_NORM;
      both(AMK_OP_ROPE, {x, freq}, 1, rope, {vector(32)}, {vector(32)});
      append.n_kv_heads = append.N_tile = 1, append.head_dim = 16, append.K = 8;
      append.flags = AMK_FLAG_NORM | AMK_FLAG_ROPE;
      both(AMK_OP_KV_APPEND, {x, freq}, 1, append, {cache()}, {cache()});
      attend.n_heads = attend.n_kv_heads = attend.N_tile = attend.M = 1, attend.head_dim = 16, attend.K = 8;
      attend.M_tile = 16, attend.scale = 0.25f, attend.flags = AMK_FLAG_NORM | AMK_FLAG_ROPE;
      both(AMK_OP_ATTENTION_TILE, {x, k, v, freq}, 2, attend, {part(16), part(2)}, {part(16), part(2)});
    }
}
