// V17: the program computes the decoder that the model describes, each part of it exactly once, and nothing else.
#include "validate/translation.h"

#include "base/dtype.h"
#include "base/error.h"

namespace amk {
namespace {

using ll = long long;

// Ranges that tasks may leave behind of each token: fifty times what the lowering of a 70B shape does.
constexpr int64_t kMaxWrites = int64_t{1} << 22;
constexpr int kPiecesShown = 16;  // pieces looked at to find words for a range that holds several things

std::string shape_text(int32_t rank, const int64_t* shape) {
  std::string out = "[";
  for (int i = 0; i < rank; ++i) out += text(i ? ", %lld" : "%lld", (ll)shape[i]);
  return out + "]";
}

}  // namespace

Translation::Translation(const Program& program, const Decoder& decoder, Report* report)
    : p_(program), d_(decoder), report_(report) {}

void Translation::run(const TaskOrder& order) {
  const int64_t before = report_->count();
  bind_buffers();
  if (report_->count() != before) return;
  for (const int32_t task : order.sequence) {
    step(task);
    if (writes_ <= kMaxWrites * d_.batch()) continue;
    AMK_REJECT(report_, 1, -1, -1, -1, "the program is too large to judge: its tasks leave more than %lld ranges",
               (ll)kMaxWrites * d_.batch());
    return;
  }
  check_tiles();
  // An output that a refused task should have written is no news.
  if (report_->count() == before) check_outputs();
}

// ---- buffers ----

void Translation::bind_buffers() {
  const int64_t before = report_->count();
  if (p_.launch.max_seq != d_.max_seq()) {
    AMK_REJECT(report_, 17, -1, -1, -1, "launch.max_seq is %d, the model's is %d", p_.launch.max_seq, d_.max_seq());
    return;  // every cache would differ too
  }
  if (program_batch(p_.tasks) != d_.batch()) {
    AMK_REJECT(report_, 17, -1, -1, -1, "a step decodes %d tokens, the model's %d", program_batch(p_.tasks),
               d_.batch());
    return;
  }
  bound_.resize(p_.buffers.size());
  contents_.resize(p_.buffers.size());
  k_cache_.assign(d_.layers(), -1);
  v_cache_.assign(d_.layers(), -1);
  conv_state_.assign(d_.layers(), -1);
  gdn_state_.assign(d_.layers(), -1);
  splits_.resize(d_.layers());
  for (size_t i = 0; i < p_.buffers.size(); ++i) bind(static_cast<int32_t>(i));
  if (report_->count() != before) return;  // what is missing may be what was refused
  const auto require = [&](int32_t buffer, What what, int32_t layer) {
    if (buffer < 0) AMK_REJECT(report_, 17, -1, -1, -1, "no buffer is the model's %s", d_.name({what, layer}).c_str());
  };
  require(logits_, What::kLogits, 0);
  require(next_token_, What::kNextToken, 0);
  for (int32_t i = 0; i < d_.layers(); ++i) {
    if (d_.is_linear(i)) {
      require(conv_state_[i], What::kConvState, i);
      require(gdn_state_[i], What::kGdnState, i);
    } else {
      require(k_cache_[i], What::kKCache, i);
      require(v_cache_[i], What::kVCache, i);
    }
  }
}

void Translation::bind(int32_t id) {
  const amk_buffer_t& b = p_.buffers[id];
  const int32_t kind = p_.bindings[id].kind;
  if (kind == AMK_KIND_ACTIVATION) return;
  const bool by_source = kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST;
  const std::string_view name = by_source ? p_.buffer_source.at(id) : p_.buffer_name.at(id);
  BoundTensor want;
  if (by_source || kind == AMK_KIND_IO_INPUT) want = d_.bound(name);
  if (kind == AMK_KIND_KV_CACHE) want = d_.cache(name);
  if (kind == AMK_KIND_STATE) want = d_.state(name);
  if (kind == AMK_KIND_IO_OUTPUT) want = d_.output(name);
  if (!want.value || (want.value.what == What::kToken) != (kind == AMK_KIND_IO_INPUT)) {
    AMK_REJECT(report_, 17, -1, id, -1, "%s is no weight, constant, cache, state, input or output of the model",
               buffer_text(p_, id).c_str());
    return;
  }
  const bool same_shape = b.rank == want.rank && std::equal(want.shape, want.shape + want.rank, b.shape);
  if (b.dtype != want.dtype || !same_shape) {
    AMK_REJECT(report_, 17, -1, id, -1, "%s is %s %s, but the model's %s is %s %s", buffer_text(p_, id).c_str(),
               dtype_name(b.dtype), shape_text(b.rank, b.shape).c_str(), d_.name(want.value).c_str(),
               dtype_name(want.dtype), shape_text(want.rank, want.shape).c_str());
    return;
  }
  switch (want.value.what) {
    case What::kLogits: logits_ = id; break;
    case What::kNextToken: next_token_ = id; break;
    case What::kKCache: k_cache_[want.value.layer] = id; break;
    case What::kVCache: v_cache_[want.value.layer] = id; break;
    case What::kConvState: conv_state_[want.value.layer] = id; break;
    case What::kGdnState: gdn_state_[want.value.layer] = id; break;
    default: break;
  }
  // Outputs hold what is written to them; a cache is known by its name, and its row `pos` holds what is written to it;
  // a state holds what the last step left until it is written.
  if (kind == AMK_KIND_STATE) write(id, 0, b.numel, want.value, 0);
  if (kind != AMK_KIND_IO_OUTPUT) bound_[id] = want.value;
}

// ---- the walk ----

void Translation::step(int32_t task) {
  task_ = task;
  tokens_ = op_tokens(p_.tasks[task]);
  if (!apply(p_.tasks[task])) refuse_outputs(p_.tasks[task]);
}

void Translation::refuse_outputs(const amk_instruction_t& task) {
  AccessList list;
  op_footprint({task, p_.buffers.data(), p_.bindings.data()}, &list);
  for (const Access& a : list) {
    if (!a.write) continue;
    const int64_t bytes = dtype_bits(p_.buffers[a.buffer].dtype) / 8;
    if (a.region == Region::kKvRow) {
      const int64_t width = a.head_row_bytes / bytes;
      write(a.buffer, a.head_first * width, a.head_count * width, {What::kRefused, 0}, 0);
      continue;
    }
    for (int64_t r = 0; r < a.rows; ++r)
      write(a.buffer, (a.offset_bytes + r * a.stride_bytes) / bytes, a.row_bytes / bytes, {What::kRefused, 0}, 0);
  }
}

Translation::Reading Translation::read(int32_t buffer, int64_t first, int64_t count) const {
  const int32_t kind = p_.bindings[buffer].kind;
  if (bound_[buffer] && kind != AMK_KIND_KV_CACHE && kind != AMK_KIND_STATE)
    return {bound_[buffer], first, count, true, false, {}};
  const Contents& contents = contents_[buffer];
  const int64_t end = first + count;
  Contents::Piece piece = contents.at(first, end);
  Reading r{piece.value, piece.at, count, piece.end == end, piece.value.what == What::kRefused, {}};
  for (int shown = 0; piece.end < end && !r.refused && shown < kPiecesShown; ++shown) {
    piece = contents.at(piece.end, end);
    if (shown == 0) r.second = piece.value;
    r.refused = piece.value.what == What::kRefused;
  }
  return r;
}

void Translation::write(int32_t buffer, int64_t first, int64_t count, Value value, int64_t at) {
  ++writes_;
  contents_[buffer].write(first, first + count, value, at);
}

void Translation::add_tile(Value value, int64_t at, int64_t count) { tiles_.push_back({value, at, at + count, task_}); }

bool Translation::is_dtype(int32_t buffer, Value value) {
  const int32_t got = p_.buffers[buffer].dtype, want = d_.dtype(value);
  if (got == want) return true;
  return fail(buffer,
              text("%s is stored as %s, expected %s", d_.name(value).c_str(), dtype_name(got), dtype_name(want)));
}

bool Translation::compute(int32_t buffer, int64_t first, int64_t count, Value value, int64_t at) {
  if (!is_dtype(buffer, value)) return false;
  write(buffer, first, count, value, at);
  add_tile(value, at, count);
  return true;
}

// ---- the end of the step ----

void Translation::check_tiles() {
  std::sort(tiles_.begin(), tiles_.end(), [](const Tile& a, const Tile& b) {
    if (a.value.layer != b.value.layer) return a.value.layer < b.value.layer;
    if (a.value.what != b.value.what) return a.value.what < b.value.what;
    if (a.value.token != b.value.token) return a.value.token < b.value.token;
    return a.first != b.first ? a.first < b.first : a.task < b.task;
  });
  size_t reach = 0;  // of the tiles so far of this value, the one that ends last
  for (size_t i = 1; i < tiles_.size(); ++i) {
    const Tile &last = tiles_[reach], &now = tiles_[i];
    if (last.value == now.value && now.first < last.end) {
      const int64_t end = std::min(last.end, now.end);
      AMK_REJECT(report_, 17, std::max(last.task, now.task), -1, -1, "%s computes %s, which %s computes too",
                 task_text(p_, std::max(last.task, now.task)).c_str(), tile_text(now, end).c_str(),
                 task_text(p_, std::min(last.task, now.task)).c_str());
    }
    if (!(last.value == now.value) || now.end > last.end) reach = i;
  }
}

void Translation::check_outputs() {
  const auto check_at = [&](int32_t buffer, int64_t first, int64_t count, Value value, int64_t at) {
    const Reading got = read(buffer, first, count);
    if (got.one && got.value == value && got.at == at) return;
    AMK_REJECT(report_, 17, -1, buffer, -1, "at the end of the step %s holds %s, expected %s",
               buffer_text(p_, buffer).c_str(), reading_text(got).c_str(), d_.range_text(value, at, count).c_str());
  };
  const auto check = [&](int32_t buffer, int64_t count, Value value, int64_t at) {
    check_at(buffer, 0, count, value, at);
  };
  const auto check_rows = [&](int32_t cache, Value value, int64_t value_first) {
    for_cache_rows(0, d_.n_kv_heads(), [&](int32_t t, int64_t first, int64_t at, int64_t count) {
      check_at(cache, first, count, value.of(t), value_first + at);
      return true;
    });
  };
  for (int32_t t = 0; t < d_.batch(); ++t) {
    check_at(logits_, t * d_.vocab(), d_.vocab(), {What::kLogits, 0, t}, 0);
    check_at(next_token_, t, 1, {What::kNextToken, 0, t}, 0);
  }
  for (int32_t i = 0; i < d_.layers(); ++i) {
    if (d_.is_linear(i)) {
      check(conv_state_[i], p_.buffers[conv_state_[i]].numel, {What::kConvStateNext, i}, 0);
      check(gdn_state_[i], p_.buffers[gdn_state_[i]].numel, {What::kGdnStateNext, i}, 0);
    } else {
      check_rows(k_cache_[i], {What::kKRotated, i}, 0);
      check_rows(v_cache_[i], {What::kQkv, i}, d_.v_first());
    }
  }
}

// ---- words ----

std::string Translation::tile_text(const Tile& tile, int64_t end) const {
  if (tile.value.what != What::kPartO) return d_.range_text(tile.value, tile.first, end - tile.first);
  return text("split %lld of query head %lld of %s", (ll)(tile.first / d_.n_heads()), (ll)(tile.first % d_.n_heads()),
              d_.name(tile.value).c_str());
}

std::string Translation::reading_text(const Reading& r) const {
  if (r.one) return d_.range_text(r.value, r.at, r.count);
  return "part " + d_.name(r.value) + (r.second == r.value ? ", in another order" : ", part " + d_.name(r.second));
}

bool Translation::fail(int32_t buffer, std::string sentence) {
  AMK_REJECT(report_, 17, task_, buffer, -1, "%s: %s", task_text(p_, task_).c_str(), sentence.c_str());
  return false;
}

bool Translation::holds(const Reading& got, Value value, int64_t at, const char* what, Value of) {
  if (got.one && got.value == value && got.at == at) return true;
  if (got.refused) return false;  // a consequence of a rejection that stands already
  return fail(-1, text("the %s of %s is %s, expected %s", what, d_.name(of).c_str(), reading_text(got).c_str(),
                       d_.range_text(value, at, got.count).c_str()));
}

bool Translation::number(const char* what, double got, double want, Value of) {
  if (got == want) return true;
  return fail(-1, text("%s of %s is %.9g, expected %.9g", what, d_.name(of).c_str(), got, want));
}

bool prove_translation(const Program& program, const TaskOrder& order, const Decoder& decoder, Report* report) {
  const int64_t before = report->count();
  Translation(program, decoder, report).run(order);
  return report->count() == before;
}

}  // namespace amk
