// V25: whatever the tables hold, validate() answers: no crash, no exception, a report that keeps its promises; and
// large or endless-looking programs are judged quickly.
#include <chrono>
#include <cstring>
#include <random>

#include "check.h"
#include "mini_decoder.h"
#include "translation_support.h"
#include "validate/validate.h"

namespace {

using Random = std::mt19937_64;

void check_report(const amk::Judgement& j) {
  CHECK_EQ(j.report.ok(), j.valid.has_value());
  CHECK_EQ(static_cast<int64_t>(j.report.entries().size()), std::min<int64_t>(j.report.count(), AMK_MAX_REPORTED));
  for (const amk::Rejection& r : j.report.entries()) CHECK(r.code >= 1 && r.code <= 23 && !r.text.empty());
}

void judge(amk::Program program) { check_report(amk::validate(std::move(program))); }

int64_t interesting(Random& random) {
  constexpr int64_t kValues[] = {
      0,         1,         2,         3,         4,         5,         7,          8,          9,         16,
      17,        32,        -1,        -2,        255,       256,       4096,       1 << 20,    1 << 30,   INT32_MAX,
      INT32_MIN, 1ll << 32, 1ll << 47, 1ll << 62, INT64_MAX, INT64_MIN, 0x7fc00000, 0x7f800000, 0x3f800000};
  return kValues[random() % (sizeof(kValues) / sizeof(kValues[0]))];
}

// Overwrites one aligned 4- or 8-byte word of a table, or flips one of its bits.
template <class T>
void damage(T* table, size_t n, Random& random) {
  if (n == 0) return;
  auto* bytes = reinterpret_cast<unsigned char*>(table);
  const size_t width = sizeof(T) % 8 == 0 && random() % 2 ? 8 : 4;
  const size_t at = random() % (n * sizeof(T) / width) * width;
  int64_t value = 0;
  std::memcpy(&value, bytes + at, width);
  if (random() % 4 == 0)
    value ^= int64_t{1} << random() % (width * 8);
  else if (random() % 3 == 0)
    value += static_cast<int64_t>(random() % 5) - 2;
  else
    value = interesting(random);
  std::memcpy(bytes + at, &value, width);
}

void damage(amk::Program& p, Random& random) {
  switch (random() % 16) {
    case 0: return damage(p.buffers.data(), p.buffers.size(), random);
    case 1: return damage(p.bindings.data(), p.bindings.size(), random);
    case 2: return damage(p.pages.data(), p.pages.size(), random);
    case 3: return damage(p.counter_init.data(), p.counter_init.size(), random);
    case 4: return damage(&p.launch, 1, random);
    case 5: return damage(&p.target.sm_count, 7, random);
    case 6:
      if (!p.tasks.empty()) p.tasks.erase(p.tasks.begin() + static_cast<int64_t>(random() % p.tasks.size()));
      return;
    case 7:
      if (!p.tasks.empty()) p.tasks.push_back(p.tasks[random() % p.tasks.size()]);
      return;
    case 8:
      if (!p.tasks.empty()) std::swap(p.tasks[random() % p.tasks.size()], p.tasks[random() % p.tasks.size()]);
      return;
    case 9:
      if (!p.bindings.empty()) p.bindings[random() % p.bindings.size()].page = static_cast<int>(random() % 12) - 1;
      return;
    default: return damage(p.tasks.data(), p.tasks.size(), random);
  }
}

template <class T>
void random_bytes(std::vector<T>& table, Random& random, size_t most) {
  table.resize(random() % (most + 1));
  auto* bytes = reinterpret_cast<unsigned char*>(table.data());
  const bool small = random() % 2;
  for (size_t i = 0; i < table.size() * sizeof(T); ++i)
    bytes[i] = static_cast<unsigned char>(small ? (i % 4 == 0 ? random() % 4 : 0) : random());
}

double seconds_of(amk::Program program, bool expect_ok, int expect_code) {
  const auto start = std::chrono::steady_clock::now();
  const amk::Judgement j = amk::validate(std::move(program));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  CHECK_EQ(j.report.ok(), expect_ok);
  if (!j.report.ok()) CHECK_EQ(j.report.entries()[0].code, expect_code);
  return seconds;
}

}  // namespace

