#include "vm/walk.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <queue>
#include <thread>
#include <vector>

#include "base/error.h"

namespace amk {
namespace {

using RunTask = std::function<void(uint32_t task, int32_t worker)>;

// splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  size_t below(size_t n) { return static_cast<size_t>(next() % n); }

 private:
  uint64_t state_;
};

// The first wait of a task that is not satisfied, or -1. value(c) reads a counter.
template <class F>
int first_unmet(const amk_instruction_t& t, F value) {
  for (int i = 0; i < t.n_waits; ++i)
    if (value(t.wait_counter[i]) < static_cast<uint32_t>(t.wait_threshold[i])) return i;
  return -1;
}

template <class F>
void check_counters(const ImageView& image, F value) {
  for (size_t c = 0; c < image.producers.size(); ++c)
    AMK_CHECK(value(c) == image.producers[c], AMK_ERR_INTERNAL,
              "counter %zu ended the step at %u, its producers are %u", c, value(c), image.producers[c]);
}

[[noreturn]] void fail_deadlock(size_t done, size_t total) {
  throw Error(AMK_ERR_INTERNAL, text("deadlock: %zu of %zu tasks ran and no queue's head is ready", done, total));
}

// One thread. A queue is ready, parked on the counter its head waits for, or done.
class SequentialWalk {
 public:
  SequentialWalk(const ImageView& image, uint64_t seed)
      : image_(image),
        random_(seed),
        ordered_(seed == 0),
        counters_(image.producers.size()),
        next_(image.queue_start.begin(), image.queue_start.end() - 1),
        parked_on_(image.producers.size(), kNone),
        wake_at_(image.producers.size(), UINT32_MAX),
        parked_next_(next_.size(), kNone) {}

  void run(const RunTask& run_task) {
    for (size_t q = 0; q < next_.size(); ++q) look_at(static_cast<uint32_t>(q));
    size_t done = 0;
    for (uint32_t q; take(&q); ++done) {
      const uint32_t task = image_.queue_task[next_[q]];
      run_task(task, 0);
      ++next_[q];
      signal(image_.tasks[task].out_counter);
      look_at(q);
    }
    if (done != image_.tasks.size()) fail_deadlock(done, image_.tasks.size());
    check_counters(image_, [&](size_t c) { return counters_[c]; });
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  void look_at(uint32_t q) {
    if (next_[q] == image_.queue_start[q + 1]) return;
    const uint32_t task = image_.queue_task[next_[q]];
    const amk_instruction_t& t = image_.tasks[task];
    const int unmet = first_unmet(t, [&](int32_t c) { return counters_[c]; });
    if (unmet < 0) {
      if (ordered_)
        by_task_.push({task, q});
      else
        any_.push_back(q);
      return;
    }
    const int32_t c = t.wait_counter[unmet];
    parked_next_[q] = parked_on_[c];
    parked_on_[c] = q;
    wake_at_[c] = std::min(wake_at_[c], static_cast<uint32_t>(t.wait_threshold[unmet]));
  }

  void signal(int32_t c) {
    if (++counters_[c] < wake_at_[c]) return;
    uint32_t q = parked_on_[c];
    parked_on_[c] = kNone;
    wake_at_[c] = UINT32_MAX;
    while (q != kNone) {
      const uint32_t after = parked_next_[q];
      look_at(q);
      q = after;
    }
  }

  bool take(uint32_t* q) {
    if (ordered_) {
      if (by_task_.empty()) return false;
      *q = by_task_.top().second;
      by_task_.pop();
      return true;
    }
    if (any_.empty()) return false;
    std::swap(any_[random_.below(any_.size())], any_.back());
    *q = any_.back();
    any_.pop_back();
    return true;
  }

  using TaskAndQueue = std::pair<uint32_t, uint32_t>;
  const ImageView& image_;
  Random random_;
  bool ordered_;
  std::vector<uint32_t> counters_, next_;      // per counter; per queue, index into queue_task
  std::vector<uint32_t> parked_on_, wake_at_;  // per counter: first queue parked, lowest threshold among them
  std::vector<uint32_t> parked_next_;          // per queue: the next one parked on the same counter
  std::priority_queue<TaskAndQueue, std::vector<TaskAndQueue>, std::greater<>> by_task_;
  std::vector<uint32_t> any_;
};

// Several threads, each scanning its own queues. Data is ordered by the counters alone: a task's writes are released
// by the fetch_add of its counter in `signal` and acquired by the load in `is_ready`. Acquire and release stand on the
// atomics themselves, not on fences, so that ThreadSanitizer sees every edge there is and none that is not.
class ThreadedWalk {
 public:
  ThreadedWalk(const ImageView& image, uint64_t seed, int32_t workers)
      : image_(image), seed_(seed), workers_(workers), counters_(image.producers.size()), idle_at_(workers) {
    for (auto& at : idle_at_) at.store(kBusy, std::memory_order_relaxed);
  }

