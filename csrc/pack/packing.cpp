#include "pack/packing.h"

#include "base/dtype.h"
#include "ops/ring.h"

namespace amk {
namespace {

// What one reader of a storage asks for.
enum class Wish : uint8_t { kNone, kAnyRows, kRowGroups, kGateUp, kPlain };

Wish wish_of(const Program& p, const StorageMap& map, const amk_instruction_t& t, int slot) {
  if (slot != 1 || (t.op != AMK_OP_GEMV_TILE && t.op != AMK_OP_EMBED)) return Wish::kPlain;
  const int32_t id = t.inputs[slot];
  const amk_buffer_t& b = p.buffers[id];
  const Place& place = map.places[id];
  const bool is_whole = place.offset_bytes == 0 && place.nbytes == map.storages[place.storage].nbytes;
  if (!is_whole || b.rank != 2 || dtype_bits(b.dtype) != 16 || b.shape[1] % kUnitElements != 0 ||
      b.shape[0] % kGroupRows != 0)
    return Wish::kPlain;
  if (t.op == AMK_OP_EMBED) return Wish::kAnyRows;
  const bool is_pair = t.params.flags & AMK_FLAG_SILU_PAIR;
  if (t.params.n_off % kGroupRows != 0 || t.params.N_tile % kGroupRows != 0 || (is_pair && t.params.N % kGroupRows))
    return Wish::kPlain;
  return is_pair ? Wish::kGateUp : Wish::kRowGroups;
}

Wish both(Wish a, Wish b) {
  if (a == b || b == Wish::kNone) return a;
  if (a == Wish::kNone) return b;
  const bool rows = (a == Wish::kAnyRows && b == Wish::kRowGroups) || (a == Wish::kRowGroups && b == Wish::kAnyRows);
  return rows ? Wish::kRowGroups : Wish::kPlain;
}

}  // namespace

std::vector<Packing> choose_packing(const Program& p, const StorageMap& map) {
  std::vector<Packing> out(map.storages.size(), Packing::kPlain);
  if (!has_ring(p.launch, p.target)) return out;
  std::vector<Wish> wish(out.size(), Wish::kNone);
  for (const amk_instruction_t& t : p.tasks) {
    for (int slot = 0; slot < t.n_inputs; ++slot) {
      const int32_t s = map.places[t.inputs[slot]].storage;
      if (map.storages[s].kind == AMK_KIND_WEIGHT) wish[s] = both(wish[s], wish_of(p, map, t, slot));
    }
  }
  for (size_t s = 0; s < out.size(); ++s) {
    if (wish[s] == Wish::kRowGroups) out[s] = Packing::kRowGroups;
    if (wish[s] == Wish::kGateUp) out[s] = Packing::kGateUp;
  }
  return out;
}

}  // namespace amk
