#include "lower/schedule.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "ops/ring.h"

namespace amk {
namespace {

constexpr int32_t kMaxGemvTile = 8192;
constexpr int32_t kKvBlockStep = 16, kMaxKvBlock = AMK_MAX_SEQ;
constexpr int32_t kAllFusions = AMK_FUSE_RMSNORM_GEMV | AMK_FUSE_GATE_UP | AMK_FUSE_GATE_UP_SILU | AMK_FUSE_GEMV_ADD |
                                AMK_FUSE_QKV | AMK_FUSE_ROPE_KV_APPEND | AMK_FUSE_ROPE_ATTENTION |
                                AMK_FUSE_ATTENTION_COMBINE;
// gate+up is inside gate+up+silu; attention+combine is for contexts so short that one split reads them.
constexpr int32_t kDefaultFusions = kAllFusions & ~(AMK_FUSE_GATE_UP | AMK_FUSE_ATTENTION_COMBINE);

// Knobs of the kernel's launch, their default, and the values that this build acts on. A new variant widens its row.
struct LaunchKnob {
  const char* name;
  int32_t amk_schedule_t::* field;
  int32_t standard, low, high;
  bool is_of_ring;  // acts only where weights are streamed: cpasync = 1 and a target that can (ops/ring.h)
};
constexpr LaunchKnob kLaunchKnobs[] = {
    {"pipelining_depth", &amk_schedule_t::pipelining_depth, 8, 1, kMaxRingSlots, true},
    {"threads_per_block", &amk_schedule_t::threads_per_block, 256, 256, 256, false},
    {"smem_bytes_per_block", &amk_schedule_t::smem_bytes_per_block, 0, 0, 1 << 20, true},
    {"kernel_knobs.cols_per_warp", &amk_schedule_t::cols_per_warp, 0, 0, 0, false},
    {"kernel_knobs.cpasync", &amk_schedule_t::cpasync, 1, 0, 1, false},
    {"kernel_knobs.cpa_stages", &amk_schedule_t::cpa_stages, 0, 0, kMaxRingStages, true},
    {"kernel_knobs.cpa_cols", &amk_schedule_t::cpa_cols, 0, 0, 0, false},
};

void check_launch_knob(const amk_schedule_t& s, const LaunchKnob& knob, const amk_target_t& target) {
  const int32_t value = s.*knob.field;
  if (knob.low == knob.high) {
    AMK_CHECK(value == knob.low, AMK_ERR_REJECTED, "V26: %s is %d, which was not built (built: %d)", knob.name, value,
              knob.low);
  }
  AMK_CHECK(value >= knob.low && value <= knob.high, AMK_ERR_REJECTED, "V26: %s is %d, allowed: %d..%d", knob.name,
            value, knob.low, knob.high);
  amk_launch_t launch{};
  launch.cpasync = s.cpasync;
  AMK_CHECK(!knob.is_of_ring || value == knob.standard || has_ring(launch, target), AMK_ERR_REJECTED,
            "V26: %s is %d, but there is no ring that it could act on (expected %d): kernel_knobs.cpasync is %d, and "
            "target %s has compute capability %d.%d",
            knob.name, value, knob.standard, s.cpasync, target.name, target.cc_major, target.cc_minor);
}

void check_target(const amk_target_t& t) {
  AMK_CHECK(std::memchr(t.name, '\0', sizeof t.name), AMK_ERR_INVALID_ARGUMENT, "target.name is not terminated");
  AMK_CHECK(t.sm_count >= 1 && t.sm_count <= AMK_MAX_QUEUES, AMK_ERR_INVALID_ARGUMENT,
            "target.sm_count is %d, allowed 1..%d", t.sm_count, AMK_MAX_QUEUES);
  AMK_CHECK(std::isfinite(t.hbm_gb_per_s) && t.hbm_gb_per_s > 0, AMK_ERR_INVALID_ARGUMENT,
            "target.hbm_gb_per_s is %g, expected finite and > 0", t.hbm_gb_per_s);
  AMK_CHECK(t.clock_mhz >= 1, AMK_ERR_INVALID_ARGUMENT, "target.clock_mhz is %d, expected >= 1", t.clock_mhz);
}

void check_sm_map(const amk_schedule_t& s) {
  const bool is_explicit = s.sm_policy == AMK_SM_EXPLICIT;
  AMK_CHECK(s.sm_map_count >= 0, AMK_ERR_INVALID_ARGUMENT, "schedule.sm_map_count is %lld", (long long)s.sm_map_count);
  AMK_CHECK(is_explicit || s.sm_map_count == 0, AMK_ERR_REJECTED,
            "V26: sm_assignment: a map of %lld tasks, but the policy is not explicit", (long long)s.sm_map_count);
  AMK_CHECK(s.sm_map_count == 0 || (s.sm_map_task && s.sm_map_sm), AMK_ERR_INVALID_ARGUMENT,
            "schedule.sm_map_task or sm_map_sm is NULL");
}

}  // namespace

amk_schedule_t default_schedule() {
  amk_schedule_t s{};
  s.struct_size = sizeof s;
  s.gemv_n_tile = 0;
  s.attention_kv_block = 16;
  s.fusion = kDefaultFusions;
  s.sm_policy = AMK_SM_ROUND_ROBIN;
  s.page_policy = AMK_PAGES_LINEAR;
  for (const LaunchKnob& knob : kLaunchKnobs) s.*knob.field = knob.standard;
  return s;
}

void check_schedule(const amk_schedule_t& s, const amk_target_t& target) {
  AMK_CHECK(s.struct_size >= sizeof s, AMK_ERR_INVALID_ARGUMENT, "schedule.struct_size is %llu, expected %zu",
            (unsigned long long)s.struct_size, sizeof s);
  check_target(target);
  const bool tile_ok =
      s.gemv_n_tile == 0 || (s.gemv_n_tile > 0 && s.gemv_n_tile <= kMaxGemvTile && s.gemv_n_tile % AMK_ROW_GROUP == 0);
  AMK_CHECK(tile_ok, AMK_ERR_REJECTED,
            "V26: tiling.gemv.N_tile is %d, allowed: 0 (even split over the SMs) or a multiple of %d in %d..%d",
            s.gemv_n_tile, AMK_ROW_GROUP, AMK_ROW_GROUP, kMaxGemvTile);
  AMK_CHECK(s.attention_kv_block >= kKvBlockStep && s.attention_kv_block <= kMaxKvBlock &&
                s.attention_kv_block % kKvBlockStep == 0,
            AMK_ERR_REJECTED, "V26: tiling.attention.kv_block is %d, allowed: a multiple of %d in %d..%d",
            s.attention_kv_block, kKvBlockStep, kKvBlockStep, kMaxKvBlock);
  AMK_CHECK((s.fusion & ~kAllFusions) == 0, AMK_ERR_REJECTED, "V26: fusion_grouping is 0x%x, allowed bits 0x%x",
            s.fusion, kAllFusions);
  AMK_CHECK(s.sm_policy >= AMK_SM_ROUND_ROBIN && s.sm_policy <= AMK_SM_EXPLICIT, AMK_ERR_REJECTED,
            "V26: sm_assignment is %d, allowed: %d (round_robin), %d (load_balance), %d (explicit map)", s.sm_policy,
            AMK_SM_ROUND_ROBIN, AMK_SM_LOAD_BALANCE, AMK_SM_EXPLICIT);
  AMK_CHECK(s.page_policy >= AMK_PAGES_NONE && s.page_policy <= AMK_PAGES_GRAPH_COLOR, AMK_ERR_REJECTED,
            "V26: page_allocation is %d, allowed: %d (none), %d (linear), %d (graph_color)", s.page_policy,
            AMK_PAGES_NONE, AMK_PAGES_LINEAR, AMK_PAGES_GRAPH_COLOR);
  for (const LaunchKnob& knob : kLaunchKnobs) check_launch_knob(s, knob, target);
  AMK_CHECK(s.threads_per_block <= target.max_threads_per_block, AMK_ERR_REJECTED,
            "V26: threads_per_block is %d, but target %s allows %d", s.threads_per_block, target.name,
            target.max_threads_per_block);
  check_sm_map(s);
}

}  // namespace amk
