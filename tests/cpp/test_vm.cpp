// The reference machine as its owner sees it: what it computes, what it refuses, and that its own checks fire.
#include "test_vm_machine.h"
#include "vm/memory.h"
#include "vm/walk.h"

// Sanitizers would abort where calloc must be able to fail.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "allocator_may_return_null=1";
}
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "allocator_may_return_null=1";
}

namespace {

struct Mini {
  explicit Mini(uint64_t seed = 0, int threads = 0, int guard = 1)
      : image(amk::pack(must_validate(mini_program()))),
        weights(image, 7, 1.0),
        vm(make_vm(image, seed, threads, guard)) {
    weights.bind(*vm);
  }
  void token(int32_t id) { vm->write("token", 0, &id, sizeof id); }
  std::vector<float> logits() {
    std::vector<float> out(8);
    vm->read("logits", 0, out.data(), out.size() * sizeof(float));
    return out;
  }
  int32_t next() {
    int32_t id = -2;
    vm->read("next_token", 0, &id, sizeof id);
    return id;
  }
  double embed(int token, int i) { return read_number(AMK_DTYPE_F32, weights.at("embed"), token * 16 + i); }
  // Row of the k cache: the embedding, turned.
  std::vector<double> key(int token, int pos) {
    std::vector<double> out(16);
    for (int i = 0; i < 8; ++i) {
      const double angle = pos * read_number(AMK_DTYPE_F32, weights.at("freq"), i);
      out[i] = embed(token, i) * std::cos(angle) - embed(token, i + 8) * std::sin(angle);
      out[i + 8] = embed(token, i + 8) * std::cos(angle) + embed(token, i) * std::sin(angle);
    }
    return out;
  }

  amk::Image image;
  Weights weights;
  std::unique_ptr<amk::Vm> vm;
};

// An image whose tables were changed after validation, which only a test can do.
template <class F>
std::shared_ptr<const std::vector<uint8_t>> sabotaged(const amk::Image& image, F change) {
  std::vector<uint8_t> bytes = image.bytes();
  change(amk::ImageView::of_own(bytes.data(), bytes.size()));
  reinterpret_cast<amk::ImageHeader*>(bytes.data())->hash = amk::image_hash(bytes.data(), bytes.size());
  return std::make_shared<const std::vector<uint8_t>>(std::move(bytes));
}

template <class T>
T& writable(const T& entry) {
  return const_cast<T&>(entry);
}

amk_vm_options_t options(uint64_t seed, int threads) {
  amk_vm_options_t o{};
  o.struct_size = sizeof o;
  o.seed = seed;
  o.threads = threads;
  o.guard = 1;
  return o;
}

}  // namespace

TEST(sixteen_steps_against_double_precision) {
  Mini m;
  const int tokens[16] = {3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 7, 0, 7, 2, 3, 0};
  for (int pos = 0; pos < 16; ++pos) {
    m.token(tokens[pos]);
    m.vm->run(pos);
    double score[16], largest = -1e300, sum = 0, y[16] = {};
    for (int r = 0; r <= pos; ++r) {
      const std::vector<double> k = m.key(tokens[r], r);
      score[r] = 0;
      for (int i = 0; i < 16; ++i) score[r] += 0.25 * m.embed(tokens[pos], i) * k[i];
      largest = std::max(largest, score[r]);
    }
    for (int r = 0; r <= pos; ++r) {
      const double weight = std::exp(score[r] - largest);
      sum += weight;
      for (int i = 0; i < 16; ++i) y[i] += weight * m.embed(tokens[r], i);
    }
    const std::vector<float> logits = m.logits();
    int best = 0;
    for (int n = 0; n < 8; ++n) {
      double want = 0;
      for (int i = 0; i < 16; ++i) want += m.embed(n, i) * y[i] / sum;
      CHECK(std::fabs(logits[n] - want) < 1e-5);
      if (logits[n] > logits[best]) best = n;
    }
    CHECK_EQ(m.next(), best);
  }
}

TEST(the_cache_is_open_to_the_caller_and_lasts) {
  Mini a, b;
  for (int pos = 0; pos < 5; ++pos) {
    a.token(pos);
    a.vm->run(pos);
  }
  for (const char* name : {"kv.0.k", "kv.0.v"}) {
    float rows[16 * 16];
    a.vm->read(name, 0, rows, sizeof rows);
    b.vm->write(name, 0, rows, sizeof rows);
  }
  a.token(6), b.token(6);
  a.vm->run(5), b.vm->run(5);
  CHECK(a.logits() == b.logits());
  // A step again at the same position changes nothing.
  const std::vector<float> before = a.logits();
  a.vm->run(5);
  CHECK(a.logits() == before);
}

