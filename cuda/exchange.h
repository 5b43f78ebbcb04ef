// What crosses between host and device for a step.
// A direct step copies nothing: what it needs are arguments of the kernel, its ledger and counters are zero because the
// last block of the step before cleared them, and its proof comes as tagged words that the kernel stores here
// (device_task.h). Around any other, on a stream of the caller's or captured, are two copies; as one costs some 2 us
// however short it is, what they carry lies together, in the same order on both sides:
//   choices | Ledger, counters | LaunchScalars
// To the device go a cleared ledger and counters and the scalars; back come ledger, counters and, where asked, the
// choices. The two kinds have a ledger and counters each: a replay that nobody announced cannot spoil a direct step.
// In: sizes, a stream. Out: both memories, the copies between them, and what has come of a proof. It knows no program.
#pragma once

#include <atomic>
#include <cstring>

#include "base/checked.h"
#include "cuda_resources.h"
#include "device_task.h"

namespace amk {

class Exchange {
 public:
  static constexpr size_t kLine = 128;  // of the device's L2 cache: counters share none with what is no counter
  static constexpr size_t kTokenRoom = AMK_MAX_BATCH * sizeof(int32_t);

  // Clears the device's side on the stream.
  Exchange(size_t counter_bytes, size_t choice_bytes, cudaStream_t stream)
      : ledger_bytes_(sizeof(Ledger) + counter_bytes),
        choices_at_(lines(kDirectAt + ledger_bytes_)),
        ledger_at_(choices_at_ + lines(choice_bytes + sizeof(Ledger)) - sizeof(Ledger)),
        scalars_at_(lines(ledger_at_ + ledger_bytes_)),
        token_at_(scalars_at_ + sizeof(LaunchScalars)),
        bytes_(token_at_ + kTokenRoom),
        ledger_words_(ledger_bytes_ / sizeof(uint32_t)),
        proof_words_(ledger_words_ + choice_bytes / sizeof(uint32_t)),
        device_(allocate_device(bytes_, "counters")),
        host_(allocate_pinned(host_bytes(), "counters")) {
    std::memset(host_.get(), 0, host_bytes());
    AMK_CUDA_CHECK(cudaMemsetAsync(device_.get(), 0, bytes_, stream));
  }

  // ---- on the device ----
  Ledger* device_ledger(bool direct) const { return device<Ledger>(direct ? kDirectAt : ledger_at_); }
  uint32_t* device_counters(bool direct) const { return reinterpret_cast<uint32_t*>(device_ledger(direct) + 1); }
  int32_t* device_choices() const { return device<int32_t>(choices_at_); }
  const LaunchScalars* device_scalars() const { return device<LaunchScalars>(scalars_at_); }
  int32_t* device_tokens() const { return device<int32_t>(token_at_); }

  // ---- on the host: what is sent, and what came back ----
  LaunchScalars& scalars() const { return *host<LaunchScalars>(scalars_at_); }
  // The device reads it while a step runs.
  std::atomic<uint32_t>& cancel() const { return *host<std::atomic<uint32_t>>(cancel_at()); }
  const int32_t* choices() const { return host<int32_t>(bytes_ + choices_at_); }
  const Ledger* ledger() const { return host<Ledger>(bytes_ + ledger_at_); }
  const uint32_t* counters() const { return reinterpret_cast<const uint32_t*>(ledger() + 1); }
  // Where a direct step's proof is stored, by the device.
  uint64_t* proof() const { return host<uint64_t>(proof_at()); }
  size_t proof_words() const { return proof_words_; }

  // An old proof must not pass for the next step's.
  void forget_proof() {
    std::memset(host<char>(bytes_ + ledger_at_), 0, ledger_bytes_);
    taken_ = 0;
  }
  // Takes what has come of the proof of direct step `nonce`, for ledger(), counters() and choices(). True: all has.
  bool take_proof(uint64_t nonce) {
    const uint32_t tag = static_cast<uint32_t>(nonce);
    uint32_t *const ledger = host<uint32_t>(bytes_ + ledger_at_), *const choices = host<uint32_t>(bytes_ + choices_at_);
    for (; taken_ < proof_words_; ++taken_) {
      // ACQUIRE: pairs with the RELEASE in send_proof() (sync.cuh).
      const uint64_t word = host<std::atomic<uint64_t>>(proof_at())[taken_].load(std::memory_order_acquire);
      if (static_cast<uint32_t>(word >> 32) != tag) return false;
      *(taken_ < ledger_words_ ? ledger + taken_ : choices + (taken_ - ledger_words_)) = static_cast<uint32_t>(word);
    }
    return true;
  }
  size_t taken_words() const { return taken_; }

  // Enqueue; the host's side must not change until the copy is done.
  cudaError_t send(cudaStream_t stream) const {
    return cudaMemcpyAsync(device_ledger(false), host<char>(ledger_at_), token_at_ - ledger_at_, cudaMemcpyHostToDevice,
                           stream);
  }
  cudaError_t receive(cudaStream_t stream, bool with_choices) const {
    const size_t first = with_choices ? choices_at_ : ledger_at_;
    return cudaMemcpyAsync(host<char>(bytes_ + first), device<char>(first), ledger_at_ + ledger_bytes_ - first,
                           cudaMemcpyDeviceToHost, stream);
  }
  // As receive() with choices, of one buffer that lies elsewhere.
  cudaError_t receive_choice(size_t offset_bytes, const void* from, size_t nbytes, cudaStream_t stream) const {
    return cudaMemcpyAsync(host<char>(bytes_ + choices_at_ + offset_bytes), from, nbytes, cudaMemcpyDeviceToHost,
                           stream);
  }
  // For a direct step whose predecessor may not have done it.
  cudaError_t clear_direct(cudaStream_t stream) const {
    return cudaMemsetAsync(device_ledger(true), 0, ledger_bytes_, stream);
  }

  void abandon() {
    device_.abandon();
    host_.abandon();
  }

 private:
  static constexpr size_t kDirectAt = kLine - sizeof(Ledger);  // its counters start on a line

  static size_t lines(size_t nbytes) {
    return static_cast<size_t>(round_up(static_cast<int64_t>(nbytes), static_cast<int64_t>(kLine)));
  }
  // The host's side: what is sent, what came back by a copy or word by word, the words, the cancel word.
  size_t proof_at() const { return lines(2 * bytes_); }
  size_t cancel_at() const { return lines(proof_at() + proof_words_ * sizeof(uint64_t)); }
  size_t host_bytes() const { return cancel_at() + sizeof(uint32_t); }
  template <class T>
  T* device(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(device_.get()) + offset);
  }
  template <class T>
  T* host(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(host_.get()) + offset);
  }

  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t) && sizeof(LaunchScalars) % sizeof(int32_t) == 0);
  static_assert(sizeof(std::atomic<uint64_t>) == sizeof(uint64_t) && std::atomic<uint64_t>::is_always_lock_free);

  const size_t ledger_bytes_, choices_at_, ledger_at_, scalars_at_, token_at_, bytes_, ledger_words_, proof_words_;
  size_t taken_ = 0;
  DeviceMemory device_;
  PinnedMemory host_;
};

}  // namespace amk
