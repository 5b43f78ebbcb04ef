// The domains of the knobs: what is refused, under which field name, with which values offered.
#include <climits>
#include <cmath>

#include "lower_models.h"

using namespace amk;

namespace {

struct Row {
  const char* field;
  int32_t amk_schedule_t::* member;
  int32_t value;
};

}  // namespace

TEST(the_default_is_in_its_domain_on_every_target) {
  for (int i = 0; i < target_count(); ++i) check_schedule(default_schedule(), *target_preset(i));
}

TEST(values_in_the_domain_pass) {
  for (const Row& row :
       {Row{"", &amk_schedule_t::gemv_n_tile, 8}, Row{"", &amk_schedule_t::gemv_n_tile, 8192},
        Row{"", &amk_schedule_t::gemv_n_tile, 136}, Row{"", &amk_schedule_t::attention_kv_block, 16},
        Row{"", &amk_schedule_t::attention_kv_block, 48}, Row{"", &amk_schedule_t::fusion, 0},
        Row{"", &amk_schedule_t::attention_kv_block, 1024}, Row{"", &amk_schedule_t::fusion, 127},
        Row{"", &amk_schedule_t::attention_kv_block, AMK_MAX_SEQ}, Row{"", &amk_schedule_t::fusion, 255},
        Row{"", &amk_schedule_t::page_policy, 0}, Row{"", &amk_schedule_t::page_policy, 2},
        Row{"", &amk_schedule_t::sm_policy, AMK_SM_EXPLICIT}, Row{"", &amk_schedule_t::cpasync, 0},
        Row{"", &amk_schedule_t::cpa_stages, 3}, Row{"", &amk_schedule_t::pipelining_depth, 1}}) {
    amk_schedule_t s = default_schedule();
    s.*row.member = row.value;
    check_schedule(s, h200());
  }
}

TEST(values_outside_are_rejected_naming_the_field) {
  constexpr Row kRows[] = {
      {"tiling.gemv.N_tile", &amk_schedule_t::gemv_n_tile, 17},
      {"tiling.gemv.N_tile", &amk_schedule_t::gemv_n_tile, -8},
      {"tiling.gemv.N_tile", &amk_schedule_t::gemv_n_tile, 8200},
      {"tiling.gemv.N_tile", &amk_schedule_t::gemv_n_tile, INT_MIN},
      {"tiling.attention.kv_block", &amk_schedule_t::attention_kv_block, 0},
      {"tiling.attention.kv_block", &amk_schedule_t::attention_kv_block, 24},
      {"tiling.attention.kv_block", &amk_schedule_t::attention_kv_block, AMK_MAX_SEQ + 16},
      {"tiling.attention.kv_block", &amk_schedule_t::attention_kv_block, INT_MIN},
      {"fusion_grouping", &amk_schedule_t::fusion, 256},
      {"fusion_grouping", &amk_schedule_t::fusion, -1},
      {"sm_assignment", &amk_schedule_t::sm_policy, 3},
      {"sm_assignment", &amk_schedule_t::sm_policy, -1},
      {"page_allocation", &amk_schedule_t::page_policy, 3},
      {"page_allocation", &amk_schedule_t::page_policy, -1},
      {"pipelining_depth", &amk_schedule_t::pipelining_depth, 0},
      {"pipelining_depth", &amk_schedule_t::pipelining_depth, 65},
      {"threads_per_block", &amk_schedule_t::threads_per_block, 128},
      {"threads_per_block", &amk_schedule_t::threads_per_block, 0},
      {"smem_bytes_per_block", &amk_schedule_t::smem_bytes_per_block, -1},
      {"smem_bytes_per_block", &amk_schedule_t::smem_bytes_per_block, (1 << 20) + 1},
      {"kernel_knobs.cols_per_warp", &amk_schedule_t::cols_per_warp, 4},
      {"kernel_knobs.cpasync", &amk_schedule_t::cpasync, 2},
      {"kernel_knobs.cpa_stages", &amk_schedule_t::cpa_stages, 9},
      {"kernel_knobs.cpa_cols", &amk_schedule_t::cpa_cols, 2},
  };
  for (const Row& row : kRows) {
    amk_schedule_t s = default_schedule();
    s.*row.member = row.value;
    EXPECT_ERROR(AMK_ERR_REJECTED, std::string(row.field) + " is ", check_schedule(s, h200()));
  }
}

TEST(a_knob_of_the_ring_needs_the_ring) {
  for (int32_t amk_schedule_t::* knob : {&amk_schedule_t::pipelining_depth, &amk_schedule_t::cpa_stages}) {
    amk_schedule_t s = default_schedule();
    s.*knob = 2;
    check_schedule(s, h200());
    amk_target_t older = h200();
    older.cc_major = 8;
    EXPECT_ERROR(AMK_ERR_REJECTED, "there is no ring", check_schedule(s, older));
    check_schedule(default_schedule(), older);
    s.cpasync = 0;
    EXPECT_ERROR(AMK_ERR_REJECTED, "there is no ring", check_schedule(s, h200()));
  }
}

TEST(the_sentence_offers_the_domain) {
  amk_schedule_t s = default_schedule();
  s.gemv_n_tile = 17;
  EXPECT_ERROR(AMK_ERR_REJECTED, "0 (even split over the SMs) or a multiple of 8 in 8..8192",
               check_schedule(s, h200()));
  s = default_schedule();
  s.threads_per_block = 512;
  EXPECT_ERROR(AMK_ERR_REJECTED, "not built (built: 256)", check_schedule(s, h200()));
}

TEST(a_map_without_the_explicit_policy_is_not_dropped_silently) {
  const int32_t zero = 0;
  amk_schedule_t s = default_schedule();
  s.sm_map_count = 1;
  s.sm_map_task = s.sm_map_sm = &zero;
  EXPECT_ERROR(AMK_ERR_REJECTED, "sm_assignment", check_schedule(s, h200()));
  s.sm_map_count = -1;
  EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "sm_map_count", check_schedule(s, h200()));
}

TEST(broken_structs_and_targets) {
  amk_schedule_t s = default_schedule();
  s.struct_size = 8;
  EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "struct_size", check_schedule(s, h200()));
  for (int sm_count : {0, -1, AMK_MAX_QUEUES + 1})
    EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "sm_count", check_schedule(default_schedule(), small_target(sm_count)));
  for (double rate : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    amk_target_t t = h200();
    t.hbm_gb_per_s = rate;
    EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "hbm_gb_per_s", check_schedule(default_schedule(), t));
  }
  amk_target_t unnamed = h200();
  std::memset(unnamed.name, 'x', sizeof unnamed.name);
  EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "target.name", check_schedule(default_schedule(), unnamed));
  amk_target_t narrow = h200();
  narrow.max_threads_per_block = 128;
  EXPECT_ERROR(AMK_ERR_REJECTED, "threads_per_block", check_schedule(default_schedule(), narrow));
}
