// The GPU machine's host side: what is checked before a launch, the launch, and what is checked after it.
// In: bytes of an Image, weights by name, a position. Out: outputs by name, or an Error. It computes nothing.
// A step is three things on one stream: launch scalars in, ledger and counters cleared, the kernel; and the ledger
// back.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/checked.h"
#include "device_memory.h"
#include "ops/ring.h"
#include "variants.h"
#include "vm/vm.h"

#ifndef AMK_CUDA_ARCHITECTURES
#error "AMK_CUDA_ARCHITECTURES is not defined: cmake/amk_cuda.cmake passes the list"
#endif

namespace amk {
namespace {

constexpr int32_t kDefaultDeadlineMs = 2000, kMaxDeadlineMs = 3600 * 1000;
// The device's own watchdog ends a stuck wait; a task that never ends is the host's to notice, later than that.
constexpr int kHostDeadlines = 2, kHostGraceMs = 1000;

bool is_writable(int32_t kind) {
  return kind == AMK_KIND_KV_CACHE || kind == AMK_KIND_STATE || kind == AMK_KIND_IO_INPUT;
}

const KernelVariant& find_variant(int threads) {
  std::string built;
  for (const KernelVariant& v : kKernelVariants) {
    if (v.threads == threads) return v;
    built += (built.empty() ? "" : ", ") + std::to_string(v.threads);
  }
  throw Error(AMK_ERR_REJECTED, text("threads_per_block is %d, built: %s", threads, built.c_str()));
}

// What a launch on the live device looks like.
struct LaunchShape {
  size_t shared_bytes = 0;  // dynamic
  int32_t ring_stages = 0, ring_window = 0, ring_slot_bytes = 0, task_bytes = 0;
};

bool has_packed(const ImageView& image) {
  return std::any_of(image.storages.begin(), image.storages.end(),
                     [](const ImageStorage& s) { return s.packing != 0; });
}

// Shared memory: the ring takes what the tasks leave of `room`, or of what the schedule allows.
LaunchShape divide_shared(const ImageView& image, const KernelVariant& variant, int64_t room, const char* device) {
  const amk_launch_t& launch = image.launch();
  const int64_t asked = launch.smem_bytes_per_block, limit = asked ? asked : room;
  const int64_t tasks = needed_shared_bytes(image, variant.threads, room);
  AMK_CHECK(limit >= tasks && limit <= room, AMK_ERR_REJECTED,
            "V10: smem_bytes_per_block is %lld, the tasks need %lld and %s offers %lld", (long long)asked,
            (long long)tasks, device, (long long)room);
  LaunchShape s;
  s.task_bytes = static_cast<int32_t>(tasks);
  s.shared_bytes = static_cast<size_t>(tasks);
  if (!has_packed(image)) return s;
  const int warps = variant.threads / kWarpThreads;
  s.ring_slot_bytes = ring_slot_bytes(image.tasks);
  const int64_t stage = ring_stage_bytes(warps, s.ring_slot_bytes);
  s.ring_stages = ring_stages(launch, warps, limit, tasks, s.ring_slot_bytes);
  AMK_CHECK(s.ring_stages >= std::max(1, launch.cpa_stages), AMK_ERR_REJECTED,
            "V20: %lld bytes of shared memory hold %d stages of the ring (%lld bytes each) beside the tasks' %lld, "
            "cpa_stages asks for %d",
            (long long)limit, s.ring_stages, (long long)stage, (long long)tasks, launch.cpa_stages);
  const int slots = s.ring_stages * warps;
  AMK_CHECK(launch.pipelining_depth <= slots, AMK_ERR_REJECTED, "V20: pipelining_depth is %d, the ring has %d slots",
            launch.pipelining_depth, slots);
  s.ring_window = launch.pipelining_depth;
  const int64_t ring = s.ring_stages * stage;
  s.task_bytes = static_cast<int32_t>(limit - ring);  // what is left makes longer panels
  s.shared_bytes = static_cast<size_t>(limit);
  return s;
}

// Grid, threads and shared memory against the live device (V10).
LaunchShape prove_occupancy(const ImageView& image, const KernelVariant& variant, int device) {
  cudaDeviceProp d{};
  AMK_CUDA_CHECK(cudaGetDeviceProperties(&d, device));
  cudaFuncAttributes f{};
  const cudaError_t found = cudaFuncGetAttributes(&f, variant.kernel());
  if (found == cudaErrorNoKernelImageForDevice || found == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    throw Error(AMK_ERR_UNAVAILABLE, text("no machine code for %s (compute capability %d.%d); built for %s", d.name,
                                          d.major, d.minor, AMK_CUDA_ARCHITECTURES));
  }
  check_cuda(found, "cudaFuncGetAttributes");
  AMK_CHECK(d.cooperativeLaunch, AMK_ERR_UNAVAILABLE, "%s has no cooperative launch", d.name);
  AMK_CHECK(block_threads(variant) <= f.maxThreadsPerBlock, AMK_ERR_REJECTED,
            "V10: threads_per_block is %d and the producer's %d, the kernel allows %d on %s", variant.threads,
            kProducerThreads, f.maxThreadsPerBlock, d.name);
  const int64_t room = static_cast<int64_t>(d.sharedMemPerBlockOptin) - static_cast<int64_t>(f.sharedSizeBytes);
  AMK_CHECK(d.major >= 9 || !has_packed(image), AMK_ERR_REJECTED,
            "V20: the ring of weights needs compute capability 9.0, %s has %d.%d (cpasync = 0 does without)", d.name,
            d.major, d.minor);
  const LaunchShape shape = divide_shared(image, variant, room, d.name);
  // One value for all machines on this device: the attribute is the kernel's, not a launch's.
  AMK_CUDA_CHECK(cudaFuncSetAttribute(variant.kernel(), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)room));
  int blocks = 0;
  AMK_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, variant.kernel(), block_threads(variant),
                                                               shape.shared_bytes));
  AMK_CHECK(
      image.launch().grid >= 1 && image.launch().grid <= blocks * d.multiProcessorCount, AMK_ERR_REJECTED,
      "V10: the grid has %d blocks, %s holds %d (%d SMs x %d blocks of %d threads and %zu bytes of shared memory)",
      image.launch().grid, d.name, blocks * d.multiProcessorCount, d.multiProcessorCount, blocks,
      block_threads(variant), shape.shared_bytes);
  return shape;
}

