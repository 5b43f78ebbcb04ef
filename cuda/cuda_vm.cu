// The GPU machine's host side: what is checked before a launch, the launch, and what is checked after it.
// In: bytes of an Image, weights by name, a position. Out: outputs by name, or an Error. It computes nothing.
// A step on the machine's own stream is one launch, which is given all that it needs and sends its own proof; on a
// caller's stream, which may be capturing, it is a copy, the launch, and a copy of its proof back (exchange.h).
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/checked.h"
#include "device_memory.h"
#include "exchange.h"
#include "launch_shape.h"
#include "ops/op_spec.h"
#include "proof.h"
#include "test_machine.h"
#include "timeline.h"
#include "variants.h"
#include "vm/states.h"
#include "vm/vm.h"

namespace amk {
namespace {

constexpr int32_t kDefaultDeadlineMs = 2000, kMaxDeadlineMs = 3600 * 1000;
// The device's own watchdog ends a stuck wait; a task that never ends is the host's to notice, later than that.
constexpr int kHostDeadlines = 2, kHostGraceMs = 1000;
constexpr int kSpinMs = 20;           // longer than any step of a decoder: a sleep would cost it some 50 us
constexpr int kQueriesPerYield = 32;  // a yield takes longer than a query where the kernel is not the system's own
constexpr int kPollsPerQuery = 1024;  // of a direct step's proof, some 50 us; a query costs 1 us and sees a dead kernel

// Between two looks at a word that another processor will write.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

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

class CudaVm final : public Vm {
 public:
  // variant: null for the compiled one that the image asks for. share: null, or whose memory to use (amk.h).
  CudaVm(const KernelVariant* variant, std::shared_ptr<const std::vector<uint8_t>> bytes,
         const amk_vm_options_t& options, int device, const CudaVm* share)
      : bytes_(std::move(bytes)),
        image_(ImageView::open(bytes_->data(), bytes_->size())),
        device_(device),
        guard_(options.guard == 1),
        deadline_ms_(options.deadline_ms ? options.deadline_ms : kDefaultDeadlineMs),
        variant_(variant ? *variant : find_variant(image_.launch().threads_per_block)),
        kernel_(variant_.kernel(is_batched(image_), options.timeline == 1)),
        batch_(program_batch(image_.tasks)),
        states_(image_),
        proof_(image_, choices_, deadline_ms_) {
    AMK_CHECK(kernel_, AMK_ERR_UNSUPPORTED, "this kernel has no form for several tokens or for a timeline");
    const CurrentDevice current(device_);
    shape_ = prove_occupancy(image_, variant_, kernel_, device_);
    stream_ = make_stream();
    done_ = make_event(cudaEventDisableTiming);
    begin_ = make_event(cudaEventDefault);
    end_ = make_event(cudaEventDefault);
    find_tokens();
    size_t choice_bytes = 0;
    for (const Choice& c : choices_) choice_bytes += static_cast<size_t>(c.count) * sizeof(int32_t);
    is_direct_ = decodes_ || choices_.empty();
    exchange_ = std::make_unique<Exchange>(image_.producers.size_bytes(), choice_bytes, stream_.get());
    AMK_CHECK(!share || share->device_ == device_, AMK_ERR_INVALID_ARGUMENT,
              "share: the other machine is on device %d, this one on %d", share ? share->device_ : 0, device_);
    memory_ = make_memory(share ? share->memory_.get() : nullptr);
    if (options.timeline == 1) timeline_ = std::make_unique<Timeline>(image_);
  }

  ~CudaVm() override {
    try {
      const CurrentDevice current(device_);
      if (in_flight_) wait_for_step();
      if (!never_ends_)
        cudaStreamSynchronize(stream_.get());  // a direct step's last block ends after its proof is here
    } catch (const Error&) {
    }
    if (never_ends_) abandon();
  }

  int32_t batch() const override { return batch_; }

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
    states_.written(memory_->find(name), nbytes);
    for (Token& t : tokens_) {  // keep what the host must know to refuse a token before the launch
      for (size_t i = 0; i < t.values.size(); ++i) {
        const char* token_at = memory_->at(t.buffer) + i * sizeof(int32_t);
        if (at > token_at || at + nbytes < token_at + sizeof(int32_t)) continue;
        std::memcpy(&t.values[i], static_cast<const char*>(data) + (token_at - at), sizeof(int32_t));
      }
    }
  }

