// Packed weights: a bijection, in the order in which the tensor cores take them, chosen only where every reader copes.
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "lower_models.h"
#include "ops/op_spec.h"
#include "ops/packing_int8.h"
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

// ---- quantised matrices ----

namespace {

const Int8Matrix kInt8Matrices[] = {
    {Packing::kRowGroups, 8, 64, 64},     {Packing::kRowGroups, 24, 1024, 128}, {Packing::kRowGroups, 16, 2048, 64},
    {Packing::kRowGroups, 16, 1152, 128}, {Packing::kGateUp, 32, 1088, 64},     {Packing::kGateUp, 48, 3200, 128},
    {Packing::kGateUp, 16, 14336, 128},
};

// An element of -127..127, and a scale, at each place.
int element_at(int64_t i) { return static_cast<int>(i * 37 % 255) - 127; }
float scale_at(int64_t i) { return static_cast<float>(1 + i * 7 % 31); }

// The packed bytes as the device makes them: whole words of elements, and scales of 16 bits (here integers).
std::vector<uint8_t> pack_int8(const Int8Matrix& m) {
  std::vector<uint8_t> packed(static_cast<size_t>(m.rows * int8_row_bytes(m.columns, m.group)));
  for (int64_t row = 0; row < m.rows; ++row) {
    for (int64_t k = 0; k < m.columns; k += 4) {
      uint32_t plain = 0;
      for (int e = 0; e < 4; ++e) plain |= (element_at(row * m.columns + k + e) & 0xffu) << (8 * e);
      const uint32_t word = int8_word(plain);
      std::memcpy(packed.data() + int8_vector_byte(m, row, k / 16) + k % 16, &word, sizeof word);
    }
    for (int64_t g = 0; g < m.columns / m.group; ++g) {
      const auto scale = static_cast<uint16_t>(scale_at(row * (m.columns / m.group) + g));
      std::memcpy(packed.data() + int8_scale_byte(m, row, g), &scale, sizeof scale);
    }
  }
  return packed;
}

// Half `half` of a B register, as the tensor cores read it: a subnormal, here in units of its last bit.
int subnormal(uint32_t reg, int half) {
  const uint32_t bits = reg >> (16 * half) & 0xffff;
  CHECK_EQ(bits & 0x7f80, 0u);  // no exponent, in bf16; f16's is higher up
  return (bits & 0x8000 ? -1 : 1) * static_cast<int>(bits & 0x7f);
}
uint32_t rotated(uint32_t word) { return word >> 8 | word << 24; }

// cuda/gemv_int8.cuh lane by lane: in each mma only the lanes of one unit put x into A, each unit in a row of its own,
// so that C[r] is the sum of unit r (or 8 + r), which its lanes multiply with the scales of their two columns.
void multiply_int8_slot(const uint8_t* slot, const float* x, int units, int group, double (&sum)[kGroupRows]) {
  const int units_per_scale = group / kInt8UnitElements;
  double c[2][8][kGroupRows] = {};
  for (int u = 0; u < units; ++u) {
    for (int j = 0; j < 4; ++j) {
      double b[16][kGroupRows], a[16];
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t word;
        std::memcpy(&word, slot + u * kUnitBytes + lane * 16 + 4 * j, sizeof word);
        const uint32_t b0 = word & kInt8Mask, b1 = rotated(word) & kInt8Mask;
        for (int e = 0; e < 2; ++e) {
          const int k = 2 * (lane % 4) + e;
          b[k][lane / 4] = subnormal(b0, e);
          b[k + 8][lane / 4] = subnormal(b1, e);
          const float* own = x + u * kInt8UnitElements + lane % 4 * 16 + 4 * j;
          a[k] = own[e];
          a[k + 8] = own[2 + e];
        }
      }
      for (int n = 0; n < kGroupRows; ++n)
        for (int k = 0; k < 16; ++k) c[u / 8][u % 8][n] += a[k] * b[k][n];
    }
  }
  for (int u = 0; u < units; ++u) {
    for (int n = 0; n < kGroupRows; ++n) {
      uint16_t scale;
      std::memcpy(&scale, slot + units * kUnitBytes + u / units_per_scale * kInt8GroupScaleBytes + 2 * n, sizeof scale);
      sum[n] += c[u / 8][u % 8][n] * scale;
    }
  }
}

}  // namespace