// Pinned memory that the device reads and writes, in this order; ledger_bytes of ledger and counters follow.
struct Mailbox {
  LaunchScalars scalars;
  std::atomic<uint32_t> cancel;
  uint32_t pad[11];
};
static_assert(sizeof(Mailbox) == 64 && sizeof(std::atomic<uint32_t>) == 4);

class CudaVm final : public Vm {
 public:
  CudaVm(std::shared_ptr<const std::vector<uint8_t>> bytes, const amk_vm_options_t& options, int device)
      : bytes_(std::move(bytes)),
        image_(ImageView::open(bytes_->data(), bytes_->size())),
        device_(device),
        guard_(options.guard == 1),
        deadline_ms_(options.deadline_ms ? options.deadline_ms : kDefaultDeadlineMs),
        variant_(find_variant(image_.launch().threads_per_block)) {
    const CurrentDevice current(device_);
    shape_ = prove_occupancy(image_, variant_, device_);
    stream_ = make_stream();
    done_ = make_event(cudaEventDisableTiming);
    begin_ = make_event(cudaEventDefault);
    end_ = make_event(cudaEventDefault);
    memory_ = std::make_unique<DeviceImage>(image_, stream_.get());
    ledger_bytes_ = sizeof(Ledger) + image_.producers.size_bytes();
    find_tokens();
    choice_bytes_ = choices_.size() * sizeof(int32_t);
    scalars_offset_ = static_cast<size_t>(round_up(static_cast<int64_t>(ledger_bytes_), sizeof(Ledger)));
    device_ledger_ = allocate_device(scalars_offset_ + sizeof(LaunchScalars), "counters");
    mailbox_ = allocate_pinned(sizeof(Mailbox) + ledger_bytes_ + choice_bytes_, "counters");
    std::memset(mailbox_.get(), 0, sizeof(Mailbox) + ledger_bytes_ + choice_bytes_);
  }

