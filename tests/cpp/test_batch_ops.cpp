// Each opcode that works on B tokens: its rows are those of B tasks of one token, bit for bit, and it touches what its
// footprint says; attention's splits against double precision.
#include <algorithm>

#include "test_vm_support.h"

namespace {

using Shape = std::vector<int64_t>;

// A task of B tokens and the same task for each of them alone.
class BatchLab {
 public:
  BatchLab(uint64_t seed, int tokens) : lab(seed), tokens_(tokens) {}

  // An operand with a row of `width` for each token.
  int rows(int kind, int dtype, Shape width) {
    Shape shape = width;
    shape.insert(shape.begin(), tokens_);
    return add(kind, dtype, shape, width);
  }
  int whole(int kind, int dtype, const Shape& shape, double scale = 1) { return add(kind, dtype, shape, {}, scale); }
  // i32 [B], a number for each token.
  int numbers(int low, int high) {
    const int id = add(AMK_KIND_IO_INPUT, AMK_DTYPE_I32, {tokens_}, {1});
    for (int t = 0; t < tokens_; ++t) lab.put(id, t, lab.random.between(low, high));
    return id;
  }
  int choices() { return add(AMK_KIND_IO_OUTPUT, AMK_DTYPE_I32, {tokens_}, {1}); }

  void check(int op, const std::vector<int>& inputs, const std::vector<int>& outputs, amk_params_t p, int pos = 0) {
    const auto before = lab.bytes;
    int32_t amk_params_t::* field = op == AMK_OP_ATTENTION_TILE ? &amk_params_t::N : &amk_params_t::M_tile;
    p.*field = tokens_;
    lab.run(op, inputs, outputs, p, pos);
    const auto batch = lab.bytes;
    p.*field = 0;
    lab.bytes = before;
    for (int t = 0; t < tokens_; ++t) {
      std::vector<int> in, out;
      for (int id : inputs) in.push_back(row_of(id, t, before));
      for (int id : outputs) {
        const auto same = std::find(inputs.begin(), inputs.end(), id);
        out.push_back(same != inputs.end() ? in[static_cast<size_t>(same - inputs.begin())] : row_of(id, t, before));
      }
      lab.run(op, in, out, p, pos + t);
      for (size_t i = 0; i < outputs.size(); ++i) put_back(out[i], outputs[i], t);
    }
    for (int id : outputs)
      if (lab.bytes[id] != batch[id]) check::fail("op", op, "a row is not that of a task of one token");
  }

  OpLab lab;

 private:
  int add(int kind, int dtype, const Shape& shape, const Shape& row, double scale = 1) {
    const int id = lab.add(kind, dtype, shape, scale);
    row_shape_.resize(static_cast<size_t>(id) + 1);
    row_shape_[static_cast<size_t>(id)] = row;
    return id;
  }
  const Shape& row_shape(int id) const { return row_shape_[static_cast<size_t>(id)]; }
  // A buffer of its own with row t of an operand as it was; the operand itself where it has no rows.
  int row_of(int id, int t, const std::vector<std::vector<uint8_t>>& before) {
    if (row_shape(id).empty()) return id;
    const int alone = add(lab.bindings[id].kind, lab.buffers[id].dtype, row_shape(id), {});
    const size_t n = row_bytes(id);
    std::copy_n(before[id].begin() + static_cast<int64_t>(OpLab::kBand + n * t), n,
                lab.bytes[alone].begin() + OpLab::kBand);
    return alone;
  }
  void put_back(int alone, int id, int t) {
    if (alone == id) return;
    const size_t n = row_bytes(id);
    std::copy_n(lab.bytes[alone].begin() + OpLab::kBand, n,
                lab.bytes[id].begin() + static_cast<int64_t>(OpLab::kBand + n * t));
  }
  size_t row_bytes(int id) const {
    return static_cast<size_t>(amk::storage_bytes(lab.buffers[id].dtype, lab.buffers[id].numel)) /
           static_cast<size_t>(tokens_);
  }