TEST(positions_and_tokens_out_of_range) {
  Mini m;
  m.token(2);
  for (int pos : {-1, 16, INT32_MIN, INT32_MAX})
    CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "outside [0, 16)", m.vm->run(pos));
  for (int token : {-1, 8, INT32_MIN, INT32_MAX}) {
    m.token(token);
    CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "token holds token", m.vm->run(0));
  }
  m.token(7);
  m.vm->run(15);
}

TEST(bind_refuses_what_does_not_fit) {
  Mini m;
  alignas(16) static uint8_t bytes[1024] = {};
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "512", m.vm->bind("embed", bytes, 511));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "512", m.vm->bind("embed", bytes, 528));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "512", m.vm->bind("embed", bytes, UINT64_MAX));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "multiple of 16", m.vm->bind("embed", bytes + 4, 512));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "NULL", m.vm->bind("embed", nullptr, 512));
  for (const char* name : {"nobody", "", "token", "logits", "kv.0.k", "x"})
    CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "no weight", m.vm->bind(name, bytes, 512));
  m.vm->bind("embed", bytes, 512);
  m.token(0);
  m.vm->run(0);
  CHECK_EQ(m.logits()[0], 0.0f);
}

TEST(run_lists_what_is_unbound) {
  const amk::Image image = amk::pack(must_validate(mini_program()));
  const auto vm = make_vm(image);
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "not bound: embed, freq", vm->run(0));
}

TEST(read_and_write_stay_inside) {
  Mini m;
  uint8_t data[64] = {};
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "has 4", m.vm->write("token", 0, data, 5));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "has 4", m.vm->write("token", 1, data, 4));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "has 4", m.vm->write("token", UINT64_MAX, data, 4));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "has 4", m.vm->write("token", 4, data, UINT64_MAX));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "has 32", m.vm->read("logits", 30, data, 3));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "not open", m.vm->write("logits", 0, data, 4));
  for (const char* name : {"embed", "x", "part_o"}) {
    CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "not open", m.vm->read(name, 0, data, 4));
    CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "not open", m.vm->write(name, 0, data, 4));
  }
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "no buffer", m.vm->read("nobody", 0, data, 0));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "NULL", m.vm->read("logits", 0, nullptr, 4));
  m.vm->write("token", 4, nullptr, 0);
}

TEST(options_out_of_range) {
  const amk::Image image = amk::pack(must_validate(mini_program()));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "threads", make_vm(image, 0, -1));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "guard", make_vm(image, 0, 0, 2));
  CHECK_THROWS(AMK_ERR_INVALID_ARGUMENT, "no image", amk::make_reference_vm(nullptr, options(0, 0)));
}

TEST(more_threads_than_queues) {
  Mini one, many(1, 64);
  one.token(3), many.token(3);
  one.vm->run(4), many.vm->run(4);
  CHECK(one.logits() == many.logits());
}

TEST(not_finite_outputs_are_named) {
  for (int threads : {0, 2}) {
    Mini m(0, threads);
    m.token(1);
    write_number(AMK_DTYPE_F32, m.weights.at("embed"), 5 * 16 + 2, std::numeric_limits<double>::quiet_NaN());
    CHECK_THROWS(AMK_ERR_NONFINITE, "logits[5] is NaN", m.vm->run(0));
    CHECK_EQ(m.next(), -1);
    write_number(AMK_DTYPE_F32, m.weights.at("embed"), 5 * 16 + 2, std::numeric_limits<double>::infinity());
    CHECK_THROWS(AMK_ERR_NONFINITE, "logits[5] is infinite", m.vm->run(0));
    write_number(AMK_DTYPE_F32, m.weights.at("embed"), 5 * 16 + 2, 1);
    m.vm->run(0);
  }
}

TEST(a_large_cache_costs_nothing_until_used) {
  // 64 GiB of cache: more than this machine has, never touched.
  ProgramBuilder b(1, AMK_MAX_SEQ);
  const int src = b.buffer("src", AMK_KIND_IO_INPUT, AMK_DTYPE_F32, {1024});
  const int cache = b.buffer("cache", AMK_KIND_KV_CACHE, AMK_DTYPE_F32, {1, AMK_MAX_SEQ, 1024});
  amk_params_t p{};
  p.n_kv_heads = 1, p.head_dim = 1024, p.K = AMK_MAX_SEQ, p.N_tile = 1;
  b.task(0, AMK_OP_KV_APPEND, {src}, {cache}, p, b.counter());
  const amk::Image image = amk::pack(must_validate(b.program));
  const auto [status, message] = thrown([&] {
    const auto vm = make_vm(image);
    vm->run(AMK_MAX_SEQ - 1);
  });
  // A kernel that does not overcommit may refuse; then it is said in bytes.
  CHECK(status == AMK_OK || (status == AMK_ERR_OUT_OF_MEMORY && message.find("cache needs 68719476736 bytes") == 0));
}

