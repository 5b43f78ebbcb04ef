#include "vm/memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"

namespace amk {
namespace {

// A storage that the caller lends: weights and constants. The arena's kind is -1.
bool is_borrowed(int32_t kind) { return kind == AMK_KIND_WEIGHT || kind == AMK_KIND_CONST; }
// What machines of one model may share.
bool is_shareable(int32_t kind) { return is_borrowed(kind) || kind == AMK_KIND_KV_CACHE; }
// Lives from step to step, or is set by the caller before one.
bool is_lasting(int32_t kind) {
  return is_borrowed(kind) || kind == AMK_KIND_KV_CACHE || kind == AMK_KIND_STATE || kind == AMK_KIND_IO_INPUT;
}

std::string storage_name(const ImageView& image, size_t i) {
  return i == 0 ? "the arena" : std::string(image.storage_name.at(i));
}

}  // namespace

int64_t first_damage(const uint8_t* band, int64_t nbytes) {
  for (int64_t i = 0; i < nbytes; ++i)
    if (band[i] != kBandByte) return i;
  return -1;
}

uint8_t* Memory::own(const std::string& name, int64_t nbytes) {
  constexpr int64_t kAlign = AMK_PAGE_ALIGN;  // what the proofs assume of a storage's first byte
  static_assert(kAlign % kBandBytes == 0);
  int64_t total = 0;
  uint8_t* raw = nullptr;
  if (checked_add(nbytes, 2 * kAlign + kBandBytes, &total))
    raw = static_cast<uint8_t*>(std::calloc(1, static_cast<size_t>(total)));
  AMK_CHECK(raw, AMK_ERR_OUT_OF_MEMORY, "%s needs %lld bytes, which this machine does not have", name.c_str(),
            (long long)nbytes);
  owned_.emplace_back(raw, std::free);
  // The first aligned address that leaves room for a band below it: at most 2 * kAlign - 1 past the start.
  const uintptr_t above = reinterpret_cast<uintptr_t>(raw) + kBandBytes + kAlign - 1;
  uint8_t* data = reinterpret_cast<uint8_t*>(above / kAlign * kAlign);
  bands_.push_back({data - kBandBytes, kBandBytes, "before " + name});
  bands_.push_back({data + nbytes, kBandBytes, "behind " + name});
  return data;
}

// Pages are disjoint and hold activations only (V6), so a step may rely on no byte of them; holes between are bands.
void Memory::map_arena() {
  std::vector<amk_page_t> pages(image_.pages.begin(), image_.pages.end());
  std::sort(pages.begin(), pages.end(), [](const amk_page_t& a, const amk_page_t& b) { return a.offset < b.offset; });
  int64_t end = 0;
  for (const amk_page_t& p : pages) {
    if (p.offset > end)
      bands_.push_back(
          {base_[0] + end, p.offset - end, text("between the arena's pages, at byte %lld", (long long)end)});
    volatile_.push_back({base_[0] + p.offset, p.nbytes, ""});
    end = p.offset + p.nbytes;
  }
}

uint8_t* Memory::shared(size_t i, const Memory& share) const {
  const std::string_view name = image_.storage_name.at(i);
  const ImageStorage& s = image_.storages[i];
  for (size_t j = 1; j < share.base_.size(); ++j) {
    const ImageStorage& other = share.image_.storages[j];
    if (other.kind != s.kind || share.image_.storage_name.at(j) != name) continue;
    AMK_CHECK(other.nbytes == s.nbytes, AMK_ERR_INVALID_ARGUMENT,
              "share: %s has %lld bytes there, this image wants %lld", storage_name(image_, i).c_str(),
              (long long)other.nbytes, (long long)s.nbytes);
    AMK_CHECK(share.base_[j], AMK_ERR_INVALID_ARGUMENT, "share: %s is not bound there",
              storage_name(image_, i).c_str());
    return share.base_[j];
  }
  throw Error(AMK_ERR_INVALID_ARGUMENT,
              text("share: the other machine has no %s, which this image reads", storage_name(image_, i).c_str()));
}

Memory::Memory(const ImageView& image, const Memory* share)
    : image_(image), is_sharing_(share != nullptr), base_(image.storages.size()) {
  if (share) owned_ = share->owned_;
  for (size_t i = 0; i < image.storages.size(); ++i) {
    const ImageStorage& s = image.storages[i];
    AMK_CHECK(!share || s.kind != AMK_KIND_STATE, AMK_ERR_UNSUPPORTED, "share: %s is a state, and machines share none",
              storage_name(image, i).c_str());
    if (share && is_shareable(s.kind)) {
      base_[i] = shared(i, *share);
      continue;
    }
    if (is_borrowed(s.kind)) continue;
    base_[i] = own(storage_name(image, i), s.nbytes);
    if (i > 0 && !is_lasting(s.kind)) volatile_.push_back({base_[i], s.nbytes, ""});
  }
  map_arena();
  for (const ByteRange& b : bands_) std::memset(b.data, kBandByte, static_cast<size_t>(b.nbytes));
}

void Memory::bind(const std::string& name, const void* ptr, uint64_t nbytes) {
  AMK_CHECK(!is_sharing_, AMK_ERR_INVALID_ARGUMENT, "bind %s: this machine uses the weights of another", name.c_str());
  bool found = false;
  // Judge all before binding any: a failed call changes nothing.
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 1; i < base_.size(); ++i) {
      const ImageStorage& s = image_.storages[i];
      if (!is_borrowed(s.kind) || image_.storage_name.at(i) != name) continue;
      found = true;
      if (pass == 1) {
        // Never written through: V7 proved that no task writes a weight or a constant.
        base_[i] = const_cast<uint8_t*>(static_cast<const uint8_t*>(ptr));
        continue;
      }
      AMK_CHECK(nbytes == static_cast<uint64_t>(s.nbytes), AMK_ERR_INVALID_ARGUMENT,
                "bind %s: %llu bytes given, the image wants %lld", name.c_str(), (unsigned long long)nbytes,
                (long long)s.nbytes);
    }
  }
  AMK_CHECK(found, AMK_ERR_INVALID_ARGUMENT, "bind %s: the image reads no weight or constant of that name",
            name.c_str());
}

std::string Memory::unbound() const {
  constexpr int kSpelledOut = 8;
  std::string names;
  int count = 0;
  for (size_t i = 0; i < base_.size(); ++i) {
    if (base_[i] || ++count > kSpelledOut) continue;
    names += (names.empty() ? "" : ", ") + storage_name(image_, i);
  }
  if (count > kSpelledOut) names += text(" and %d more", count - kSpelledOut);
  return names;
}

uint8_t* Memory::at(int64_t buffer) const {
  const ImagePlace& p = image_.places[buffer];
  return base_[p.storage] ? base_[p.storage] + p.offset_bytes : nullptr;
}

int64_t Memory::find(std::string_view name) const {
  for (size_t i = 0; i < image_.buffers.size(); ++i)
    if (image_.buffer_name.at(i) == name) return static_cast<int64_t>(i);
  return -1;
}

void Memory::poison() const {
  for (const ByteRange& r : volatile_) std::memset(r.data, kPoisonByte, static_cast<size_t>(r.nbytes));
}

void Memory::check_bands() const {
  for (const ByteRange& b : bands_) {
    const int64_t damage = first_damage(b.data, b.nbytes);
    AMK_CHECK(damage < 0, AMK_ERR_INTERNAL, "guard band %s: byte %lld of %lld was overwritten with 0x%02x",
              b.name.c_str(), (long long)damage, (long long)b.nbytes, b.data[damage]);
  }
}

}  // namespace amk
