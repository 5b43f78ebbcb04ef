// The image: equal programs give equal bytes, bytes come back as the same program, and no changed byte passes.
#include "base/blake2b.h"
#include "test_vm_machine.h"

namespace {

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

bool same_strings(const amk::Strings& a, const amk::Strings& b) {
  return a.bytes() == b.bytes() && a.offsets() == b.offsets();
}

bool same_program(const amk::Program& a, const amk::Program& b) {
  return same_bytes(a.buffers, b.buffers) && same_bytes(a.bindings, b.bindings) &&
         same_bytes(a.counter_init, b.counter_init) && same_bytes(a.tasks, b.tasks) && same_bytes(a.pages, b.pages) &&
         same_strings(a.buffer_name, b.buffer_name) && same_strings(a.buffer_source, b.buffer_source) &&
         same_strings(a.task_label, b.task_label) && std::memcmp(&a.launch, &b.launch, sizeof a.launch) == 0 &&
         std::memcmp(&a.target, &b.target, sizeof a.target) == 0;
}

amk::ImageHeader& header(std::vector<uint8_t>& bytes) { return *reinterpret_cast<amk::ImageHeader*>(bytes.data()); }

// What a forger can do: any bytes, with a hash that fits them.
void seal(std::vector<uint8_t>& bytes) { header(bytes).hash = amk::image_hash(bytes.data(), bytes.size()); }

int open_status(const std::vector<uint8_t>& bytes) {
  return thrown([&] { amk::Image::open(bytes.data(), bytes.size()); }).first;
}

}  // namespace

TEST(round_trip) {
  const amk::Program program = mini_program();
  const amk::Image image = amk::pack(must_validate(program));
  CHECK(same_program(image.program(), program));
  const amk::Image again = amk::Image::open(image.bytes().data(), image.bytes().size());
  CHECK(again.bytes() == image.bytes());
  CHECK(same_program(again.program(), program));
  CHECK(amk::pack(must_validate(again.program())).bytes() == image.bytes());
}

TEST(round_trip_without_labels) {
  amk::Program program = mini_program();
  program.task_label = {};
  const amk::Image image = amk::pack(must_validate(program));
  CHECK(same_program(image.program(), program));
  CHECK(amk::Image::open(image.bytes().data(), image.bytes().size()).bytes() == image.bytes());
}

TEST(the_view_has_queues_and_places) {
  const amk::Image image = amk::pack(must_validate(mini_program()));
  const amk::ImageView v = image.view();
  CHECK_EQ(v.queue(0).size() + v.queue(1).size(), v.tasks.size());
  for (size_t q = 0; q < 2; ++q)
    for (size_t i = 0; i < v.queue(q).size(); ++i) {
      CHECK_EQ(v.tasks[v.queue(q)[i]].sm, static_cast<int>(q));
      if (i > 0) CHECK(v.queue(q)[i - 1] < v.queue(q)[i]);
    }
  const std::vector<uint32_t> producers(v.producers.begin(), v.producers.end());
  CHECK(producers == (std::vector<uint32_t>{1, 2, 2, 1, 2, 2, 1}));
  CHECK_EQ(v.buffer_name.at(1), "embed");
  CHECK_EQ(v.task_label.at(2), "task 2");
  CHECK_EQ(v.storages[0].kind, -1);
}

TEST(the_hash_is_that_of_the_bytes_and_covers_target_and_build) {
  const amk::Image image = amk::pack(must_validate(mini_program()));
  std::vector<uint8_t> bytes = image.bytes();
  header(bytes).hash = {};
  const auto digest = amk::blake2b_256(bytes.data(), bytes.size());
  CHECK_EQ(image.hash_hex(), amk::to_hex(digest.data(), digest.size()));

  amk::Program other = mini_program();
  other.target = *amk::target_preset(2);
  CHECK(amk::pack(must_validate(other)).hash_hex() != image.hash_hex());
  other = mini_program();
  other.launch.cols_per_warp = 3;
  CHECK(amk::pack(must_validate(other)).hash_hex() != image.hash_hex());

  bytes = image.bytes();
  header(bytes).certificate[0] = '\x01';
  seal(bytes);
  CHECK_THROWS(AMK_ERR_MISMATCH, "V24: the image was packed by build ?", amk::Image::open(bytes.data(), bytes.size()));
  bytes = image.bytes();
  ++header(bytes).abi_minor;
  seal(bytes);
  CHECK_THROWS(AMK_ERR_MISMATCH, "V24: the image has ABI", amk::Image::open(bytes.data(), bytes.size()));
  bytes = image.bytes();
  bytes.back() ^= 1;
  CHECK_THROWS(AMK_ERR_MISMATCH, "V24: the image carries hash", amk::Image::open(bytes.data(), bytes.size()));
}

TEST(every_flipped_byte_is_refused) {
  const std::vector<uint8_t> good = amk::pack(must_validate(mini_program())).bytes();
  std::vector<uint8_t> bytes = good;
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] ^= 0x10;
    const int status = open_status(bytes);
    CHECK(status == AMK_ERR_INPUT || status == AMK_ERR_MISMATCH);
    bytes[i] = good[i];
  }
}

