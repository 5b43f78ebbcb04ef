// Which weights a device keeps packed, so that a producer can stream them: decided here, recorded in the image.
// In: a program and where its buffers lie. Out: a Packing per storage. It depends on nothing else, so an image that is
// opened again packs the same way.
#pragma once

#include <vector>

#include "ops/packing.h"
#include "program/storage.h"

namespace amk {

// Packed is what matrix-vector tiles of whole row groups read as a whole and nothing else reads but EMBED; a quantised
// matrix together with its scales, which nothing else reads; everything stays plain where there is no ring
// (ops/ring.h).
std::vector<Packing> choose_packing(const Program& program, const StorageMap& storage);

}  // namespace amk
