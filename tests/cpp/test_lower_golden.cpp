// The tables of programs of one token a step, byte for byte: what callers keep on disk must not change by itself. Of an
// image only the ABI's number, the certificate and the hash may differ from one build to the next.
#include "base/blake2b.h"
#include "lower_models.h"

using namespace amk;

TEST(programs_of_one_token_are_what_they_were) {
  std::vector<amk_model_t> models = small_models();
  models.push_back(make_model(AMK_DTYPE_BF16, 2, 128, 4, 2, 32, 256, 512, 256));
  models.back().weight_group = 128;
  // BLAKE2b-256, the first 8 bytes, of all tables of a model; recorded with ABI 1.4.
  const char* kRecorded[] = {"91fb97bdaad9327a", "db9deb111419c654", "e83580bd94646a54",
                             "3df7acaa5035f8eb", "4f1c21a55fa3d6e0", "0f5e1d752e672f1f",
                             "ac3c8fbc5124e393", "b947b096cd18f505", "b4d9795508d6dd6c"};
  for (size_t i = 0; i < models.size(); ++i) {
    std::string all;
    for (const int32_t fusion : {0, 18, 63, 127}) {
      for (const int32_t pages : {AMK_PAGES_NONE, AMK_PAGES_LINEAR, AMK_PAGES_GRAPH_COLOR}) {
        amk_schedule_t s = default_schedule();
        s.fusion = fusion;
        s.page_policy = pages;
        s.pipelining_depth = 5;  // the default when they were recorded
        all += table_bytes(lower_model(models[i], s, small_target(7)));
      }
    }
    const auto hash = blake2b_256(all.data(), all.size());
    CHECK_EQ(to_hex(hash.data(), 8), kRecorded[i]);
  }
}