  ~CudaVm() override {
    if (in_flight_) {
      try {
        const CurrentDevice current(device_);
        wait_for_step();
      } catch (const Error&) {
      }
    }
    if (never_ends_) abandon();
  }

  void bind(const std::string& name, const void* ptr, uint64_t nbytes) override {
    require_usable();
    memory_->bind(name, ptr, nbytes);
  }

  void write(const std::string& name, uint64_t offset, const void* data, uint64_t nbytes) override {
    char* at = range("write", name, offset, data, nbytes, false);
    if (!nbytes) return;
    const CurrentDevice current(device_);
    check(cudaMemcpyAsync(at, data, nbytes, cudaMemcpyHostToDevice, stream_.get()), "write");
    check(cudaStreamSynchronize(stream_.get()), "write");
    for (Token& t : tokens_) {  // keep what the host must know to refuse a token before the launch
      const char* token_at = memory_->at(t.buffer);
      if (at > token_at || at + nbytes < token_at + sizeof(int32_t)) continue;
      std::memcpy(&t.value, static_cast<const char*>(data) + (token_at - at), sizeof(int32_t));
    }
  }

  void read(const std::string& name, uint64_t offset, void* data, uint64_t nbytes) override {
    const char* at = range("read", name, offset, data, nbytes, true);
    if (!nbytes) return;
    const CurrentDevice current(device_);
    check(cudaMemcpyAsync(data, at, nbytes, cudaMemcpyDeviceToHost, stream_.get()), "read");
    check(cudaStreamSynchronize(stream_.get()), "read");
    check_finite(name, offset, data, nbytes);
  }

  void prepare() override {
    require_usable();
    require_idle();
    const std::string unbound = memory_->unbound();
    AMK_CHECK(unbound.empty(), AMK_ERR_INVALID_ARGUMENT, "not bound: %s", unbound.c_str());
    const CurrentDevice current(device_);
    guarded([&] { memory_->upload(stream_.get()); });
  }

  void run(int32_t pos) override {
    prepare();
    launch(pos, nullptr);
    finish();
  }

  void launch(int32_t pos, void* caller_stream) override {
    require_usable();
    check_request(pos);
    const CurrentDevice current(device_);
    cudaStream_t stream = caller_stream ? static_cast<cudaStream_t>(caller_stream) : stream_.get();
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
    aim(pos);
    poison_if_guarded(stream);
    enqueue(stream);
    // A captured launch has not begun: whoever replays the graph knows when it is over.
    is_captured_ = capture != cudaStreamCaptureStatusNone;
    if (!is_captured_) {
      check(cudaEventRecord(done_.get(), stream), "cudaEventRecord");
      in_flight_ = true;
    }
  }

  void aim(int32_t pos) override {
    require_usable();
    check_request(pos);
    Mailbox& m = mailbox();
    m.scalars = {pos, 0, ++nonce_};
    m.cancel.store(0, std::memory_order_relaxed);
    std::memset(static_cast<void*>(ledger()), 0, ledger_bytes_);  // an old proof must not pass for the next step's
  }

  void finish() override {
    require_usable();
    AMK_CHECK(in_flight_ || is_captured_, AMK_ERR_INVALID_ARGUMENT, "finish: no step is in flight");
    const CurrentDevice current(device_);
    if (in_flight_) wait_for_step();
    check_proof();
  }

