// Attention in splits, then merged, against one softmax in double over all rows.
#include "test_vm_support.h"

namespace {

struct Shape {
  int kv_heads, group, head_dim, rows, kv_block, splits;
};

struct Attention {
  Attention(int dtype, const Shape& shape, uint64_t seed) : lab(seed), s(shape) {
    q = lab.add(AMK_KIND_ACTIVATION, dtype, {kQueryOffset + heads() * s.head_dim}, 2);
    k = lab.add(AMK_KIND_KV_CACHE, dtype, {s.kv_heads, s.rows, s.head_dim}, 2);
    v = lab.add(AMK_KIND_KV_CACHE, dtype, {s.kv_heads, s.rows, s.head_dim}, 2);
    part_o = lab.activation(AMK_DTYPE_F32, {heads(), s.splits, s.head_dim});
    part_ml = lab.activation(AMK_DTYPE_F32, {heads(), s.splits, 2});
    out = lab.activation(dtype, {heads() * s.head_dim});
    direct_out = lab.activation(dtype, {heads() * s.head_dim});
  }
  int heads() const { return s.kv_heads * s.group; }

  void run(int pos, int tile_heads) {
    amk_params_t p{};
    p.n_heads = heads();
    p.n_kv_heads = s.kv_heads;
    p.head_dim = s.head_dim;
    p.K = s.rows;
    p.M = s.splits;
    p.M_tile = s.kv_block;
    p.m_off = kQueryOffset;
    p.scale = scale();
    for (p.n_off = 0; p.n_off < s.kv_heads; p.n_off += p.N_tile) {
      p.N_tile = std::min(tile_heads, s.kv_heads - p.n_off);
      for (p.dim = 0; p.dim < s.splits; ++p.dim) lab.run(AMK_OP_ATTENTION_TILE, {q, k, v}, {part_o, part_ml}, p, pos);
    }
    amk_params_t c{};
    c.n_heads = heads();
    c.head_dim = s.head_dim;
    c.M = s.splits;
    const int cut = heads() / 2;
    for (c.n_off = 0, c.N_tile = cut; c.n_off < heads(); c.n_off += c.N_tile, c.N_tile = heads() - cut)
      if (c.N_tile > 0)
        lab.run(AMK_OP_ATTENTION_COMBINE, {part_o, part_ml}, {out}, c, pos);
      else
        c.N_tile = 0;
    if (s.splits > 1) return;
    // One split: without partials, the same bits.
    p.dim = 0;
    p.flags = AMK_FLAG_DIRECT;
    for (p.n_off = 0; p.n_off < s.kv_heads; p.n_off += p.N_tile) {
      p.N_tile = std::min(tile_heads, s.kv_heads - p.n_off);
      lab.run(AMK_OP_ATTENTION_TILE, {q, k, v}, {direct_out}, p, pos);
    }
    CHECK(lab.bytes[direct_out] == lab.bytes[out]);
  }
  // The same from raw heads: x holds q, k and v back to back, and row `pos` of the caches is not theirs yet.
  void run_raw(int pos, int tile_heads, bool with_norms) {
    const int dtype = lab.buffers[q].dtype, dim = s.head_dim;
    const int x = lab.add(AMK_KIND_ACTIVATION, dtype, {kRawOffset + (heads() + 2 * s.kv_heads) * dim + 1}, 2);
    const int freq = lab.add(AMK_KIND_CONST, AMK_DTYPE_F32, {dim / 2});
    const int q_norm = lab.weight(dtype, {dim}), k_norm = lab.weight(dtype, {dim});
    amk_params_t p{};
    p.n_heads = heads();
    p.n_kv_heads = s.kv_heads;
    p.head_dim = dim;
    p.K = s.rows;
    p.M = s.splits;
    p.M_tile = s.kv_block;
    p.m_off = kRawOffset;
    p.scale = scale();
    p.flags = AMK_FLAG_ROPE | (with_norms ? AMK_FLAG_NORM : 0);
    p.eps = with_norms ? 1e-5f : 0.0f;
    for (p.n_off = 0; p.n_off < s.kv_heads; p.n_off += p.N_tile) {
      p.N_tile = std::min(tile_heads, s.kv_heads - p.n_off);
      for (p.dim = 0; p.dim < s.splits; ++p.dim)
        if (with_norms)
          lab.run(AMK_OP_ATTENTION_TILE, {x, k, v, freq, q_norm, k_norm}, {part_o, part_ml}, p, pos);
        else
          lab.run(AMK_OP_ATTENTION_TILE, {x, k, v, freq}, {part_o, part_ml}, p, pos);
    }
    const std::vector<uint8_t> raw_o = lab.bytes[part_o], raw_ml = lab.bytes[part_ml];
    p.dim = 0;
    p.flags |= AMK_FLAG_DIRECT;
    for (p.n_off = 0; s.splits == 1 && p.n_off < s.kv_heads; p.n_off += p.N_tile) {
      p.N_tile = std::min(tile_heads, s.kv_heads - p.n_off);
      if (with_norms)
        lab.run(AMK_OP_ATTENTION_TILE, {x, k, v, freq, q_norm, k_norm}, {direct_out}, p, pos);
      else
        lab.run(AMK_OP_ATTENTION_TILE, {x, k, v, freq}, {direct_out}, p, pos);
    }
    p.flags &= ~AMK_FLAG_DIRECT;
    const std::vector<uint8_t> raw_direct = lab.bytes[direct_out];
    // ROPE and KV_APPEND, then attention over what they leave: the same bits.
    amk_params_t r{};
    r.head_dim = dim;
    r.n_heads = heads();
    r.m_off = kRawOffset;
    r.n_off = kQueryOffset;
    r.flags = p.flags & AMK_FLAG_NORM;
    r.eps = p.eps;
    amk_params_t a{};
    a.head_dim = dim;
    a.n_kv_heads = a.N_tile = s.kv_heads;
    a.K = s.rows;
    a.m_off = kRawOffset + heads() * dim;
    a.flags = p.flags;
    a.eps = p.eps;
    if (with_norms) {
      lab.run(AMK_OP_ROPE, {x, freq, q_norm}, {q}, r, pos);
      lab.run(AMK_OP_KV_APPEND, {x, freq, k_norm}, {k}, a, pos);
    } else {
      lab.run(AMK_OP_ROPE, {x, freq}, {q}, r, pos);
      lab.run(AMK_OP_KV_APPEND, {x, freq}, {k}, a, pos);
    }
    a.m_off += s.kv_heads * dim;
    a.flags = 0;
    a.eps = 0;
    lab.run(AMK_OP_KV_APPEND, {x}, {v}, a, pos);
    run(pos, tile_heads);
    CHECK(lab.bytes[part_o] == raw_o);
    CHECK(lab.bytes[part_ml] == raw_ml);
    if (s.splits == 1) CHECK(lab.bytes[direct_out] == raw_direct);
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(s.head_dim)); }

