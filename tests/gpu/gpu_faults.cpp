// Faults on purpose, against a kernel built with AMK_TEST_FAULTS: what the host must say, and that the next step works.
// In: the name of a case, or nothing for all that leave the process usable. Out: one line per case.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>

#include "gpu_pair.h"
#include "gpu_sketch.h"
#include "test_ops.h"
#include "vm/device.h"

using namespace gpu_test;

namespace {

const amk_model_t kModel = model(AMK_DTYPE_BF16, 1, 256, 4, 2, 64, 512, 1000, 256);

// An image whose bytes were edited and hashed again: what no validator let through.
Bytes edited(const Bytes& original, const std::function<void(amk::ImageHeader&, amk_instruction_t*)>& edit) {
  std::vector<uint8_t> bytes = *original;
  auto& header = *reinterpret_cast<amk::ImageHeader*>(bytes.data());
  edit(header, reinterpret_cast<amk_instruction_t*>(bytes.data() + header.sections[0].offset_bytes));
  header.hash = amk::image_hash(bytes.data(), bytes.size());
  return std::make_shared<const std::vector<uint8_t>>(std::move(bytes));
}

Bytes plain_image(int32_t sms = 132) { return make_image(kModel, amk::default_schedule(), sms); }
Bytes with_op(int32_t op, size_t task) {
  return edited(plain_image(), [&](amk::ImageHeader&, amk_instruction_t* tasks) { tasks[task].op = op; });
}

std::unique_ptr<amk::Vm> machine(const Bytes& bytes, int32_t deadline_ms = 500) {
  static std::map<std::string, Block> weights = make_weights(view_of(plain_image()), 7);
  auto vm = amk::make_cuda_vm(bytes, options(0, deadline_ms), 0);
  bind_all(*vm, weights);
  return vm;
}

// body must throw `status` with `part` in its text, within `limit_s`.
void expect(const char* name, amk_status status, const char* part, double limit_s, const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  std::string said = "nothing was thrown";
  bool ok = false;
  try {
    body();
  } catch (const amk::Error& e) {
    said = amk::text("%d: %s", e.status(), e.what());
    ok = e.status() == status && said.find(part) != std::string::npos;
  }
  const double took_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report(ok && took_s <= limit_s, amk::text("%s (%.2f s): %s", name, took_s, said.c_str()));
}

void healthy(const char* name) {
  try {
    machine(plain_image())->run(3);
    report(true, std::string(name) + ": the next machine works");
  } catch (const amk::Error& e) {
    report(false, std::string(name) + ": " + e.what());
  }
}

void refused_before_launch() {
  expect("grid of 2,000 SMs", AMK_ERR_REJECTED, "V10", 5, [] { machine(plain_image(1000)); });
  expect("threads_per_block 128", AMK_ERR_REJECTED, "built", 5, [] {
    machine(edited(plain_image(), [](amk::ImageHeader& h, amk_instruction_t*) { h.launch.threads_per_block = 128; }));
  });
  expect("smem over the limit", AMK_ERR_REJECTED, "V10", 5, [] {
    machine(
        edited(plain_image(), [](amk::ImageHeader& h, amk_instruction_t*) { h.launch.smem_bytes_per_block = 300000; }));
  });
  expect("one byte flipped", AMK_ERR_MISMATCH, "V24", 5, [] {
    std::vector<uint8_t> bytes = *plain_image();
    bytes[bytes.size() / 2] ^= 1;
    machine(std::make_shared<const std::vector<uint8_t>>(std::move(bytes)));
  });
  expect("device 99", AMK_ERR_INVALID_ARGUMENT, "device", 5, [] { amk::make_cuda_vm(plain_image(), options(), 99); });
  expect("position = max_seq", AMK_ERR_INVALID_ARGUMENT, "position", 5, [] { machine(plain_image())->run(256); });
  expect("token = vocab", AMK_ERR_INVALID_ARGUMENT, "token", 5, [] {
    auto vm = machine(plain_image());
    const int32_t token = 1000;
    vm->write("token", 0, &token, sizeof token);
    vm->run(0);
  });
  expect("nothing bound", AMK_ERR_INVALID_ARGUMENT, "not bound", 5,
         [] { amk::make_cuda_vm(plain_image(), options(), 0)->run(0); });
}

// F20: a step whose logits are no numbers ends well; whoever reads them is told. argmax notices NaN, not infinity.
void not_finite() {
  for (const float bad : {INFINITY, NAN}) {
    const Bytes bytes = plain_image();
    std::map<std::string, Block> weights = make_weights(view_of(bytes), 7);
    put(AMK_DTYPE_BF16, weights.at("final_norm").data.get(), 5, bad);
    auto vm = amk::make_cuda_vm(bytes, options(0, 500), 0);
    bind_all(*vm, weights);
    expect(bad > 0 ? "F20 infinity in a weight" : "F20 NaN in a weight", AMK_ERR_NONFINITE, "logit", 3, [&] {
      vm->run(0);
      std::vector<float> logits(1000);
      vm->read("logits", 0, logits.data(), logits.size() * sizeof(float));
    });
    const int32_t token = 3;
    vm->write("token", 0, &token, sizeof token);
    expect("F20 again", AMK_ERR_NONFINITE, "logit", 3, [&] {
      vm->run(1);
      float logit;
      for (uint64_t at = 0; at < 4000; at += 4) vm->read("logits", at, &logit, sizeof logit);
    });
  }
  healthy("F20");
}

// A block that ends without a word: the kernel is over, but nobody is left to send its proof, or to clear what the next
// step starts from, which the host then has to.
void vanished() {
  auto vm = machine(with_op(amk::kTestVanish, view_of(plain_image()).tasks.size() - 1));
  for (const char* name : {"K4 a block that vanishes", "K4 once more"})
    expect(name, AMK_ERR_INTERNAL, "only 0 of", 3, [&] { vm->run(0); });
  healthy("K4");
}

void ended_by_the_device() {
  expect("unknown opcode 77", AMK_ERR_DEVICE_FAULT, "opcode 77", 3, [] { machine(with_op(77, 0))->run(0); });
  expect("F1 skipped signal", AMK_ERR_TIMEOUT, "no progress", 3,
         [] { machine(with_op(amk::kTestSkipSignal, 5), 2000)->run(0); });
  healthy("F1");
  expect("F3 cancel", AMK_ERR_TIMEOUT, "cancelled", 3, [] {
    auto vm = machine(with_op(amk::kTestSkipSignal, 5), 20000);
    vm->prepare();
    vm->launch(0, nullptr);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    vm->cancel();
    vm->finish();
  });
  healthy("F3");
  vanished();
  not_finite();
}

// The context is gone afterwards: last in its process.
void illegal_address() {
  auto vm = machine(with_op(amk::kTestIllegalAddress, 5));
  expect("F4 illegal address", AMK_ERR_DEVICE_FAULT, "", 5, [&] { vm->run(0); });
  expect("F4 afterwards", AMK_ERR_POISONED, "unusable", 1, [&] { vm->run(0); });
  expect("F4 afterwards, read", AMK_ERR_POISONED, "unusable", 1, [&] {
    int32_t token;
    vm->read("next_token", 0, &token, sizeof token);
  });
}

void loop_forever() {
  auto vm = machine(with_op(amk::kTestLoopForever, 5), 500);
  expect("F2 endless task", AMK_ERR_TIMEOUT, "", 10, [&] { vm->run(0); });
  expect("F2 afterwards", AMK_ERR_POISONED, "unusable", 1, [&] { vm->run(0); });
}

// F14: what a handler of SIGINT may do is cancel(): it stores one word.
amk::Vm* interrupted = nullptr;
std::chrono::steady_clock::time_point interrupted_at;
void on_interrupt(int) {
  interrupted_at = std::chrono::steady_clock::now();
  interrupted->cancel();
}

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

// x -> 20 ms -> 20 ms -> y: a healthy step that is long enough to be hit. Left alone, it ends and is right.
constexpr int64_t kNumbers = 1000;
Bytes slow_image() {
  Sketch s;
  const int32_t x = s.input("x", AMK_DTYPE_F32, {kNumbers}), t = s.scratch("t", AMK_DTYPE_F32, {kNumbers}),
                u = s.scratch("u", AMK_DTYPE_F32, {kNumbers}), y = s.output("y", AMK_DTYPE_F32, {kNumbers});
  amk_params_t all{};
  all.N_tile = kNumbers;
  int32_t last = s.task(AMK_OP_COPY, {x}, {t}, all);
  last = s.task(AMK_OP_NOP, {}, {}, {}, {last});
  last = s.task(AMK_OP_COPY, {t}, {u}, all, {last});
  last = s.task(AMK_OP_NOP, {}, {}, {}, {last});
  s.task(AMK_OP_COPY, {u}, {y}, all, {last});
  return edited(s.image(),
                [](amk::ImageHeader&, amk_instruction_t* tasks) { tasks[1].op = tasks[3].op = amk::kTestPause; });
}

void cancel_while_it_runs() {
  constexpr double kStepS = 2e-9 * amk::kTestPauseNs;
  const Bytes bytes = slow_image();
  const amk::ImageView image = view_of(bytes);
  auto vm = amk::make_cuda_vm(bytes, options(1, 5000), 0);  // guarded: an output that is not written is no number
  std::vector<float> x(kNumbers);
  Random random{11};
  const auto run_and_compare = [&] {
    for (float& v : x) v = random.uniform();
    vm->write("x", 0, x.data(), x.size() * sizeof(float));
    vm->run(0);
    return std::memcmp(read_buffer(*vm, image, "y").data(), x.data(), x.size() * sizeof(float)) == 0;
  };
  const auto begin = std::chrono::steady_clock::now();
  const bool right = run_and_compare();
  const double alone_s = seconds_since(begin);
  report(right && alone_s >= kStepS,
         amk::text("F14 a step of %.0f ms, left alone, is right (%.1f ms)", 1e3 * kStepS, 1e3 * alone_s));
  interrupted = vm.get();
  std::signal(SIGINT, on_interrupt);
  int ended = 0, cancelled = 0, wrong = 0;
  double slowest_s = 0;
  for (int i = 0; i < 100; ++i) {
    vm->prepare();
    vm->launch(0, nullptr);
    std::this_thread::sleep_for(std::chrono::microseconds(random.next() % 60000));
    std::raise(SIGINT);
    try {
      vm->finish();
      ++ended;
      wrong += std::memcmp(read_buffer(*vm, image, "y").data(), x.data(), x.size() * sizeof(float)) != 0;
    } catch (const amk::Error& e) {
      const bool is_cancelled = e.status() == AMK_ERR_TIMEOUT && std::strstr(e.what(), "cancelled");
      ++(is_cancelled ? cancelled : wrong);
    }
    slowest_s = std::max(slowest_s, seconds_since(interrupted_at));
    if (i % 10 == 0) wrong += !run_and_compare();  // the machine is usable, and nothing is left of the cancelled step
  }
  report(wrong == 0 && cancelled >= 20 && ended >= 5 && slowest_s <= 1,
         amk::text("F14 SIGINT at 100 instants of such a step: %d ended, %d cancelled, %d wrong, slowest return %.3f s",
                   ended, cancelled, wrong, slowest_s));
}

void interrupt() {
  auto vm = machine(with_op(amk::kTestSkipSignal, 5), 20000);
  interrupted = vm.get();
  std::signal(SIGINT, on_interrupt);
  std::thread sender([] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    std::raise(SIGINT);
  });
  expect("F14 SIGINT in a stuck step", AMK_ERR_TIMEOUT, "cancelled", 3, [&] { vm->run(0); });
  sender.join();
  report(seconds_since(interrupted_at) <= 1,
         amk::text("F14: back %.3f s after the signal", seconds_since(interrupted_at)));