  void time(int32_t pos, int32_t iterations, float* out_us) override {
    AMK_CHECK(iterations >= 1, AMK_ERR_INVALID_ARGUMENT, "iterations is %d, expected >= 1", iterations);
    prepare();
    const CurrentDevice current(device_);
    for (int32_t i = 0; i < iterations; ++i) {
      aim(pos);
      poison_if_guarded(stream_.get());  // before the clock starts: no part of a step
      check(cudaEventRecord(begin_.get(), stream_.get()), "cudaEventRecord");
      enqueue(stream_.get());
      check(cudaEventRecord(done_.get(), stream_.get()), "cudaEventRecord");
      in_flight_ = true;
      finish();
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin_.get(), end_.get()), "cudaEventElapsedTime");
      out_us[i] = ms * 1000;
    }
  }

  void cancel() override { mailbox().cancel.store(1, std::memory_order_relaxed); }

  void reseed(uint64_t) override {
    throw Error(AMK_ERR_UNAVAILABLE, "reseed: the order of tasks on a device is the hardware's");
  }

 private:
  struct Token {
    int32_t buffer, vocab, value;  // an input that indexes a table; the device's copy starts as zero
  };

  Mailbox& mailbox() const { return *static_cast<Mailbox*>(mailbox_.get()); }
  Ledger* ledger() const { return reinterpret_cast<Ledger*>(static_cast<char*>(mailbox_.get()) + sizeof(Mailbox)); }
  const uint32_t* counters() const { return reinterpret_cast<const uint32_t*>(ledger() + 1); }
  const int32_t* choice_values() const {
    return reinterpret_cast<const int32_t*>(reinterpret_cast<const char*>(ledger()) + ledger_bytes_);
  }

  void find_tokens() {
    for (const amk_instruction_t& t : image_.tasks) {
      if (t.op == AMK_OP_EMBED && image_.bindings[t.inputs[0]].kind == AMK_KIND_IO_INPUT &&
          std::none_of(tokens_.begin(), tokens_.end(),
                       [&](const Token& k) { return k.buffer == t.inputs[0] && k.vocab == t.params.vocab; }))
        tokens_.push_back({t.inputs[0], t.params.vocab, 0});
      if (t.op == AMK_OP_ARGMAX_COMBINE) choices_.push_back(t.outputs[0]);
    }
  }

  // Every CUDA call of a built machine: a sticky error poisons it.
  template <class Body>
  void guarded(Body body) {
    try {
      body();
    } catch (const Error& e) {
      if (e.status() == AMK_ERR_DEVICE_FAULT) poison_reason_ = e.what();
      throw;
    }
  }
  void check(cudaError_t code, const char* what) {
    guarded([&] { check_cuda(code, what); });
  }
  void require_usable() const {
    AMK_CHECK(poison_reason_.empty(), AMK_ERR_POISONED, "an earlier call left this machine unusable: %s",
              poison_reason_.c_str());
  }
  void require_idle() const {
    AMK_CHECK(!in_flight_, AMK_ERR_INVALID_ARGUMENT, "a step is in flight: finish it first");
  }
  void check_request(int32_t pos) const {
    require_idle();
    AMK_CHECK(pos >= 0 && pos < image_.launch().max_seq, AMK_ERR_INVALID_ARGUMENT, "position %d is outside [0, %d)",
              pos, image_.launch().max_seq);
    const std::string unbound = memory_->unbound();
    AMK_CHECK(unbound.empty(), AMK_ERR_INVALID_ARGUMENT, "not bound: %s", unbound.c_str());
    for (const Token& t : tokens_)
      AMK_CHECK(t.value >= 0 && t.value < t.vocab, AMK_ERR_INVALID_ARGUMENT,
                "%s holds token %d, expected 0 <= token < %d",
                std::string(image_.buffer_name.at(static_cast<size_t>(t.buffer))).c_str(), t.value, t.vocab);
  }

  char* range(const char* verb, const std::string& name, uint64_t offset, const void* data, uint64_t nbytes,
              bool may_be_output) {
    require_usable();
    require_idle();
    AMK_CHECK(data || nbytes == 0, AMK_ERR_INVALID_ARGUMENT, "%s %s: data is NULL", verb, name.c_str());
    const int64_t b = memory_->find(name);
    const bool allowed = b >= 0 && (is_writable(image_.bindings[b].kind) ||
                                    (may_be_output && image_.bindings[b].kind == AMK_KIND_IO_OUTPUT));
    AMK_CHECK(allowed, AMK_ERR_INVALID_ARGUMENT, "%s %s: no such cache, state, input%s", verb, name.c_str(),
              may_be_output ? " or output" : "");
    const uint64_t size = static_cast<uint64_t>(image_.places[b].nbytes);
    AMK_CHECK(offset <= size && nbytes <= size - offset, AMK_ERR_INVALID_ARGUMENT,
              "%s %s: bytes [%llu, %llu + %llu) of %llu", verb, name.c_str(), (unsigned long long)offset,
              (unsigned long long)offset, (unsigned long long)nbytes, (unsigned long long)size);
    return memory_->at(b) + offset;
  }

  // No output leaves with a NaN or infinity in it: where the reference machine looks after each step, this one looks at
  // what is read, as an output that stays on the device costs nothing.
  void check_finite(const std::string& name, uint64_t offset, const void* data, uint64_t nbytes) const {
    const int64_t b = memory_->find(name);
    if (image_.bindings[b].kind != AMK_KIND_IO_OUTPUT || image_.buffers[b].dtype != AMK_DTYPE_F32) return;
    constexpr uint32_t kExponent = 0x7f800000;
    const uint64_t skipped = (sizeof(float) - offset % sizeof(float)) % sizeof(float);  // of a number cut in two
    const uint64_t count = nbytes < skipped ? 0 : (nbytes - skipped) / sizeof(float);
    const char* first = static_cast<const char*>(data) + skipped;
    const auto bits_of = [&](uint64_t i) {
      uint32_t bits;
      std::memcpy(&bits, first + i * sizeof bits, sizeof bits);
      return bits;
    };
    uint32_t found = 0;  // without a branch, so that the compiler takes many at once
    for (uint64_t i = 0; i < count; ++i) found |= (bits_of(i) & kExponent) == kExponent;
    for (uint64_t i = 0; found && i < count; ++i)
      AMK_CHECK((bits_of(i) & kExponent) != kExponent, AMK_ERR_NONFINITE, "%s[%llu] is %s", name.c_str(),
                (unsigned long long)((offset + skipped) / sizeof(float) + i),
                (bits_of(i) & ~kExponent) << 1 ? "NaN" : "infinite");
  }

  void poison_if_guarded(cudaStream_t stream) {
    if (guard_) guarded([&] { memory_->poison(stream); });
  }

  void enqueue(cudaStream_t stream) {
    char* device = static_cast<char*>(device_ledger_.get());
    Ledger* device_ledger = reinterpret_cast<Ledger*>(device);
    LaunchScalars* device_scalars = reinterpret_cast<LaunchScalars*>(device + scalars_offset_);
    check(cudaMemcpyAsync(device_scalars, &mailbox().scalars, sizeof(LaunchScalars), cudaMemcpyHostToDevice, stream),
          "launch scalars");
    check(cudaMemsetAsync(device_ledger, 0, ledger_bytes_, stream), "counters");
    MachineTables tables{memory_->tasks(),
                         memory_->queue_start(),
                         device_scalars,
                         device_ledger,
                         reinterpret_cast<uint32_t*>(device_ledger + 1),
                         static_cast<uint32_t>(image_.producers.size()),
                         reinterpret_cast<const uint32_t*>(&mailbox().cancel),
                         static_cast<uint64_t>(deadline_ms_) * 1000000,
                         memory_->streams(),
                         memory_->stream_start(),
                         shape_.ring_stages,
                         shape_.ring_window,
                         shape_.ring_slot_bytes,
                         shape_.task_bytes};
    void* arguments[] = {&tables};
    check(cudaLaunchCooperativeKernel(variant_.kernel(), dim3(static_cast<unsigned>(image_.launch().grid)),
                                      dim3(static_cast<unsigned>(block_threads(variant_))), arguments,
                                      shape_.shared_bytes, stream),
          "launch");
    if (stream == stream_.get()) check(cudaEventRecord(end_.get(), stream), "cudaEventRecord");
    check(cudaMemcpyAsync(static_cast<void*>(ledger()), device_ledger, ledger_bytes_, cudaMemcpyDeviceToHost, stream),
          "completion proof");
    for (size_t i = 0; i < choices_.size(); ++i)
      check(cudaMemcpyAsync(const_cast<int32_t*>(choice_values() + i), memory_->at(choices_[i]), sizeof(int32_t),
                            cudaMemcpyDeviceToHost, stream),
            "choice");
  }

  void wait_for_step() {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    const auto patience = std::chrono::milliseconds(int64_t{kHostDeadlines} * deadline_ms_ + kHostGraceMs);
    for (;;) {
      const cudaError_t state = cudaEventQuery(done_.get());
      if (state == cudaSuccess) break;
      if (state != cudaErrorNotReady) {
        in_flight_ = false;
        check(state, "step");
      }
      const auto waited = Clock::now() - start;
      if (waited > patience) mailbox().cancel.store(1, std::memory_order_relaxed);
      if (waited > patience + std::chrono::milliseconds(kHostGraceMs)) {
        in_flight_ = false;
        never_ends_ = true;
        poison_reason_ = "a task did not end within the host's deadline; only ending the process frees the device";
        throw Error(AMK_ERR_TIMEOUT, poison_reason_);
      }
      if (waited > std::chrono::milliseconds(5)) {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      } else {
        std::this_thread::yield();
      }
    }
    in_flight_ = false;
  }

  std::string name_of_task(int32_t task) const {
    return text("task %d (%s)", task, std::string(image_.task_label.at(static_cast<size_t>(task))).c_str());
  }
  void check_proof() const {
    const Ledger& l = *ledger();
    if (l.fault.abort) raise(l.fault);
    AMK_CHECK(l.nonce == mailbox().scalars.nonce, AMK_ERR_INTERNAL, "K4: step %llu was launched, step %llu is echoed",
              (unsigned long long)mailbox().scalars.nonce, (unsigned long long)l.nonce);
    AMK_CHECK(l.tasks_done == image_.tasks.size(), AMK_ERR_INTERNAL, "K4: %u of %zu tasks are done", l.tasks_done,
              image_.tasks.size());
    for (size_t i = 0; i < image_.producers.size(); ++i)
      AMK_CHECK(counters()[i] == image_.producers[i], AMK_ERR_INTERNAL, "K4: counter %zu ended at %u, expected %u", i,
                counters()[i], image_.producers[i]);
    for (size_t i = 0; i < choices_.size(); ++i)
      AMK_CHECK(choice_values()[i] >= 0, AMK_ERR_NONFINITE, "%s[0] is %d: a logit is NaN",
                std::string(image_.buffer_name.at(static_cast<size_t>(choices_[i]))).c_str(), choice_values()[i]);
  }
  [[noreturn]] void raise(const Fault& f) const {
    const std::string task = name_of_task(f.task);
    switch (f.kind) {
      case FaultKind::kUnknownOpcode:
        throw Error(AMK_ERR_DEVICE_FAULT, text("SM %d, %s: opcode %d has no code in this kernel (abort code %d)", f.sm,
                                               task.c_str(), -(f.code + 1), f.code));
      case FaultKind::kCancelled:
        throw Error(AMK_ERR_TIMEOUT, text("cancelled while SM %d, %s waited for counter %d (%u of %u)", f.sm,
                                          task.c_str(), f.counter, f.seen, f.needed));
      case FaultKind::kBadToken:
        throw Error(AMK_ERR_INVALID_ARGUMENT, text("%s: token %d, expected 0 <= token < %u", task.c_str(),
                                                   static_cast<int32_t>(f.seen), f.needed));
      case FaultKind::kStuckWait:
      case FaultKind::kNone: break;
    }
    throw Error(
        AMK_ERR_TIMEOUT,
        text("no progress for %d ms: SM %d, %s waits for counter %d, which is at %u of %u (%u tasks signal it)%s",
             deadline_ms_, f.sm, task.c_str(), f.counter, f.seen, f.needed,
             image_.producers[static_cast<size_t>(f.counter)], first_missing_signal().c_str()));
  }
  // Many blocks wait for what one task did not do: the first task, in table order, that could run and whose counter is
  // short. Others that share its counter may have done their part.
  std::string first_missing_signal() const {
    for (size_t i = 0; i < image_.tasks.size(); ++i) {
      const amk_instruction_t& t = image_.tasks[i];
      bool could_run = true;
      for (int w = 0; w < t.n_waits; ++w)
        could_run &= counters()[t.wait_counter[w]] >= static_cast<uint32_t>(t.wait_threshold[w]);
      const size_t c = static_cast<size_t>(t.out_counter);
      if (could_run && counters()[c] < image_.producers[c])
        return text("; the first missing signal is to counter %zu, at %u of %u, which %s signals", c, counters()[c],
                    image_.producers[c], name_of_task(static_cast<int32_t>(i)).c_str());
    }
    return "";
  }
  void abandon() {
    memory_->abandon();
    device_ledger_.abandon();
    mailbox_.abandon();
    stream_.abandon();
    done_.abandon();
    begin_.abandon();
    end_.abandon();
  }

  const std::shared_ptr<const std::vector<uint8_t>> bytes_;
  const ImageView image_;
  const int device_;
  const bool guard_;
  const int32_t deadline_ms_;
  const KernelVariant& variant_;
  LaunchShape shape_;
  size_t ledger_bytes_ = 0, scalars_offset_ = 0, choice_bytes_ = 0;
  std::vector<Token> tokens_;
  std::vector<int32_t> choices_;  // buffers that ARGMAX_COMBINE writes
  std::unique_ptr<DeviceImage> memory_;
  DeviceMemory device_ledger_;  // Ledger, counters, LaunchScalars
  PinnedMemory mailbox_;        // Mailbox, Ledger, counters, choices
  Stream stream_;
  Event done_, begin_, end_;
  uint64_t nonce_ = 0;
  bool in_flight_ = false, is_captured_ = false, never_ends_ = false;
  std::string poison_reason_;  // not empty: every further call is refused with it
};

}  // namespace

