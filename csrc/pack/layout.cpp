#include "pack/layout.h"

#include <algorithm>
#include <cstring>

#include "base/blake2b.h"
#include "base/build_info.h"
#include "base/error.h"

namespace amk {
namespace {

// Reads sections one after the other. Every number in the blob is untrusted, and the hash makes none of them honest:
// whoever wrote the bytes could hash them too.
class SectionReader {
 public:
  SectionReader(const uint8_t* bytes, size_t nbytes) : bytes_(bytes), nbytes_(nbytes) {}

  template <class T>
  std::span<const T> section(ImageSection which, const char* name) const {
    const ImageSpan& s = reinterpret_cast<const ImageHeader*>(bytes_)->sections[static_cast<uint32_t>(which)];
    uint64_t length = 0, end = 0;
    const bool fits = s.element_bytes == sizeof(T) && s.offset_bytes % kImageAlign == 0 &&
                      s.offset_bytes >= sizeof(ImageHeader) &&
                      !__builtin_mul_overflow(s.count, uint64_t{sizeof(T)}, &length) &&
                      !__builtin_add_overflow(s.offset_bytes, length, &end) && end <= nbytes_;
    AMK_CHECK(fits, AMK_ERR_INPUT,
              "image: section %s has %llu elements of %llu bytes (expected %zu) at offset %llu of %zu bytes", name,
              (unsigned long long)s.count, (unsigned long long)s.element_bytes, sizeof(T),
              (unsigned long long)s.offset_bytes, nbytes_);
    return {reinterpret_cast<const T*>(bytes_ + s.offset_bytes), static_cast<size_t>(s.count)};
  }

  ImageStrings strings(ImageSection bytes_at, size_t n, const char* name) const {
    const auto offset_at = static_cast<ImageSection>(static_cast<uint32_t>(bytes_at) + 1);
    ImageStrings out{section<char>(bytes_at, name), section<uint64_t>(offset_at, name)};
    bool rises = out.offset.empty()
                     ? out.bytes.empty()
                     : out.offset.size() == n + 1 && out.offset.front() == 0 && out.offset.back() == out.bytes.size();
    for (size_t i = 0; rises && i + 1 < out.offset.size(); ++i) rises = out.offset[i] <= out.offset[i + 1];
    AMK_CHECK(rises, AMK_ERR_INPUT, "image: section %s is not a table of %zu strings", name, n);
    return out;
  }