  cancel_while_it_runs();

  // A fast step, at random instants: too short for a wait to look at the cancel word, so most end. The next is right.
  const amk_model_t m = model(AMK_DTYPE_BF16, 4, 1024, 16, 8, 64, 3072, 8192, 256);
  Pair p(make_image(m, amk::default_schedule(), 132), 1);
  p.token(5);
  p.gpu->run(100);
  const auto right = read_buffer(*p.gpu, p.image, "logits");
  interrupted = p.gpu.get();
  Random random{5};
  int ended = 0, cancelled = 0, wrong = 0;
  double slowest_s = 0;
  for (int i = 0; i < 1000; ++i) {
    p.gpu->prepare();
    p.gpu->launch(100, nullptr);
    const auto start = std::chrono::steady_clock::now();
    const auto wait = std::chrono::microseconds(random.next() % 400);
    while (std::chrono::steady_clock::now() - start < wait) std::this_thread::yield();
    std::raise(SIGINT);
    try {
      p.gpu->finish();
      ++ended;
    } catch (const amk::Error& e) {
      ++(e.status() == AMK_ERR_TIMEOUT ? cancelled : wrong);
    }
    slowest_s = std::max(slowest_s, seconds_since(interrupted_at));
    if (i % 20 != 0) continue;
    p.gpu->run(100);
    wrong += read_buffer(*p.gpu, p.image, "logits") != right;
  }
  std::signal(SIGINT, SIG_DFL);
  report(wrong == 0 && slowest_s <= 1,
         amk::text("F14 SIGINT at 1,000 instants: %d ended, %d cancelled, %d wrong, slowest return %.3f s", ended,
                   cancelled, wrong, slowest_s));
}

