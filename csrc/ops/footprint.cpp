// What each opcode reads and writes, byte for byte: the second half of the law.
#include "base/dtype.h"
#include "ops/op_spec.h"

namespace amk {
namespace {

class Footprint {
 public:
  Footprint(const TaskView& view, AccessList* out) : v_(view), out_(out), tokens_(op_tokens(view.task)) {
    out->count = 0;
  }

  // `count` elements from element `first` of an operand.
  Access& read(int slot, int64_t first, int64_t count) { return flat(slot, false, first, count); }
  Access& write(int slot, int64_t first, int64_t count) { return flat(slot, true, first, count); }
  // `rows` runs of `count` elements, `stride` elements apart.
  Access& rows(Access& a, int64_t rows, int64_t stride) {
    a.rows = rows;
    a.stride_bytes = stride * element_bytes(a);
    return a;
  }
  // The same columns of each token's row.
  Access& read_rows(int slot, int64_t first, int64_t count) { return each_token(read(slot, first, count)); }
  Access& write_rows(int slot, int64_t first, int64_t count) { return each_token(write(slot, first, count)); }
  // `runs` runs of `count` elements, `stride` apart, of each token.
  void write_runs(int slot, int64_t first, int64_t count, int64_t runs, int64_t stride) {
    if (runs == 1 || stride == count) {
      write_rows(slot, first, runs * count);
      return;
    }
    const int64_t width = v_.output(slot).numel / tokens_;
    for (int64_t t = 0; t < tokens_; ++t) rows(write(slot, t * width + first, count), runs, stride);
  }
  void whole(int slot) { read(slot, 0, v_.input(slot).numel); }
  void cache(int slot, bool write, Region region, const amk_params_t& p) {
    const int64_t width = int64_t{p.head_dim};
    Access& a = flat(slot, write, int64_t{p.n_off} * p.K * width, region == Region::kKvRow ? tokens_ * width : 0);
    rows(a, p.N_tile, p.K * width);
    a.region = region;
    a.head_first = p.n_off;
    a.head_count = p.N_tile;
    a.head_row_bytes = tokens_ * width * element_bytes(a);
    a.align_bytes = AMK_VECTOR_BYTES;
    (region == Region::kKvRow ? a.offset_per_pos : a.row_bytes_per_pos) = width * element_bytes(a);
  }
  static Access& vector_aligned(Access& a) {
    a.align_bytes = AMK_VECTOR_BYTES;
    return a;
  }

