// V17's rules, one per opcode: which part of which value of the decoder a task computes from what its operands hold.
// Each follows the law of its opcode in amk.h. A rule that does not see its way refuses.
#include "base/error.h"
#include "validate/translation.h"

namespace amk {

bool Translation::apply(const amk_instruction_t& t) {
  switch (t.op) {
    case AMK_OP_NOP: return true;
    case AMK_OP_COPY: return copy(t);
    case AMK_OP_EMBED: return embed(t);
    case AMK_OP_RMSNORM: return rmsnorm(t);
    case AMK_OP_GEMV_TILE: return gemv(t);
    case AMK_OP_ATTENTION_TILE: return attention(t);
    case AMK_OP_ATTENTION_COMBINE: return combine(t);
    case AMK_OP_ROPE: return rope(t);
    case AMK_OP_KV_APPEND: return append(t);
    case AMK_OP_SILU_MUL: return silu_mul(t);
    case AMK_OP_ADD: return add(t);
    case AMK_OP_SAMPLE_ARGMAX: return scan(t);
    case AMK_OP_ARGMAX_COMBINE: return pick(t);
    case AMK_OP_CAUSAL_CONV: return causal_conv(t);
    case AMK_OP_GDN_DECODE: return gdn(t);
    case AMK_OP_GATED_RMSNORM: return gated_norm(t);
    case AMK_OP_SIGMOID_MUL: return sigmoid_mul(t);
    default: return fail(-1, "the model has no such operation");
  }
}

// Whatever stands there, piece by piece: a copy computes nothing, so it may be made, and made again.
bool Translation::copy(const amk_instruction_t& t) {
  const int32_t from = t.inputs[0], to = t.outputs[0];
  return for_tokens([&](int32_t token) {
    const int64_t first = row(from, token) + t.params.m_off, end = first + t.params.N_tile;
    const int64_t shift = row(to, token) + t.params.n_off - first;
    if (bound_[from]) {
      write(to, first + shift, end - first, bound_[from], first);
      return true;
    }
    // A copy within one buffer overlaps nothing of what it reads (V18), so reading and writing may take turns.
    for (int64_t at = first; at < end;) {
      const Contents::Piece piece = contents_[from].at(at, end);
      write(to, piece.first + shift, piece.end - piece.first, piece.value, piece.at);
      at = piece.end;
    }
    return true;
  });
}

bool Translation::embed(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const Value x{What::kX, 0};
  return holds(read(t.inputs[0], 0, tokens_), {What::kToken, 0}, 0, "token", x) &&
         holds(read(t.inputs[1], 0, int64_t{p.vocab} * p.hidden), {What::kEmbed, 0}, 0, "table", x) &&
         for_tokens([&](int32_t token) { return compute_row(t.outputs[0], p.n_off, p.N_tile, x.of(token), p.n_off); });
}

bool Translation::norm_weight_plus(const amk_instruction_t& t, Value out) {
  const bool plus = t.params.flags & AMK_FLAG_NORM_PLUS_ONE, due = d_.has_norm_plus_one();
  if (plus == due) return true;
  const char* used[] = {"as they are", "as 1 + w"};
  return fail(-1, text("the norm weights of %s are used %s, expected %s", d_.name(out).c_str(), used[plus], used[due]));
}

bool Translation::rmsnorm(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const int64_t count = int64_t{p.M_tile} * p.hidden;
  const Reading x = read(t.inputs[0], p.m_off, count);
  const Reading weight = read(t.inputs[1], 0, p.hidden);
  if (x.refused) return false;
  if (x.one && x.value.what == What::kQkv && d_.has_head_norms() && p.hidden == d_.head_dim() &&
      x.at % d_.head_dim() == 0 && x.at + count <= d_.v_first()) {
    const bool is_q = x.at + count <= d_.k_first(), is_k = x.at >= d_.k_first();
    const Value out{is_q ? What::kQNormed : What::kKNormed, x.value.layer, x.value.token};
    const Value norm{is_q ? What::kQNorm : What::kKNorm, x.value.layer};
    return (is_q || is_k || fail(-1, "it normalises q rows and k rows with one weight")) &&
           holds(weight, norm, 0, "weight", out) && number("eps", p.eps, d_.eps(), out) && norm_weight_plus(t, out) &&
           compute(t.outputs[0], p.n_off, count, out, x.at - (is_q ? 0 : d_.k_first()));
  }
  // Whole vectors, of one token each.
  for (int64_t r = 0; r < p.M_tile; ++r) {
    const Reading vector = d_.batch() == 1 ? x : read(t.inputs[0], p.m_off + r * p.hidden, p.hidden);
    const Norm rule = d_.norm(vector.value);
    if (vector.refused) return false;
    if (!rule.out || !vector.one || vector.at != 0 || vector.count != d_.hidden() || p.hidden != d_.hidden())
      return fail(t.inputs[0], text("it normalises %s, which the model does not", reading_text(vector).c_str()));
    if (!(holds(weight, rule.weight, 0, "weight", rule.out) && number("eps", p.eps, d_.eps(), rule.out) &&
          norm_weight_plus(t, rule.out) && compute(t.outputs[0], p.n_off + r * p.hidden, p.hidden, rule.out, 0)))
      return false;
  }
  return true;
}

bool Translation::gemv(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const FlagSlots slots = flag_slots(t);
  const bool pair = p.flags & AMK_FLAG_SILU_PAIR;
  const Value matrix = bound_[t.inputs[1]];
  const Linear rule = d_.linear(matrix);
  const std::string name = d_.name(matrix);
  if (!rule.out) return fail(t.inputs[1], text("it multiplies by %s, which the model does not", name.c_str()));
  const auto lacks = [&](bool has, Value part, const char* what) {
    if (has == static_cast<bool>(part)) return true;
    return fail(t.inputs[1], text("%s has %s %s, but the model's has %s", name.c_str(), has ? "a" : "no", what,
                                  part ? "one" : "none"));
  };
  if (!lacks(slots.scale >= 0, rule.scale, "scale")) return false;
  if (slots.scale >= 0) {
    const int64_t count = p_.buffers[t.inputs[slots.scale]].numel;
    if (!holds(read(t.inputs[slots.scale], 0, count), rule.scale, 0, "scale", matrix)) return false;
    if (!number("the group", p.group, d_.weight_group(), matrix)) return false;
  }
  // The weight has the model's shape and K is its row length (V4), so K elements from the first are the whole vector.
  const bool normed = slots.norm >= 0;
  if (normed && !lacks(true, rule.norm, "normalisation before it")) return false;
  const Value input = normed ? rule.raw : rule.input;
  const bool right_input = for_tokens([&](int32_t token) {
    const Reading x = read_row(t.inputs[0], token, p.m_off, p.K);
    return holds(x, input ? input.of(token) : input, 0, normed ? "normalised input" : "input", matrix);
  });
  if (!right_input) return false;
  if (normed) {
    if (!holds(read(t.inputs[slots.norm], 0, p.K), rule.norm, 0, "norm weight", matrix)) return false;
    if (!number("eps", p.eps, d_.eps(), matrix) || !norm_weight_plus(t, matrix)) return false;
  }
  if (!lacks(slots.bias >= 0, rule.bias, "bias")) return false;
  if (slots.bias >= 0) {
    const int64_t rows = p.N * (pair ? int64_t{2} : int64_t{1});
    if (!holds(read(t.inputs[slots.bias], 0, rows), rule.bias, 0, "bias", matrix)) return false;
  }
  if (pair && !lacks(true, rule.pair_out, "gated activation after it")) return false;
  Value out = pair ? rule.pair_out : rule.out;
  if (slots.residual >= 0) {
    if (!lacks(true, pair ? Value{} : rule.residual, "residual")) return false;
    const bool right_residual = for_tokens([&](int32_t token) {
      const Reading residual = read_row(t.inputs[slots.residual], token, p.n_off, p.N_tile);
      return holds(residual, rule.residual.of(token), p.n_off, "residual", matrix);
    });
    if (!right_residual) return false;
    out = rule.sum;
  }
  return for_tokens(
      [&](int32_t token) { return compute_row(t.outputs[0], p.n_off, p.N_tile, out.of(token), p.n_off); });
}

// ---- heads ----

bool Translation::head_norm_weight(const amk_instruction_t& t, int slot, Value rotated) {
  const What norm = rotated.what == What::kQRotated ? What::kQNorm : What::kKNorm;
  return holds(read(t.inputs[slot], 0, d_.head_dim()), {norm, rotated.layer}, 0, "head norm weight", rotated) &&
         number("eps", t.params.eps, d_.eps(), rotated) && norm_weight_plus(t, rotated);
}

std::optional<Translation::Rotation> Translation::rotate(const amk_instruction_t& t, int32_t token, int32_t heads,
                                                         int inv_freq, int norm) {
  const int64_t width = d_.head_dim(), count = heads * width;
  if (t.params.head_dim != width) {
    fail(-1, text("it turns heads of width %d, the model's are %lld wide", t.params.head_dim, (long long)width));
    return {};
  }
  const Reading x = read_row(t.inputs[0], token, t.params.m_off, count);
  if (x.refused) return {};
  const int64_t end = x.at + count;
  const bool q_rows = x.value.what == What::kQkv && end <= d_.k_first();
  const bool k_rows = x.value.what == What::kQkv && x.at >= d_.k_first() && end <= d_.v_first();
  const bool is_q = q_rows || x.value.what == What::kQNormed, is_k = k_rows || x.value.what == What::kKNormed;
  if (!x.one || !(is_q || is_k) || x.at % width != 0) {
    fail(t.inputs[0], text("it turns %s, expected whole heads of q rows or of k rows", reading_text(x).c_str()));
    return {};
  }
  if (x.value.token != token) {
    fail(t.inputs[0], text("it turns %s by the position of token %d", reading_text(x).c_str(), token));
    return {};
  }
  const Rotation r{{is_q ? What::kQRotated : What::kKRotated, x.value.layer, token},
                   x.at - (k_rows ? d_.k_first() : 0)};
  const bool due = d_.has_head_norms() && (q_rows || k_rows);
  if ((norm >= 0) != due) {
    fail(-1, text("%s is made %s a head norm of %s, expected %s one", d_.name(r.value).c_str(),
                  norm >= 0 ? "with" : "without", d_.name(x.value).c_str(), due ? "with" : "without"));
    return {};
  }
  if (norm >= 0 && !head_norm_weight(t, norm, r.value)) return {};
  if (!holds(read(t.inputs[inv_freq], 0, width / 2), {What::kInvFreq, 0}, 0, "frequency table", r.value)) return {};
  return r;
}

bool Translation::rope(const amk_instruction_t& t) {
  return for_tokens([&](int32_t token) {
    const std::optional<Rotation> r = rotate(t, token, t.params.n_heads, 1, flag_slots(t).norm);
    return r && compute_row(t.outputs[0], t.params.n_off, t.params.n_heads * d_.head_dim(), r->value, r->at);
  });
}

bool Translation::append(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const FlagSlots slots = flag_slots(t);
  const Value cache = bound_[t.outputs[0]];
  const bool is_k = cache.what == What::kKCache;
  // The cache has the model's shape, and head_dim and K are that shape's (V4).
  const int64_t width = d_.head_dim(), first = p.n_off * width, count = p.N_tile * width;
  const Value value{is_k ? What::kKRotated : What::kQkv, cache.layer};
  const int64_t at = first + (is_k ? 0 : d_.v_first());
  const bool right_rows = for_tokens([&](int32_t token) {
    const Value row_value = value.of(token);
    if (slots.rope >= 0) {
      const std::optional<Rotation> r = rotate(t, token, p.N_tile, slots.rope, slots.norm);
      if (!r) return false;
      if (!holds({r->value, r->at, count, true, false, {}}, row_value, at, "row", cache)) return false;
      add_tile(row_value, at, count);
      return true;
    }
    if (slots.norm >= 0)
      return fail(t.outputs[0], text("the row of %s is normalised and not turned", d_.name(cache).c_str()));
    return holds(read_row(t.inputs[0], token, p.m_off, count), row_value, at, "row", cache);
  });
  return right_rows && for_cache_rows(p.n_off, p.N_tile, [&](int32_t token, int64_t to, int64_t of_head, int64_t n) {
           write(t.outputs[0], to, n, value.of(token), of_head + (is_k ? 0 : d_.v_first()));
           return true;
         });
}

bool Translation::turned_heads(const amk_instruction_t& t, Value out) {
  const amk_params_t& p = t.params;
  const int64_t width = d_.head_dim(), group = d_.n_heads() / d_.n_kv_heads();
  const int64_t q_first = p.n_off * group * width, kv = p.N_tile * width;
  const Value q{What::kQRotated, out.layer}, k{What::kKRotated, out.layer}, qkv{What::kQkv, out.layer};
  const bool right_queries = for_tokens([&](int32_t token) {
    return holds(read_row(t.inputs[0], token, p.m_off + q_first, kv * group), q.of(token), q_first, "query", out);
  });
  // Token t sees the rows of tokens 0 .. t: the last one sees all of them.
  return right_queries &&
         for_cache_rows(p.n_off, p.N_tile, [&](int32_t token, int64_t first, int64_t at, int64_t count) {
           return holds(read(t.inputs[1], first, count), k.of(token), at, "k row", out) &&
                  holds(read(t.inputs[2], first, count), qkv.of(token), d_.v_first() + at, "v row", out);
         });
}

// The task turns q and k itself: as many times as there are splits, so it records no part of them as computed.
bool Translation::raw_heads(const amk_instruction_t& t, Value out) {
  const amk_params_t& p = t.params;
  const FlagSlots slots = flag_slots(t);
  const int64_t width = d_.head_dim(), group = d_.n_heads() / d_.n_kv_heads();
  const int64_t kv_first = p.n_off * width, kv = p.N_tile * width;
  const Value qkv{What::kQkv, out.layer}, q{What::kQRotated, out.layer}, k{What::kKRotated, out.layer};
  const auto rows = [&](int64_t first, int64_t count, const char* what) {
    return holds(read(t.inputs[0], p.m_off + first, count), qkv, first, what, out);
  };
  if (!rows(kv_first * group, kv * group, "raw query") || !rows(d_.k_first() + kv_first, kv, "raw k row") ||
      !rows(d_.v_first() + kv_first, kv, "raw v row"))
    return false;
  const bool normed = slots.norm >= 0, due = d_.has_head_norms();
  if (normed != due)
    return fail(-1, text("%s is made %s head norms, expected %s them", d_.name(out).c_str(),
                         normed ? "with" : "without", due ? "with" : "without"));
  if (normed && !(head_norm_weight(t, slots.norm, q) && head_norm_weight(t, slots.k_norm, k))) return false;
  return holds(read(t.inputs[slots.rope], 0, width / 2), {What::kInvFreq, 0}, 0, "frequency table", out);
}

// As many tokens as a step has (V19, and the model's number). Rows before this step's hold what earlier steps of the
// same program appended to the same cache.
bool Translation::attention(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const Value k = bound_[t.inputs[1]], v = bound_[t.inputs[2]];
  const int32_t layer = k.layer;
  const Value out{What::kAttended, layer};
  if (k.what != What::kKCache || v != Value{What::kVCache, layer})
    return fail(t.inputs[k.what == What::kKCache ? 2 : 1],
                text("it attends over %s as k and %s as v, expected k and v of one layer", d_.name(k).c_str(),
                     d_.name(v).c_str()));
  if (!number("the number of query heads", p.n_heads, d_.n_heads(), out)) return false;
  if (!number("the scale", p.scale, d_.attention_scale(), out)) return false;
  if (!(flag_slots(t).rope < 0 ? turned_heads(t, out) : raw_heads(t, out))) return false;
  const int64_t width = d_.head_dim(), group = d_.n_heads() / d_.n_kv_heads();
  const int64_t head = p.n_off * group, heads = p.N_tile * group;
  if (is_direct(t)) return compute_row(t.outputs[0], head * width, heads * width, out, head * width);
  Splits& splits = splits_[layer];
  if (splits.count == 0) splits = {p.M, p.M_tile};
  if (!number("the number of splits", p.M, splits.count, out)) return false;
  if (!number("the rows of a block", p.M_tile, splits.block, out)) return false;
  const Value part_o{What::kPartO, layer}, part_ml{What::kPartMl, layer};
  return for_tokens([&](int32_t token) {
    for (int64_t h = head; h < head + heads; ++h) {
      const int64_t part = h * p.M + p.dim;
      write(t.outputs[0], row(t.outputs[0], token) + part * width, width, part_o.of(token), part * width);
      write(t.outputs[1], row(t.outputs[1], token) + part * 2, 2, part_ml.of(token), part * 2);
    }
    // Counted split after split: then it is one range.
    add_tile(part_o.of(token), int64_t{p.dim} * d_.n_heads() + head, heads);
    return true;
  });
}

bool Translation::combine(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const int64_t width = p.head_dim, parts = int64_t{p.N_tile} * p.M, first = int64_t{p.n_off} * p.M;
  const Reading o = read(t.inputs[0], first * width, parts * width);
  if (o.refused) return false;
  const int32_t layer = o.value.layer;
  if (o.value.what != What::kPartO)
    return fail(t.inputs[0], text("it merges %s, expected partial results of attention", reading_text(o).c_str()));
  const Value out{What::kAttended, layer};
  return number("the number of query heads", p.n_heads, d_.n_heads(), out) &&
         number("the head width", p.head_dim, static_cast<double>(d_.head_dim()), out) &&
         number("the number of merged splits", p.M, splits_[layer].count, out) && for_tokens([&](int32_t token) {
           return holds(read_row(t.inputs[0], token, first * width, parts * width), {What::kPartO, layer, token},
                        first * width, "part_o", out) &&
                  holds(read_row(t.inputs[1], token, first * 2, parts * 2), {What::kPartMl, layer, token}, first * 2,
                        "part_ml", out) &&
                  compute_row(t.outputs[0], p.n_off * width, p.N_tile * width, out.of(token), p.n_off * width);
         });
}

// ---- elements ----

bool Translation::silu_mul(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  return for_tokens([&](int32_t token) {
    const Reading gate = read_row(t.inputs[0], token, p.n_off, p.N_tile);
    const Reading up = read_row(t.inputs[0], token, int64_t{p.N} + p.n_off, p.N_tile);
    if (gate.refused) return false;
    const Value source{What::kGateUp, gate.value.layer, token}, out{What::kAct, gate.value.layer, token};
    if (!gate.one || gate.value != source || gate.at + p.N_tile > d_.ffn())
      return fail(t.inputs[0], text("its gate is %s, expected gate rows", reading_text(gate).c_str()));
    return holds(up, source, d_.ffn() + gate.at, "up half", out) &&
           compute_row(t.outputs[0], p.n_off, p.N_tile, out, gate.at);
  });
}

bool Translation::add(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  return for_tokens([&](int32_t token) {
    const Reading a = read_row(t.inputs[0], token, p.n_off, p.N_tile);
    const Reading b = read_row(t.inputs[1], token, p.n_off, p.N_tile);
    if (a.refused || b.refused) return false;
    const Value out = d_.sum(a.value, b.value);
    if (!out || !a.one || !b.one || a.at != b.at || out.token != token)
      return fail(
          -1, text("it adds %s and %s, which the model does not", reading_text(a).c_str(), reading_text(b).c_str()));
    return compute_row(t.outputs[0], p.n_off, p.N_tile, out, a.at);
  });
}

// ---- the next token ----

bool Translation::scan(const amk_instruction_t& t) {
  const amk_params_t& p = t.params;
  const Value out{What::kBestValue, 0};
  // The index written is the position in the operand, so the operand must hold the logits from its first element on.
  const bool right_range = for_tokens([&](int32_t token) {
    return holds(read_row(t.inputs[0], token, p.n_off, p.N_tile), {What::kLogits, 0, token}, p.n_off, "range", out);
  });
  if (!right_range) return false;
  if (!is_dtype(t.outputs[0], out) || !is_dtype(t.outputs[1], {What::kBestIndex, 0})) return false;
  const int64_t id = static_cast<int64_t>(scans_.size());
  scans_.push_back({p.n_off, int64_t{p.n_off} + p.N_tile});
  return for_tokens([&](int32_t token) {
    write(t.outputs[0], row(t.outputs[0], token) + p.dim, 1, out.of(token), id);
    write(t.outputs[1], row(t.outputs[1], token) + p.dim, 1, {What::kBestIndex, 0, token}, id);
    add_tile(out.of(token), p.n_off, p.N_tile);
    return true;
  });
}

// Once a step, whether it succeeds or not: so the walks below are made once.
bool Translation::pick(const amk_instruction_t& t) {
  if (picked_) return fail(t.outputs[0], "the next token is picked twice");
  picked_ = true;
  return for_tokens([&](int32_t token) {
    return entries_cover(t, token) && compute(t.outputs[0], token, 1, {What::kNextToken, 0, token}, 0);
  });
}

// Entries may be in any order, each with the index of its own value, and their ranges must be all the logits.
bool Translation::entries_cover(const amk_instruction_t& t, int32_t token) {
  const int64_t count = t.params.M;
  if (read_row(t.inputs[0], token, 0, count).refused) return false;
  if (count > static_cast<int64_t>(scans_.size()))
    return fail(-1, text("it picks among %lld entries, but %zu ranges were scanned", (long long)count, scans_.size()));
  std::vector<Scan> ranges;
  for (int64_t i = 0; i < count; ++i) {
    const Reading value = read_row(t.inputs[0], token, i, 1), index = read_row(t.inputs[1], token, i, 1);
    if (value.refused || index.refused) return false;
    if (value.value != Value{What::kBestValue, 0, token} || index.value != Value{What::kBestIndex, 0, token} ||
        value.at != index.at)
      return fail(-1, text("entry %lld is %s with %s, expected the best value and index of one range", (long long)i,
                           reading_text(value).c_str(), reading_text(index).c_str()));
    ranges.push_back(scans_[static_cast<size_t>(value.at)]);
  }
  std::sort(ranges.begin(), ranges.end(), [](const Scan& a, const Scan& b) { return a.first < b.first; });
  int64_t end = 0;
  for (const Scan& r : ranges) {
    if (r.first != end) break;
    end = r.end;
  }
  if (end == d_.vocab()) return true;
  return fail(-1, text("the entries cover %s and then not, expected all of %s",
                       d_.range_text({What::kLogits, 0, token}, 0, end).c_str(),
                       d_.range_text({What::kLogits, 0, token}, 0, d_.vocab()).c_str()));
}

}  // namespace amk
