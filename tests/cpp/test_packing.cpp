// Packed weights: a bijection, in the order in which the tensor cores take them, chosen only where every reader copes.
#include <map>
#include <set>
#include <vector>

#include "lower_models.h"
#include "ops/ring.h"
#include "pack/image.h"
#include "pack/packing.h"
#include "validate/validate.h"

using namespace amk;

namespace {

std::map<std::string, Packing> packing_of(const amk_model_t& model, const amk_schedule_t& schedule,
                                          const amk_target_t& target = h200()) {
  const Program program = lower_model(model, schedule, target);
  const StorageMap map = map_storage(program);
  const std::vector<Packing> packing = choose_packing(program, map);
  std::map<std::string, Packing> out;
  for (size_t i = 0; i < packing.size(); ++i) out[map.storages[i].name] = packing[i];
  return out;
}

// What the 32 lanes of a warp compute with mma.m16n8k16 from one slot, after the fragment layouts of the PTX ISA: B is
// 16 x 8, lane l holds b0 = B[2(l%4) .. +1][l/4] and b1 = B[2(l%4)+8 .. +9][l/4]; A's row 0 is a0 and a2 of lanes 0 to
// 3 in the same way; the sum of column n is c[n % 2] of lane n / 2.
void multiply_slot(const float* slot, const float* x, int units, double (&sum)[kGroupRows]) {
  for (int u = 0; u < units; ++u) {
    for (int half = 0; half < 2; ++half) {
      double a[16], b[16][8];
      for (int lane = 0; lane < 32; ++lane) {
        const float* word = slot + (u * kUnitVectors + lane) * 8 + half * 4;  // b0, b1: two elements each
        for (int e = 0; e < 2; ++e) {
          const int k = 2 * (lane % 4) + e;
          b[k][lane / 4] = word[e];
          b[k + 8][lane / 4] = word[2 + e];
          if (lane >= 4) continue;
          const float* xs = x + (u * kUnitRowVectors + lane) * 8 + half * 4;
          a[k] = xs[e];
          a[k + 8] = xs[2 + e];
        }
      }
      for (int n = 0; n < kGroupRows; ++n)
        for (int k = 0; k < 16; ++k) sum[n] += a[k] * b[k][n];
    }
  }
}

}  // namespace

TEST(packing_is_a_bijection) {
  for (Packing packing : {Packing::kPlain, Packing::kRowGroups, Packing::kGateUp}) {
    for (int64_t rows : {16, 48, 272}) {
      for (int64_t row_vectors : {4, 12, 64, 132}) {
        std::vector<int> hits(static_cast<size_t>(rows * row_vectors));
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t v = 0; v < row_vectors; ++v)
            ++hits[static_cast<size_t>(packed_vector(packing, rows, row_vectors, r, v))];
        for (int hit : hits) CHECK_EQ(hit, 1);
      }
    }
  }
}

TEST(a_tile_of_whole_groups_is_contiguous) {
  constexpr int64_t kRows = 96, kVectors = 8;
  for (Packing packing : {Packing::kRowGroups, Packing::kGateUp}) {
    for (int64_t g = 0; g < kRows / kGroupRows; ++g) {
      const int64_t row = group_first_row(packing, kRows, g);
      CHECK_EQ(packed_group(packing, kRows, row), g);
      CHECK_EQ(packed_vector(packing, kRows, kVectors, row, 0), g * kGroupRows * kVectors);
    }
  }
  // A gate group is followed by the up group it is multiplied with.
  CHECK_EQ(group_first_row(Packing::kGateUp, kRows, 2), 8);
  CHECK_EQ(group_first_row(Packing::kGateUp, kRows, 3), 8 + kRows / 2);
}