 private:
  int64_t element_bytes(const Access& a) const { return dtype_bits(v_.buffers[a.buffer].dtype) / 8; }
  Access& each_token(Access& a) { return tokens_ == 1 ? a : rows(a, tokens_, v_.buffers[a.buffer].numel / tokens_); }
  Access& flat(int slot, bool write, int64_t first, int64_t count) {
    Access& a = out_->items[out_->count++];
    a = Access{};
    a.buffer = write ? v_.task.outputs[slot] : v_.task.inputs[slot];
    a.slot = static_cast<int8_t>(slot);
    a.write = write;
    const int64_t bytes = element_bytes(a);
    a.align_bytes = static_cast<int32_t>(bytes);
    a.offset_bytes = first * bytes;
    a.row_bytes = a.stride_bytes = count * bytes;
    return a;
  }
  const TaskView& v_;
  AccessList* out_;
  const int64_t tokens_;
};

void footprint_gemv(const TaskView& v, Footprint& f) {
  const amk_params_t& p = v.task.params;
  const FlagSlots slots = flag_slots(v.task);
  const bool pair = p.flags & AMK_FLAG_SILU_PAIR;
  Footprint::vector_aligned(f.read_rows(0, p.m_off, p.K));
  // Each row is loaded on its own, so the row length must keep the alignment too: one range per row of the tile.
  Access& w = f.rows(f.read(1, int64_t{p.n_off} * p.K, p.K), p.N_tile, p.K);
  Footprint::vector_aligned(w);
  if (pair) Footprint::vector_aligned(f.rows(f.read(1, (int64_t{p.N} + p.n_off) * p.K, p.K), p.N_tile, p.K));
  if (slots.scale >= 0) {
    const int64_t groups = p.K / p.group;
    f.rows(f.read(slots.scale, p.n_off * groups, groups), p.N_tile, groups);
    if (pair) f.rows(f.read(slots.scale, (int64_t{p.N} + p.n_off) * groups, groups), p.N_tile, groups);
  }
  if (slots.norm >= 0) f.read(slots.norm, 0, p.K);
  if (slots.bias >= 0) {
    Access& b = f.read(slots.bias, p.n_off, p.N_tile);
    if (pair) f.rows(b, 2, p.N);
  }
  if (slots.residual >= 0) f.read_rows(slots.residual, p.n_off, p.N_tile);
  f.write_rows(0, p.n_off, p.N_tile);
}

void footprint_attention(const TaskView& v, Footprint& f) {
  const amk_params_t& p = v.task.params;
  const int64_t per_kv = p.n_heads / p.n_kv_heads, head = p.n_off * per_kv, heads = p.N_tile * per_kv;
  const FlagSlots slots = flag_slots(v.task);
  const auto read_heads = [&](int64_t first, int64_t count) {
    Footprint::vector_aligned(f.read_rows(0, p.m_off + first * p.head_dim, count * p.head_dim));
  };
  read_heads(head, heads);
  for (int slot = 1; slot <= 2; ++slot) f.cache(slot, false, Region::kKvHistory, p);
  if (slots.rope >= 0) {
    read_heads(int64_t{p.n_heads} + p.n_off, p.N_tile);
    read_heads(int64_t{p.n_heads} + p.n_kv_heads + p.n_off, p.N_tile);
    for (int slot = slots.rope; slot < slots.end; ++slot) f.whole(slot);
  } else {
    for (int slot = 1; slot <= 2; ++slot) f.cache(slot, false, Region::kKvRow, p);
  }
  if (is_direct(v.task)) {
    Footprint::vector_aligned(f.write(0, head * p.head_dim, heads * p.head_dim));
    return;
  }
  f.write_runs(0, (head * p.M + p.dim) * p.head_dim, p.head_dim, heads, int64_t{p.M} * p.head_dim);
  f.write_runs(1, (head * p.M + p.dim) * 2, 2, heads, int64_t{p.M} * 2);
}

void footprint_causal_conv(const TaskView& v, Footprint& f) {
  const amk_params_t& p = v.task.params;
  const int64_t kept = p.K - 1;
  f.read(0, int64_t{p.m_off} + p.n_off, p.N_tile);
  f.read(1, int64_t{p.n_off} * p.K, int64_t{p.N_tile} * p.K);
  f.read(2, p.n_off * kept, p.N_tile * kept);
  f.write(0, p.n_off, p.N_tile);
  f.write(1, p.n_off * kept, p.N_tile * kept);
}

void footprint_gdn(const TaskView& v, Footprint& f) {
  const amk_params_t& p = v.task.params;
  const int64_t width = p.head_dim, group = p.n_heads / p.n_kv_heads, state = width * width;
  const int64_t head = p.n_off, heads = p.N_tile;
  const int64_t key = head / group, keys = (head + heads - 1) / group - key + 1;
  const auto read_heads = [&](int64_t first, int64_t count) {
    Footprint::vector_aligned(f.read(0, first * width, count * width));
  };
  read_heads(key, keys);
  read_heads(p.n_kv_heads + key, keys);
  read_heads(2 * int64_t{p.n_kv_heads} + head, heads);
  f.rows(f.read(1, p.m_off + head, heads), 2, p.n_heads);
  f.read(2, head, heads);
  f.read(3, head, heads);
  Footprint::vector_aligned(f.read(4, head * state, heads * state));
  f.write(0, head * width, heads * width);
  Footprint::vector_aligned(f.write(1, head * state, heads * state));
}

}  // namespace

uint32_t op_in_place_mask(const amk_instruction_t& task) {
  switch (task.op) {
    case AMK_OP_ADD:
    case AMK_OP_MUL: return 0b11;
    case AMK_OP_GEMV_TILE:
      if (task.params.flags & AMK_FLAG_RESIDUAL) return 1u << flag_slots(task).residual;
      return 0;
    case AMK_OP_CAUSAL_CONV: return 1u << (8 + 2);
    case AMK_OP_GDN_DECODE: return 1u << (8 + 4);
    case AMK_OP_SIGMOID_MUL: return 1;
    default: return 0;
  }
}

void op_footprint(const TaskView& v, AccessList* out) {
  const amk_params_t& p = v.task.params;
  Footprint f(v, out);
  const FlagSlots slots = flag_slots(v.task);
  switch (v.task.op) {
    case AMK_OP_COPY:
      f.read_rows(0, p.m_off, p.N_tile);
      f.write_rows(0, p.n_off, p.N_tile);
      break;
    case AMK_OP_EMBED:
      f.whole(0);
      // Which rows are read depends on the tokens: the tile's columns of every row.
      f.rows(f.read(1, p.n_off, p.N_tile), p.vocab, p.hidden).some_rows = op_tokens(v.task);
      f.write_rows(0, p.n_off, p.N_tile);
      break;
    case AMK_OP_RMSNORM:
      f.read(0, p.m_off, int64_t{p.M_tile} * p.hidden);
      f.whole(1);
      f.write(0, p.n_off, int64_t{p.M_tile} * p.hidden);
      break;
    case AMK_OP_GEMV_TILE: footprint_gemv(v, f); break;
    case AMK_OP_ATTENTION_TILE: footprint_attention(v, f); break;
    case AMK_OP_ROPE:
      f.read_rows(0, p.m_off, int64_t{p.n_heads} * p.head_dim);
      f.whole(1);
      if (slots.norm >= 0) f.whole(slots.norm);
      f.write_rows(0, p.n_off, int64_t{p.n_heads} * p.head_dim);
      break;
    case AMK_OP_SILU_MUL:
      // gate and up halves lie N apart, and so do the rows of the tokens
      f.rows(f.read(0, p.n_off, p.N_tile), 2 * op_tokens(v.task), p.N);
      f.write_rows(0, p.n_off, p.N_tile);
      break;
    case AMK_OP_ADD:
    case AMK_OP_MUL:
      f.read_rows(0, p.n_off, p.N_tile);
      f.read_rows(1, p.n_off, p.N_tile);
      f.write_rows(0, p.n_off, p.N_tile);
      break;
    case AMK_OP_KV_APPEND:
      f.read_rows(0, p.m_off, int64_t{p.N_tile} * p.head_dim);
      if (slots.rope >= 0) f.whole(slots.rope);
      if (slots.norm >= 0) f.whole(slots.norm);
      f.cache(0, true, Region::kKvRow, p);
      break;
    case AMK_OP_SAMPLE_ARGMAX:
      f.read_rows(0, p.n_off, p.N_tile);
      f.write_rows(0, p.dim, 1);
      f.write_rows(1, p.dim, 1);
      break;
    case AMK_OP_ATTENTION_COMBINE: {
      const int64_t head = p.n_off, per_head = int64_t{p.M} * p.head_dim;
      f.read_rows(0, head * per_head, p.N_tile * per_head);
      f.read_rows(1, head * p.M * 2, int64_t{p.N_tile} * p.M * 2);
      f.write_rows(0, head * p.head_dim, int64_t{p.N_tile} * p.head_dim);
      break;
    }
    case AMK_OP_ARGMAX_COMBINE:
      f.whole(0);
      f.whole(1);
      f.write(0, 0, op_tokens(v.task));
      break;
    case AMK_OP_CAUSAL_CONV: footprint_causal_conv(v, f); break;
    case AMK_OP_GDN_DECODE: footprint_gdn(v, f); break;
    case AMK_OP_GATED_RMSNORM: {
      const int64_t first = int64_t{p.n_off} * p.head_dim, count = int64_t{p.N_tile} * p.head_dim;
      f.read(0, first, count);
      f.read(1, p.m_off + first, count);
      f.whole(2);
      f.write(0, first, count);
      break;
    }
    case AMK_OP_SIGMOID_MUL:
      f.read(0, p.n_off, p.N_tile);
      f.read(1, int64_t{p.m_off} + p.n_off, p.N_tile);
      f.write(0, p.n_off, p.N_tile);
      break;
    default: break;  // NOP touches nothing; op_check refuses the rest
  }
}

double op_flops(const TaskView& view, int32_t pos) {
  const amk_params_t& p = view.task.params;
  const double tokens = op_tokens(view.task);
  switch (view.task.op) {
    case AMK_OP_GEMV_TILE: return 2.0 * p.K * p.N_tile * (p.flags & AMK_FLAG_SILU_PAIR ? 2 : 1) * tokens;
    case AMK_OP_ATTENTION_TILE: {
      const double rows = tokens * (double(pos) + 1) + tokens * (tokens - 1) / 2;  // token t sees pos + t + 1
      return 4.0 * p.head_dim * (p.n_heads / p.n_kv_heads) * p.N_tile * rows / p.M +
             (p.flags & AMK_FLAG_ROPE ? 3.0 * p.head_dim * (p.n_heads / p.n_kv_heads + 1) * p.N_tile : 0) +
             (p.flags & AMK_FLAG_DIRECT ? 1.0 * p.head_dim * (p.n_heads / p.n_kv_heads) * p.N_tile : 0);
    }
    case AMK_OP_RMSNORM: return 4.0 * p.M_tile * p.hidden;
    case AMK_OP_ATTENTION_COMBINE: return 3.0 * p.N_tile * p.M * p.head_dim * tokens;
    case AMK_OP_ROPE: return 3.0 * p.n_heads * p.head_dim * tokens;
    case AMK_OP_KV_APPEND: return 3.0 * p.N_tile * p.head_dim * tokens;
    case AMK_OP_CAUSAL_CONV: return 2.0 * p.K * p.N_tile;
    case AMK_OP_GDN_DECODE: return 7.0 * p.N_tile * p.head_dim * p.head_dim;
    case AMK_OP_GATED_RMSNORM: return 6.0 * p.N_tile * p.head_dim;
    default: return p.N_tile * tokens;
  }
}

}  // namespace amk
