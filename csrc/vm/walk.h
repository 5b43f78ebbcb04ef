// walk(): runs the tasks of an image in one legal order, on one thread or several, and asserts the counters.
// In: queues, waits, and a function that runs a task. Out: every task run once after the tasks it waits for. It never
// touches data: whatever orders two accesses to data is a counter or a queue, as on the device.
#pragma once

#include <cstdint>
#include <functional>

#include "pack/layout.h"

namespace amk {

// How many workers walk() will use: threads clamped to the queues, 1 for threads = 0.
int32_t worker_count(const ImageView& image, int32_t threads);

// Calls run_task(task, worker) for every task. One thread (threads = 0): seed 0 is the table order, as far as queues
// and counters allow it, another seed picks at random among the queues whose head is ready. Several threads: queue q
// belongs to worker q mod threads, and the seed decides in which order a worker looks at its queues.
// INTERNAL: a deadlock, or a counter that does not end at the number of its producers. A throwing task stops all
// workers and its exception is rethrown here; OUT_OF_MEMORY when a thread cannot be started.
void walk(const ImageView& image, uint64_t seed, int32_t threads,
          const std::function<void(uint32_t task, int32_t worker)>& run_task);

}  // namespace amk
