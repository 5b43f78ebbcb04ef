// When each task of a step began to wait, had its inputs, and had signalled: kept by the variants of the kernel that
// are compiled with it (megakernel.cu), and by no other. In: clocks that the blocks of a launch leave in device memory.
// Out: microseconds since the first task began.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda_resources.h"
#include "pack/layout.h"

namespace amk {

// Of the SM that ran the task.
struct TaskClocks {
  uint64_t start, ready, finish;
};
// The clock of one SM against the clock of all, when its queue began and when it ended: what makes clocks of two SMs
// comparable.
struct BlockClocks {
  uint64_t sm_begin, ns_begin, sm_end, ns_end;
};

// The memory of one machine's timeline.
class Timeline {
 public:
  explicit Timeline(const ImageView& image);

  TaskClocks* tasks() const { return static_cast<TaskClocks*>(device_.get()); }  // in queue order
  BlockClocks* blocks() const { return reinterpret_cast<BlockClocks*>(tasks() + image_.tasks.size()); }
  // Enqueues the copy of what a launch left.
  void enqueue_copy(cudaStream_t stream);
  // Of the last step that was finished; entry i is task i.
  std::vector<amk_task_time_t> read() const;
  void abandon();

 private:
  size_t nbytes() const;

  const ImageView image_;
  DeviceMemory device_;
  PinnedMemory host_;
};

}  // namespace amk