  void run(const RunTask& run_task) {
    std::vector<std::thread> threads;
    try {
      threads.reserve(static_cast<size_t>(workers_));
      for (int32_t w = 1; w < workers_; ++w) threads.emplace_back([&, w] { work_or_fail(w, run_task); });
    } catch (const std::exception& e) {
      fail(std::make_exception_ptr(
          Error(AMK_ERR_OUT_OF_MEMORY, text("cannot start %d threads: %s", workers_, e.what()))));
    }
    work_or_fail(0, run_task);
    for (std::thread& t : threads) t.join();
    if (failure_) std::rethrow_exception(failure_);
    check_counters(image_, [&](size_t c) { return counters_[c].load(std::memory_order_relaxed); });
  }

 private:
  static constexpr int64_t kBusy = -1, kFinished = INT64_MAX;
  static constexpr int kYields = 64;  // fruitless scans before a worker sleeps between them and looks for a deadlock

  struct Cursor {
    uint32_t next, end;
  };

  void fail(std::exception_ptr e) {
    const std::lock_guard<std::mutex> lock(failure_mutex_);
    if (!failure_) failure_ = std::move(e);
    stop_.store(true, std::memory_order_relaxed);
  }

  void work_or_fail(int32_t worker, const RunTask& run_task) {
    try {
      work(worker, run_task);
    } catch (...) {
      fail(std::current_exception());
    }
  }

  bool is_ready(const amk_instruction_t& t) const {
    return first_unmet(t, [&](int32_t c) { return counters_[c].load(std::memory_order_acquire); }) < 0;
  }

  void signal(const amk_instruction_t& t) {
    counters_[t.out_counter].fetch_add(1, std::memory_order_release);
    done_.fetch_add(1, std::memory_order_release);
  }

  void work(int32_t worker, const RunTask& run_task) {
    Random random(seed_ + static_cast<uint64_t>(worker) * 0x2545f4914f6cdd1d);
    std::vector<Cursor> mine;
    for (size_t q = worker; q + 1 < image_.queue_start.size(); q += workers_)
      if (image_.queue_start[q] < image_.queue_start[q + 1])
        mine.push_back({image_.queue_start[q], image_.queue_start[q + 1]});
    if (seed_ != 0)
      for (size_t i = mine.size(); i > 1; --i) std::swap(mine[i - 1], mine[random.below(i)]);

    int fruitless = 0;
    while (!mine.empty() && !stop_.load(std::memory_order_relaxed)) {
      // Acquiring done_ orders everything, and would hide a missing wait; so only a worker with nothing to do does.
      const bool is_idle = fruitless > kYields;
      const int64_t seen = is_idle ? done_.load(std::memory_order_acquire) : kBusy;
      bool progress = false;
      const size_t start = seed_ == 0 ? 0 : random.below(mine.size());
      for (size_t i = 0; i < mine.size(); ++i) {
        Cursor& queue = mine[(start + i) % mine.size()];
        if (queue.next == queue.end) continue;
        const uint32_t task = image_.queue_task[queue.next];
        if (!is_ready(image_.tasks[task])) continue;
        if (!progress && fruitless > kYields) idle_at_[worker].store(kBusy);
        progress = true;
        run_task(task, worker);
        ++queue.next;
        signal(image_.tasks[task]);
      }
      if (progress) {
        std::erase_if(mine, [](const Cursor& c) { return c.next == c.end; });
        fruitless = 0;
      } else if (++fruitless <= kYields) {
        std::this_thread::yield();
      } else {
        if (is_idle) idle_at_[worker].store(seen);
        if (is_idle && is_deadlock(seen)) fail_deadlock(static_cast<size_t>(seen), image_.tasks.size());
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
    idle_at_[worker].store(kFinished);
  }

  // Every worker scanned in vain after `seen` tasks were done, or has finished, and still no more are done: a worker
  // that is inside a task, or was when another one scanned, would not have reported this number (it reports a larger
  // one after its task), so nothing can become ready any more.
  bool is_deadlock(int64_t seen) const {
    for (const auto& at : idle_at_) {
      const int64_t value = at.load();
      if (value != seen && value != kFinished) return false;
    }
    return done_.load() == seen;
  }

  const ImageView& image_;
  const uint64_t seed_;
  const int32_t workers_;
  std::vector<std::atomic<uint32_t>> counters_;
  std::vector<std::atomic<int64_t>> idle_at_;  // per worker: kBusy, kFinished, or done_ before its fruitless scan
  std::atomic<int64_t> done_{0};
  std::atomic<bool> stop_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

}  // namespace

int32_t worker_count(const ImageView& image, int32_t threads) {
  return std::max(1, std::min(threads, image.launch().grid));
}

void walk(const ImageView& image, uint64_t seed, int32_t threads, const RunTask& run_task) {
  if (threads <= 0) return SequentialWalk(image, seed).run(run_task);
  ThreadedWalk(image, seed, worker_count(image, threads)).run(run_task);
}

}  // namespace amk
