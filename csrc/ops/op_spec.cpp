#include "ops/op_spec.h"

#include "base/dtype.h"
#include "base/error.h"
#include "ops/op_checker.h"

namespace amk {
namespace {

using P = amk_params_t;

constexpr ParamField kFields[kParamFieldCount] = {
    {"K", &P::K, nullptr},
    {"N", &P::N, nullptr},
    {"M", &P::M, nullptr},
    {"N_tile", &P::N_tile, nullptr},
    {"M_tile", &P::M_tile, nullptr},
    {"n_off", &P::n_off, nullptr},
    {"m_off", &P::m_off, nullptr},
    {"hidden", &P::hidden, nullptr},
    {"vocab", &P::vocab, nullptr},
    {"head_dim", &P::head_dim, nullptr},
    {"n_heads", &P::n_heads, nullptr},
    {"n_kv_heads", &P::n_kv_heads, nullptr},
    {"kv_start", &P::kv_start, nullptr},
    {"kv_len", &P::kv_len, nullptr},
    {"pos", &P::pos, nullptr},
    {"qdtype", &P::qdtype, nullptr},
    {"group", &P::group, nullptr},
    {"flags", &P::flags, nullptr},
    {"dim", &P::dim, nullptr},
    {"eps", nullptr, &P::eps},
    {"scale", nullptr, &P::scale},
    {"theta", nullptr, &P::theta},
};
static_assert(sizeof(P) == kParamFieldCount * 4, "a parameter was added: name it here");

// Bits of kFields, for "which parameters does this opcode use".
enum : uint32_t {
  kK = 1u << 0,
  kN = 1u << 1,
  kM = 1u << 2,
  kNTile = 1u << 3,
  kMTile = 1u << 4,
  kNOff = 1u << 5,
  kMOff = 1u << 6,
  kHidden = 1u << 7,
  kVocab = 1u << 8,
  kHeadDim = 1u << 9,
  kHeads = 1u << 10,
  kKvHeads = 1u << 11,
  kQdtype = 1u << 15,
  kGroup = 1u << 16,
  kDim = 1u << 18,
  kEps = 1u << 19,
  kScale = 1u << 20,
};
// V19's own business: it refuses them in any opcode with a better sentence.
constexpr uint32_t kPositionFields = 1u << 12 | 1u << 13 | 1u << 14;
constexpr uint32_t kFlagsField = 1u << 17;

// One row per opcode. arity_in counts the inputs without those that flags add.
struct OpRow {
  int32_t op;
  const char* name;
  bool supported;
  int arity_in, arity_out;
  uint32_t flags, params;
};

constexpr uint32_t kNormFlags = AMK_FLAG_NORM | AMK_FLAG_NORM_PLUS_ONE;
constexpr uint32_t kGemvFlags = kNormFlags | AMK_FLAG_BIAS | AMK_FLAG_SILU_PAIR | AMK_FLAG_RESIDUAL;

constexpr OpRow kRows[] = {
    {AMK_OP_NOP, "NOP", true, 0, 0, 0, 0},
    {AMK_OP_COPY, "COPY", true, 1, 1, 0, kNTile | kNOff | kMOff | kMTile},
    {AMK_OP_EMBED, "EMBED", true, 2, 1, 0, kVocab | kHidden | kNTile | kNOff | kMTile},
    {AMK_OP_RMSNORM, "RMSNORM", true, 2, 1, AMK_FLAG_NORM_PLUS_ONE, kHidden | kMTile | kNOff | kMOff | kEps},
    {AMK_OP_LAYERNORM, "LAYERNORM", false, 0, 0, 0, 0},
    {AMK_OP_GEMV_TILE, "GEMV_TILE", true, 2, 1, kGemvFlags, kK | kN | kNTile | kMTile | kNOff | kMOff | kQdtype},
    {AMK_OP_GEMM_TILE, "GEMM_TILE", false, 0, 0, 0, 0},
    {AMK_OP_ATTENTION_TILE, "ATTENTION_TILE", true, 3, 2, kNormFlags | AMK_FLAG_ROPE | AMK_FLAG_DIRECT,
     kHeads | kKvHeads | kHeadDim | kK | kN | kM | kMTile | kMOff | kNOff | kNTile | kDim | kScale},
    {AMK_OP_ROPE, "ROPE", true, 2, 1, kNormFlags, kHeads | kHeadDim | kMTile | kMOff | kNOff},
    {AMK_OP_SILU_MUL, "SILU_MUL", true, 1, 1, 0, kN | kNTile | kMTile | kNOff},
    {AMK_OP_GELU, "GELU", false, 0, 0, 0, 0},
    {AMK_OP_ADD, "ADD", true, 2, 1, 0, kNTile | kMTile | kNOff},
    {AMK_OP_MUL, "MUL", true, 2, 1, 0, kNTile | kMTile | kNOff},
    {AMK_OP_DEQUANT, "DEQUANT", false, 0, 0, 0, 0},
    {AMK_OP_SOFTMAX, "SOFTMAX", false, 0, 0, 0, 0},
    {AMK_OP_ALLREDUCE_SHARD, "ALLREDUCE_SHARD", false, 0, 0, 0, 0},
    {AMK_OP_KV_APPEND, "KV_APPEND", true, 1, 1, kNormFlags | AMK_FLAG_ROPE,
     kKvHeads | kHeadDim | kK | kNOff | kNTile | kMTile | kMOff},
    {AMK_OP_SAMPLE_ARGMAX, "SAMPLE_ARGMAX", true, 1, 2, 0, kVocab | kNTile | kMTile | kNOff | kM | kDim},
    {AMK_OP_ATTENTION_COMBINE, "ATTENTION_COMBINE", true, 2, 1, 0, kHeads | kHeadDim | kM | kMTile | kNOff | kNTile},
    {AMK_OP_FUSED, "FUSED", false, 0, 0, 0, 0},
    {AMK_OP_ARGMAX_COMBINE, "ARGMAX_COMBINE", true, 2, 1, 0, kM | kMTile},
    {AMK_OP_CAUSAL_CONV, "CAUSAL_CONV", true, 3, 2, 0, kK | kN | kNTile | kNOff | kMOff},
    {AMK_OP_GDN_DECODE, "GDN_DECODE", true, 5, 2, AMK_FLAG_L2_NORM,
     kHeads | kKvHeads | kHeadDim | kNTile | kNOff | kMOff | kScale},
    {AMK_OP_GATED_RMSNORM, "GATED_RMSNORM", true, 3, 1, 0, kHeads | kHeadDim | kNTile | kNOff | kMOff | kEps},
    {AMK_OP_SIGMOID_MUL, "SIGMOID_MUL", true, 2, 1, 0, kNTile | kNOff | kMOff},
};
constexpr int kOpCount = sizeof(kRows) / sizeof(kRows[0]);
static_assert(kOpCount == AMK_OP_SIGMOID_MUL + 1, "an opcode was added: give it its row here");

// Where an opcode keeps its number of tokens, or nullptr.
int32_t amk_params_t::* tokens_field(int32_t op) {
  switch (op) {
    case AMK_OP_COPY:
    case AMK_OP_EMBED:
    case AMK_OP_GEMV_TILE:
    case AMK_OP_ROPE:
    case AMK_OP_SILU_MUL:
    case AMK_OP_ADD:
    case AMK_OP_MUL:
    case AMK_OP_KV_APPEND:
    case AMK_OP_SAMPLE_ARGMAX:
    case AMK_OP_ATTENTION_COMBINE:
    case AMK_OP_ARGMAX_COMBINE: return &P::M_tile;
    case AMK_OP_ATTENTION_TILE: return &P::N;
    default: return nullptr;
  }
}

const OpRow* find_row(int32_t op) { return op >= 0 && op < kOpCount ? &kRows[op] : nullptr; }

bool check_copy(Checker& c) {
  if (dtype_bits(c.v.input(0).dtype) < 8) return c.fail(3, c.v.task.inputs[0], "elements narrower than a byte");
  return c.out_dtype(0, c.v.input(0).dtype, "out") && c.positive("N_tile", c.p.N_tile) &&
         c.in_range(0, "in", c.p.m_off, c.p.N_tile) && c.out_range(0, "out", c.p.n_off, c.p.N_tile);
}

bool check_embed(Checker& c) {
  return c.in_dtype(0, AMK_DTYPE_I32, "token") && c.compute_dtype(1, "table") && c.immutable(1, "table") &&
         c.out_dtype(0, c.v.input(1).dtype, "out") && c.positive("vocab", c.p.vocab) &&
         c.positive("hidden", c.p.hidden) && c.numel_in(0, "the number of tokens", c.tokens) &&
         c.shape(c.v.input(1), c.v.task.inputs[1], "table", 2, c.p.vocab, c.p.hidden) &&
         c.width_out(0, "hidden", c.p.hidden) && c.positive("N_tile", c.p.N_tile) &&
         c.out_range(0, "out", c.p.n_off, c.p.N_tile);
}

bool check_rmsnorm(Checker& c) {
  return c.compute_dtype(0, "x") && c.in_dtype(1, c.v.input(0).dtype, "weight") &&
         c.out_dtype(0, c.v.input(0).dtype, "out") && c.positive("hidden", c.p.hidden) &&
         c.positive("M_tile", c.p.M_tile) && c.numel_in(1, "hidden", c.p.hidden) && c.finite_positive("eps", c.p.eps) &&
         c.in_range(0, "x", c.p.m_off, __int128{c.p.M_tile} * c.p.hidden) &&
         c.out_range(0, "out", c.p.n_off, __int128{c.p.M_tile} * c.p.hidden);
}

// Groups are whole vectors of elements, so that a vector has one scale.
bool check_scales(Checker& c, int slot, int64_t weight_rows) {
  const int32_t id = c.v.task.inputs[slot];
  if (!(c.in_dtype(slot, c.v.input(0).dtype, "scale") && c.immutable(slot, "scale") && c.positive("group", c.p.group)))
    return false;
  if (c.p.group % AMK_VECTOR_BYTES != 0 || c.p.K % c.p.group != 0)
    return c.fail(
        4, id, text("group is %d, expected a multiple of %d that divides K = %d", c.p.group, AMK_VECTOR_BYTES, c.p.K));
  return c.shape(c.v.input(slot), id, "scale", 2, weight_rows, c.p.K / c.p.group);
}

bool check_gemv(Checker& c) {
  const int32_t dtype = c.v.input(0).dtype;
  const FlagSlots slots = flag_slots(c.v.task);
  const bool pair = c.p.flags & AMK_FLAG_SILU_PAIR, quantised = is_quantised(c.v.task);
  if (c.p.qdtype != 0 && !quantised)
    return c.fail(4, -1, text("qdtype is %d, expected 0 (not quantised) or %d (i8)", c.p.qdtype, AMK_DTYPE_I8));
  if (!(c.compute_dtype(0, "x") && c.in_dtype(1, quantised ? AMK_DTYPE_I8 : dtype, "weight") &&
        c.immutable(1, "weight")))
    return false;
  if (slots.norm >= 0 && !c.in_dtype(slots.norm, dtype, "norm weight")) return false;
  if (slots.bias >= 0 && !c.in_dtype(slots.bias, dtype, "bias")) return false;
  if (slots.residual >= 0 && !c.in_dtype(slots.residual, dtype, "residual")) return false;
  if (c.v.output(0).dtype != AMK_DTYPE_F32 && !c.out_dtype(0, dtype, "out")) return false;
  if (!(c.positive("K", c.p.K) && c.positive("N", c.p.N) && c.positive("N_tile", c.p.N_tile))) return false;
  if (int64_t{c.p.K} * dtype_bits(dtype) / 8 % AMK_VECTOR_BYTES != 0)
    return c.fail(5, c.v.task.inputs[1],
                  text("rows of %d %s are no multiple of %d bytes", c.p.K, dtype_name(dtype), AMK_VECTOR_BYTES));
  const int64_t weight_rows = pair ? 2 * int64_t{c.p.N} : c.p.N;
  if (!c.shape(c.v.input(1), c.v.task.inputs[1], "weight", 2, weight_rows, c.p.K)) return false;
  if (quantised && !check_scales(c, slots.scale, weight_rows)) return false;
  if (slots.norm >= 0 && !(c.numel_in(slots.norm, "K", c.p.K) && c.finite_positive("eps", c.p.eps))) return false;
  if (slots.bias >= 0 && !c.numel_in(slots.bias, "the weight's row count", weight_rows)) return false;
  if (slots.residual >= 0 && !c.width_in(slots.residual, "N", c.p.N)) return false;
  return c.width_out(0, "N", c.p.N) && c.in_range(0, "x", c.p.m_off, c.p.K) &&
         c.out_range(0, "out", c.p.n_off, c.p.N_tile);
}

bool check_rotation_operands(Checker& c, const FlagSlots& slots, int inv_freq) {
  const int32_t dtype = c.v.input(0).dtype;
  const auto norm = [&](int slot, const char* what) {
    return slot < 0 || (c.in_dtype(slot, dtype, what) && c.numel_in(slot, "head_dim", c.p.head_dim));
  };
  if (inv_freq >= 0 && !(c.in_dtype(inv_freq, AMK_DTYPE_F32, "inv_freq") && c.even_head_dim() &&
                         c.numel_in(inv_freq, "head_dim / 2", c.p.head_dim / 2)))
    return false;
  return slots.norm < 0 || (c.positive("head_dim", c.p.head_dim) && norm(slots.norm, "norm weight") &&
                            norm(slots.k_norm, "k_norm weight") && c.finite_positive("eps", c.p.eps));
}

bool check_partials(Checker& c) {
  const amk_instruction_t& t = c.v.task;
  return c.out_dtype(0, AMK_DTYPE_F32, "part_o") && c.out_dtype(1, AMK_DTYPE_F32, "part_ml") &&
         c.partial(c.v.output(0), t.outputs[0], "part_o", c.p.n_heads, c.p.M, c.p.head_dim) &&
         c.partial(c.v.output(1), t.outputs[1], "part_ml", c.p.n_heads, c.p.M, 2);
}

bool check_attention(Checker& c) {
  const amk_instruction_t& t = c.v.task;
  const int32_t dtype = c.v.input(0).dtype;
  const FlagSlots slots = flag_slots(t);
  const bool raw = slots.rope >= 0, direct = is_direct(t);
  if (slots.norm >= 0 && !raw) return c.fail(3, -1, "flag NORM without ROPE");
  if (raw && c.tokens > 1) return c.fail(3, -1, text("flag ROPE with N = %d tokens, allowed with one alone", c.tokens));
  if (direct && (c.tokens > 1 || c.p.M != 1))
    return c.fail(3, -1,
                  text("flag DIRECT with M = %d splits and %d tokens, allowed with one of each", c.p.M, c.tokens));
  if (int64_t{c.p.head_dim} * dtype_bits(dtype) / 8 % AMK_VECTOR_BYTES != 0)
    return c.fail(
        5, t.inputs[1],
        text("cache rows of %d %s are no multiple of %d bytes", c.p.head_dim, dtype_name(dtype), AMK_VECTOR_BYTES));
  return c.compute_dtype(0, "q") && c.in_dtype(1, dtype, "k cache") && c.in_dtype(2, dtype, "v cache") &&
         c.head_groups() && c.even_head_dim() && c.positive("K", c.p.K) && c.positive("M", c.p.M) &&
         c.positive("M_tile", c.p.M_tile) && c.positive("N_tile", c.p.N_tile) &&
         c.finite_positive("scale", c.p.scale) &&
         (c.p.dim >= 0 && c.p.dim < c.p.M ? true : c.fail(4, -1, text("split dim is %d of M = %d", c.p.dim, c.p.M))) &&
         c.shape(c.v.input(1), t.inputs[1], "k cache", 3, c.p.n_kv_heads, c.p.K, c.p.head_dim) &&
         c.shape(c.v.input(2), t.inputs[2], "v cache", 3, c.p.n_kv_heads, c.p.K, c.p.head_dim) &&
         (direct ? c.out_dtype(0, dtype, "out") &&
                       c.width_out(0, "n_heads * head_dim", int64_t{c.p.n_heads} * c.p.head_dim)
                 : check_partials(c)) &&
         check_rotation_operands(c, slots, slots.rope) && c.within("kv heads", c.p.n_off, c.p.N_tile, c.p.n_kv_heads) &&
         c.in_range(0, raw ? "q, k and v" : "q", c.p.m_off,
                    (c.p.n_heads + (raw ? 2 * __int128{c.p.n_kv_heads} : 0)) * c.p.head_dim);
}

bool check_combine(Checker& c) {
  const amk_instruction_t& t = c.v.task;
  if (!is_compute_dtype(c.v.output(0).dtype))
    return c.fail(3, t.outputs[0],
                  text("out has dtype %s, expected f32, f16 or bf16", dtype_name(c.v.output(0).dtype)));
  return c.in_dtype(0, AMK_DTYPE_F32, "part_o") && c.in_dtype(1, AMK_DTYPE_F32, "part_ml") &&
         c.positive("n_heads", c.p.n_heads) && c.positive("head_dim", c.p.head_dim) && c.positive("M", c.p.M) &&
         c.positive("N_tile", c.p.N_tile) &&
         c.partial(c.v.input(0), t.inputs[0], "part_o", c.p.n_heads, c.p.M, c.p.head_dim) &&
         c.partial(c.v.input(1), t.inputs[1], "part_ml", c.p.n_heads, c.p.M, 2) &&
         c.width_out(0, "n_heads * head_dim", int64_t{c.p.n_heads} * c.p.head_dim) &&
         c.within("heads", c.p.n_off, c.p.N_tile, c.p.n_heads);
}

bool check_rope(Checker& c) {
  return c.compute_dtype(0, "x") && c.out_dtype(0, c.v.input(0).dtype, "out") &&
         check_rotation_operands(c, flag_slots(c.v.task), 1) && c.positive("n_heads", c.p.n_heads) &&
         c.in_range(0, "x", c.p.m_off, __int128{c.p.n_heads} * c.p.head_dim) &&
         c.out_range(0, "out", c.p.n_off, __int128{c.p.n_heads} * c.p.head_dim);
}

bool check_kv_append(Checker& c) {
  const FlagSlots slots = flag_slots(c.v.task);
  return c.compute_dtype(0, "src") && c.out_dtype(0, c.v.input(0).dtype, "cache") &&
         check_rotation_operands(c, slots, slots.rope) && c.positive("head_dim", c.p.head_dim) &&
         c.positive("n_kv_heads", c.p.n_kv_heads) && c.positive("K", c.p.K) && c.positive("N_tile", c.p.N_tile) &&
         c.shape(c.v.output(0), c.v.task.outputs[0], "cache", 3, c.p.n_kv_heads, c.p.K, c.p.head_dim) &&
         c.within("kv heads", c.p.n_off, c.p.N_tile, c.p.n_kv_heads) &&
         c.in_range(0, "src", c.p.m_off, __int128{c.p.N_tile} * c.p.head_dim);
}

bool check_silu_mul(Checker& c) {
  return c.compute_dtype(0, "gate_up") && c.out_dtype(0, c.v.input(0).dtype, "out") && c.positive("N", c.p.N) &&
         c.positive("N_tile", c.p.N_tile) && c.width_in(0, "2 * N", 2 * int64_t{c.p.N}) && c.width_out(0, "N", c.p.N) &&
         c.out_range(0, "out", c.p.n_off, c.p.N_tile);
}

bool check_elementwise(Checker& c) {
  const int32_t dtype = c.v.input(0).dtype;
  return c.compute_dtype(0, "a") && c.in_dtype(1, dtype, "b") && c.out_dtype(0, dtype, "out") &&
         c.positive("N_tile", c.p.N_tile) && c.in_range(0, "a", c.p.n_off, c.p.N_tile) &&
         c.in_range(1, "b", c.p.n_off, c.p.N_tile) && c.out_range(0, "out", c.p.n_off, c.p.N_tile);
}

bool check_argmax(Checker& c) {
  return c.in_dtype(0, AMK_DTYPE_F32, "logits") && c.out_dtype(0, AMK_DTYPE_F32, "best_value") &&
         c.out_dtype(1, AMK_DTYPE_I32, "best_index") && c.positive("vocab", c.p.vocab) && c.positive("M", c.p.M) &&
         c.positive("N_tile", c.p.N_tile) && c.width_in(0, "vocab", c.p.vocab) && c.width_out(0, "M", c.p.M) &&
         c.width_out(1, "M", c.p.M) && c.in_range(0, "logits", c.p.n_off, c.p.N_tile) &&
         (c.p.dim >= 0 && c.p.dim < c.p.M ? true : c.fail(4, -1, text("entry dim is %d of M = %d", c.p.dim, c.p.M)));
}

bool check_argmax_combine(Checker& c) {
  return c.in_dtype(0, AMK_DTYPE_F32, "best_value") && c.in_dtype(1, AMK_DTYPE_I32, "best_index") &&
         c.out_dtype(0, AMK_DTYPE_I32, "out") && c.positive("M", c.p.M) && c.width_in(0, "M", c.p.M) &&
         c.width_in(1, "M", c.p.M) && c.numel_out(0, "the number of tokens", c.tokens);
}

uint32_t used_params(const OpRow& row, const amk_instruction_t& t) {
  uint32_t used = row.params | kPositionFields;
  if (row.flags) used |= kFlagsField;
  if (t.params.flags & (AMK_FLAG_NORM | AMK_FLAG_L2_NORM)) used |= kEps;
  if (is_quantised(t)) used |= kGroup;
  return used;
}

LastingSlots lasting_slots(int32_t op) {
  switch (op) {
    case AMK_OP_ATTENTION_TILE: return {.cache_inputs = 0b110};
    case AMK_OP_KV_APPEND: return {.cache_outputs = 1};
    case AMK_OP_CAUSAL_CONV: return {.state_inputs = 1 << 2, .state_outputs = 1 << 1};
    case AMK_OP_GDN_DECODE: return {.state_inputs = 1 << 4, .state_outputs = 1 << 1};
    default: return {};
  }
}

// Arity, flags, and parameters nobody asked for.
bool check_signature(Checker& c, const OpRow& row) {
  const amk_instruction_t& t = c.v.task;
  if (t.params.flags & ~static_cast<int32_t>(row.flags))
    return c.fail(3, -1, text("flags 0x%x, allowed 0x%x", t.params.flags, row.flags));
  if ((t.params.flags & kNormFlags) == AMK_FLAG_NORM_PLUS_ONE && t.op != AMK_OP_RMSNORM)
    return c.fail(3, -1, "flag NORM_PLUS_ONE without NORM");
  const int want_inputs = flag_slots(t).end;
  if (t.n_inputs != want_inputs) return c.fail(3, -1, text("%d inputs, expected %d", t.n_inputs, want_inputs));
  const int want_outputs = row.arity_out - (is_direct(t) ? 1 : 0);
  if (t.n_outputs != want_outputs) return c.fail(3, -1, text("%d outputs, expected %d", t.n_outputs, want_outputs));
  const uint32_t used = used_params(row, t);
  for (int i = 0; i < kParamFieldCount; ++i) {
    const ParamField& f = kFields[i];
    // `!(x == 0)` so that a NaN in an unused float is refused too.
    const bool set = f.as_int ? t.params.*f.as_int != 0 : !(t.params.*f.as_float == 0);
    if (set && !(used >> i & 1)) return c.fail(3, -1, text("parameter %s is set, but this opcode has none", f.name));
  }
  const auto tokens = tokens_field(t.op);
  if (tokens && (t.params.*tokens < 0 || t.params.*tokens > AMK_MAX_BATCH))
    return c.fail(4, -1,
                  text("%s is %d tokens, allowed 0 (one)..%d", tokens == &P::N ? "N" : "M_tile", t.params.*tokens,
                       AMK_MAX_BATCH));
  return true;
}

}  // namespace

const char* op_name(int32_t op) {
  const OpRow* row = find_row(op);
  return row ? row->name : nullptr;
}

bool op_supported(int32_t op) {
  const OpRow* row = find_row(op);
  return row && row->supported;
}

int32_t op_tokens(const amk_instruction_t& task) {
  const auto field = tokens_field(task.op);
  return field && task.params.*field > 1 ? task.params.*field : 1;
}

bool op_knows_position(int32_t op) {
  return op == AMK_OP_ROPE || op == AMK_OP_KV_APPEND || op == AMK_OP_ATTENTION_TILE;
}

bool is_quantised(const amk_instruction_t& task) {
  return task.op == AMK_OP_GEMV_TILE && task.params.qdtype == AMK_DTYPE_I8;
}

bool is_direct(const amk_instruction_t& task) {
  return task.op == AMK_OP_ATTENTION_TILE && task.params.flags & AMK_FLAG_DIRECT;
}

FlagSlots flag_slots(const amk_instruction_t& task) {
  FlagSlots slots;
  const OpRow* row = find_row(task.op);
  if (!row) return slots;
  int next = row->arity_in;
  if (is_quantised(task)) slots.scale = next++;
  if (task.params.flags & AMK_FLAG_ROPE) slots.rope = next++;
  if (task.params.flags & AMK_FLAG_NORM) slots.norm = next++;
  if (slots.norm >= 0 && task.op == AMK_OP_ATTENTION_TILE) slots.k_norm = next++;
  if (task.params.flags & AMK_FLAG_BIAS) slots.bias = next++;
  if (task.params.flags & AMK_FLAG_RESIDUAL) slots.residual = next++;
  slots.end = next;
  return slots;
}

const ParamField* param_field(int index) { return index >= 0 && index < kParamFieldCount ? &kFields[index] : nullptr; }

bool op_check(const TaskView& view, Problem* problem) {
  const OpRow* row = find_row(view.task.op);
  if (!row || !row->supported) {
    *problem = {3, -1,
                row ? text("opcode %s has no implementation in this build", row->name)
                    : text("unknown opcode %d", view.task.op)};
    return false;
  }
  Checker c(view, problem);
  if (!check_signature(c, *row)) return false;
  if (!c.plain_operands(lasting_slots(row->op))) return false;
  switch (view.task.op) {
    case AMK_OP_NOP: return true;
    case AMK_OP_COPY: return check_copy(c);
    case AMK_OP_EMBED: return check_embed(c);
    case AMK_OP_RMSNORM: return check_rmsnorm(c);
    case AMK_OP_GEMV_TILE: return check_gemv(c);
    case AMK_OP_ATTENTION_TILE: return check_attention(c);
    case AMK_OP_ROPE: return check_rope(c);
    case AMK_OP_SILU_MUL: return check_silu_mul(c);
    case AMK_OP_ADD:
    case AMK_OP_MUL: return check_elementwise(c);
    case AMK_OP_KV_APPEND: return check_kv_append(c);
    case AMK_OP_SAMPLE_ARGMAX: return check_argmax(c);
    case AMK_OP_ATTENTION_COMBINE: return check_combine(c);
    case AMK_OP_ARGMAX_COMBINE: return check_argmax_combine(c);
    case AMK_OP_CAUSAL_CONV: return check_causal_conv(c);
    case AMK_OP_GDN_DECODE: return check_gdn_decode(c);
    case AMK_OP_GATED_RMSNORM: return check_gated_rmsnorm(c);
    case AMK_OP_SIGMOID_MUL: return check_sigmoid_mul(c);
    default: return c.fail(3, -1, "no law");
  }
}

}  // namespace amk