 private:
  const uint8_t* bytes_;
  size_t nbytes_;
};

void check_counts(const ImageView& v) {
  const size_t n_tasks = v.tasks.size(), n_buffers = v.buffers.size();
  AMK_CHECK(v.bindings.size() == n_buffers && v.places.size() == n_buffers, AMK_ERR_INPUT,
            "image: %zu buffers, %zu bindings, %zu places", n_buffers, v.bindings.size(), v.places.size());
  const int32_t grid = v.launch().grid;
  bool queued = grid >= 0 && grid <= AMK_MAX_QUEUES && v.queue_start.size() == static_cast<size_t>(grid) + 1 &&
                v.queue_task.size() == n_tasks && v.queue_start.front() == 0 && v.queue_start.back() == n_tasks;
  for (size_t q = 0; queued && q + 1 < v.queue_start.size(); ++q) queued = v.queue_start[q] <= v.queue_start[q + 1];
  for (size_t i = 0; queued && i < n_tasks; ++i) queued = v.queue_task[i] < n_tasks;
  AMK_CHECK(queued, AMK_ERR_INPUT, "image: the queues of a grid of %d do not hold the %zu tasks", grid, n_tasks);
  bool placed = !v.storages.empty();
  for (size_t i = 0; placed && i < v.storages.size(); ++i) placed = v.storages[i].nbytes >= 0;
  for (size_t i = 0; placed && i < n_buffers; ++i) {
    const ImagePlace& p = v.places[i];
    placed = p.storage >= 0 && static_cast<size_t>(p.storage) < v.storages.size() && p.offset_bytes >= 0 &&
             p.nbytes >= 0 && p.nbytes <= v.storages[p.storage].nbytes &&
             p.offset_bytes <= v.storages[p.storage].nbytes - p.nbytes;
  }
  AMK_CHECK(placed, AMK_ERR_INPUT, "image: a buffer lies outside its storage");
}

// The certificate of a stranger, made safe to print.
std::string printable(const ImageCertificate& certificate) {
  std::string out;
  for (char c : certificate) {
    if (c == '\0') break;
    out += c >= ' ' && c <= '~' ? c : '?';
  }
  return out;
}

void check_certificate(const ImageHeader& h, const ImageHash& actual) {
  AMK_CHECK(h.hash == actual, AMK_ERR_MISMATCH, "V24: the image carries hash %s, but its bytes hash to %s",
            to_hex(h.hash.data(), h.hash.size()).c_str(), to_hex(actual.data(), actual.size()).c_str());
  AMK_CHECK(
      h.abi_major == AMK_ABI_VERSION_MAJOR && h.abi_minor == AMK_ABI_VERSION_MINOR && h.ir_version == AMK_IR_VERSION,
      AMK_ERR_MISMATCH, "V24: the image has ABI %u.%u and IR %u, this library has ABI %d.%d and IR %d", h.abi_major,
      h.abi_minor, h.ir_version, AMK_ABI_VERSION_MAJOR, AMK_ABI_VERSION_MINOR, AMK_IR_VERSION);
  const ImageCertificate mine = build_certificate();
  AMK_CHECK(mine == h.certificate, AMK_ERR_MISMATCH, "V24: the image was packed by build %s, this library is build %s",
            printable(h.certificate).c_str(), printable(mine).c_str());
}

}  // namespace

ImageCertificate build_certificate() {
  ImageCertificate out{};
  const std::string_view id = build_id();
  std::memcpy(out.data(), id.data(), std::min(id.size(), out.size()));
  return out;
}

ImageHash image_hash(const uint8_t* bytes, size_t nbytes) {
  AMK_CHECK(nbytes >= sizeof(ImageHeader), AMK_ERR_INTERNAL, "hash of an image of %zu bytes", nbytes);
  constexpr size_t kFirst = offsetof(ImageHeader, hash), kAfter = kFirst + AMK_HASH_BYTES;
  constexpr uint8_t kZeros[AMK_HASH_BYTES] = {};
  Blake2b hash(AMK_HASH_BYTES);
  hash.update(bytes, kFirst);
  hash.update(kZeros, sizeof kZeros);
  hash.update(bytes + kAfter, nbytes - kAfter);
  ImageHash out;
  hash.finish(out.data());
  return out;
}

ImageView ImageView::open(const uint8_t* bytes, size_t nbytes) {
  AMK_CHECK(reinterpret_cast<uintptr_t>(bytes) % alignof(ImageHeader) == 0, AMK_ERR_INTERNAL,
            "an image's bytes must be aligned to %zu", alignof(ImageHeader));
  AMK_CHECK(nbytes >= sizeof(ImageHeader), AMK_ERR_INPUT, "image: %zu bytes, the header alone has %zu", nbytes,
            sizeof(ImageHeader));
  const ImageHeader& h = *reinterpret_cast<const ImageHeader*>(bytes);
  AMK_CHECK(std::memcmp(h.magic, kImageMagic, sizeof kImageMagic) == 0, AMK_ERR_INPUT,
            "image: the first 8 bytes are not those of an image");
  AMK_CHECK(h.layout_version == kImageLayoutVersion && h.header_bytes == sizeof(ImageHeader) &&
                h.section_count == kImageSectionCount,
            AMK_ERR_INPUT, "image: layout %u with a header of %u bytes and %u sections, expected %u, %zu and %u",
            h.layout_version, h.header_bytes, h.section_count, kImageLayoutVersion, sizeof(ImageHeader),
            kImageSectionCount);
  AMK_CHECK(h.total_bytes == nbytes, AMK_ERR_INPUT, "image: %zu bytes, but the header says %llu", nbytes,
            (unsigned long long)h.total_bytes);
  check_certificate(h, image_hash(bytes, nbytes));
  return of_own(bytes, nbytes);
}

ImageView ImageView::of_own(const uint8_t* bytes, size_t nbytes) {
  using S = ImageSection;
  const SectionReader r(bytes, nbytes);
  ImageView v;
  v.header = reinterpret_cast<const ImageHeader*>(bytes);
  v.tasks = r.section<amk_instruction_t>(S::kTasks, "tasks");
  v.queue_start = r.section<uint32_t>(S::kQueueStart, "queue_start");
  v.queue_task = r.section<uint32_t>(S::kQueueTask, "queue_task");
  v.buffers = r.section<amk_buffer_t>(S::kBuffers, "buffers");
  v.bindings = r.section<amk_binding_t>(S::kBindings, "bindings");
  v.places = r.section<ImagePlace>(S::kPlaces, "places");
  v.storages = r.section<ImageStorage>(S::kStorages, "storages");
  v.pages = r.section<amk_page_t>(S::kPages, "pages");
  v.producers = r.section<uint32_t>(S::kProducers, "producers");
  v.buffer_name = r.strings(S::kBufferNameBytes, v.buffers.size(), "buffer_name");
  v.buffer_source = r.strings(S::kBufferSourceBytes, v.buffers.size(), "buffer_source");
  v.task_label = r.strings(S::kTaskLabelBytes, v.tasks.size(), "task_label");
  v.storage_name = r.strings(S::kStorageNameBytes, v.storages.size(), "storage_name");
  static_assert(kImageSectionCount == 17, "a section was added: read it here");
  check_counts(v);
  return v;
}

}  // namespace amk