// With a fitting hash a change may be another valid program; then it must be its canonical image. Else a typed error.
TEST(every_flipped_byte_under_a_forged_hash) {
  const std::vector<uint8_t> good = amk::pack(must_validate(mini_program())).bytes();
  int accepted = 0;
  for (const int mask : {0x01, 0x80, 0xFF})
    for (size_t i = 0; i < good.size(); ++i) {
      std::vector<uint8_t> bytes = good;
      bytes[i] ^= static_cast<uint8_t>(mask);
      seal(bytes);
      if (i >= offsetof(amk::ImageHeader, hash) && i < offsetof(amk::ImageHeader, abi_major)) continue;
      const int status = thrown([&] {
                           CHECK(amk::Image::open(bytes.data(), bytes.size()).bytes() == bytes);
                           ++accepted;
                         }).first;
      CHECK(status == AMK_OK || status == AMK_ERR_INPUT || status == AMK_ERR_MISMATCH || status == AMK_ERR_REJECTED);
    }
  CHECK(accepted > 0);
}

TEST(every_length_is_refused_but_the_right_one) {
  std::vector<uint8_t> bytes = amk::pack(must_validate(mini_program())).bytes();
  const std::vector<uint8_t> good = bytes;
  bytes.push_back(0);
  CHECK_EQ(open_status(bytes), static_cast<int>(AMK_ERR_INPUT));
  for (size_t n = 0; n < good.size(); ++n) {
    bytes.assign(good.begin(), good.begin() + static_cast<ptrdiff_t>(n));
    CHECK_EQ(open_status(bytes), static_cast<int>(AMK_ERR_INPUT));
    if (n < sizeof(amk::ImageHeader)) continue;
    header(bytes).total_bytes = n;
    seal(bytes);
    CHECK_EQ(open_status(bytes), static_cast<int>(AMK_ERR_INPUT));
  }
}

TEST(hostile_section_tables) {
  const std::vector<uint8_t> good = amk::pack(must_validate(mini_program())).bytes();
  for (uint32_t s = 0; s < amk::kImageSectionCount; ++s)
    for (const uint64_t value : {uint64_t{0}, uint64_t{1}, uint64_t{64}, uint64_t{good.size()}, uint64_t{1} << 32,
                                 uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} / 224 + 1}) {
      for (int field = 0; field < 3; ++field) {
        std::vector<uint8_t> bytes = good;
        amk::ImageSpan& span = header(bytes).sections[s];
        (field == 0 ? span.offset_bytes : field == 1 ? span.count : span.element_bytes) = value;
        seal(bytes);
        const int status = open_status(bytes);
        CHECK(status == AMK_ERR_INPUT || status == AMK_ERR_REJECTED || bytes == good);
      }
    }
}

TEST(a_lawful_image_with_other_derived_tables_is_refused) {
  const std::vector<uint8_t> good = amk::pack(must_validate(mini_program())).bytes();
  const amk::ImageView v = amk::ImageView::open(good.data(), good.size());
  const auto change = [&](const void* at, uint8_t mask) {
    std::vector<uint8_t> bytes = good;
    bytes[static_cast<size_t>(static_cast<const uint8_t*>(at) - good.data())] ^= mask;
    seal(bytes);
    return open_status(bytes);
  };
  CHECK_EQ(change(&v.producers[0], 2), static_cast<int>(AMK_ERR_INPUT));
  CHECK_EQ(change(&v.places[3].storage, 1), static_cast<int>(AMK_ERR_INPUT));
  CHECK_EQ(change(&v.storages[2].kind, 1), static_cast<int>(AMK_ERR_INPUT));
  CHECK_EQ(change(&v.queue_task[1], 1), static_cast<int>(AMK_ERR_INPUT));
  CHECK_EQ(change(v.producers.data() + v.producers.size(), 1), static_cast<int>(AMK_ERR_INPUT));  // padding
}

TEST(an_unsafe_program_under_a_forged_hash_is_rejected_by_name) {
  std::vector<uint8_t> bytes = amk::pack(must_validate(mini_program())).bytes();
  const amk::ImageView v = amk::ImageView::open(bytes.data(), bytes.size());
  auto* task = const_cast<amk_instruction_t*>(&v.tasks[6]);
  task->n_waits = task->wait_counter[0] = task->wait_threshold[0] = 0;
  seal(bytes);
  CHECK_THROWS(AMK_ERR_REJECTED, "V", amk::Image::open(bytes.data(), bytes.size()));
}

TEST(not_an_image_at_all) {
  CHECK_EQ(open_status({}), static_cast<int>(AMK_ERR_INPUT));
  CHECK_EQ(open_status(std::vector<uint8_t>(10000)), static_cast<int>(AMK_ERR_INPUT));
  CHECK_EQ(open_status(std::vector<uint8_t>(10000, 0xFF)), static_cast<int>(AMK_ERR_INPUT));
}