TEST(random_bytes_are_judged) {
  Random random(1);
  for (int i = 0; i < 20000; ++i) {
    amk::Program p;
    random_bytes(p.buffers, random, 6);
    random_bytes(p.bindings, random, 6);
    if (random() % 4) p.bindings.resize(p.buffers.size());
    random_bytes(p.counter_init, random, 6);
    random_bytes(p.tasks, random, 6);
    random_bytes(p.pages, random, 4);
    if (random() % 2) p.launch = MiniDecoder().program.launch, p.target = *amk::target_preset(0);
    judge(std::move(p));
  }
}

TEST(damaged_programs_are_judged) {
  const MiniDecoder mini;
  Random random(2);
  int64_t accepted = 0;
  for (int i = 0; i < 60000; ++i) {
    amk::Program p = mini.program;
    for (uint64_t n = 1 + random() % 4; n > 0; --n) damage(p, random);
    accepted += amk::validate(p).report.ok();
    judge(std::move(p));
  }
  CHECK(accepted > 0);  // some damage is harmless; if none is, the start was not valid
}

TEST(damaged_lowerings_are_judged_with_their_model) {
  const amk_model_t dense = make_model(AMK_DTYPE_F32, 2, 32, 4, 2, 8, 32, 64, 24, AMK_MODEL_QK_NORM);
  amk_model_t hybrid = make_hybrid(dense, 2, 1, 2, 8, 3);
  hybrid.features = kHybridFeatures;
  amk_model_t batch = dense;
  batch.batch = 3;
  Random random(3);
  for (const amk_model_t& model : {dense, hybrid, batch}) {
    int64_t accepted = 0, other_function = 0;
    for (const int32_t fusion : {0, 63, 127, 255}) {
      const Edited whole(model, fusion, AMK_PAGES_NONE, fusion == 255 ? 32 : 16);
      for (int i = 0; i < 10000; ++i) {
        amk::Program p = whole.program;
        for (uint64_t n = 1 + random() % 3; n > 0; --n) damage(p, random);
        const amk::Judgement j = amk::validate_model(p, model);
        check_report(j);
        accepted += j.report.ok();
        other_function += !j.report.ok() && j.report.entries()[0].code == 17;
      }
    }
    CHECK(accepted > 0);
    CHECK(other_function > 0);
  }
}

TEST(names_of_any_bytes_are_masked) {
  MiniDecoder m;
  amk::Strings names;
  for (size_t i = 0; i < m.program.buffers.size(); ++i)
    names.push(std::string(1 + i * 50, static_cast<char>(i * 37)) + "\n\xff\"" + static_cast<char>(i));
  m.program.buffer_name = names;
  m.program.tasks[m.t_qkv] = m.program.tasks[m.t_rope];
  const amk::Judgement j = amk::validate(m.program);
  CHECK(!j.report.ok());
  for (const amk::Rejection& r : j.report.entries()) {
    CHECK(r.text.size() < 400);
    for (char c : r.text) CHECK(c >= ' ' && c <= '~');
  }
}

TEST(a_cycle_of_five_thousand_is_found) {
  ProgramBuilder b(132);
  constexpr int kN = 5000;
  for (int i = 0; i < kN; ++i) b.counter();
  for (int i = 0; i < kN; ++i) b.task(i % 132, AMK_OP_NOP, {}, {}, {}, i, {{(i + 1) % kN, 1}});
  CHECK(seconds_of(b.program, false, 9) < 5);
}

