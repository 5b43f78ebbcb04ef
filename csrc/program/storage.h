// Where each buffer physically lives: the arena, or a storage bound from outside or owned by the machine.
// In: a program that passed V1 and V2. Out: one place per buffer. The hazard proofs, the image and the machines all
// use this one map, so that they mean the same bytes. Judges nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "program/program.h"

namespace amk {

struct Place {
  int32_t storage = 0;  // index into StorageMap::storages
  int64_t offset_bytes = 0, nbytes = 0;
};

struct Storage {
  int32_t kind = -1;  // amk_buffer_kind of its buffers; -1 for the arena
  int64_t nbytes = 0;
  std::string name;  // the source its buffers share, else the buffer's own name; "" for the arena
};

struct StorageMap {
  std::vector<Place> places;      // per buffer
  std::vector<Storage> storages;  // [0] is the arena; bases are AMK_PAGE_ALIGN-aligned
};

// A buffer on a page: the arena at the page's offset. Page -1 with a source: the storage that everybody with this
// source shares, as large as the largest of them. Else a storage of its own. Sizes saturate at INT64_MAX.
StorageMap map_storage(const Program& program);

}  // namespace amk
