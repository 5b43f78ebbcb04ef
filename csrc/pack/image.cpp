#include "pack/image.h"

#include <cstring>

#include "base/blake2b.h"
#include "base/checked.h"
#include "base/error.h"
#include "pack/packing.h"

namespace amk {
namespace {

// Collects what goes where, then writes it all in one pass into zeroed memory.
class ImageWriter {
 public:
  template <class T>
  void section(ImageSection which, const T* data, size_t count) {
    Piece& p = pieces_[static_cast<uint32_t>(which)];
    p = {data, {static_cast<uint64_t>(total_bytes_), count, sizeof(T)}};
    total_bytes_ += round_up(static_cast<int64_t>(count * sizeof(T)), kImageAlign);
  }
  template <class T>
  void section(ImageSection which, const std::vector<T>& table) {
    section(which, table.data(), table.size());
  }
  void strings(ImageSection bytes_at, const Strings& table) {
    section(bytes_at, table.bytes().data(), table.bytes().size());
    section(static_cast<ImageSection>(static_cast<uint32_t>(bytes_at) + 1), table.offsets());
  }

  std::vector<uint8_t> write(const Program& program) const {
    std::vector<uint8_t> bytes(static_cast<size_t>(total_bytes_));
    auto* h = reinterpret_cast<ImageHeader*>(bytes.data());
    std::memcpy(h->magic, kImageMagic, sizeof h->magic);
    h->layout_version = kImageLayoutVersion;
    h->header_bytes = sizeof(ImageHeader);
    h->total_bytes = bytes.size();
    h->abi_major = AMK_ABI_VERSION_MAJOR;
    h->abi_minor = AMK_ABI_VERSION_MINOR;
    h->ir_version = AMK_IR_VERSION;
    h->section_count = kImageSectionCount;
    h->certificate = build_certificate();
    h->launch = program.launch;
    h->target = program.target;
    for (uint32_t i = 0; i < kImageSectionCount; ++i) {
      h->sections[i] = pieces_[i].span;
      const size_t length = pieces_[i].span.count * pieces_[i].span.element_bytes;
      if (length) std::memcpy(bytes.data() + pieces_[i].span.offset_bytes, pieces_[i].data, length);
    }
    h->hash = image_hash(bytes.data(), bytes.size());
    return bytes;
  }

