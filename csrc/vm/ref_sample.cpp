// SAMPLE_ARGMAX and ARGMAX_COMBINE: the largest logit, the lowest index on a tie, -1 where a NaN was seen.
#include <cmath>
#include <limits>

#include "vm/ref_ops.h"

namespace amk {

namespace {

void argmax_row(const OpCall& c, int32_t t) {
  const amk_params_t& p = c.params();
  const float* logits = c.in_row<float>(0, t);
  float best = logits[p.n_off];
  int32_t index = p.n_off;
  for (int32_t i = p.n_off; i < p.n_off + p.N_tile; ++i) {
    if (std::isnan(logits[i])) {
      best = std::numeric_limits<float>::quiet_NaN();
      index = -1;
      break;
    }
    if (logits[i] > best) {
      best = logits[i];
      index = i;
    }
  }
  c.out_row<float>(0, t)[p.dim] = best;
  c.out_row<int32_t>(1, t)[p.dim] = index;
}

void combine_row(const OpCall& c, int32_t t) {
  const float* value = c.in_row<float>(0, t);
  const int32_t* index = c.in_row<int32_t>(1, t);
  float best = value[0];
  int32_t token = index[0];
  for (int32_t i = 1; i < c.params().M && token >= 0; ++i) {
    // Entries may come in any order of their ranges, so a tie is settled by the index itself.
    if (index[i] < 0 || value[i] > best || (value[i] == best && index[i] < token)) {
      best = value[i];
      token = index[i];
    }
  }
  reinterpret_cast<int32_t*>(c.out[0])[t] = token;
}

}  // namespace

void ref_argmax(const OpCall& c) {
  for (int32_t t = 0; t < c.tokens(); ++t) argmax_row(c, t);
}

void ref_argmax_combine(const OpCall& c) {
  for (int32_t t = 0; t < c.tokens(); ++t) combine_row(c, t);
}

}  // namespace amk