  void read(const std::string& name, uint64_t offset, void* data, uint64_t nbytes) override {
    const char* at = range("read", name, offset, data, nbytes, true);
    states_.require_readable(memory_->find(name));
    if (!nbytes) return;
    const CurrentDevice current(device_);
    check(cudaMemcpyAsync(data, at, nbytes, cudaMemcpyDeviceToHost, stream_.get()), "read");
    check(cudaStreamSynchronize(stream_.get()), "read");
    or_poison_states([&] { check_finite(name, offset, data, nbytes); });
  }

  void reset_state() override {
    require_usable();
    require_idle();
    const CurrentDevice current(device_);
    for (int32_t b : states_.buffers())
      check(cudaMemsetAsync(memory_->at(b), 0, static_cast<size_t>(image_.places[b].nbytes), stream_.get()), "reset");
    check(cudaStreamSynchronize(stream_.get()), "reset");
    states_.reset();
  }

  void prepare() override {
    require_usable();
    require_idle();
    const CurrentDevice current(device_);
    upload();
  }

  void run(int32_t pos) override {
    require_usable();
    require_idle();
    const CurrentDevice current(device_);
    upload();
    check_request(pos);
    begin(pos);
    finish_step();
  }

  // The tokens go with the launch, and the choices come back with the proof: nothing is copied.
  void decode_batch(const int32_t* tokens, int32_t n, int32_t pos, int32_t* next) override {
    if (!decodes_ || n != batch_) return Vm::decode_batch(tokens, n, pos, next);
    require_usable();
    require_idle();
    Token& input = tokens_[0];
    for (int32_t t = 0; t < n; ++t) require_token(input, tokens[t]);
    const CurrentDevice current(device_);
    upload();
    check_position(pos);
    std::copy_n(tokens, n, input.values.begin());
    begin(pos);
    finish_step();
    std::copy_n(exchange_->choices(), n, next);
  }

  void launch(int32_t pos, void* caller_stream) override {
    require_usable();
    check_request(pos);
    const CurrentDevice current(device_);
    if (!caller_stream) return begin(pos);
    const cudaStream_t stream = static_cast<cudaStream_t>(caller_stream);
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
    set_scalars(pos);
    poison_if_guarded(stream);
    or_poison_states([&] { enqueue(stream, nullptr); });
    // A captured launch has not begun: whoever replays the graph knows when it is over.
    is_captured_ = capture != cudaStreamCaptureStatusNone;
    if (!is_captured_) record_done(stream);
  }

  void aim(int32_t pos) override {
    require_usable();
    check_request(pos);
    set_scalars(pos);
  }

  void finish() override {
    require_usable();
    AMK_CHECK(in_flight_ || is_captured_, AMK_ERR_INVALID_ARGUMENT, "finish: no step is in flight");
    const CurrentDevice current(device_);
    finish_step();
  }

  void time(int32_t pos, int32_t iterations, float* out_us) override {
    AMK_CHECK(iterations >= 1, AMK_ERR_INVALID_ARGUMENT, "iterations is %d, expected >= 1", iterations);
    prepare();
    const CurrentDevice current(device_);
    for (int32_t i = 0; i < iterations; ++i) {
      aim(pos);
      poison_if_guarded(stream_.get());  // before the clock starts: no part of a step
      check(cudaEventRecord(begin_.get(), stream_.get()), "cudaEventRecord");
      enqueue_own(end_.get());
      finish_step();
      float ms = 0;
      check(cudaEventSynchronize(end_.get()), "cudaEventSynchronize");  // the proof of a direct step is here before it
      check(cudaEventElapsedTime(&ms, begin_.get(), end_.get()), "cudaEventElapsedTime");
      out_us[i] = ms * 1000;
    }
  }

  std::vector<amk_task_time_t> timeline() override {
    AMK_CHECK(timeline_, AMK_ERR_INVALID_ARGUMENT,
              "timeline: the machine was made without one (options.timeline is 0)");
    require_usable();
    require_idle();
    AMK_CHECK(has_step_, AMK_ERR_INVALID_ARGUMENT, "timeline: no step has been finished");
    const CurrentDevice current(device_);
    check(cudaStreamSynchronize(stream_.get()), "timeline");  // its copy may follow the proof
    return timeline_->read();
  }

  void rebuild_tables(const std::vector<uint8_t>& bytes) {
    require_usable();
    require_idle();
    AMK_CHECK(ImageView::of_own(bytes.data(), bytes.size()).header->hash == image_.header->hash,
              AMK_ERR_INVALID_ARGUMENT, "rebuild_tables: the bytes are another image's");
    const CurrentDevice current(device_);
    guarded([&] { memory_->upload_tables(stream_.get()); });
  }

  void cancel() override { exchange_->cancel().store(1, std::memory_order_relaxed); }

