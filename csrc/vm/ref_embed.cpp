// EMBED: some columns of a row of the table for each token, bits unchanged.
#include <cstring>

#include "base/dtype.h"
#include "base/error.h"
#include "vm/ref_ops.h"

namespace amk {

void ref_embed(const OpCall& c) {
  const amk_params_t& p = c.params();
  const int64_t bytes = dtype_bits(c.view.input(1).dtype) / 8;
  for (int64_t t = 0; t < c.tokens(); ++t) {
    int32_t token;
    std::memcpy(&token, c.in[0] + t * static_cast<int64_t>(sizeof token), sizeof token);
    AMK_CHECK(token >= 0 && token < p.vocab, AMK_ERR_INVALID_ARGUMENT, "token %d is outside the table of %d rows",
              token, p.vocab);
    const int64_t row = int64_t{token} * p.hidden + p.n_off, to = t * p.hidden + p.n_off;
    std::memcpy(c.out[0] + to * bytes, c.in[1] + row * bytes, static_cast<size_t>(p.N_tile * bytes));
  }
}

}  // namespace amk
