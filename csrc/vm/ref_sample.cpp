// SAMPLE_ARGMAX and ARGMAX_COMBINE: the largest logit, the lowest index on a tie, -1 where a NaN was seen.
#include <cmath>
#include <limits>

#include "vm/ref_ops.h"

namespace amk {

void ref_argmax(const OpCall& c) {
  const amk_params_t& p = c.params();
  const float* logits = reinterpret_cast<const float*>(c.in[0]);
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
  reinterpret_cast<float*>(c.out[0])[p.dim] = best;
  reinterpret_cast<int32_t*>(c.out[1])[p.dim] = index;
}

void ref_argmax_combine(const OpCall& c) {
  const float* value = reinterpret_cast<const float*>(c.in[0]);
  const int32_t* index = reinterpret_cast<const int32_t*>(c.in[1]);
  float best = value[0];
  int32_t token = index[0];
  for (int32_t i = 1; i < c.params().M && token >= 0; ++i) {
    // Entries may come in any order of their ranges, so a tie is settled by the index itself.
    if (index[i] < 0 || value[i] > best || (value[i] == best && index[i] < token)) {
      best = value[i];
      token = index[i];
    }
  }
  reinterpret_cast<int32_t*>(c.out[0])[0] = token;
}

}  // namespace amk
