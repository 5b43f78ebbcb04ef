// The device's side of an image: one allocation for everything its tasks touch, one for the task records.
// In: an image, then weights by name. Out: addresses, and DeviceTasks with addresses for buffer ids. It never launches.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_resources.h"
#include "device_task.h"
#include "pack/layout.h"

namespace amk {

constexpr uint8_t kDevicePoisonByte = 0xff;  // NaN in every float type, -1 in every integer

class DeviceImage {
 public:
  // A storage that the caller has device memory for.
  struct Placed {
    int32_t storage;
    void* at;
  };
  // Allocates the others, uploads the tables and zeroes cache, state, inputs, outputs and arena.
  // `share`: whose weights, constants and caches to use (amk.h), or null.
  DeviceImage(const ImageView& image, std::initializer_list<Placed> placed, cudaStream_t stream,
              const DeviceImage* share);

  // INVALID_ARGUMENT as Vm::bind says. Remembers the pointer; upload() copies.
  void bind(const std::string& name, const void* ptr, uint64_t nbytes);
  bool is_bound() const { return unbound_count_ == 0; }
  // Names not bound yet; "" when there is none.
  std::string unbound() const;
  // Copies what was bound since the last call, through pinned memory, and waits.
  void upload(cudaStream_t stream);
  // Task records, queues and streams from the image to the device, and waits. The constructor does it.
  void upload_tables(cudaStream_t stream);
  // Enqueues: what a step may not rely on becomes NaN.
  void poison(cudaStream_t stream) const;

  char* at(int64_t buffer) const;
  int64_t find(std::string_view name) const;  // the buffer of this name, or -1
  const DeviceTask* tasks() const { return reinterpret_cast<const DeviceTask*>(static_cast<char*>(tables_.get())); }
  const uint32_t* queue_start() const { return table<uint32_t>(queue_start_at_); }
  const StreamTask* streams() const { return table<StreamTask>(streams_at_); }
  const uint32_t* stream_start() const { return table<uint32_t>(stream_start_at_); }
  void abandon();

 private:
  struct Region {
    char* base = nullptr;
    const void* source = nullptr;  // bound host memory
    bool is_dirty = false, is_shared = false;
    int64_t nbytes = 0;                            // on the device
    int64_t rows = 0, columns = 0, row_bytes = 0;  // of what is packed, as it is bound
    int32_t group = 0;                             // of a packed quantised matrix and of its scales
    int32_t matrix = -1;                           // of such scales: the storage in whose slots they lie
  };
  template <class T>
  const T* table(size_t offset_bytes) const {
    return reinterpret_cast<const T*>(static_cast<const char*>(tables_.get()) + offset_bytes);
  }
  std::vector<BatchTask> relocate() const;
  void plan_regions();
  void take_shared(const DeviceImage& share);
  void repack(size_t i, const void* plain, int64_t first_row, int64_t row_count, cudaStream_t stream) const;

  const ImageView image_;
  std::vector<Region> regions_;  // per storage
  int unbound_count_ = 0;
  bool any_dirty_ = false;
  std::vector<std::shared_ptr<DeviceMemory>> memory_;  // its own, and that of whoever it shares with
  DeviceMemory tables_;  // DeviceTasks, then at the offsets below what the kernel reads beside them
  size_t tables_bytes_ = 0;
  size_t queue_start_at_ = 0, streams_at_ = 0, stream_start_at_ = 0;
};

// Whether a task of the image works on several tokens: it runs on the kernel that is made for them.
bool is_batched(const ImageView& image);

// Dynamic shared memory that the largest task needs beside the ring, in blocks of `threads`. REJECTED for a task that
// no shared memory of limit_bytes can hold, or that the kernel of this image has no code for at its size.
int64_t needed_shared_bytes(const ImageView& image, int threads, int64_t limit_bytes);

}  // namespace amk
