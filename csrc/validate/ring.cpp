// V20: the ring of weights. What is on its way fits into it, and it fits into shared memory; how many slots it then
// has, so that none is reused unseen, is ops/ring.h's. What is prefetched is immutable: only weights are packed and
// streamed (pack/packing.h), and nothing writes a weight (V7).
#include "ops/ring.h"
#include "base/error.h"
#include "validate/proofs.h"

namespace amk {

bool prove_ring(const Program& p, Report* report) {
  const int64_t before = report->count();
  const amk_launch_t& l = p.launch;
  const auto scalar = [&](const char* name, int64_t value, int64_t low, int64_t high, const char* why) {
    if (value < low || value > high)
      AMK_REJECT(report, 20, -1, -1, -1, "launch.%s is %lld, allowed %lld..%lld (%s)", name, (long long)value,
                 (long long)low, (long long)high, why);
  };
  scalar("cpasync", l.cpasync, 0, 1, "0: weights are loaded directly, 1: through the ring");
  if (!has_ring(l, p.target)) return report->count() == before;
  const int warps = l.threads_per_block / 32;
  const int64_t smem = l.smem_bytes_per_block ? l.smem_bytes_per_block : p.target.smem_optin_bytes;
  const int slot_bytes = ring_slot_bytes(p.tasks);
  const int64_t fit = ring_stages(amk_launch_t{}, warps, smem, 0, slot_bytes);
  if (fit < 1) {
    AMK_REJECT(report, 20, -1, -1, -1, "one stage of the ring is %lld bytes, a block has %lld of shared memory",
               (long long)ring_stage_bytes(warps, slot_bytes), (long long)smem);
    return false;
  }
  scalar("cpa_stages", l.cpa_stages, 0, fit < kMaxRingStages ? fit : kMaxRingStages, "stages that shared memory holds");
  scalar("pipelining_depth", l.pipelining_depth, 1, (l.cpa_stages ? l.cpa_stages : fit) * warps, "slots of the ring");
  return report->count() == before;
}

}  // namespace amk