TEST(int8_packing_is_a_bijection) {
  for (const Int8Matrix& m : kInt8Matrices) {
    std::vector<int> hits(static_cast<size_t>(m.rows * int8_row_bytes(m.columns, m.group)));
    const auto hit = [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) ++hits.at(static_cast<size_t>(i));
    };
    for (int64_t row = 0; row < m.rows; ++row) {
      for (int64_t v = 0; v < m.columns / 16; ++v) hit(int8_vector_byte(m, row, v), 16);
      for (int64_t g = 0; g < m.columns / m.group; ++g) hit(int8_scale_byte(m, row, g), 2);
    }
    for (int times : hits) CHECK_EQ(times, 1);
  }
}

TEST(an_int8_word_holds_its_four_elements) {
  for (int q = -128; q <= 127; ++q) {
    for (int place = 0; place < 4; ++place) {
      const uint32_t others = 0x5af00f81;
      const uint32_t word = int8_word((others & ~(0xffu << (8 * place))) | (q & 0xffu) << (8 * place));
      const uint32_t reg = (place < 2 ? word : rotated(word)) & kInt8Mask;
      CHECK_EQ(subnormal(reg, place % 2), q == -128 ? -127 : q);
    }
  }
}

TEST(int8_slots_are_copied_whole) {
  for (const Int8Matrix& m : kInt8Matrices) {
    const int slots = int8_slots(m.columns), tail = int8_tail_units(m.columns);
    CHECK(tail >= 1 && tail <= kSlotUnits);
    const int64_t tail_bytes = tail * kUnitBytes + tail * kInt8UnitElements / m.group * kInt8GroupScaleBytes;
    const int64_t group_bytes = (slots - 1) * int8_slot_bytes(m.group) + tail_bytes;
    CHECK_EQ(group_bytes, kGroupRows * int8_row_bytes(m.columns, m.group));
    CHECK(tail_bytes % AMK_VECTOR_BYTES == 0 && group_bytes % AMK_VECTOR_BYTES == 0);
    CHECK(int8_slot_bytes(m.group) <= kSlotBytes + kInt8ScaleRoom && int8_slot_bytes(m.group) % 128 == 0);
  }
}

TEST(the_tensor_cores_find_each_quantised_row_times_x) {
  for (const Int8Matrix& m : kInt8Matrices) {
    const std::vector<uint8_t> packed = pack_int8(m);
    std::vector<float> x(static_cast<size_t>(m.columns));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 11 % 13) - 6;
    const int slots = int8_slots(m.columns);
    for (int64_t g = 0; g < m.rows / kGroupRows; ++g) {
      const int64_t first_row = group_first_row(m.packing, m.rows, g);
      double sum[kGroupRows] = {};
      for (int slot = 0; slot < slots; ++slot)
        multiply_int8_slot(packed.data() + int8_slot_byte(m, first_row, int64_t{slot} * kInt8SlotElements),
                           x.data() + slot * kInt8SlotElements,
                           slot + 1 < slots ? kSlotUnits : int8_tail_units(m.columns), m.group, sum);
      for (int64_t n = 0; n < kGroupRows; ++n) {
        const int64_t row = first_row + n;
        double want = 0;
        for (int64_t k = 0; k < m.columns; ++k)
          want += element_at(row * m.columns + k) * scale_at(row * (m.columns / m.group) + k / m.group) *
                  double{x[static_cast<size_t>(k)]};
        CHECK_EQ(sum[n], want);
      }
    }
  }
}