  void reseed(uint64_t) override {
    throw Error(AMK_ERR_UNAVAILABLE, "reseed: the order of tasks on a device is the hardware's");
  }

 private:
  struct Token {
    int32_t buffer, vocab;        // an input that indexes a table
    std::vector<int32_t> values;  // the device's copy starts as zero
  };
  void find_tokens() {
    for (const amk_instruction_t& t : image_.tasks) {
      if (t.op == AMK_OP_ARGMAX_COMBINE) choices_.push_back({t.outputs[0], op_tokens(t)});
      if (t.op != AMK_OP_EMBED || image_.bindings[t.inputs[0]].kind != AMK_KIND_IO_INPUT) continue;
      const auto known = std::find_if(tokens_.begin(), tokens_.end(), [&](const Token& k) {
        return k.buffer == t.inputs[0] && k.vocab == t.params.vocab;
      });
      Token& token = known == tokens_.end() ? tokens_.emplace_back(Token{t.inputs[0], t.params.vocab, {}}) : *known;
      token.values.resize(std::max(token.values.size(), static_cast<size_t>(op_tokens(t))));
    }
    const auto is_named = [&](int32_t buffer, std::string_view name) {
      return image_.buffer_name.at(static_cast<size_t>(buffer)) == name;
    };
    decodes_ = tokens_.size() == 1 && is_named(tokens_[0].buffer, "token") && choices_.size() == 1 &&
               is_named(choices_[0].buffer, "next_token") && choices_[0].count == batch_ &&
               tokens_[0].values.size() == static_cast<size_t>(batch_) && is_alone(tokens_[0].buffer) &&
               is_alone(choices_[0].buffer);
  }
  // A number for each token of a step, in a storage of its own.
  bool is_alone(int32_t buffer) const {
    const ImagePlace& place = image_.places[buffer];
    const int64_t nbytes = int64_t{batch_} * static_cast<int64_t>(sizeof(int32_t));
    return place.storage > 0 && place.nbytes == nbytes && image_.storages[place.storage].nbytes == nbytes;
  }