std::unique_ptr<Vm> make_cuda_vm(std::shared_ptr<const std::vector<uint8_t>> image_bytes,
                                 const amk_vm_options_t& options, int32_t device) {
  AMK_CHECK(image_bytes, AMK_ERR_INVALID_ARGUMENT, "no image");
  AMK_CHECK(options.seed == 0 && options.threads == 0, AMK_ERR_INVALID_ARGUMENT,
            "seed and threads choose an order of tasks, which is the hardware's here: both must be 0");
  AMK_CHECK(options.guard == 0 || options.guard == 1, AMK_ERR_INVALID_ARGUMENT, "guard is %d, expected 0 or 1",
            options.guard);
  AMK_CHECK(options.deadline_ms >= 0 && options.deadline_ms <= kMaxDeadlineMs, AMK_ERR_INVALID_ARGUMENT,
            "deadline_ms is %d, expected 0..%d", options.deadline_ms, kMaxDeadlineMs);
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  AMK_CHECK(found == cudaSuccess, AMK_ERR_UNAVAILABLE, "no usable CUDA device: %s (%s)", cudaGetErrorString(found),
            cudaGetErrorName(found));
  AMK_CHECK(device >= 0 && device < count, AMK_ERR_INVALID_ARGUMENT, "device %d of %d", device, count);
  return std::make_unique<CudaVm>(std::move(image_bytes), options, device);
}

}  // namespace amk
