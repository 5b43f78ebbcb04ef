// The image: one flat blob that holds a validated program as plain tables, with offsets where pointers would be.
// In: bytes. Out: ImageView, typed spans borrowed from those bytes. The machines read this header and nothing else of
// the packing. It judges only whether the bytes are well formed, never whether the program in them is lawful.
//
// Layout: ImageHeader, then the sections in the order of their enum, each starting on a multiple of kImageAlign, the
// gaps zero, and the blob ending where its last section's padding ends. Equal programs give equal bytes.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "amk.h"

namespace amk {

constexpr uint8_t kImageMagic[8] = {'A', 'M', 'K', 'i', 'm', 'g', '\r', '\n'};
constexpr uint32_t kImageLayoutVersion = 2;
constexpr size_t kImageAlign = 64;

enum class ImageSection : uint32_t {
  kTasks,       // amk_instruction_t, table order
  kQueueStart,  // uint32_t [grid + 1]: queue q is queue_task[queue_start[q] .. queue_start[q + 1])
  kQueueTask,   // uint32_t [tasks]
  kBuffers,     // amk_buffer_t
  kBindings,    // amk_binding_t [buffers]
  kPlaces,      // ImagePlace [buffers]
  kStorages,    // ImageStorage
  kPages,       // amk_page_t
  kProducers,   // uint32_t [counters]: how many tasks increment it
  // String tables: bytes, then offsets (none, or one more than there are strings).
  kBufferNameBytes,
  kBufferNameOffset,
  kBufferSourceBytes,
  kBufferSourceOffset,
  kTaskLabelBytes,
  kTaskLabelOffset,
  kStorageNameBytes,
  kStorageNameOffset,
  kCount
};
constexpr uint32_t kImageSectionCount = static_cast<uint32_t>(ImageSection::kCount);

struct ImageSpan {
  uint64_t offset_bytes, count, element_bytes;
};

// Where a buffer lies: nbytes from offset_bytes of a storage.
struct ImagePlace {
  int32_t storage, pad;
  int64_t offset_bytes, nbytes;
};

// A region of memory: [0] is the arena (kind -1), the others carry the amk_buffer_kind of what lives there.
struct ImageStorage {
  int32_t kind;
  int32_t packing;  // Packing (ops/packing.h) of a weight on a device
  int64_t nbytes;
};

using ImageHash = std::array<uint8_t, AMK_HASH_BYTES>;
using ImageCertificate = std::array<char, 64>;  // build_id() of the library that packed, NUL-padded

struct ImageHeader {
  uint8_t magic[8];
  uint32_t layout_version, header_bytes;
  uint64_t total_bytes;
  ImageHash hash;  // BLAKE2b-256 of the blob with these bytes zero
  uint32_t abi_major, abi_minor, ir_version, section_count;
  ImageCertificate certificate;
  amk_launch_t launch;
  amk_target_t target;
  ImageSpan sections[kImageSectionCount];
};
static_assert(offsetof(ImageHeader, hash) == 24 && offsetof(ImageHeader, certificate) == 72 &&
                  offsetof(ImageHeader, launch) == 136 && offsetof(ImageHeader, target) == 184 &&
                  offsetof(ImageHeader, sections) == 280 && sizeof(ImageSpan) == 24 && sizeof(ImagePlace) == 24 &&
                  sizeof(ImageStorage) == 16,
              "the layout moved: raise kImageLayoutVersion");

// n strings of a section pair; at() gives "" for a table without offsets.
struct ImageStrings {
  std::span<const char> bytes;
  std::span<const uint64_t> offset;
  std::string_view at(size_t i) const {
    if (i + 1 >= offset.size()) return {};
    return std::string_view(bytes.data() + offset[i], offset[i + 1] - offset[i]);
  }
};

struct ImageView {
  const ImageHeader* header = nullptr;
  std::span<const amk_instruction_t> tasks;
  std::span<const uint32_t> queue_start, queue_task;
  std::span<const amk_buffer_t> buffers;
  std::span<const amk_binding_t> bindings;
  std::span<const ImagePlace> places;
  std::span<const ImageStorage> storages;
  std::span<const amk_page_t> pages;
  std::span<const uint32_t> producers;
  ImageStrings buffer_name, buffer_source, task_label, storage_name;

  const amk_launch_t& launch() const { return header->launch; }
  std::span<const uint32_t> queue(size_t q) const {
    return queue_task.subspan(queue_start[q], queue_start[q + 1] - queue_start[q]);
  }

  // Borrows untrusted bytes (8-byte aligned). INPUT: not an image, another layout, or a section that leaves the blob or
  // disagrees with its table's count; MISMATCH (V24): the hash, the ABI or the build differs from what was packed.
  static ImageView open(const uint8_t* bytes, size_t nbytes);
  // The same without header and hash, for bytes that pack() has just written.
  static ImageView of_own(const uint8_t* bytes, size_t nbytes);
};

// Hash of a blob of at least sizeof(ImageHeader) bytes, its own hash field taken as zero.
ImageHash image_hash(const uint8_t* bytes, size_t nbytes);

// What this build writes into ImageHeader::certificate.
ImageCertificate build_certificate();

}  // namespace amk
