#include "timeline.h"

#include <algorithm>
#include <limits>

namespace amk {

Timeline::Timeline(const ImageView& image)
    : image_(image),
      device_(allocate_device(nbytes(), "the timeline")),
      host_(allocate_pinned(nbytes(), "the timeline")) {}

size_t Timeline::nbytes() const {
  return image_.tasks.size() * sizeof(TaskClocks) + static_cast<size_t>(image_.launch().grid) * sizeof(BlockClocks);
}

void Timeline::enqueue_copy(cudaStream_t stream) {
  AMK_CUDA_CHECK(cudaMemcpyAsync(host_.get(), device_.get(), nbytes(), cudaMemcpyDeviceToHost, stream));
}

std::vector<amk_task_time_t> Timeline::read() const {
  const auto* tasks = static_cast<const TaskClocks*>(host_.get());
  const auto* blocks = reinterpret_cast<const BlockClocks*>(tasks + image_.tasks.size());
  const uint64_t origin_ns = blocks[0].ns_begin;  // small numbers keep their digits in a double
  std::vector<amk_task_time_t> out(image_.tasks.size());
  double first = std::numeric_limits<double>::infinity();
  for (size_t q = 0; q + 1 < image_.queue_start.size(); ++q) {
    const BlockClocks& b = blocks[q];
    const uint64_t ticks = b.sm_end - b.sm_begin;
    const double us_per_tick =
        ticks ? static_cast<double>(b.ns_end - b.ns_begin) / static_cast<double>(ticks) / 1e3 : 0;
    const double begin_us = static_cast<double>(static_cast<int64_t>(b.ns_begin - origin_ns)) / 1e3;
    const auto us = [&](uint64_t clock) { return begin_us + static_cast<double>(clock - b.sm_begin) * us_per_tick; };
    for (uint32_t i = image_.queue_start[q]; i < image_.queue_start[q + 1]; ++i) {
      const uint32_t task = image_.queue_task[i];
      out[task] = {static_cast<int32_t>(task), static_cast<int32_t>(q), us(tasks[i].start), us(tasks[i].ready),
                   us(tasks[i].finish)};
      first = std::min(first, out[task].start_us);
    }
  }
  for (amk_task_time_t& t : out) {
    t.start_us -= first;
    t.ready_us -= first;
    t.finish_us -= first;
  }
  return out;
}

void Timeline::abandon() {
  device_.abandon();
  host_.abandon();
}

}  // namespace amk