TEST(out_of_memory_names_the_region) {
  const amk::Image image = amk::pack(must_validate(mini_program()));
  const auto bytes = sabotaged(image, [](const amk::ImageView& v) { writable(v.storages[4]).nbytes = INT64_MAX / 2; });
  CHECK_THROWS(AMK_ERR_OUT_OF_MEMORY, "kv.0.k needs 4611686018427387903 bytes",
               amk::make_reference_vm(bytes, options(0, 0)));
}

TEST(another_hash_is_not_loaded) {
  std::vector<uint8_t> bytes = amk::pack(must_validate(mini_program())).bytes();
  bytes.back() ^= 1;
  const auto shared = std::make_shared<const std::vector<uint8_t>>(bytes);
  CHECK_THROWS(AMK_ERR_MISMATCH, "V24: ", amk::make_reference_vm(shared, options(0, 0)));
}

// ---- the machine's own checks, on images that no validator would pass ----------------------------------------------

TEST(guard_bands_fire_and_poison_the_handle) {
  Mini m;
  const amk::ImageView v = m.image.view();
  const int32_t logits = 5;
  CHECK_EQ(v.buffer_name.at(logits), "logits");
  // The machine is told that the logits are half as long as the tasks write them.
  const auto bytes = sabotaged(m.image, [&](const amk::ImageView& w) {
    writable(w.places[logits]).nbytes = writable(w.storages[w.places[logits].storage]).nbytes = 16;
  });
  for (int threads : {0, 2}) {
    const auto vm = amk::make_reference_vm(bytes, options(0, threads));
    m.weights.bind(*vm);
    const int32_t token = 1;
    vm->write("token", 0, &token, sizeof token);
    CHECK_THROWS(AMK_ERR_INTERNAL, "guard band behind logits: byte 0 of 64", vm->run(0));
    CHECK_THROWS(AMK_ERR_POISONED, "earlier step", vm->run(0));
  }
}

TEST(holes_between_pages_are_guarded) {
  Mini m;
  const amk::ImageView v = m.image.view();
  CHECK_EQ(v.pages[0].nbytes, 64);  // x
  const auto bytes = sabotaged(m.image, [&](const amk::ImageView& w) { writable(w.pages[0]).nbytes = 32; });
  const auto vm = amk::make_reference_vm(bytes, options(0, 0));
  m.weights.bind(*vm);
  CHECK_THROWS(AMK_ERR_INTERNAL, "guard band between the arena's pages, at byte 32: byte 0", vm->run(0));
}

TEST(damage_is_found_at_any_byte) {
  uint8_t band[64];
  std::memset(band, amk::kBandByte, sizeof band);
  CHECK_EQ(amk::first_damage(band, sizeof band), -1);
  for (int i = 63; i >= 0; --i) {
    band[i] = 0;
    CHECK_EQ(amk::first_damage(band, sizeof band), i);
  }
}

TEST(an_unwritten_output_is_noticed_under_guard) {
  Mini m;
  m.token(1);
  m.vm->run(0);
  // The second half of the logits is not computed any more; last step's values must not pass for new ones.
  const auto bytes = sabotaged(m.image, [](const amk::ImageView& w) { writable(w.tasks[7]).op = AMK_OP_NOP; });
  const auto vm = amk::make_reference_vm(bytes, options(0, 0));
  m.weights.bind(*vm);
  CHECK_THROWS(AMK_ERR_NONFINITE, "logits[4]", vm->run(0));
}

TEST(a_deadlock_is_reported_not_waited_for) {
  Mini m;
  const auto bytes = sabotaged(m.image, [](const amk::ImageView& w) { ++writable(w.tasks[5]).wait_threshold[0]; });
  for (int threads : {0, 1, 2})
    for (uint64_t seed : {0, 1, 2}) {
      const auto vm = amk::make_reference_vm(bytes, options(seed, threads));
      m.weights.bind(*vm);
      CHECK_THROWS(AMK_ERR_INTERNAL, "deadlock: 5 of 11 tasks ran", vm->run(0));
    }
}

TEST(a_counter_that_ends_wrong_is_reported) {
  Mini m;
  const auto bytes = sabotaged(m.image, [](const amk::ImageView& w) { writable(w.tasks[10]).out_counter = 5; });
  for (int threads : {0, 2}) {
    const auto vm = amk::make_reference_vm(bytes, options(0, threads));
    m.weights.bind(*vm);
    CHECK_THROWS(AMK_ERR_INTERNAL, "counter 5 ended the step at 3, its producers are 2", vm->run(0));
  }
}

TEST(a_failing_task_stops_every_thread) {
  const amk::Image image = amk::pack(must_validate(mini_program()));
  for (int threads : {0, 1, 2}) {
    for (uint32_t bad = 0; bad < image.view().tasks.size(); ++bad)
      CHECK_THROWS(AMK_ERR_NONFINITE, "task", amk::walk(image.view(), 3, threads, [&](uint32_t task, int32_t) {
                     if (task == bad) throw amk::Error(AMK_ERR_NONFINITE, "task");
                   }));
  }
}