  double score(int head, int row) const {
    double sum = 0;
    for (int i = 0; i < s.head_dim; ++i)
      sum += lab.at(q, kQueryOffset + head * s.head_dim + i) * lab.at(k, row_at(head, row) + i);
    return sum * scale();
  }
  int64_t row_at(int head, int row) const { return (int64_t{head / s.group} * s.rows + row) * s.head_dim; }

  // Softmax-weighted v over rows [first, end): sum of weights relative to the maximum, and the maximum.
  void expect_part(int head, int split, int first, int end) {
    const int64_t part = int64_t{head} * s.splits + split;
    if (first == end) {
      CHECK_EQ(lab.at(part_ml, 2 * part), -std::numeric_limits<double>::infinity());
      CHECK_EQ(lab.at(part_ml, 2 * part + 1), 0.0);
      for (int i = 0; i < s.head_dim; ++i) CHECK_EQ(lab.at(part_o, part * s.head_dim + i), 0.0);
      return;
    }
    double largest = -1e300, sum = 0;
    for (int r = first; r < end; ++r) largest = std::max(largest, score(head, r));
    for (int r = first; r < end; ++r) sum += std::exp(score(head, r) - largest);
    lab.expect(part_ml, 2 * part, largest, 1e-5);
    lab.expect(part_ml, 2 * part + 1, sum, 2e-5 * sum);
  }