  const int tokens_;
  std::vector<Shape> row_shape_;  // of each buffer: of one token's row; empty where it has none
};

constexpr int kActivation = AMK_KIND_ACTIVATION, kWeight = AMK_KIND_WEIGHT, kCache = AMK_KIND_KV_CACHE;
constexpr int kTokenCounts[] = {2, 3, 7, 16};

void check_gemv(int dtype, int tokens, int flags, int seed) {
  BatchLab b(static_cast<uint64_t>(seed), tokens);
  amk_params_t p{};
  p.flags = flags;
  p.K = 16 * b.lab.random.between(1, 5);
  p.N = b.lab.random.between(2, 9);
  p.n_off = b.lab.random.between(0, p.N - 1);
  p.N_tile = b.lab.random.between(1, p.N - p.n_off);
  p.m_off = b.lab.random.between(0, 3);
  const bool quantised = seed % 2, pair = flags & AMK_FLAG_SILU_PAIR;
  const int64_t weight_rows = pair ? 2 * p.N : p.N;
  std::vector<int> in{b.rows(kActivation, dtype, {p.m_off + p.K + 2}),
                      b.whole(kWeight, quantised ? AMK_DTYPE_I8 : dtype, {weight_rows, p.K}, quantised ? 100 : 1)};
  if (quantised) {
    p.qdtype = AMK_DTYPE_I8;
    p.group = 16;
    in.push_back(b.whole(kWeight, dtype, {weight_rows, p.K / 16}, 0.01));
  }
  if (flags & AMK_FLAG_NORM) in.push_back(b.whole(kWeight, dtype, {p.K})), p.eps = 1e-5f;
  if (flags & AMK_FLAG_BIAS) in.push_back(b.whole(kWeight, dtype, {weight_rows}));
  const bool residual = flags & AMK_FLAG_RESIDUAL, in_place = residual && seed % 3 == 0;
  if (residual) in.push_back(b.rows(kActivation, dtype, {p.N}));
  const int out_dtype = !in_place && seed % 5 == 0 ? AMK_DTYPE_F32 : dtype;
  b.check(AMK_OP_GEMV_TILE, in, {in_place ? in.back() : b.rows(kActivation, out_dtype, {p.N})}, p);
}

void check_heads(int dtype, int tokens, int flags, int pos) {
  BatchLab b(static_cast<uint64_t>(pos) * 31 + static_cast<uint64_t>(flags), tokens);
  constexpr int kDim = 16, kRows = 48, kHeads = 3;
  amk_params_t p{};
  p.head_dim = kDim;
  p.flags = flags;
  p.m_off = 5;
  p.eps = flags & AMK_FLAG_NORM ? 1e-5f : 0;
  const int x = b.rows(kActivation, dtype, {5 + kHeads * kDim + 3});
  const int freq = b.whole(AMK_KIND_CONST, AMK_DTYPE_F32, {kDim / 2});
  const int norm = b.whole(kWeight, dtype, {kDim});
  amk_params_t rope = p;
  rope.flags &= ~AMK_FLAG_ROPE;
  rope.n_heads = kHeads - 1;
  rope.n_off = 7;
  std::vector<int> in{x, freq};
  if (flags & AMK_FLAG_NORM) in.push_back(norm);
  b.check(AMK_OP_ROPE, in, {b.rows(kActivation, dtype, {7 + kHeads * kDim})}, rope, pos);
  p.n_kv_heads = 4;
  p.K = kRows;
  p.n_off = 1;
  p.N_tile = kHeads;
  in = {x};
  if (flags & AMK_FLAG_ROPE) in.push_back(freq);
  if (flags & AMK_FLAG_NORM) in.push_back(norm);
  b.check(AMK_OP_KV_APPEND, in, {b.whole(kCache, dtype, {4, kRows, kDim})}, p, pos);
}

// Token t of each split against a softmax in double over the rows of the split in [0, pos + t]; then the merge.
void check_attention(int dtype, int tokens, int pos, int splits, int kv_block) {
  BatchLab b(static_cast<uint64_t>(pos) * 131 + static_cast<uint64_t>(splits), tokens);
  OpLab& lab = b.lab;
  constexpr int kDim = 16, kRows = 100, kKv = 2, kGroup = 2, kQ = kKv * kGroup, kOffset = 8;
  const int width = kOffset + kQ * kDim;
  const int q = b.rows(kActivation, dtype, {width}), k = b.whole(kCache, dtype, {kKv, kRows, kDim}, 2);
  const int v = b.whole(kCache, dtype, {kKv, kRows, kDim});
  const int part_o = b.rows(kActivation, AMK_DTYPE_F32, {kQ, splits, kDim});
  const int part_ml = b.rows(kActivation, AMK_DTYPE_F32, {kQ, splits, 2});
  const int out = b.rows(kActivation, dtype, {kQ * kDim});
  amk_params_t p{};
  p.N = tokens;
  p.n_heads = kQ;
  p.n_kv_heads = kKv;
  p.head_dim = kDim;
  p.K = kRows;
  p.M = splits;
  p.M_tile = kv_block;
  p.m_off = kOffset;
  p.scale = 0.25f;
  p.N_tile = splits % 2 ? 1 : kKv;
  for (p.n_off = 0; p.n_off < kKv; p.n_off += p.N_tile)
    for (p.dim = 0; p.dim < splits; ++p.dim) lab.run(AMK_OP_ATTENTION_TILE, {q, k, v}, {part_o, part_ml}, p, pos);
  amk_params_t c{};
  c.n_heads = kQ;
  c.head_dim = kDim;
  c.M = splits;
  c.n_off = 1;
  c.N_tile = kQ - 1;
  b.check(AMK_OP_ATTENTION_COMBINE, {part_o, part_ml}, {out}, c);
  c.n_off = 0;
  c.N_tile = 1;
  b.check(AMK_OP_ATTENTION_COMBINE, {part_o, part_ml}, {out}, c);

  const int rows = pos + tokens, blocks = (rows + kv_block - 1) / kv_block;
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < kQ; ++h) {
      std::vector<double> score;
      for (int r = 0; r <= pos + t; ++r) {
        double sum = 0;
        for (int i = 0; i < kDim; ++i)
          sum += lab.at(q, t * width + kOffset + h * kDim + i) * lab.at(k, ((h / kGroup) * kRows + r) * kDim + i);
        score.push_back(0.25 * sum);
      }
      const auto value = [&](int r, int i) { return lab.at(v, ((h / kGroup) * kRows + r) * kDim + i); };
      for (int d = 0; d < splits; ++d) {
        const int64_t part = (int64_t{t} * kQ + h) * splits + d;
        const int first = std::min(rows, blocks * d / splits * kv_block);
        const int end = std::min({rows, blocks * (d + 1) / splits * kv_block, pos + t + 1});
        if (first >= end) {
          CHECK_EQ(lab.at(part_ml, 2 * part), -std::numeric_limits<double>::infinity());
          CHECK_EQ(lab.at(part_ml, 2 * part + 1), 0.0);
          for (int i = 0; i < kDim; ++i) CHECK_EQ(lab.at(part_o, part * kDim + i), 0.0);
          continue;
        }
        const double largest = *std::max_element(score.begin() + first, score.begin() + end);
        double sum = 0, o = 0;
        for (int r = first; r < end; ++r) sum += std::exp(score[static_cast<size_t>(r)] - largest);
        for (int r = first; r < end; ++r) o += std::exp(score[static_cast<size_t>(r)] - largest) * value(r, 3);
        lab.expect(part_ml, 2 * part, largest, 1e-5);
        lab.expect(part_ml, 2 * part + 1, sum, 2e-5 * sum);
        lab.expect(part_o, part * kDim + 3, o, 2e-5 * sum);
      }
      const double largest = *std::max_element(score.begin(), score.end());
      double sum = 0, o = 0;
      for (int r = 0; r <= pos + t; ++r) {
        sum += std::exp(score[static_cast<size_t>(r)] - largest);
        o += std::exp(score[static_cast<size_t>(r)] - largest) * value(r, 5);
      }
      lab.expect(out, (t * kQ + h) * kDim + 5, o / sum, 3e-5);
    }
  }
  // One split: the rows of every token are those of a task of its own.
  p.dim = p.n_off = 0;
  p.N_tile = kKv;
  if (splits == 1) b.check(AMK_OP_ATTENTION_TILE, {q, k, v}, {part_o, part_ml}, p, pos);
}

}  // namespace

