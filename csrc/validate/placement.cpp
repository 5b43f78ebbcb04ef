// Proof 1b: every buffer has bytes of its own, or shares them the declared way (V6), and all storage fits the device
// (the total of V2).
// In: a program that passed V1 and V2. Out: rejections. Must not judge by names alone: what counts is where bytes lie.
#include <algorithm>
#include <numeric>
#include <string_view>
#include <unordered_map>

#include "base/checked.h"
#include "base/error.h"
#include "validate/proofs.h"

namespace amk {
namespace {

using ll = long long;

void check_pages(const Program& p, Report* report) {
  const int64_t before = report->count();
  for (size_t i = 0; i < p.pages.size(); ++i) {
    const amk_page_t& page = p.pages[i];
    int64_t end = 0;
    if (page.space != AMK_SPACE_GLOBAL_SCRATCH)
      AMK_REJECT(report, 6, -1, -1, -1, "page %zu is in space %lld; pages lie in GLOBAL_SCRATCH", i, (ll)page.space);
    else if (page.offset < 0 || page.nbytes < 1 || !checked_add(page.offset, page.nbytes, &end))
      AMK_REJECT(report, 6, -1, -1, -1, "page %zu has offset %lld and %lld bytes, expected >= 0 and >= 1", i,
                 (ll)page.offset, (ll)page.nbytes);
  }
  if (report->count() != before) return;
  std::vector<int32_t> by_offset(p.pages.size());
  std::iota(by_offset.begin(), by_offset.end(), 0);
  std::sort(by_offset.begin(), by_offset.end(), [&](int32_t a, int32_t b) {
    return p.pages[a].offset != p.pages[b].offset ? p.pages[a].offset < p.pages[b].offset : a < b;
  });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const amk_page_t& low = p.pages[by_offset[i - 1]];
    const amk_page_t& high = p.pages[by_offset[i]];
    if (low.offset + low.nbytes <= high.offset) continue;
    AMK_REJECT(report, 6, -1, -1, -1, "pages %d and %d overlap: [%lld, %lld) and [%lld, %lld)", by_offset[i - 1],
               by_offset[i], (ll)low.offset, (ll)(low.offset + low.nbytes), (ll)high.offset,
               (ll)(high.offset + high.nbytes));
  }
}

void check_paged(const Program& p, int32_t id, int64_t nbytes, Report* report) {
  const amk_binding_t& binding = p.bindings[id];
  if (binding.page >= static_cast<int64_t>(p.pages.size())) {
    AMK_REJECT(report, 6, -1, id, -1, "%s is on page %d, but there are %zu", buffer_text(p, id).c_str(), binding.page,
               p.pages.size());
  } else if (binding.kind != AMK_KIND_ACTIVATION || p.buffers[id].space != AMK_SPACE_GLOBAL_SCRATCH) {
    AMK_REJECT(report, 6, -1, id, -1, "%s is on page %d, but only an ACTIVATION in GLOBAL_SCRATCH may be",
               buffer_text(p, id).c_str(), binding.page);
  } else if (!p.buffer_source.at(id).empty()) {
    AMK_REJECT(report, 6, -1, id, -1, "%s is on page %d and names a source as well", buffer_text(p, id).c_str(),
               binding.page);
  } else if (nbytes > p.pages[binding.page].nbytes) {
    AMK_REJECT(report, 6, -1, id, -1, "%s has %lld bytes, but page %d has %lld", buffer_text(p, id).c_str(), (ll)nbytes,
               binding.page, (ll)p.pages[binding.page].nbytes);
  }
}

void check_unpaged(const Program& p, int32_t id, Report* report) {
  const amk_binding_t& binding = p.bindings[id];
  if (binding.page != -1) {
    AMK_REJECT(report, 6, -1, id, -1, "%s is on page %d", buffer_text(p, id).c_str(), binding.page);
  } else if (binding.kind == AMK_KIND_ACTIVATION || p.buffers[id].space != AMK_SPACE_HBM) {
    AMK_REJECT(report, 6, -1, id, -1,
               "%s is on no page: an ACTIVATION needs a page in GLOBAL_SCRATCH, anything else is in HBM",
               buffer_text(p, id).c_str());
  } else if ((binding.kind == AMK_KIND_WEIGHT || binding.kind == AMK_KIND_CONST) && p.buffer_source.at(id).empty()) {
    AMK_REJECT(report, 6, -1, id, -1, "%s is a weight or constant without a source", buffer_text(p, id).c_str());
  }
}

bool has_public_name(int32_t kind) {
  return kind == AMK_KIND_IO_INPUT || kind == AMK_KIND_IO_OUTPUT || kind == AMK_KIND_KV_CACHE || kind == AMK_KIND_STATE;
}

void check_names(const Program& p, Report* report) {
  std::unordered_map<std::string_view, int32_t> seen;
  for (size_t i = 0; i < p.buffers.size(); ++i) {
    if (!has_public_name(p.bindings[i].kind)) continue;
    const int32_t id = static_cast<int32_t>(i);
    const std::string_view name = p.buffer_name.at(id);
    if (name.empty()) {
      AMK_REJECT(report, 6, -1, id, -1, "buffer %d is an input, output, cache or state without a name", id);
      continue;
    }
    const auto [other, fresh] = seen.emplace(name, id);
    if (!fresh)
      AMK_REJECT(report, 6, -1, id, -1, "%s has the name of buffer %d", buffer_text(p, id).c_str(), other->second);
  }
}

void check_sharing(const Program& p, const StorageMap& map, Report* report) {
  std::vector<int32_t> first(map.storages.size(), -1);
  for (size_t i = 0; i < p.buffers.size(); ++i) {
    const int32_t id = static_cast<int32_t>(i), storage = map.places[i].storage;
    if (storage == 0) continue;
    if (first[storage] < 0) {
      first[storage] = id;
      continue;
    }
    const int32_t other = first[storage], kind = p.bindings[i].kind;
    if (kind == p.bindings[other].kind && (kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST) &&
        p.buffers[i].dtype == p.buffers[other].dtype && map.places[i].nbytes == map.places[other].nbytes)
      continue;
    AMK_REJECT(report, 6, -1, id, -1,
               "%s and %s share one source; only weights or constants of equal kind, dtype and size may",
               buffer_text(p, other).c_str(), buffer_text(p, id).c_str());
  }
}

}  // namespace

bool prove_placement(const Program& p, const StorageMap& map, Report* report) {
  const int64_t before = report->count();
  check_pages(p, report);
  for (size_t i = 0; i < p.buffers.size(); ++i) {
    const int32_t id = static_cast<int32_t>(i);
    if (p.bindings[i].page >= 0)
      check_paged(p, id, map.places[i].nbytes, report);
    else
      check_unpaged(p, id, report);
  }
  check_names(p, report);
  check_sharing(p, map, report);
  if (report->count() != before) return false;
  int64_t total = 0;
  bool fits = true;
  for (const Storage& s : map.storages) fits = fits && checked_add(total, s.nbytes, &total);
  if (!fits || total > p.target.hbm_bytes)
    AMK_REJECT(report, 2, -1, -1, -1, "all storage needs %lld bytes, but the device has %lld",
               fits ? (ll)total : (ll)INT64_MAX, (ll)p.target.hbm_bytes);
  return report->count() == before;
}

}  // namespace amk