  // Tokens and choices of a decoder lie where a step's copies pass.
  std::unique_ptr<DeviceImage> make_memory(const DeviceImage* share) const {
    using Places = std::initializer_list<DeviceImage::Placed>;
    if (!decodes_) return std::make_unique<DeviceImage>(image_, Places{}, stream_.get(), share);
    const DeviceImage::Placed tokens{image_.places[tokens_[0].buffer].storage, exchange_->device_tokens()};
    const DeviceImage::Placed choices{image_.places[choices_[0].buffer].storage, exchange_->device_choices()};
    return std::make_unique<DeviceImage>(image_, Places{tokens, choices}, stream_.get(), share);
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
  // What fails once a step may have begun.
  template <class Body>
  void or_poison_states(Body body) {
    try {
      body();
    } catch (const Error& e) {
      states_.poison(e.what());
      throw;
    }
  }
  void require_usable() const {
    AMK_CHECK(poison_reason_.empty(), AMK_ERR_POISONED, "an earlier call left this machine unusable: %s",
              poison_reason_.c_str());
  }
  void require_idle() const {
    AMK_CHECK(!in_flight_, AMK_ERR_INVALID_ARGUMENT, "a step is in flight: finish it first");
  }
  void upload() {
    AMK_CHECK(memory_->is_bound(), AMK_ERR_INVALID_ARGUMENT, "not bound: %s", memory_->unbound().c_str());
    guarded([&] { memory_->upload(stream_.get()); });
  }
  void check_position(int32_t pos) const {
    states_.require_good();
    require_positions(pos, batch(), image_.launch().max_seq);
  }
  void check_request(int32_t pos) const {
    require_idle();
    check_position(pos);
    AMK_CHECK(memory_->is_bound(), AMK_ERR_INVALID_ARGUMENT, "not bound: %s", memory_->unbound().c_str());
    for (const Token& t : tokens_)
      for (int32_t value : t.values) require_token(t, value);
  }
  void require_token(const Token& t, int32_t value) const {
    AMK_CHECK(value >= 0 && value < t.vocab, AMK_ERR_INVALID_ARGUMENT, "%s holds token %d, expected 0 <= token < %d",
              std::string(image_.buffer_name.at(static_cast<size_t>(t.buffer))).c_str(), value, t.vocab);
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

  void set_scalars(int32_t pos) {
    exchange_->scalars() = {pos, 0, ++nonce_};
    exchange_->cancel().store(0, std::memory_order_relaxed);
    exchange_->forget_proof();
  }

  // A request that was checked, on the machine's own stream.
  void begin(int32_t pos) {
    set_scalars(pos);
    poison_if_guarded(stream_.get());
    enqueue_own(nullptr);
  }
  void finish_step() {
    or_poison_states([&] {
      if (in_flight_) wait_for_step();
      has_step_ = false;
      proof_.check(*exchange_->ledger(), exchange_->counters(), exchange_->choices(), exchange_->scalars().nonce);
      has_step_ = true;
    });
  }
  void record_done(cudaStream_t stream) {
    check(cudaEventRecord(done_.get(), stream), "cudaEventRecord");
    in_flight_ = true;
    is_direct_step_ = false;
  }

  // end: recorded behind the kernel, or null.
  void enqueue_own(cudaEvent_t end) {
    or_poison_states([&] { is_direct_ ? enqueue_direct(end) : enqueue(stream_.get(), end); });
    is_captured_ = false;
    if (!is_direct_) record_done(stream_.get());
  }
  void enqueue_direct(cudaEvent_t end) {
    if (!is_clear_) check(exchange_->clear_direct(stream_.get()), "counters");
    is_clear_ = false;
    launch_kernel(stream_.get(), true, end);
    in_flight_ = is_direct_step_ = true;
  }
  void enqueue(cudaStream_t stream, cudaEvent_t end) {
    check(exchange_->send(stream), "launch scalars and counters");
    launch_kernel(stream, false, end);
    check(exchange_->receive(stream, decodes_), "completion proof");
    if (decodes_) return;
    size_t at = 0;
    for (const Choice& c : choices_) {
      const size_t nbytes = static_cast<size_t>(c.count) * sizeof(int32_t);
      check(exchange_->receive_choice(at, memory_->at(c.buffer), nbytes, stream), "choice");
      at += nbytes;
    }
  }
  DirectStep direct_step() const {
    DirectStep step{exchange_->proof(),         exchange_->scalars(), {}, exchange_->device_tokens(), 0, 0,
                    exchange_->device_choices()};
    if (!decodes_) return step;
    step.n_tokens = step.n_choices = batch_;
    std::copy_n(tokens_[0].values.begin(), batch_, step.tokens);
    return step;
  }
  void launch_kernel(cudaStream_t stream, bool direct, cudaEvent_t end) {
    MachineTables tables{memory_->tasks(),
                         memory_->queue_start(),
                         direct ? nullptr : exchange_->device_scalars(),
                         exchange_->device_ledger(direct),
                         exchange_->device_counters(direct),
                         static_cast<uint32_t>(image_.producers.size()),
                         reinterpret_cast<const uint32_t*>(&exchange_->cancel()),
                         static_cast<uint64_t>(deadline_ms_) * 1000000,
                         memory_->streams(),
                         memory_->stream_start(),
                         shape_.ring_slots,
                         shape_.ring_window,
                         shape_.ring_slot_bytes,
                         shape_.ring_pace,
                         shape_.task_bytes,
                         timeline_ ? timeline_->tasks() : nullptr,
                         timeline_ ? timeline_->blocks() : nullptr,
                         direct ? direct_step() : DirectStep{}};
    void* arguments[] = {&tables};
    check(cudaLaunchCooperativeKernel(kernel_, dim3(static_cast<unsigned>(image_.launch().grid)),
                                      dim3(static_cast<unsigned>(block_threads(variant_))), arguments,
                                      shape_.shared_bytes, stream),
          "launch");
    if (end) check(cudaEventRecord(end, stream), "cudaEventRecord");
    if (timeline_) guarded([&] { timeline_->enqueue_copy(stream); });
  }

  // Whether the step in flight is over, as far as one query says; a direct step's proof is awaited a while first.
  bool query_step() {
    const auto is_ready = [&](cudaError_t state) {
      if (state != cudaSuccess && state != cudaErrorNotReady) {
        in_flight_ = false;
        check(state, "step");
      }
      return state == cudaSuccess;
    };
    if (!is_direct_step_) return is_ready(cudaEventQuery(done_.get()));
    const uint64_t nonce = exchange_->scalars().nonce;
    const auto is_told = [&] { return is_clear_ = exchange_->take_proof(nonce); };
    for (int polls = 0; polls < kPollsPerQuery; ++polls) {
      if (is_told()) return true;
      relax();
    }
    if (!is_ready(cudaStreamQuery(stream_.get()))) return false;
    if (is_told()) return true;
    in_flight_ = false;  // all that the stream held is over
    throw Error(AMK_ERR_INTERNAL,
                text("K4: step %llu was launched and is over, but only %zu of %zu words of its proof came",
                     (unsigned long long)nonce, exchange_->taken_words(), exchange_->proof_words()));
  }

  void wait_for_step() {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    const auto patience = std::chrono::milliseconds(int64_t{kHostDeadlines} * deadline_ms_ + kHostGraceMs);
    for (int queries = 1; !query_step(); ++queries) {
      const auto waited = Clock::now() - start;
      if (waited > patience) exchange_->cancel().store(1, std::memory_order_relaxed);
      if (waited > patience + std::chrono::milliseconds(kHostGraceMs)) {
        in_flight_ = false;
        never_ends_ = true;
        poison_reason_ = "a task did not end within the host's deadline; only ending the process frees the device";
        throw Error(AMK_ERR_TIMEOUT, poison_reason_);
      }
      if (waited > std::chrono::milliseconds(kSpinMs)) {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      } else if (queries % kQueriesPerYield == 0) {
        std::this_thread::yield();
      }
    }
    in_flight_ = false;
  }

  void abandon() {
    memory_->abandon();
    if (timeline_) timeline_->abandon();
    exchange_->abandon();
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
  const void* const kernel_;
  const int32_t batch_;
  States states_;
  LaunchShape shape_;
  std::vector<Token> tokens_;
  std::vector<Choice> choices_;
  Proof proof_;
  bool decodes_ = false;    // a step's tokens in, as many choices out, by their usual names
  bool is_direct_ = false;  // what its own stream runs: the kernel knows where all choices lie
  std::unique_ptr<Exchange> exchange_;
  std::unique_ptr<DeviceImage> memory_;
  Stream stream_;
  Event done_, begin_, end_;
  uint64_t nonce_ = 0;
  std::unique_ptr<Timeline> timeline_;
  bool has_step_ = false, in_flight_ = false, is_direct_step_ = false, is_captured_ = false, never_ends_ = false;
  bool is_clear_ = true;       // the ledger and counters of direct steps: the last one's proof was sent
  std::string poison_reason_;  // not empty: every further call is refused with it
};

std::unique_ptr<Vm> make(const KernelVariant* variant, std::shared_ptr<const std::vector<uint8_t>> image_bytes,
                         const amk_vm_options_t& options, int32_t device, const Vm* share) {
  AMK_CHECK(image_bytes, AMK_ERR_INVALID_ARGUMENT, "no image");
  AMK_CHECK(options.seed == 0 && options.threads == 0, AMK_ERR_INVALID_ARGUMENT,
            "seed and threads choose an order of tasks, which is the hardware's here: both must be 0");
  AMK_CHECK(options.guard == 0 || options.guard == 1, AMK_ERR_INVALID_ARGUMENT, "guard is %d, expected 0 or 1",
            options.guard);
  AMK_CHECK(options.timeline == 0 || options.timeline == 1, AMK_ERR_INVALID_ARGUMENT, "timeline is %d, expected 0 or 1",
            options.timeline);
  AMK_CHECK(options.deadline_ms >= 0 && options.deadline_ms <= kMaxDeadlineMs, AMK_ERR_INVALID_ARGUMENT,
            "deadline_ms is %d, expected 0..%d", options.deadline_ms, kMaxDeadlineMs);
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  AMK_CHECK(found == cudaSuccess, AMK_ERR_UNAVAILABLE, "no usable CUDA device: %s (%s)", cudaGetErrorString(found),
            cudaGetErrorName(found));
  AMK_CHECK(device >= 0 && device < count, AMK_ERR_INVALID_ARGUMENT, "device %d of %d", device, count);
  const CudaVm* other = dynamic_cast<const CudaVm*>(share);
  AMK_CHECK(!share || other, AMK_ERR_INVALID_ARGUMENT, "share: expected a machine on a GPU, got one of another kind");
  return std::make_unique<CudaVm>(variant, std::move(image_bytes), options, device, other);
}

}  // namespace

std::unique_ptr<Vm> make_cuda_vm(std::shared_ptr<const std::vector<uint8_t>> image_bytes,
                                 const amk_vm_options_t& options, int32_t device, const Vm* share) {
  return make(nullptr, std::move(image_bytes), options, device, share);
}

std::unique_ptr<Vm> make_cuda_vm_of(const KernelVariant& variant,
                                    std::shared_ptr<const std::vector<uint8_t>> image_bytes,
                                    const amk_vm_options_t& options, int32_t device) {
  return make(&variant, std::move(image_bytes), options, device, nullptr);
}

void rebuild_tables(Vm& machine, const std::vector<uint8_t>& image_bytes) {
  static_cast<CudaVm&>(machine).rebuild_tables(image_bytes);
}

}  // namespace amk
