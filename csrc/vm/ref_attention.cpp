// ATTENTION_TILE and ATTENTION_COMBINE: a softmax over the cache in T splits that are merged afterwards (Milakov &
// Gimelshein 2018, arXiv:1805.02867; Dao et al., flash-decoding). Within a split the maximum runs on in steps of
// kStepRows rows, in row order, so the result depends on neither the machine nor the order of tasks; nor on whether row
// `pos` comes from the cache or, with ROPE, from this step's raw heads; nor on how many tokens a step has, as long as
// they are cut into the same splits; nor, with one split, on whether this task divides or a combining one.
#include <algorithm>
#include <limits>

#include "vm/ref_heads.h"

namespace amk {
namespace {

constexpr int64_t kStepRows = 32;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Rows {
  int64_t first, end;
};

// The rows of split `dim` of a step that begins at a position, as the law of ATTENTION_TILE cuts them.
Rows split_rows(const amk_params_t& p, int32_t pos, int32_t tokens) {
  const int64_t rows = int64_t{pos} + tokens, blocks = (rows + p.M_tile - 1) / p.M_tile;
  const auto start = [&](int64_t d) { return std::min(rows, blocks * d / p.M * p.M_tile); };
  return {start(p.dim), start(int64_t{p.dim} + 1)};
}

// One head of one split: what was summed so far. o: [D]. The step's rows: k, v: [count, D].
struct Running {
  float* o;
  float* ml;  // maximum, sum

  void step(const float* query, const float* k, const float* v, int64_t count, int64_t dim, float scale) const {
    float score[kStepRows], largest = ml[0];
    for (int64_t r = 0; r < count; ++r) {
      score[r] = scale * dot(k + r * dim, query, dim);
      largest = std::max(largest, score[r]);
    }
    // Nothing was summed while the maximum is -inf, and exp(-inf - -inf) would be NaN.
    const float shrink = ml[0] == kMinusInfinity ? 0.0f : exp_f32(ml[0] - largest);
    float sum = ml[1] * shrink;
    for (int64_t d = 0; d < dim; ++d) o[d] *= shrink;
    for (int64_t r = 0; r < count; ++r) {
      const float weight = exp_f32(score[r] - largest);
      sum += weight;
      for (int64_t d = 0; d < dim; ++d) o[d] += weight * v[r * dim + d];
    }
    ml[0] = largest;
    ml[1] = sum;
  }
};

// This step's heads: q as it is; or, with ROPE, the raw q, k and v.
template <class T>
class NewHeads {
 public:
  explicit NewHeads(const OpCall& c) : c_(c), slots_(flag_slots(c.view.task)) {
    if (raw()) turn_ = head_angles(c, c.in[slots_.rope], c.params().head_dim, c.pos);
  }
  bool raw() const { return slots_.rope >= 0; }
  // [D] in f32.
  void query(int32_t t, int64_t head, float* out) const { make_head(c_, at(t, head), weight(slots_.norm), turn_, out); }
  void key(int64_t g, float* out) const {
    make_head(c_, at(0, c_.params().n_heads + g), weight(slots_.k_norm), turn_, out);
  }
  void value(int64_t g, float* out) const {
    widen(at(0, int64_t{c_.params().n_heads} + c_.params().n_kv_heads + g), c_.params().head_dim, out);
  }

 private:
  const T* at(int32_t t, int64_t head) const {
    return c_.in_row<T>(0, t) + c_.params().m_off + head * c_.params().head_dim;
  }
  const T* weight(int slot) const { return slot < 0 ? nullptr : reinterpret_cast<const T*>(c_.in[slot]); }

