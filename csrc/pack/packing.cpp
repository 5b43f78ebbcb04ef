#include "pack/packing.h"

#include <utility>

#include "base/dtype.h"
#include "ops/op_spec.h"
#include "ops/packing_int8.h"

namespace amk {
namespace {

// What one reader of a storage asks for.
enum class Wish : uint8_t { kNone, kAnyRows, kRowGroups, kGateUp, kInt8RowGroups, kInt8GateUp, kScales, kPlain };

bool is_whole(const StorageMap& map, int32_t buffer) {
  const Place& place = map.places[buffer];
  return place.offset_bytes == 0 && place.nbytes == map.storages[place.storage].nbytes;
}

// Of the weight of a matrix-vector tile, whatever its elements are.
Wish rows_of(const Program& p, const amk_instruction_t& t) {
  const bool is_pair = t.params.flags & AMK_FLAG_SILU_PAIR;
  if (p.buffers[t.inputs[1]].shape[0] % kGroupRows != 0 || t.params.n_off % kGroupRows != 0 ||
      t.params.N_tile % kGroupRows != 0 || (is_pair && t.params.N % kGroupRows))
    return Wish::kPlain;
  return is_pair ? Wish::kGateUp : Wish::kRowGroups;
}

// Integers and scales are packed together or not at all.
bool streams_int8(const Program& p, const StorageMap& map, const amk_instruction_t& t) {
  return is_int8_group(t.params.group) && dtype_bits(p.buffers[t.inputs[2]].dtype) == 8 * kInt8ScaleBytes &&
         is_whole(map, t.inputs[1]) && is_whole(map, t.inputs[2]);
}

Wish wish_of(const Program& p, const StorageMap& map, const amk_instruction_t& t, int slot) {
  if (is_quantised(t)) {
    const Wish rows = rows_of(p, t);
    if ((slot != 1 && slot != 2) || !streams_int8(p, map, t) || rows == Wish::kPlain) return Wish::kPlain;
    if (slot == 2) return Wish::kScales;
    return rows == Wish::kGateUp ? Wish::kInt8GateUp : Wish::kInt8RowGroups;
  }
  if (slot != 1 || (t.op != AMK_OP_GEMV_TILE && t.op != AMK_OP_EMBED)) return Wish::kPlain;
  const amk_buffer_t& b = p.buffers[t.inputs[slot]];
  if (!is_whole(map, t.inputs[slot]) || b.rank != 2 || dtype_bits(b.dtype) != 16 || b.shape[1] % kUnitElements != 0 ||
      b.shape[0] % kGroupRows != 0)
    return Wish::kPlain;
  return t.op == AMK_OP_EMBED ? Wish::kAnyRows : rows_of(p, t);
}

Wish both(Wish a, Wish b) {
  if (a == b || b == Wish::kNone) return a;
  if (a == Wish::kNone) return b;
  const bool rows = (a == Wish::kAnyRows && b == Wish::kRowGroups) || (a == Wish::kRowGroups && b == Wish::kAnyRows);
  return rows ? Wish::kRowGroups : Wish::kPlain;
}

// A quantised matrix and its scales stay together. What has several partners, or is read in several ways, is plain; and
// so is who has it for a partner: its only one, or it would be plain itself.
void pair_scales(const Program& p, const StorageMap& map, std::vector<Wish>& wish) {
  struct Partner {
    int32_t storage = -1, group = 0, columns = 0;
    bool operator==(const Partner&) const = default;
  };
  std::vector<Partner> partner(wish.size());
  for (const amk_instruction_t& t : p.tasks) {
    if (!is_quantised(t)) continue;
    const int32_t q = map.places[t.inputs[1]].storage, scales = map.places[t.inputs[2]].storage;
    for (const auto& [mine, other] : {std::pair{q, scales}, std::pair{scales, q}}) {
      const Partner found{other, t.params.group, t.params.K};
      if (partner[mine].storage < 0) partner[mine] = found;
      if (!(partner[mine] == found)) wish[mine] = Wish::kPlain;
    }
  }
  for (size_t s = 0; s < wish.size(); ++s)
    if (partner[s].storage >= 0 && wish[partner[s].storage] == Wish::kPlain) wish[s] = Wish::kPlain;
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
  pair_scales(p, map, wish);
  for (size_t s = 0; s < out.size(); ++s) {
    if (wish[s] == Wish::kScales) out[s] = Packing::kScales;
    if (wish[s] == Wish::kRowGroups || wish[s] == Wish::kInt8RowGroups) out[s] = Packing::kRowGroups;
    if (wish[s] == Wish::kGateUp || wish[s] == Wish::kInt8GateUp) out[s] = Packing::kGateUp;
  }
  return out;
}

}  // namespace amk