  void expect_all(int pos) {
    const int blocks = pos / s.kv_block + 1;
    for (int h = 0; h < heads(); ++h) {
      for (int d = 0; d < s.splits; ++d)
        expect_part(h, d, std::min(pos + 1, blocks * d / s.splits * s.kv_block),
                    std::min(pos + 1, blocks * (d + 1) / s.splits * s.kv_block));
      double largest = -1e300, sum = 0;
      for (int r = 0; r <= pos; ++r) largest = std::max(largest, score(h, r));
      std::vector<double> want(static_cast<size_t>(s.head_dim));
      for (int r = 0; r <= pos; ++r) {
        const double weight = std::exp(score(h, r) - largest);
        sum += weight;
        for (int i = 0; i < s.head_dim; ++i) want[static_cast<size_t>(i)] += weight * lab.at(v, row_at(h, r) + i);
      }
      for (int i = 0; i < s.head_dim; ++i)
        lab.expect(out, h * s.head_dim + i, want[static_cast<size_t>(i)] / sum, 2e-5);
    }
  }

  static constexpr int kQueryOffset = 3, kRawOffset = 5;
  OpLab lab;
  Shape s;
  int q, k, v, part_o, part_ml, out, direct_out;
};

}  // namespace

TEST(splits_and_positions_at_every_border) {
  for (int dtype : kComputeTypes)
    for (int splits = 1; splits <= 5; ++splits)
      for (int kv_block : {1, 4, 16}) {
        const Shape shape{1 + splits % 3, 1 + kv_block % 5, 8 + 16 * (splits % 2), 80, kv_block, splits};
        for (int pos : {0, 1, kv_block - 1, kv_block, 2 * kv_block + 1, 31, 32, 33, 79}) {
          Attention a(dtype, shape, static_cast<uint64_t>(splits * 1000 + kv_block));
          a.run(pos, 1 + splits % 2);
          a.expect_all(pos);
        }
      }
}

TEST(grouped_queries_and_wide_heads) {
  for (int dtype : kComputeTypes)
    for (const Shape& shape : {Shape{1, 1, 64, 70, 16, 2}, Shape{2, 4, 64, 70, 16, 3}, Shape{3, 2, 96, 40, 8, 1},
                               Shape{1, 8, 128, 40, 64, 4}, Shape{4, 1, 24, 40, 16, 2}}) {
      Attention a(dtype, shape, 5);
      a.run(shape.rows - 1, shape.kv_heads);
      a.expect_all(shape.rows - 1);
    }
}

// And against the softmax in double over the rows that ROPE and KV_APPEND leave, which their own tests judge.
TEST(raw_heads_are_turned_as_rope_and_append_turn_them) {
  for (int dtype : kComputeTypes)
    for (bool with_norms : {false, true})
      for (const Shape& shape : {Shape{1, 1, 64, 70, 16, 2}, Shape{2, 4, 16, 70, 16, 3}, Shape{3, 2, 24, 40, 8, 1},
                                 Shape{1, 8, 32, 40, 64, 4}, Shape{4, 1, 24, 70, 1, 5}})
        for (int pos : {0, 1, shape.kv_block - 1, shape.kv_block, 31, 32, 33, shape.rows - 1}) {
          if (pos >= shape.rows) continue;
          Attention a(dtype, shape, static_cast<uint64_t>(pos) + 7);
          a.run_raw(pos, 1 + pos % 2, with_norms);
          a.expect_all(pos);
        }
}

TEST(large_scores_do_not_overflow) {
  Attention one(AMK_DTYPE_F32, {1, 2, 8, 40, 64, 1}, 9);
  for (int64_t i = 0; i < one.lab.buffers[one.q].numel; ++i) one.lab.put(one.q, i, one.lab.at(one.q, i) * 200);
  one.run(39, 1);
  for (int64_t i = 0; i < one.lab.buffers[one.out].numel; ++i) CHECK(std::isfinite(one.lab.at(one.direct_out, i)));
  Attention a(AMK_DTYPE_F32, {1, 2, 8, 40, 4, 3}, 9);
  for (int64_t i = 0; i < a.lab.buffers[a.q].numel; ++i) a.lab.put(a.q, i, a.lab.at(a.q, i) * 200);
  a.run(39, 1);
  for (int64_t i = 0; i < a.lab.buffers[a.out].numel; ++i) CHECK(std::isfinite(a.lab.at(a.out, i)));
}

TEST(a_nan_in_the_cache_is_not_lost) {
  Attention a(AMK_DTYPE_BF16, {1, 1, 8, 40, 4, 3}, 9);
  a.lab.put(a.k, 17 * 8, std::numeric_limits<double>::quiet_NaN());
  a.run(39, 1);
  CHECK(std::isnan(a.lab.at(a.out, 0)));
}
