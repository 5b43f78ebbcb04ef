#include "program/storage.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <unordered_map>

#include "base/checked.h"
#include "base/dtype.h"

namespace amk {

StorageMap map_storage(const Program& program) {
  StorageMap map;
  const size_t n = std::min(program.buffers.size(), program.bindings.size());
  map.places.resize(n);
  map.storages.push_back({-1, 0, ""});
  for (const amk_page_t& page : program.pages) {
    int64_t end = 0;
    if (!checked_add(page.offset, page.nbytes, &end)) end = std::numeric_limits<int64_t>::max();
    map.storages[0].nbytes = std::max(map.storages[0].nbytes, end);
  }
  std::unordered_map<std::string_view, int32_t> by_source;
  for (size_t i = 0; i < n; ++i) {
    const amk_binding_t& binding = program.bindings[i];
    Place& place = map.places[i];
    place.nbytes = storage_bytes(program.buffers[i].dtype, program.buffers[i].numel);
    if (binding.page >= 0) {
      const bool known = binding.page < static_cast<int64_t>(program.pages.size());
      place.offset_bytes = known ? program.pages[binding.page].offset : 0;
      continue;
    }
    const std::string_view source = program.buffer_source.at(static_cast<int64_t>(i));
    const int32_t fresh = static_cast<int32_t>(map.storages.size());
    place.storage = source.empty() ? fresh : by_source.emplace(source, fresh).first->second;
    if (place.storage == fresh) {
      const std::string_view name = source.empty() ? program.buffer_name.at(static_cast<int64_t>(i)) : source;
      map.storages.push_back({binding.kind, place.nbytes, std::string(name)});
    } else {
      map.storages[place.storage].nbytes = std::max(map.storages[place.storage].nbytes, place.nbytes);
    }
  }
  return map;
}

}  // namespace amk