// F9. Before this process's first call into CUDA.
void no_device() {
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  expect("F9 no visible device, count", AMK_ERR_UNAVAILABLE, "no CUDA-capable device", 5, [] { amk::device_count(); });
  expect("F9 no visible device, machine", AMK_ERR_UNAVAILABLE, "no CUDA-capable device", 5,
         [] { machine(plain_image()); });
  try {
    const auto weights = make_weights(view_of(plain_image()), 7);
    auto vm = amk::make_reference_vm(plain_image(), options());
    bind_all(*vm, weights);
    vm->run(0);
    report(true, "F9: the reference machine works");
  } catch (const amk::Error& e) {
    report(false, std::string("F9: the reference machine: ") + e.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string which = argc > 1 ? argv[1] : "";
  try {
    if (which == "illegal-address") {
      illegal_address();
    } else if (which == "loop-forever") {
      loop_forever();
    } else if (which == "no-device") {
      no_device();
    } else if (which == "interrupt") {
      interrupt();
    } else {
      refused_before_launch();
      ended_by_the_device();
    }
  } catch (const amk::Error& e) {
    report(false, amk::text("status %d: ", e.status()) + e.what());
  }
  std::printf("gpu_faults %s: %d failures\n", which.c_str(), failures);
  std::fflush(stdout);
  return failures;
}
