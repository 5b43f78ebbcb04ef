// The GPU machine's completion proof (K4): what a step must have left behind, and nothing less, passes.
#include "batch_models.h"
#include "proof.h"

using namespace amk;

namespace {

constexpr uint64_t kStep = (uint64_t{7} << 32) + 5;

// What a whole step of a small decoder sends.
struct Sent {
  Image image = pack(must_validate(
      lower_batch(make_model(AMK_DTYPE_F32, 1, 64, 4, 2, 16, 128, 256, 32), 127, AMK_PAGES_LINEAR, 1024, 4)));
  ImageView view = ImageView::open(image.bytes().data(), image.bytes().size());
  std::vector<Choice> choices;
  Ledger ledger{};
  std::vector<uint32_t> counters{view.producers.begin(), view.producers.end()};
  std::vector<int32_t> values{3};

  Sent() {
    for (const amk_instruction_t& t : view.tasks)
      if (t.op == AMK_OP_ARGMAX_COMBINE) choices.push_back({t.outputs[0], 1});
    ledger.nonce = kStep;
    ledger.tasks_done = static_cast<uint32_t>(view.tasks.size());
    ledger.blocks_ended = static_cast<uint32_t>(view.launch().grid);
  }
  // "" or what was said.
  std::string said(amk_status* status = nullptr) const {
    try {
      Proof(view, choices, 500).check(ledger, counters.data(), values.data(), kStep);
    } catch (const Error& e) {
      if (status) *status = e.status();
      return e.what();
    }
    return "";
  }
  bool says(amk_status expected, const char* part) const {
    amk_status status = AMK_OK;
    const std::string what = said(&status);
    if (status != expected || what.find(part) == std::string::npos) std::printf("said %d: %s\n", status, what.c_str());
    return status == expected && what.find(part) != std::string::npos;
  }
};

}  // namespace

TEST(a_whole_step_passes) { CHECK_EQ(Sent().said(), ""); }

TEST(a_step_that_did_not_run_or_not_whole_is_noticed) {
  Sent s;
  CHECK_EQ(s.choices.size(), size_t{1});
  s.ledger.nonce = kStep - 1;
  CHECK(s.says(AMK_ERR_INTERNAL, "is echoed"));
  s.ledger.nonce = kStep + (uint64_t{1} << 32);  // the same low half
  CHECK(s.says(AMK_ERR_INTERNAL, "is echoed"));
  s = Sent();
  --s.ledger.tasks_done;
  CHECK(s.says(AMK_ERR_INTERNAL, "tasks are done"));
  s = Sent();
  --s.ledger.blocks_ended;
  CHECK(s.says(AMK_ERR_INTERNAL, "blocks have ended"));
}

TEST(each_counter_must_end_at_its_producers) {
  const Sent whole;
  CHECK(whole.counters.size() > 4);
  for (size_t i = 0; i < whole.counters.size(); ++i) {
    for (const uint32_t off : {~0u, 1u}) {
      Sent s;
      s.counters[i] += off;
      CHECK(s.says(AMK_ERR_INTERNAL, text("counter %zu ended", i).c_str()));
    }
  }
}

TEST(a_choice_that_is_none_is_a_nan) {
  Sent s;
  s.values[0] = -1;
  CHECK(s.says(AMK_ERR_NONFINITE, "logit"));
}

TEST(a_fault_is_told_before_what_follows_from_it) {
  Sent s;
  s.ledger = Ledger{};
  s.counters.assign(s.counters.size(), 0);
  s.ledger.fault = {1, 1, FaultKind::kStuckWait, 17, 2, 0, 0, 1};
  CHECK(s.says(AMK_ERR_TIMEOUT, "no progress for 500 ms: SM 17, task 2"));
  CHECK(s.says(AMK_ERR_TIMEOUT, "the first missing signal is to counter"));
  s.ledger.fault.kind = FaultKind::kCancelled;
  CHECK(s.says(AMK_ERR_TIMEOUT, "cancelled while SM 17"));
  s.ledger.fault.kind = FaultKind::kBadToken;
  CHECK(s.says(AMK_ERR_INVALID_ARGUMENT, "expected 0 <= token < 1"));
  s.ledger.fault.kind = FaultKind::kUnknownOpcode;
  s.ledger.fault.code = -78;
  CHECK(s.says(AMK_ERR_DEVICE_FAULT, "opcode 77"));
}