TEST(products_of_several_tokens) {
  for (int dtype : kComputeTypes)
    for (int tokens : kTokenCounts)
      for (int flags : {0, 1, 2, 4, 8, 15, 7, 33}) check_gemv(dtype, tokens, flags, flags + tokens);
}

TEST(heads_of_several_tokens_turn_by_their_own_positions) {
  for (int dtype : kComputeTypes)
    for (int tokens : kTokenCounts)
      for (int flags : {0, int{AMK_FLAG_ROPE}, int{AMK_FLAG_NORM}, AMK_FLAG_ROPE | AMK_FLAG_NORM})
        for (int pos : {0, 32}) check_heads(dtype, tokens, flags, pos);
}

TEST(each_token_sees_its_own_past) {
  for (int dtype : kComputeTypes)
    for (int tokens : kTokenCounts)
      for (int pos : {0, 1, 15, 31, 33, 84})
        for (int splits : {1, 2, 3}) check_attention(dtype, tokens, pos, splits, pos % 2 ? 16 : 8);
}

TEST(elements_of_several_tokens) {
  for (int dtype : kComputeTypes) {
    for (int tokens : kTokenCounts) {
      BatchLab b(static_cast<uint64_t>(tokens), tokens);
      amk_params_t p{};
      p.n_off = 3;
      p.N_tile = 9;
      const int x = b.rows(kActivation, dtype, {14}), y = b.rows(kActivation, dtype, {13});
      for (int op : {int{AMK_OP_ADD}, int{AMK_OP_MUL}}) {
        b.check(op, {x, y}, {b.rows(kActivation, dtype, {12})}, p);
        b.check(op, {x, y}, {x}, p);
        b.check(op, {x, y}, {y}, p);
      }
      p.m_off = 4;
      b.check(AMK_OP_COPY, {x}, {b.rows(kActivation, dtype, {17})}, p);
      p.m_off = 0;
      p.N = 12;
      b.check(AMK_OP_SILU_MUL, {b.rows(kActivation, dtype, {24})}, {b.rows(kActivation, dtype, {12})}, p);
    }
  }
}