  const OpCall& c_;
  const FlagSlots slots_;
  const float* turn_ = nullptr;
};

template <class T>
void attention(const OpCall& c) {
  const amk_params_t& p = c.params();
  const int64_t dim = p.head_dim, group = p.n_heads / p.n_kv_heads;
  const int32_t tokens = c.tokens();
  const Rows rows = split_rows(p, c.pos, tokens);
  const NewHeads<T> heads(c);
  float* query = c.scratch.floats(Scratch::kQuery, tokens * group * dim);
  float* k = c.scratch.floats(Scratch::kRows, 2 * kStepRows * dim);
  float* v = k + kStepRows * dim;
  const bool direct = is_direct(c.view.task);
  float* parts = direct ? c.scratch.floats(Scratch::kParts, group * (dim + 2)) : nullptr;  // of one kv head

  for (int64_t g = p.n_off; g < int64_t{p.n_off} + p.N_tile; ++g) {
    const auto running = [&](int32_t t, int64_t i) {
      if (direct) return Running{parts + i * (dim + 2), parts + i * (dim + 2) + dim};
      const int64_t part = (g * group + i) * p.M + p.dim;
      return Running{c.out_row<float>(0, t) + part * dim, c.out_row<float>(1, t) + part * 2};
    };
    const auto query_of = [&](int32_t t, int64_t i) { return query + (t * group + i) * dim; };
    for (int32_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < group; ++i) {
        heads.query(t, g * group + i, query_of(t, i));
        std::fill_n(running(t, i).o, dim, 0.0f);
        running(t, i).ml[0] = kMinusInfinity;
        running(t, i).ml[1] = 0.0f;
      }
    }
    for (int64_t first = rows.first; first < rows.end; first += kStepRows) {
      const int64_t count = std::min(kStepRows, rows.end - first), at = (g * p.K + first) * dim;
      const int64_t old = count - (heads.raw() && first + count > c.pos ? 1 : 0);  // of them, in the caches
      widen(reinterpret_cast<const T*>(c.in[1]) + at, old * dim, k);
      widen(reinterpret_cast<const T*>(c.in[2]) + at, old * dim, v);
      if (old < count) {
        heads.key(g, k + old * dim);
        heads.value(g, v + old * dim);
      }
      for (int32_t t = 0; t < tokens; ++t) {
        const int64_t seen = std::min(count, int64_t{c.pos} + t + 1 - first);  // rows up to pos + t
        if (seen <= 0) continue;
        for (int64_t i = 0; i < group; ++i) running(t, i).step(query_of(t, i), k, v, seen, dim, p.scale);
      }
    }
    for (int64_t i = 0; direct && i < group; ++i) {
      const Running all = running(0, i);
      T* out = c.out_row<T>(0, 0) + (g * group + i) * dim;
      for (int64_t j = 0; j < dim; ++j) store(out + j, all.o[j] / all.ml[1]);
    }
  }
}

}  // namespace

void ref_attention(const OpCall& c) {
  with_storage(c.view.input(0).dtype, [&]<class T>(T) { attention<T>(c); });
}

void ref_attention_combine(const OpCall& c) {
  with_storage(c.view.output(0).dtype, [&]<class T>(T) {
    const amk_params_t& p = c.params();
    const int64_t dim = p.head_dim, splits = p.M;
    float* sum_o = c.scratch.floats(Scratch::kX, dim);
    const auto merge = [&](const float* part_o, const float* ml, T* out) {
      float largest = kMinusInfinity, sum = 0;
      for (int64_t d = 0; d < splits; ++d) largest = std::max(largest, ml[2 * d]);
      std::fill_n(sum_o, dim, 0.0f);
      for (int64_t d = 0; d < splits; ++d) {
        if (ml[2 * d] == kMinusInfinity) continue;  // an empty split
        const float weight = exp_f32(ml[2 * d] - largest);
        const float* o = part_o + d * dim;
        sum += weight * ml[2 * d + 1];
        for (int64_t j = 0; j < dim; ++j) sum_o[j] += weight * o[j];
      }
      for (int64_t j = 0; j < dim; ++j) store(out + j, sum_o[j] / sum);
    };
    for (int32_t t = 0; t < c.tokens(); ++t)
      for (int64_t h = p.n_off; h < int64_t{p.n_off} + p.N_tile; ++h)
        merge(c.in_row<float>(0, t) + h * splits * dim, c.in_row<float>(1, t) + h * splits * 2,
              c.out_row<T>(0, t) + h * dim);
  });
}

}  // namespace amk
