// Every opcode that works on several tokens, with 2, 5 and 16 of them, against the reference machine: each flag, tiles
// that start anywhere, columns and row groups in several panels.
#include "gpu_op_cases.h"

namespace gpu_test {
namespace {

constexpr int32_t kTokens[] = {2, 5, 16};

// Where a step of `tokens` may begin in a cache of `rows`.
std::vector<int32_t> places(int32_t rows, int32_t tokens) {
  std::vector<int32_t> out;
  for (int32_t pos : {0, 13, 17, 1023, rows - tokens})
    if (pos <= rows - tokens) out.push_back(pos);
  return out;
}

amk_params_t of_tokens(int32_t tokens) {
  amk_params_t p{};
  p.M_tile = tokens;
  return p;
}

void copy_batch() {
  Line line("COPY, tokens");
  for (int32_t dtype : {AMK_DTYPE_F32, AMK_DTYPE_BF16, AMK_DTYPE_I32, AMK_DTYPE_U8}) {
    for (int32_t b : kTokens) {
      if (few && b != 5) continue;
      constexpr int32_t kCount = 1000;
      Sketch s;
      const int32_t x = s.input("x", dtype, {b, kCount + 3}), y = s.output("y", dtype, {b, kCount});
      for (auto [at, n] : cuts(kCount)) {
        amk_params_t p = of_tokens(b);
        p.m_off = at + 3;
        p.n_off = at;
        p.N_tile = n;
        s.task(AMK_OP_COPY, {x}, {y}, p);
      }
      check(line, amk::text("%s, %d tokens", amk::dtype_name(dtype), b), s, 0, {0});
    }
  }
}

void embed_batch() {
  Line line("EMBED, tokens");
  for (int32_t dtype : kTypes) {
    for (int32_t b : kTokens) {
      for (int32_t hidden : {8, 77, 5000}) {
        if (few && !(hidden == 77 && b == 5)) continue;
        Sketch s;
        const int32_t id = s.input("token", AMK_DTYPE_I32, {b}), table = s.weight("embed", dtype, {13, hidden}),
                      y = s.output("y", dtype, {b, hidden});
        for (auto [at, n] : cuts(hidden)) {
          amk_params_t p = of_tokens(b);
          p.vocab = 13;
          p.hidden = hidden;
          p.n_off = at;
          p.N_tile = n;
          s.task(AMK_OP_EMBED, {id, table}, {y}, p);
        }
        std::vector<int32_t> tokens;
        for (int32_t t = 0; t < b; ++t) tokens.push_back(t * 7 % 13);
        check(line, amk::text("%s hidden %d, %d tokens", amk::dtype_name(dtype), hidden, b), s, 0, {0},
              {{"token", tokens}});
      }
    }
  }
}

void elementwise_batch() {
  Line line("ADD, MUL, SILU_MUL");
  for (int32_t op : {AMK_OP_ADD, AMK_OP_MUL, AMK_OP_SILU_MUL}) {
    for (int32_t dtype : kTypes) {
      for (int32_t b : kTokens) {
        if (few && b != 5) continue;
        constexpr int32_t kCount = 1001;
        const bool is_silu = op == AMK_OP_SILU_MUL;
        Sketch s;
        const int32_t x = s.input("a", dtype, {b, is_silu ? 2 * kCount : kCount}), z = s.input("b", dtype, {b, kCount}),
                      y = s.output("y", dtype, {b, kCount});
        for (auto [at, n] : cuts(kCount)) {
          amk_params_t p = of_tokens(b);
          p.n_off = at;
          p.N_tile = n;
          if (is_silu) p.N = kCount;
          s.task(op, is_silu ? std::vector<int32_t>{x} : std::vector<int32_t>{x, z}, {y}, p);
        }
        check(line, amk::text("op %d %s, %d tokens", op, amk::dtype_name(dtype), b), s,
              is_silu ? one_rounding(dtype) : 0, {0});
      }
    }
  }
}

struct Matrix {
  int32_t k, n, group;  // group 0: not quantised
};

// Tasks of whole row groups where the weights can be packed, else of any rows.
void gemv_case(Line& line, int32_t dtype, int32_t flags, int32_t b, const Matrix& m, bool is_streamed) {
  const bool f32_out = (flags + m.n / 8 + b) % 2 == 0, pair = flags & AMK_FLAG_SILU_PAIR;
  const int64_t k = m.k, rows = pair ? 2 * m.n : m.n;
  Sketch s;
  const int32_t x = s.input("x", dtype, {b, k + 8}),
                w = s.weight("w", m.group ? static_cast<int32_t>(AMK_DTYPE_I8) : dtype, {rows, k}),
                y = s.output("y", f32_out ? static_cast<int32_t>(AMK_DTYPE_F32) : dtype, {b, m.n});
  std::vector<int32_t> in{x, w};
  if (m.group) in.push_back(s.weight("w_scale", dtype, {rows, k / m.group}));
  if (flags & AMK_FLAG_NORM) in.push_back(s.weight("norm", dtype, {k}));
  if (flags & AMK_FLAG_BIAS) in.push_back(s.weight("bias", dtype, {rows}));
  if (flags & AMK_FLAG_RESIDUAL) in.push_back(s.input("residual", dtype, {b, m.n}));
  std::vector<std::pair<int32_t, int32_t>> tiles = cuts(m.n);
  if (is_streamed) {
    tiles.clear();
    const int32_t groups = m.n / AMK_ROW_GROUP, parts = std::min(groups, 5);
    for (int32_t i = 0; i < parts; ++i) {
      const int32_t first = groups * i / parts, end = groups * (i + 1) / parts;
      tiles.push_back({first * AMK_ROW_GROUP, (end - first) * AMK_ROW_GROUP});
    }
  }
  for (auto [at, n] : tiles) {
    amk_params_t p = of_tokens(b);
    p.K = m.k;
    p.N = m.n;
    p.n_off = at;
    p.N_tile = n;
    p.m_off = 8;
    p.flags = flags | (flags & AMK_FLAG_NORM && b == 5 ? static_cast<int32_t>(AMK_FLAG_NORM_PLUS_ONE) : 0);
    if (flags & AMK_FLAG_NORM) p.eps = 1e-5f;
    if (m.group) p.qdtype = AMK_DTYPE_I8;
    p.group = m.group;
    s.task(AMK_OP_GEMV_TILE, in, {y}, p);
  }
  const std::string name =
      amk::text("%s K %d N %d group %d flags %d, %d tokens", amk::dtype_name(dtype), m.k, m.n, m.group, flags, b);
  bool is_packed = false;
  const Bytes image = s.image();
  for (const amk::ImageStorage& storage : view_of(image).storages) is_packed |= storage.packing != 0;
  if (is_packed != is_streamed) line.fail(name + ": its weights are packed otherwise");
  check(line, name, s, one_rounding(dtype), {0}, {}, 0.1);
}

void gemv_batch() {
  for (bool quantised : {false, true}) {
    Line line(quantised ? "GEMV, int8, tokens" : "GEMV, ring, tokens");
    const std::vector<Matrix> sizes =
        quantised ? std::vector<Matrix>{{64, 8, 64}, {192, 40, 64}, {1152, 40, 128}, {4096, 520, 128}, {9344, 72, 64}}
                  : std::vector<Matrix>{{32, 8, 0},     {544, 40, 0},  {1024, 264, 0},
                                        {4096, 520, 0}, {7712, 72, 0}, {14336, 136, 0}};
    for (int32_t dtype : {AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
      for (int32_t flags = 0; flags < 16; ++flags) {
        for (int32_t b : kTokens) {
          for (const Matrix& m : sizes) {
            if (few ? !(b == 5 && m.n == 40 && (flags == 0 || flags == 15)) : m.k > 2000 && (flags + b) % 3 != 0)
              continue;
            gemv_case(line, dtype, flags, b, m, true);
          }
        }
      }
    }
  }
  Line line("GEMV, direct, tokens");
  for (int32_t dtype : kTypes) {
    for (int32_t flags : {0, 7, 15}) {
      for (int32_t b : kTokens) {
        for (const Matrix& m : {Matrix{8, 1, 0}, Matrix{1032, 37, 0}, Matrix{4096, 131, 0}}) {
          if (few && !(m.n == 37 && b == 5)) continue;
          gemv_case(line, dtype, flags, b, m, false);
        }
      }
    }
  }
}

void heads_batch() {
  Line turn("ROPE, tokens"), append("KV_APPEND, tokens");
  constexpr int32_t kHeads = 3, kRows = 2048;
  for (int32_t dtype : kTypes) {
    for (int32_t dim : {8, 64, 80, 256}) {
      for (int32_t flags : {0, (int32_t)AMK_FLAG_NORM, (int32_t)AMK_FLAG_ROPE, AMK_FLAG_NORM | AMK_FLAG_ROPE}) {
        for (int32_t b : kTokens) {
          if (few && !(dim == 80 && b == 5)) continue;
          for (bool is_append : {false, true}) {
            if (!is_append && !(flags & AMK_FLAG_ROPE)) continue;  // ROPE always turns
            Sketch s(kRows);
            const int32_t x = s.input("x", dtype, {b, kHeads * dim + 8});
            const int32_t y =
                is_append ? s.cache("kv.0.k", dtype, {kHeads, kRows, dim}) : s.output("y", dtype, {b, kHeads * dim});
            std::vector<int32_t> in{x};
            if (flags & AMK_FLAG_ROPE) in.push_back(s.constant("inv_freq", {dim / 2}));
            if (flags & AMK_FLAG_NORM) in.push_back(s.weight("norm", dtype, {dim}));
            for (auto [at, n] : cuts(kHeads)) {
              amk_params_t p = of_tokens(b);
              p.head_dim = dim;
              p.m_off = at * dim + 8;
              p.flags = is_append ? flags : flags & AMK_FLAG_NORM;
              if (flags & AMK_FLAG_NORM) p.eps = 1e-5f;
              if (is_append) {
                p.n_kv_heads = kHeads;
                p.K = kRows;
                p.n_off = at;
                p.N_tile = n;
              } else {
                p.n_heads = n;
                p.n_off = at * dim;
              }
              s.task(is_append ? AMK_OP_KV_APPEND : AMK_OP_ROPE, in, {y}, p);
            }
            check(is_append ? append : turn,
                  amk::text("%s dim %d flags %d, %d tokens", amk::dtype_name(dtype), dim, flags, b), s,
                  flags ? one_rounding(dtype) : 0, places(kRows, b));
          }
        }
      }
    }
  }
}

struct Heads {
  int32_t query, kv, dim, rows, splits, kv_block;
};

// Append, attend in splits, merge. parts_out shows the parts themselves, empty ones and those that hide a row from some
// of the tokens too.
void attention_case(Line& line, int32_t dtype, const Heads& h, int32_t b, bool parts_out) {
  Sketch s(h.rows);
  const int32_t q = s.input("q", dtype, {b, h.query * h.dim}), kv = s.input("kv", dtype, {b, 2 * h.kv * h.dim}),
                k = s.cache("kv.0.k", dtype, {h.kv, h.rows, h.dim}),
                v = s.cache("kv.0.v", dtype, {h.kv, h.rows, h.dim});
  const auto part = [&](const char* name, int64_t last) {
    return parts_out ? s.output(name, AMK_DTYPE_F32, {b, h.query, h.splits, last})
                     : s.scratch(name, AMK_DTYPE_F32, {b, h.query, h.splits, last});
  };
  const int32_t o = part("part_o", h.dim), ml = part("part_ml", 2), y = s.output("y", dtype, {b, h.query * h.dim});
  amk_params_t a = of_tokens(b);
  a.n_kv_heads = h.kv;
  a.head_dim = h.dim;
  a.K = h.rows;
  a.N_tile = h.kv;
  const int32_t first = s.task(AMK_OP_KV_APPEND, {kv}, {k}, a);
  a.m_off = h.kv * h.dim;
  const int32_t ready = s.task(AMK_OP_NOP, {}, {}, {}, {first, s.task(AMK_OP_KV_APPEND, {kv}, {v}, a)});
  int32_t join = ready;
  for (int32_t split = 0; split < h.splits; ++split) {
    for (auto [at, n] : cuts(h.kv)) {
      amk_params_t p{};
      p.N = b;
      p.n_heads = h.query;
      p.n_kv_heads = h.kv;
      p.head_dim = h.dim;
      p.K = h.rows;
      p.M = h.splits;
      p.M_tile = h.kv_block;
      p.N_tile = n;
      p.n_off = at;
      p.dim = split;
      p.scale = 1.0f / std::sqrt(static_cast<float>(h.dim));
      join = s.task(AMK_OP_NOP, {}, {}, {}, {join, s.task(AMK_OP_ATTENTION_TILE, {q, k, v}, {o, ml}, p, {ready})});
    }
  }
  for (auto [at, n] : cuts(h.query)) {
    amk_params_t p = of_tokens(b);
    p.n_heads = h.query;
    p.head_dim = h.dim;
    p.M = h.splits;
    p.n_off = at;
    p.N_tile = n;
    s.task(AMK_OP_ATTENTION_COMBINE, {o, ml}, {y}, p, {join});
  }
  check(line,
        amk::text("%s %d/%d x %d, %d splits of blocks of %d, %d tokens%s", amk::dtype_name(dtype), h.query, h.kv, h.dim,
                  h.splits, h.kv_block, b, parts_out ? ", parts" : ""),
        s, one_rounding(dtype), places(h.rows, b));
}

void attention_batch() {
  Line line("ATTENTION, tokens");
  const Heads shapes[] = {{1, 1, 8, 64, 1, 16},      {8, 2, 64, 300, 5, 16},   {7, 1, 128, 200, 3, 32},
                          {6, 3, 80, 1100, 7, 64},   {4, 4, 256, 150, 2, 128}, {32, 8, 64, 2048, 16, 64},
                          {12, 1, 128, 1100, 2, 16}, {32, 8, 128, 1100, 9, 16}};
  for (int32_t dtype : kTypes) {
    for (const Heads& h : shapes) {
      for (int32_t b : kTokens) {
        if (few && !((h.rows == 300 || h.dim == 80) && b == 5)) continue;
        attention_case(line, dtype, h, b, false);
        if (!few) attention_case(line, dtype, h, b, true);
      }
    }
  }
}

void argmax_batch() {
  Line line("ARGMAX, tokens");
  for (int32_t vocab : {10, 1001, 152001}) {
    for (int32_t b : kTokens) {
      for (int tie = 0; tie < 2; ++tie) {
        if (few && !(vocab == 1001 && b == 5)) continue;
        const std::vector<std::pair<int32_t, int32_t>> parts = cuts(vocab);
        const int64_t count = static_cast<int64_t>(parts.size());
        Sketch s;
        const int32_t x = s.input("x", AMK_DTYPE_F32, {b, vocab}), value = s.output("value", AMK_DTYPE_F32, {b, count}),
                      index = s.output("index", AMK_DTYPE_I32, {b, count}), y = s.output("y", AMK_DTYPE_I32, {b});
        int32_t join = -1, part = 0;
        for (auto [at, n] : parts) {
          amk_params_t p = of_tokens(b);
          p.vocab = vocab;
          p.n_off = at;
          p.N_tile = n;
          p.M = static_cast<int32_t>(count);
          p.dim = part++;
          const int32_t scan = s.task(AMK_OP_SAMPLE_ARGMAX, {x}, {value, index}, p);
          join = join < 0 ? scan : s.task(AMK_OP_NOP, {}, {}, {}, {join, scan});
        }
        amk_params_t p = of_tokens(b);
        p.M = static_cast<int32_t>(count);
        s.task(AMK_OP_ARGMAX_COMBINE, {value, index}, {y}, p, {join});
        std::map<std::string, std::vector<int32_t>> bits;
        if (tie) bits["x"] = std::vector<int32_t>(static_cast<size_t>(b) * static_cast<size_t>(vocab), 0x3f800000);
        check(line, amk::text("vocab %d, %d tokens%s", vocab, b, tie ? ", all equal" : ""), s, 0, {0}, bits);
      }
    }
  }
}

}  // namespace

void batch_ops() {
  copy_batch();
  embed_batch();
  elementwise_batch();
  gemv_batch();
  heads_batch();
  attention_batch();
  argmax_batch();
}

}  // namespace gpu_test