TEST(a_quantised_matrix_is_packed_with_its_scales) {
  const auto quantised = [](amk_model_t m, int32_t group = 128) {
    m.weight_group = group;
    return m;
  };
  const auto found = packing_of(quantised(llama_8b()), default_schedule());
  for (const char* name : {"layers.0.wqkv", "layers.31.w_down", "layers.7.wo", "lm_head"}) {
    CHECK(found.at(name) == Packing::kRowGroups);
    CHECK(found.at(std::string(name) + "_scale") == Packing::kScales);
  }
  CHECK(found.at("layers.0.w_gate_up") == Packing::kGateUp && found.at("layers.0.w_gate_up_scale") == Packing::kScales);
  CHECK(found.at("embed") == Packing::kPlain && found.at("layers.0.attn_norm") == Packing::kPlain);
  // f32 scales, an odd vocabulary, no ring: integers and scales stay where they are, both.
  for (const auto& [name, packing] : packing_of(quantised(toy_model(), 64), default_schedule()))
    CHECK(packing == Packing::kPlain);
  const auto odd =
      packing_of(quantised(make_model(AMK_DTYPE_F16, 2, 64, 4, 2, 16, 128, 1003, 40), 64), default_schedule());
  CHECK(odd.at("lm_head") == Packing::kPlain && odd.at("lm_head_scale") == Packing::kPlain);
  CHECK(odd.at("layers.0.wo") == Packing::kRowGroups);
  amk_schedule_t direct = default_schedule();
  direct.cpasync = 0;
  for (const auto& [name, packing] : packing_of(quantised(llama_8b()), direct)) CHECK(packing == Packing::kPlain);
}

TEST(scales_with_two_matrices_stay_plain) {
  amk_model_t model = make_model(AMK_DTYPE_BF16, 3, 128, 4, 2, 32, 128, 256, 64);
  model.weight_group = 64;
  Program p = lower_model(model, default_schedule(), h200());
  const auto id = [&](const std::string& name) {
    for (size_t i = 0; i < p.buffers.size(); ++i)
      if (p.buffer_name.at(static_cast<int64_t>(i)) == name) return static_cast<int32_t>(i);
    throw std::runtime_error(name);
  };
  for (amk_instruction_t& t : p.tasks)
    if (is_quantised(t) && t.inputs[2] == id("layers.1.wo_scale")) t.inputs[2] = id("layers.0.wo_scale");
  const StorageMap map = map_storage(p);
  const std::vector<Packing> packing = choose_packing(p, map);
  for (const char* name : {"layers.0.wo", "layers.0.wo_scale", "layers.1.wo"})
    CHECK(packing[map.places[id(name)].storage] == Packing::kPlain);
  CHECK(packing[map.places[id("layers.2.wo")].storage] == Packing::kRowGroups);
  CHECK(packing[map.places[id("layers.2.wo_scale")].storage] == Packing::kScales);
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
  std::vector<amk_model_t> models = small_models();
  models.push_back(models[1]);
  models.back().weight_group = 128;
  for (const amk_model_t& model : models) {
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
  CHECK_EQ(ring_stages(launch, 8, 230000, 30000, int8_slot_bytes(128)), 3);  // 199,680 bytes
  CHECK_EQ(ring_stages(launch, 8, 230000, 30000, int8_slot_bytes(64)), 2);
}

TEST(a_ring_of_no_given_length_takes_the_slots_that_fit) {
  amk_launch_t launch{};
  launch.pipelining_depth = 8;
  CHECK_EQ(ring_slots(launch, 8, 228864, 29696, int8_slot_bytes(128)), 23);  // two stages and seven
  CHECK_EQ(ring_slots(launch, 8, 230000, 8192), 27);
  CHECK_EQ(ring_slots(launch, 8, int64_t{1} << 30, 0), kMaxRingSlots);
  launch.pipelining_depth = 15;
  CHECK_EQ(ring_slots(launch, 8, 228864, 29696, int8_slot_bytes(128)), 23);
  launch.pipelining_depth = 16;  // no longer one place per warp besides those on their way
  CHECK_EQ(ring_slots(launch, 8, 228864, 29696, int8_slot_bytes(128)), 16);
  launch.pipelining_depth = 8;
  launch.cpa_stages = 2;
  CHECK_EQ(ring_slots(launch, 8, 228864, 29696, int8_slot_bytes(128)), 16);
  CHECK_EQ(ring_slots(launch, 8, 60000, 8192), 0);
}