TEST(tokens_in_and_choices_out) {
  for (int dtype : kComputeTypes) {
    for (int tokens : kTokenCounts) {
      BatchLab b(static_cast<uint64_t>(tokens) + 7, tokens);
      amk_params_t p{};
      p.vocab = 11;
      p.hidden = 20;
      p.n_off = 4;
      p.N_tile = 13;
      b.check(AMK_OP_EMBED, {b.numbers(0, 10), b.whole(kWeight, dtype, {11, 20})}, {b.rows(kActivation, dtype, {20})},
              p);
      const int logits = b.rows(kActivation, AMK_DTYPE_F32, {30});
      const int value = b.rows(kActivation, AMK_DTYPE_F32, {3}), index = b.rows(kActivation, AMK_DTYPE_I32, {3});
      b.lab.put(logits, 30 * (tokens - 1) + 21, std::nan(""));
      p = {};
      p.vocab = 30;
      p.M = 3;
      p.N_tile = 10;
      for (p.dim = 0; p.dim < 3; ++p.dim) {
        p.n_off = 10 * p.dim;
        b.check(AMK_OP_SAMPLE_ARGMAX, {logits}, {value, index}, p);
      }
      p = {};
      p.M = 3;
      const int next = b.choices();
      b.check(AMK_OP_ARGMAX_COMBINE, {value, index}, {next}, p);
      CHECK_EQ(b.lab.at(next, tokens - 1), -1.0);
      CHECK(b.lab.at(next, 0) >= 0);
    }
  }
}
