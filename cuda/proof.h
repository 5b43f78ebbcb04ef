// What a finished step must have left behind (K4), and what the ledger of one that failed says.
// In: an image, then ledger, counters and choices of a step as they came back. Out: nothing, or the Error that names
// what is missing. It waits for nothing and touches no device.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "device_task.h"
#include "pack/layout.h"

namespace amk {

// What ARGMAX_COMBINE writes.
struct Choice {
  int32_t buffer, count;
};

class Proof {
 public:
  Proof(const ImageView& image, const std::vector<Choice>& choices, int32_t deadline_ms)
      : image_(image), choices_(choices), deadline_ms_(deadline_ms) {}

  // counters: one for each of the image's; values: of the choices, one buffer's behind the other's.
  void check(const Ledger& l, const uint32_t* counters, const int32_t* values, uint64_t nonce) const {
    if (l.fault.abort) raise(l.fault, counters);
    AMK_CHECK(l.nonce == nonce, AMK_ERR_INTERNAL, "K4: step %llu was launched, step %llu is echoed",
              (unsigned long long)nonce, (unsigned long long)l.nonce);
    AMK_CHECK(l.tasks_done == image_.tasks.size(), AMK_ERR_INTERNAL, "K4: %u of %zu tasks are done", l.tasks_done,
              image_.tasks.size());
    AMK_CHECK(l.blocks_ended == static_cast<uint32_t>(image_.launch().grid), AMK_ERR_INTERNAL,
              "K4: %u of %d blocks have ended", l.blocks_ended, image_.launch().grid);
    for (size_t i = 0; i < image_.producers.size(); ++i)
      AMK_CHECK(counters[i] == image_.producers[i], AMK_ERR_INTERNAL, "K4: counter %zu ended at %u, expected %u", i,
                counters[i], image_.producers[i]);
    for (const Choice& c : choices_) {
      for (int32_t t = 0; t < c.count; ++t)
        AMK_CHECK(values[t] >= 0, AMK_ERR_NONFINITE, "%s[%d] is %d: a logit is NaN",
                  std::string(image_.buffer_name.at(static_cast<size_t>(c.buffer))).c_str(), t, values[t]);
      values += c.count;
    }
  }

 private:
  std::string name_of_task(int32_t task) const {
    return text("task %d (%s)", task, std::string(image_.task_label.at(static_cast<size_t>(task))).c_str());
  }
  [[noreturn]] void raise(const Fault& f, const uint32_t* counters) const {
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
             image_.producers[static_cast<size_t>(f.counter)], first_missing_signal(counters).c_str()));
  }
  // Many blocks wait for what one task did not do: the first task, in table order, that could run and whose counter is
  // short. Others that share its counter may have done their part.
  std::string first_missing_signal(const uint32_t* counters) const {
    for (size_t i = 0; i < image_.tasks.size(); ++i) {
      const amk_instruction_t& t = image_.tasks[i];
      bool could_run = true;
      for (int w = 0; w < t.n_waits; ++w)
        could_run &= counters[t.wait_counter[w]] >= static_cast<uint32_t>(t.wait_threshold[w]);
      const size_t c = static_cast<size_t>(t.out_counter);
      if (could_run && counters[c] < image_.producers[c])
        return text("; the first missing signal is to counter %zu, at %u of %u, which %s signals", c, counters[c],
                    image_.producers[c], name_of_task(static_cast<int32_t>(i)).c_str());
    }
    return "";
  }

  const ImageView& image_;
  const std::vector<Choice>& choices_;
  const int32_t deadline_ms_;
};

}  // namespace amk