TEST(all_tasks_there_may_be_on_one_counter) {
  ProgramBuilder b(132);
  const int all = b.counter(), done = b.counter();
  b.program.tasks.reserve(AMK_MAX_TASKS);
  for (int i = 0; i + 1 < AMK_MAX_TASKS; ++i) b.task(i % 132, AMK_OP_NOP, {}, {}, {}, all);
  b.task(0, AMK_OP_NOP, {}, {}, {}, done, {{all, AMK_MAX_TASKS - 1}});
  CHECK(seconds_of(std::move(b.program), true, 0) < 60);
  ProgramBuilder too_many;
  too_many.program.counter_init.resize(AMK_MAX_COUNTERS + 1);
  CHECK(seconds_of(too_many.program, false, 1) < 60);
}

TEST(queues_longer_than_sixteen_bits) {
  ProgramBuilder b;
  const int in = b.buffer("in", AMK_KIND_IO_INPUT, AMK_DTYPE_U8, {4});
  const int x = b.activation("x", AMK_DTYPE_U8, {4}), c = b.counter(), d = b.counter();
  amk_params_t p{};
  p.N_tile = 4;
  for (int i = 0; i < 70000; ++i) b.task(0, AMK_OP_NOP, {}, {}, {}, c);
  b.task(0, AMK_OP_COPY, {in}, {x}, p, d);
  const int out = b.buffer("out", AMK_KIND_IO_OUTPUT, AMK_DTYPE_U8, {4});
  const int reader = b.task(1, AMK_OP_COPY, {x}, {out}, p, b.counter(), {{d, 1}});
  CHECK(seconds_of(b.program, true, 0) < 20);
  // The 65,536th lane value would look like the 0th in 16 bits: this wait ends one task too early.
  b.program.tasks[reader].wait_counter[0] = c;
  b.program.tasks[reader].wait_threshold[0] = 70000;
  CHECK(seconds_of(b.program, false, 11) < 20);
}

TEST(nested_ranges_end_in_a_bounded_time) {
  ProgramBuilder b(132);
  constexpr int kBytes = 1 << 14;
  const int x = b.activation("x", AMK_DTYPE_U8, {kBytes}), y = b.activation("y", AMK_DTYPE_U8, {kBytes});
  const int c = b.counter();
  for (int i = 0; i < kBytes; ++i) {
    amk_params_t p{};
    p.N_tile = kBytes - i;
    p.n_off = p.m_off = i;
    b.task(i % 132, AMK_OP_COPY, {x}, {y}, p, c);
  }
  const auto start = std::chrono::steady_clock::now();
  judge(b.program);
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 60);
}

TEST(contents_cut_into_pieces_end_in_a_bounded_time) {
  constexpr int kElements = 4096;
  const amk_model_t model = make_model(AMK_DTYPE_F32, 1, 32, 4, 2, 8, 32, 64, 24);
  Edited e(model, 0);
  const int x = e.buffer("x"), like = e.add_buffer("like", AMK_KIND_ACTIVATION, amk::make_buffer(0, 1, {kElements}));
  const int there = e.add_buffer("there", AMK_KIND_ACTIVATION, e.program.buffers[like]);
  const int end = e.program.tasks.back().out_counter, mine = e.add_counter();
  const auto push = [&](amk_instruction_t t) {
    t.out_counter = mine;
    t.n_waits = t.wait_threshold[0] = 1;
    t.wait_counter[0] = end;
    e.program.tasks.push_back(t);
  };
  for (int i = 0; i < kElements; ++i) push(copy_task(x, like, 1, 0, i));
  CHECK_EQ(model_verdict(e), "accepted");
  for (int i = 0; i < (1 << 22) / kElements; ++i) push(copy_task(like, there, kElements));
  const auto start = std::chrono::steady_clock::now();
  CHECK_EQ(model_verdict(e), "V1: the program is too large to judge: its tasks leave more than 4194304 ranges");
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 20);
}
