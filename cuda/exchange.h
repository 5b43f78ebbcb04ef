// What crosses between host and device for a step: one copy before it, one after it. A copy costs some 2 us however
// short it is, so what a step needs lies together, in the same order on both sides:
//   choices | Ledger, counters | LaunchScalars | tokens
// To the device go a cleared ledger and counters, the scalars and, where asked, the tokens; back come ledger, counters
// and, where asked, the choices.
// In: sizes, a stream. Out: both memories and the copies between them. It knows no program.
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
        ledger_at_(lines(choice_bytes + sizeof(Ledger)) - sizeof(Ledger)),
        scalars_at_(lines(ledger_at_ + ledger_bytes_)),
        token_at_(scalars_at_ + sizeof(LaunchScalars)),
        bytes_(token_at_ + kTokenRoom),
        device_(allocate_device(bytes_, "counters")),
        host_(allocate_pinned(2 * bytes_ + sizeof(int32_t), "counters")) {
    std::memset(host_.get(), 0, 2 * bytes_ + sizeof(int32_t));
    AMK_CUDA_CHECK(cudaMemsetAsync(device_.get(), 0, bytes_, stream));
  }

  // ---- on the device ----
  int32_t* device_choices() const { return device<int32_t>(0); }
  Ledger* device_ledger() const { return device<Ledger>(ledger_at_); }
  uint32_t* device_counters() const { return device<uint32_t>(ledger_at_ + sizeof(Ledger)); }
  const LaunchScalars* device_scalars() const { return device<LaunchScalars>(scalars_at_); }
  int32_t* device_tokens() const { return device<int32_t>(token_at_); }

  // ---- on the host: what is sent, and what came back ----
  LaunchScalars& scalars() const { return *sent<LaunchScalars>(scalars_at_); }
  int32_t* tokens() const { return sent<int32_t>(token_at_); }
  // The device reads it while a step runs.
  std::atomic<uint32_t>& cancel() const { return *sent<std::atomic<uint32_t>>(2 * bytes_); }
  int32_t* choices() const { return sent<int32_t>(bytes_); }
  Ledger* ledger() const { return sent<Ledger>(bytes_ + ledger_at_); }
  const uint32_t* counters() const { return reinterpret_cast<const uint32_t*>(ledger() + 1); }

  // An old proof must not pass for the next step's.
  void forget_proof() const { std::memset(static_cast<void*>(ledger()), 0, ledger_bytes_); }

  // Enqueue; the host's side must not change until the copy is done.
  cudaError_t send(cudaStream_t stream, bool with_tokens) const {
    const size_t end = with_tokens ? bytes_ : token_at_;
    return cudaMemcpyAsync(device_ledger(), sent<char>(ledger_at_), end - ledger_at_, cudaMemcpyHostToDevice, stream);
  }
  cudaError_t receive(cudaStream_t stream, bool with_choices) const {
    const size_t first = with_choices ? 0 : ledger_at_;
    return cudaMemcpyAsync(sent<char>(bytes_ + first), device<char>(first), ledger_at_ + ledger_bytes_ - first,
                           cudaMemcpyDeviceToHost, stream);
  }

  void abandon() {
    device_.abandon();
    host_.abandon();
  }

 private:
  static size_t lines(size_t nbytes) {
    return static_cast<size_t>(round_up(static_cast<int64_t>(nbytes), static_cast<int64_t>(kLine)));
  }
  template <class T>
  T* device(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(device_.get()) + offset);
  }
  template <class T>
  T* sent(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(host_.get()) + offset);
  }

  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t) && sizeof(LaunchScalars) % sizeof(int32_t) == 0);

  const size_t ledger_bytes_, ledger_at_, scalars_at_, token_at_, bytes_;
  DeviceMemory device_;
  PinnedMemory host_;
};

}  // namespace amk