 private:
  struct Piece {
    const void* data = nullptr;
    ImageSpan span{};
  };
  Piece pieces_[kImageSectionCount];
  int64_t total_bytes_ = round_up(sizeof(ImageHeader), kImageAlign);
};

// Tables made by hand may carry fewer strings than entries; in an image it is none or all.
Strings whole_table(const Strings& in, size_t n) {
  if (in.offsets().empty() || in.offsets().size() == n + 1) return in;
  Strings out;
  for (size_t i = 0; i < n; ++i) out.push(in.at(static_cast<int64_t>(i)));
  return out;
}

}  // namespace

Image pack(const ValidProgram& valid) {
  const Program& p = valid.program();
  const size_t grid = static_cast<size_t>(p.launch.grid);

  // 1. Queues: a stable counting sort of the tasks by SM.
  std::vector<uint32_t> queue_start(grid + 1), queue_task(p.tasks.size());
  for (const amk_instruction_t& t : p.tasks) ++queue_start[static_cast<size_t>(t.sm) + 1];
  for (size_t q = 0; q < grid; ++q) queue_start[q + 1] += queue_start[q];
  std::vector<uint32_t> next(queue_start.begin(), queue_start.end() - 1);
  for (size_t i = 0; i < p.tasks.size(); ++i) queue_task[next[p.tasks[i].sm]++] = static_cast<uint32_t>(i);

  // 2. Places, as records without holes.
  std::vector<ImagePlace> places;
  places.reserve(p.buffers.size());
  for (const Place& place : valid.storage().places)
    places.push_back({place.storage, 0, place.offset_bytes, place.nbytes});
  std::vector<ImageStorage> storages;
  Strings storage_name;
  const std::vector<Packing> packing = choose_packing(p, valid.storage());
  for (size_t i = 0; i < packing.size(); ++i) {
    const Storage& s = valid.storage().storages[i];
    storages.push_back({s.kind, static_cast<int32_t>(packing[i]), s.nbytes});
    storage_name.push(s.name);
  }
  const Strings buffer_name = whole_table(p.buffer_name, p.buffers.size());
  const Strings buffer_source = whole_table(p.buffer_source, p.buffers.size());
  const Strings task_label = whole_table(p.task_label, p.tasks.size());

  // 3. Sections, in the order of the enum.
  using S = ImageSection;
  ImageWriter w;
  w.section(S::kTasks, p.tasks);
  w.section(S::kQueueStart, queue_start);
  w.section(S::kQueueTask, queue_task);
  w.section(S::kBuffers, p.buffers);
  w.section(S::kBindings, p.bindings);
  w.section(S::kPlaces, places);
  w.section(S::kStorages, storages);
  w.section(S::kPages, p.pages);
  w.section(S::kProducers, valid.producers());
  w.strings(S::kBufferNameBytes, buffer_name);
  w.strings(S::kBufferSourceBytes, buffer_source);
  w.strings(S::kTaskLabelBytes, task_label);
  w.strings(S::kStorageNameBytes, storage_name);
  static_assert(kImageSectionCount == 17, "a section was added: write it here");

  auto bytes = std::make_shared<const std::vector<uint8_t>>(w.write(p));
  const ImageView view = ImageView::of_own(bytes->data(), bytes->size());
  return Image(std::move(bytes), view);
}

Program Image::program() const {
  const auto view_of = [](const ImageStrings& s) {
    return amk_strings_t{s.bytes.data(), s.offset.empty() ? nullptr : s.offset.data()};
  };
  const std::vector<amk_counter_t> zeros(view_.producers.size());  // V8: counters start at zero
  amk_program_tables_t t{};
  t.struct_size = sizeof t;
  t.n_buffers = static_cast<int64_t>(view_.buffers.size());
  t.n_counters = static_cast<int64_t>(zeros.size());
  t.n_tasks = static_cast<int64_t>(view_.tasks.size());
  t.n_pages = static_cast<int64_t>(view_.pages.size());
  t.buffers = view_.buffers.data();
  t.bindings = view_.bindings.data();
  t.counter_init = zeros.data();
  t.tasks = view_.tasks.data();
  t.pages = view_.pages.data();
  t.buffer_name = view_of(view_.buffer_name);
  t.buffer_source = view_of(view_.buffer_source);
  t.task_label = view_of(view_.task_label);
  t.launch = view_.launch();
  t.target = view_.header->target;
  return Program::from_tables(t);
}

std::string Image::hash_hex() const { return to_hex(view_.header->hash.data(), AMK_HASH_BYTES); }

Image Image::open(const uint8_t* bytes, size_t nbytes) {
  // A copy first: what is judged must be what is kept, whatever the caller does with its memory meanwhile.
  auto copy = std::make_shared<const std::vector<uint8_t>>(bytes, bytes + nbytes);
  const ImageView view = ImageView::open(copy->data(), copy->size());
  const Image claimed(std::move(copy), view);
  Program program;
  try {
    program = claimed.program();
  } catch (const Error& e) {
    throw Error(AMK_ERR_INPUT, text("image: %s", e.what()));  // its tables are past the caps
  }
  const Judgement judgement = validate(std::move(program));
  if (!judgement.valid) {
    const std::vector<Rejection>& found = judgement.report.entries();
    throw Error(AMK_ERR_REJECTED, found.empty() ? "the program in the image was rejected"
                                                : text("V%d: %s", found[0].code, found[0].text.c_str()));
  }
  Image again = pack(*judgement.valid);
  AMK_CHECK(again.bytes() == claimed.bytes(), AMK_ERR_INPUT,
            "image: its tables pack to other bytes (%s) than it holds (%s)", again.hash_hex().c_str(),
            claimed.hash_hex().c_str());
  return again;
}

}  // namespace amk
