// Every opcode by itself against the reference machine: each flag, tiles that start and end anywhere, the smallest and
// odd sizes, and every opcode at every position of positions_below, also where it must not matter. Needs a GPU.
// In: "few" (one case of each opcode and type, for a sanitizer), "batch" (those of several tokens alone),
// deadline_ms=N. Out: one line per opcode.
#include <cstdio>

#include "gpu_op_cases.h"

using namespace gpu_test;

namespace {

// NORM_PLUS_ONE for some of the tasks that normalise.
int32_t plus_one(int32_t flags, int32_t which) {
  return flags & AMK_FLAG_NORM && which % 2 ? static_cast<int32_t>(AMK_FLAG_NORM_PLUS_ONE) : 0;
}

void copy_and_nop() {
  Line line("COPY and NOP");
  for (int32_t dtype : {AMK_DTYPE_F32, AMK_DTYPE_F16, AMK_DTYPE_BF16, AMK_DTYPE_I32, AMK_DTYPE_I8, AMK_DTYPE_U8}) {
    for (int32_t count : {1, 7, 1000, 40001}) {
      if (few && count != 7) continue;
      Sketch s;
      const int32_t x = s.input("x", dtype, {count + 3}), t = s.scratch("t", dtype, {count}),
                    y = s.output("y", dtype, {count});
      std::vector<int32_t> first;
      for (auto [at, n] : cuts(count)) {
        amk_params_t p{};
        p.m_off = at + 3;
        p.n_off = at;
        p.N_tile = n;
        // At most eight waits: NOPs join the tiles one after the other.
        const int32_t tile = s.task(AMK_OP_COPY, {x}, {t}, p);
        first.push_back(first.empty() ? tile : s.task(AMK_OP_NOP, {}, {}, {}, {first.back(), tile}));
      }
      amk_params_t all{};
      all.N_tile = count;
      s.task(AMK_OP_COPY, {t}, {y}, all, {first.back()});
      check(line, amk::text("%s %d", amk::dtype_name(dtype), count), s, 0);
    }
  }
}

void embed() {
  Line line("EMBED");
  for (int32_t dtype : kTypes) {
    for (int32_t hidden : {1, 8, 77, 5000}) {
      if (few && hidden != 77) continue;
      for (int32_t token : {0, 3, 12}) {
        Sketch s;
        const int32_t id = s.input("token", AMK_DTYPE_I32, {1}), table = s.weight("embed", dtype, {13, hidden}),
                      y = s.output("y", dtype, {hidden});
        for (auto [at, n] : cuts(hidden)) {
          amk_params_t p{};
          p.vocab = 13;
          p.hidden = hidden;
          p.n_off = at;
          p.N_tile = n;
          s.task(AMK_OP_EMBED, {id, table}, {y}, p);
        }
        check(line, amk::text("%s hidden %d token %d", amk::dtype_name(dtype), hidden, token), s, 0, {},
              {{"token", {token}}});
      }
    }
  }
}

void elementwise(int32_t op, const char* name) {
  Line line(name);
  for (int32_t dtype : kTypes) {
    for (int32_t count : {1, 9, 512, 4099}) {
      if (few && count != 9) continue;
      const bool is_silu = op == AMK_OP_SILU_MUL;
      Sketch s;
      const int32_t a = s.input("a", dtype, {is_silu ? 2 * count : count}), b = s.input("b", dtype, {count}),
                    y = s.output("y", dtype, {count});
      for (auto [at, n] : cuts(count)) {
        amk_params_t p{};
        p.n_off = at;
        p.N_tile = n;
        if (is_silu) p.N = count;
        s.task(op, is_silu ? std::vector<int32_t>{a} : std::vector<int32_t>{a, b}, {y}, p);
      }
      check(line, amk::text("%s %d", amk::dtype_name(dtype), count), s, is_silu ? one_rounding(dtype) : 0);
    }
  }
}

void rmsnorm() {
  Line line("RMSNORM");
  for (int32_t dtype : kTypes) {
    for (int32_t hidden : {1, 8, 100, 4096, 8200}) {
      if (few && hidden != 100) continue;
      for (int32_t rows : {1, 3}) {
        const int32_t flags = rows == 3 ? static_cast<int32_t>(AMK_FLAG_NORM_PLUS_ONE) : 0;
        Sketch s;
        const int32_t x = s.input("x", dtype, {rows * hidden + 8}), w = s.weight("norm", dtype, {hidden}),
                      y = s.output("y", dtype, {rows * hidden});
        amk_params_t p{};
        p.hidden = hidden;
        p.M_tile = rows;
        p.m_off = 8;
        p.eps = 1e-6f;
        p.flags = flags;
        s.task(AMK_OP_RMSNORM, {x, w}, {y}, p);
        check(line, amk::text("%s %d rows of %d", amk::dtype_name(dtype), rows, hidden), s, one_rounding(dtype));
      }
    }
  }
}

void gemv() {
  Line line("GEMV_TILE");
  struct Size {
    int32_t k, n;
  };
  for (int32_t dtype : kTypes) {
    for (int32_t flags = 0; flags < 16; ++flags) {
      for (Size size : {Size{8, 1}, Size{64, 5}, Size{1032, 37}, Size{4096, 130}, Size{14336, 9}}) {
        if (few && !(size.n == 37 && (flags == 0 || flags == 7 || flags == 15))) continue;
        const bool f32_out = (flags + size.n) % 2 == 0, pair = flags & AMK_FLAG_SILU_PAIR;
        const int64_t k = size.k, rows = pair ? 2 * size.n : size.n;
        Sketch s;
        const int32_t x = s.input("x", dtype, {k + 8}), w = s.weight("w", dtype, {rows, k}),
                      y = s.output("y", f32_out ? AMK_DTYPE_F32 : dtype, {size.n});
        std::vector<int32_t> in{x, w};
        if (flags & AMK_FLAG_NORM) in.push_back(s.weight("norm", dtype, {k}));
        if (flags & AMK_FLAG_BIAS) in.push_back(s.weight("bias", dtype, {rows}));
        if (flags & AMK_FLAG_RESIDUAL) in.push_back(s.input("residual", dtype, {size.n}));
        for (auto [at, n] : cuts(size.n)) {
          amk_params_t p{};
          p.K = size.k;
          p.N = size.n;
          p.n_off = at;
          p.N_tile = n;
          p.m_off = 8;
          p.flags = flags | plus_one(flags, size.n / 8 + size.n);
          if (flags & AMK_FLAG_NORM) p.eps = 1e-5f;
          s.task(AMK_OP_GEMV_TILE, in, {y}, p);
        }
        check(line, amk::text("%s K %d N %d flags %d", amk::dtype_name(dtype), size.k, size.n, flags), s,
              one_rounding(dtype), {}, {}, 0.1);
      }
    }
  }
}

// The same over packed weights from the ring: row groups of 8, slots of 512 columns and a shorter last one, more slots
// than the ring has, panels, several tasks per queue.
void streamed_gemv() {
  Line line("GEMV_TILE, streamed");
  struct Size {
    int32_t k, n;
  };
  for (int32_t dtype : {AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    for (int32_t flags = 0; flags < 16; ++flags) {
      for (Size size : {Size{32, 8}, Size{96, 24}, Size{544, 40}, Size{1024, 264}, Size{4096, 2048}, Size{14336, 56}}) {
        if (few && !(size.n == 40 && (flags == 0 || flags == 7 || flags == 15))) continue;
        const bool f32_out = (flags + size.n / 8) % 2 == 0, pair = flags & AMK_FLAG_SILU_PAIR;
        const int64_t k = size.k, rows = pair ? 2 * size.n : size.n;
        Sketch s;
        const int32_t x = s.input("x", dtype, {k + 8}), w = s.weight("w", dtype, {rows, k}),
                      y = s.output("y", f32_out ? AMK_DTYPE_F32 : dtype, {size.n});
        std::vector<int32_t> in{x, w};
        if (flags & AMK_FLAG_NORM) in.push_back(s.weight("norm", dtype, {k}));
        if (flags & AMK_FLAG_BIAS) in.push_back(s.weight("bias", dtype, {rows}));
        if (flags & AMK_FLAG_RESIDUAL) in.push_back(s.input("residual", dtype, {size.n}));
        const int32_t groups = size.n / AMK_ROW_GROUP, parts = groups < 7 ? groups : 7;
        for (int32_t i = 0; i < parts; ++i) {
          amk_params_t p{};
          p.K = size.k;
          p.N = size.n;
          p.n_off = groups * i / parts * AMK_ROW_GROUP;
          p.N_tile = groups * (i + 1) / parts * AMK_ROW_GROUP - p.n_off;
          p.m_off = 8;
          p.flags = flags | plus_one(flags, size.n / 8 + size.n);
          if (flags & AMK_FLAG_NORM) p.eps = 1e-5f;
          s.task(AMK_OP_GEMV_TILE, in, {y}, p);
        }
        const Bytes image = s.image();
        bool is_packed = false;
        for (const amk::ImageStorage& storage : view_of(image).storages) is_packed |= storage.packing != 0;
        const std::string name = amk::text("%s K %d N %d flags %d", amk::dtype_name(dtype), size.k, size.n, flags);
        if (!is_packed) report(false, name + ": its weights are not packed");
        check(line, name, s, one_rounding(dtype), {}, {}, 0.1);
      }
    }
  }
}

// Over quantised weights: groups of 64 and 128, slots of 1,024 columns and every length of the last one, and x of every
// size that a type has.
void int8_gemv() {
  Line line("GEMV_TILE, int8");
  struct Size {
    int32_t k, n, group;
  };
  const std::initializer_list<Size> sizes{{64, 8, 64},       {128, 24, 128},   {192, 16, 64},  {1024, 264, 128},
                                          {1152, 40, 128},   {1088, 40, 64},   {1984, 8, 64},  {2048, 1040, 64},
                                          {4096, 2048, 128}, {14336, 56, 128}, {3584, 24, 128}};
  for (int32_t dtype : {AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    for (int32_t flags = 0; flags < 16; ++flags) {
      for (Size size : sizes) {
        if (few && !(size.n == 40 && (flags == 0 || flags == 7 || flags == 15))) continue;
        const bool f32_out = (flags + size.n / 8) % 2 == 0, pair = flags & AMK_FLAG_SILU_PAIR;
        const int64_t k = size.k, rows = pair ? 2 * size.n : size.n;
        Sketch s;
        const int32_t x = s.input("x", dtype, {k + 8}), w = s.weight("w", AMK_DTYPE_I8, {rows, k}),
                      scale = s.weight("w_scale", dtype, {rows, k / size.group}),
                      y = s.output("y", f32_out ? AMK_DTYPE_F32 : dtype, {size.n});
        std::vector<int32_t> in{x, w, scale};
        if (flags & AMK_FLAG_NORM) in.push_back(s.weight("norm", dtype, {k}));
        if (flags & AMK_FLAG_BIAS) in.push_back(s.weight("bias", dtype, {rows}));
        if (flags & AMK_FLAG_RESIDUAL) in.push_back(s.input("residual", dtype, {size.n}));
        const int32_t groups = size.n / AMK_ROW_GROUP, parts = groups < 7 ? groups : 7;
        for (int32_t i = 0; i < parts; ++i) {
          amk_params_t p{};
          p.K = size.k;
          p.N = size.n;
          p.n_off = groups * i / parts * AMK_ROW_GROUP;
          p.N_tile = groups * (i + 1) / parts * AMK_ROW_GROUP - p.n_off;
          p.m_off = 8;
          p.qdtype = AMK_DTYPE_I8;
          p.group = size.group;
          p.flags = flags;
          if (flags & AMK_FLAG_NORM) p.eps = 1e-5f;
          s.task(AMK_OP_GEMV_TILE, in, {y}, p);
        }
        const Bytes image = s.image();
        int packed = 0;
        for (const amk::ImageStorage& storage : view_of(image).storages) packed += storage.packing != 0;
        const std::string name =
            amk::text("%s K %d N %d group %d flags %d", amk::dtype_name(dtype), size.k, size.n, size.group, flags);
        if (packed != 2) report(false, name + ": its weights and scales are not packed");
        check(line, name, s, one_rounding(dtype), {0, 8191}, {}, 0.1);
      }
    }
  }
}

// One element of each value, each scale its own, one place of x at a time: an exact sum, so that not a bit may differ.
// The sizes of x are far apart: integers are subnormals on the device (cuda/gemv_int8.cuh).
void int8_is_exact() {
  Line line("GEMV_TILE, exact");
  for (int32_t dtype : {AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    const std::vector<float> sizes =
        dtype == AMK_DTYPE_F16 ? std::vector<float>{6e-8f, 1e-3f, 1, 200} : std::vector<float>{1e-16f, 1e-6f, 1, 1e18f};
    for (float size : sizes) {
      constexpr int64_t kK = 1024, kN = 256;
      Sketch s;
      const int32_t x = s.input("x", dtype, {kK}), w = s.weight("w", AMK_DTYPE_I8, {kN, kK}),
                    scale = s.weight("w_scale", dtype, {kN, kK / 64}), y = s.output("y", AMK_DTYPE_F32, {kN});
      amk_params_t p{};
      p.K = kK;
      p.N = p.N_tile = kN;
      p.qdtype = AMK_DTYPE_I8;
      p.group = 64;
      s.task(AMK_OP_GEMV_TILE, {x, w, scale}, {y}, p);
      std::vector<int32_t> bits(kK / 2);
      for (int64_t place : {0, 1, 2, 3, 77, 512, 1023}) {
        std::fill(bits.begin(), bits.end(), 0);
        put(dtype, reinterpret_cast<uint8_t*>(bits.data()), place, size);
        check(line, amk::text("%s x %g at %d", amk::dtype_name(dtype), size, (int)place), s, 0, {0}, {{"x", bits}});
      }
    }
  }
}

void rope() {
  Line line("ROPE");
  for (int32_t dtype : kTypes) {
    for (int32_t dim : {2, 8, 64, 80, 256}) {
      for (int32_t flags : {0, static_cast<int32_t>(AMK_FLAG_NORM)}) {
        if (few && dim != 80) continue;
        Sketch s(8192);
        const int32_t heads = 5, x = s.input("x", dtype, {heads * dim + 8}), f = s.constant("inv_freq", {dim / 2}),
                      y = s.output("y", dtype, {heads * dim});
        std::vector<int32_t> in{x, f};
        if (flags) in.push_back(s.weight("norm", dtype, {dim}));
        for (auto [at, n] : cuts(heads)) {
          amk_params_t p{};
          p.n_heads = n;
          p.head_dim = dim;
          p.m_off = at * dim + 8;
          p.n_off = at * dim;
          p.flags = flags | plus_one(flags, at);
          if (flags) p.eps = 1e-5f;
          s.task(AMK_OP_ROPE, in, {y}, p);
        }
        check(line, amk::text("%s dim %d flags %d", amk::dtype_name(dtype), dim, flags), s, one_rounding(dtype));
      }
    }
  }
}

void append() {
  Line line("KV_APPEND");
  for (int32_t dtype : kTypes) {
    for (int32_t dim : {8, 64, 80}) {
      for (int32_t flags : {0, (int32_t)AMK_FLAG_NORM, (int32_t)AMK_FLAG_ROPE, AMK_FLAG_NORM | AMK_FLAG_ROPE}) {
        if (few && dim != 80) continue;
        const int32_t heads = 3, rows = 8192;
        Sketch s(rows);
        const int32_t x = s.input("x", dtype, {heads * dim + 8}), cache = s.cache("kv.0.k", dtype, {heads, rows, dim});
        std::vector<int32_t> in{x};
        if (flags & AMK_FLAG_ROPE) in.push_back(s.constant("inv_freq", {dim / 2}));
        if (flags & AMK_FLAG_NORM) in.push_back(s.weight("norm", dtype, {dim}));
        for (auto [at, n] : cuts(heads)) {
          amk_params_t p{};
          p.n_kv_heads = heads;
          p.head_dim = dim;
          p.K = rows;
          p.n_off = at;
          p.N_tile = n;
          p.m_off = at * dim + 8;
          p.flags = flags | plus_one(flags, at);
          if (flags & AMK_FLAG_NORM) p.eps = 1e-5f;
          s.task(AMK_OP_KV_APPEND, in, {cache}, p);
        }
        check(line, amk::text("%s dim %d flags %d", amk::dtype_name(dtype), dim, flags), s,
              flags ? one_rounding(dtype) : 0);
      }
    }
  }
}

struct Heads {
  int32_t query, kv, dim, rows, splits, kv_block;
};

// Append, attend in splits, merge. At low positions some splits are empty; `parts_out` shows the parts themselves,
// at positions where none is.
// Query heads that were turned before; or this step's raw heads, without and with the norms of heads.
enum class NewHeads { kTurned, kRaw, kRawNormed };
// What attention leaves: partials that a combining task merges, partials that are compared too, or its heads.
enum class Leaves { kPartials, kShownPartials, kHeads };

void attention_case(Line& line, int32_t dtype, const Heads& h, Leaves leaves, const std::vector<int32_t>& positions,
                    NewHeads heads) {
  Sketch s(h.rows);
  const bool is_raw = heads != NewHeads::kTurned, is_normed = heads == NewHeads::kRawNormed;
  const int32_t q = s.input("q", dtype, {(h.query + (is_raw ? 2 * h.kv : 0)) * h.dim}),
                kv = s.input("kv", dtype, {2 * h.kv * h.dim}), k = s.cache("kv.0.k", dtype, {h.kv, h.rows, h.dim}),
                v = s.cache("kv.0.v", dtype, {h.kv, h.rows, h.dim});
  const bool is_direct = leaves == Leaves::kHeads, parts_out = leaves == Leaves::kShownPartials;
  auto part = [&](const char* name, int64_t last) -> int32_t {
    if (is_direct) return -1;
    return parts_out ? s.output(name, AMK_DTYPE_F32, {h.query, h.splits, last})
                     : s.scratch(name, AMK_DTYPE_F32, {h.query, h.splits, last});
  };
  const int32_t o = part("part_o", h.dim), ml = part("part_ml", 2), y = s.output("y", dtype, {h.query * h.dim});
  amk_params_t a{};
  a.n_kv_heads = h.kv;
  a.head_dim = h.dim;
  a.K = h.rows;
  a.N_tile = h.kv;
  const int32_t first = s.task(AMK_OP_KV_APPEND, {kv}, {k}, a);
  a.m_off = h.kv * h.dim;
  int32_t join = s.task(AMK_OP_NOP, {}, {}, {}, {first, s.task(AMK_OP_KV_APPEND, {kv}, {v}, a)});
  const std::vector<int32_t> ready = is_raw ? std::vector<int32_t>{} : std::vector<int32_t>{join};
  std::vector<int32_t> in{q, k, v};
  if (is_raw) in.push_back(s.constant("inv_freq", {h.dim / 2}));
  if (is_normed) in.insert(in.end(), {s.weight("q_norm", dtype, {h.dim}), s.weight("k_norm", dtype, {h.dim})});
  for (int32_t split = 0; split < h.splits; ++split) {
    for (auto [at, n] : cuts(h.kv)) {
      amk_params_t p{};
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
      p.flags = (is_raw ? AMK_FLAG_ROPE : 0) | (is_normed ? AMK_FLAG_NORM : 0);
      p.flags |= plus_one(p.flags, split + at) | (is_direct ? AMK_FLAG_DIRECT : 0);
      if (is_normed) p.eps = 1e-5f;
      const std::vector<int32_t> out = is_direct ? std::vector<int32_t>{y} : std::vector<int32_t>{o, ml};
      const int32_t tile = s.task(AMK_OP_ATTENTION_TILE, in, out, p, ready);
      join = s.task(AMK_OP_NOP, {}, {}, {}, {join, tile});
    }
  }
  for (auto [at, n] : cuts(h.query)) {
    if (is_direct) break;
    amk_params_t p{};
    p.n_heads = h.query;
    p.head_dim = h.dim;
    p.M = h.splits;
    p.n_off = at;
    p.N_tile = n;
    s.task(AMK_OP_ATTENTION_COMBINE, {o, ml}, {y}, p, {join});
  }
  check(line,
        amk::text("%s %d/%d x %d, %d splits of blocks of %d%s%s", amk::dtype_name(dtype), h.query, h.kv, h.dim,
                  h.splits, h.kv_block,
                  parts_out   ? ", parts"
                  : is_direct ? ", direct"
                              : "",
                  is_normed ? ", raw and normed heads"
                  : is_raw  ? ", raw heads"
                            : ""),
        s, one_rounding(dtype), positions);
}

void attention() {
  Line line("ATTENTION, COMBINE");
  const Heads shapes[] = {{1, 1, 8, 64, 1, 16},    {8, 2, 64, 300, 5, 16},   {7, 1, 128, 200, 3, 32},
                          {6, 3, 80, 1030, 7, 64}, {4, 4, 256, 150, 2, 128}, {32, 8, 64, 8192, 16, 64},
                          {6, 2, 80, 8192, 5, 128}};
  for (int32_t dtype : kTypes) {
    for (const Heads& h : shapes) {
      if (few && h.rows != 1030) continue;
      std::vector<int32_t> positions = positions_below(h.rows, h.kv_block);
      positions.push_back(h.rows - 1);
      for (NewHeads heads : {NewHeads::kTurned, NewHeads::kRaw, NewHeads::kRawNormed}) {
        attention_case(line, dtype, h, Leaves::kPartials, positions, heads);
        if ((h.rows - 1) / h.kv_block >= h.splits && !few)
          attention_case(line, dtype, h, Leaves::kShownPartials, {h.rows - 1}, heads);
        Heads one_split = h;
        one_split.splits = 1;
        attention_case(line, dtype, one_split, Leaves::kHeads, positions, heads);
      }
    }
  }
}

void argmax() {
  Line line("ARGMAX, COMBINE");
  for (int32_t vocab : {1, 10, 1001, 152001}) {
    for (int tie = 0; tie < 2; ++tie) {
      if (few && vocab != 1001) continue;
      const std::vector<std::pair<int32_t, int32_t>> parts = cuts(vocab);
      const int64_t count = static_cast<int64_t>(parts.size());
      Sketch s;
      const int32_t x = s.input("x", AMK_DTYPE_F32, {vocab}), value = s.output("value", AMK_DTYPE_F32, {count}),
                    index = s.output("index", AMK_DTYPE_I32, {count}), y = s.output("y", AMK_DTYPE_I32, {1});
      int32_t join = -1, part = 0;
      for (auto [at, n] : parts) {
        amk_params_t p{};
        p.vocab = vocab;
        p.n_off = at;
        p.N_tile = n;
        p.M = static_cast<int32_t>(count);
        p.dim = part++;
        const int32_t scan = s.task(AMK_OP_SAMPLE_ARGMAX, {x}, {value, index}, p);
        join = join < 0 ? scan : s.task(AMK_OP_NOP, {}, {}, {}, {join, scan});
      }
      amk_params_t p{};
      p.M = static_cast<int32_t>(count);
      s.task(AMK_OP_ARGMAX_COMBINE, {value, index}, {y}, p, {join});
      std::map<std::string, std::vector<int32_t>> bits;
      if (tie) bits["x"] = std::vector<int32_t>(static_cast<size_t>(vocab), 0x3f800000);  // all are 1
      check(line, amk::text("vocab %d%s", vocab, tie ? ", all equal" : ""), s, 0, {}, bits);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  static_assert(AMK_OP_SIGMOID_MUL == 24, "an opcode was added: give it cases here");
  bool only_batch = false;
  for (int i = 1; i < argc; ++i) {
    few |= std::strcmp(argv[i], "few") == 0;
    only_batch |= std::strcmp(argv[i], "batch") == 0;
    std::sscanf(argv[i], "deadline_ms=%d", &deadline_ms);
  }
  if (only_batch) {
    batch_ops();
    std::printf("gpu_ops batch: %d failures\n", failures);
    return failures;
  }
  copy_and_nop();
  embed();
  elementwise(AMK_OP_ADD, "ADD");
  elementwise(AMK_OP_MUL, "MUL");
  elementwise(AMK_OP_SILU_MUL, "SILU_MUL");
  rmsnorm();
  gemv();
  streamed_gemv();
  int8_gemv();
  int8_is_exact();
  rope();
  append();
  attention();
  argmax();
  hybrid_ops();
  batch_ops();
  std::printf("gpu_ops: %d failures\n", failures);
  return failures;
}