TEST(the_tensor_cores_find_each_row_times_x) {
  constexpr int64_t kRows = 32, kColumns = 96, kVectors = kColumns / 8;
  for (Packing packing : {Packing::kRowGroups, Packing::kGateUp}) {
    std::vector<float> plain(kRows * kColumns), packed(plain.size()), x(kColumns);
    for (size_t i = 0; i < plain.size(); ++i) plain[i] = static_cast<float>((i * 37 + i / 7) % 19) - 9;
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 11 % 13) - 6;
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t v = 0; v < kVectors; ++v)
        for (int64_t e = 0; e < 8; ++e)
          packed[static_cast<size_t>(packed_vector(packing, kRows, kVectors, r, v) * 8 + e)] =
              plain[static_cast<size_t>(r * kColumns + v * 8 + e)];
    for (int64_t g = 0; g < kRows / kGroupRows; ++g) {
      double sum[kGroupRows] = {};
      multiply_slot(packed.data() + g * kGroupRows * kColumns, x.data(), kColumns / kUnitElements, sum);
      for (int64_t n = 0; n < kGroupRows; ++n) {
        double want = 0;
        const int64_t row = group_first_row(packing, kRows, g) + n;
        for (int64_t k = 0; k < kColumns; ++k) want += plain[static_cast<size_t>(row * kColumns + k)] * x[k];
        CHECK_EQ(sum[n], want);
      }
    }
  }
}

TEST(what_is_packed) {
  const auto found = packing_of(llama_1b(), default_schedule());
  CHECK(found.at("layers.0.wqkv") == Packing::kRowGroups && found.at("layers.15.w_down") == Packing::kRowGroups);
  CHECK(found.at("layers.0.w_gate_up") == Packing::kGateUp);
  CHECK(found.at("embed") == Packing::kRowGroups);  // tied: the head streams it, EMBED finds its row in it
  CHECK(found.at("layers.0.attn_norm") == Packing::kPlain && found.at("rope_inv_freq") == Packing::kPlain);
  CHECK(packing_of(llama_8b(), default_schedule()).at("embed") == Packing::kPlain);  // no product reads it
  amk_schedule_t unfused = default_schedule();
  unfused.fusion &= ~AMK_FUSE_GATE_UP_SILU;
  CHECK(packing_of(llama_1b(), unfused).at("layers.0.w_gate_up") == Packing::kRowGroups);
  amk_schedule_t direct = default_schedule();
  direct.cpasync = 0;
  for (const auto& [name, packing] : packing_of(llama_1b(), direct)) CHECK(packing == Packing::kPlain);
  amk_target_t older = h200();
  older.cc_major = 8;
  for (const auto& [name, packing] : packing_of(llama_1b(), default_schedule(), older))
    CHECK(packing == Packing::kPlain);
}

TEST(what_does_not_fit_stays_plain) {
  // f32; 136 columns are no whole units; a vocabulary of 1,003 rows is no whole groups.
  for (const auto& [name, packing] : packing_of(toy_model(), default_schedule())) CHECK(packing == Packing::kPlain);
  const amk_model_t odd = make_model(AMK_DTYPE_F16, 2, 64, 4, 2, 16, 136, 1003, 40);
  const auto found = packing_of(odd, default_schedule());
  CHECK(found.at("layers.0.w_down") == Packing::kPlain && found.at("lm_head") == Packing::kPlain);
  CHECK(found.at("layers.0.w_gate_up") == Packing::kGateUp);
}

TEST(an_image_records_the_packing_and_opens_with_it) {
  for (const amk_model_t& model : small_models()) {
    Judgement j = validate(lower_model(model, default_schedule(), small_target(6)));
    CHECK(j.valid.has_value());
    const Image image = pack(*j.valid);
    const Image again = Image::open(image.bytes().data(), image.bytes().size());
    CHECK(again.bytes() == image.bytes());
    const std::vector<Packing> packing = choose_packing(j.valid->program(), j.valid->storage());
    for (size_t i = 0; i < packing.size(); ++i)
      CHECK_EQ(again.view().storages[i].packing, static_cast<int32_t>(packing[i]));
  }
}

TEST(the_ring_has_whole_stages) {
  amk_launch_t launch{};
  CHECK_EQ(ring_stages(launch, 8, 230000, 33392), 3);  // 196,608 bytes of 8 KB slots
  launch.cpa_stages = 2;
  CHECK_EQ(ring_stages(launch, 8, 230000, 33392), 2);
  CHECK_EQ(ring_stages(launch, 8, 80000, 33392), 0);
  launch.cpa_stages = 0;
  CHECK_EQ(ring_stages(launch, 8, int64_t{1} << 30, 0), kMaxRingSlots / 8);
}
