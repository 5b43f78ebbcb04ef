// The reference machine: an image, its memory, a walk over its tasks, and the checks around a step.
// In: bytes of an Image. Out: outputs by name. Slow and plain: what it says is what the tables mean.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/dtype.h"
#include "base/error.h"
#include "vm/memory.h"
#include "vm/ref_number.h"
#include "vm/ref_ops.h"
#include "vm/states.h"
#include "vm/vm.h"
#include "vm/walk.h"

namespace amk {
namespace {

bool is_writable(int32_t kind) {
  return kind == AMK_KIND_KV_CACHE || kind == AMK_KIND_STATE || kind == AMK_KIND_IO_INPUT;
}
bool is_readable(int32_t kind) { return is_writable(kind) || kind == AMK_KIND_IO_OUTPUT; }

class ReferenceVm final : public Vm {
 public:
  ReferenceVm(std::shared_ptr<const std::vector<uint8_t>> bytes, const amk_vm_options_t& options)
      : bytes_(std::move(bytes)),
        image_(ImageView::open(bytes_->data(), bytes_->size())),
        memory_(image_),
        states_(image_),
        batch_(program_batch(image_.tasks)) {
    AMK_CHECK(options.threads >= 0, AMK_ERR_INVALID_ARGUMENT, "threads is %d, expected >= 0", options.threads);
    AMK_CHECK(options.guard == 0 || options.guard == 1, AMK_ERR_INVALID_ARGUMENT, "guard is %d, expected 0 or 1",
              options.guard);
    threads_ = options.threads;
    guard_ = options.guard == 1;
    seed_ = options.seed;
    scratch_.resize(static_cast<size_t>(worker_count(image_, threads_)));
    for (const amk_instruction_t& t : image_.tasks) {
      if (t.op == AMK_OP_EMBED) lookups_.push_back({t.inputs[0], t.params.vocab, op_tokens(t)});
      if (t.op == AMK_OP_ARGMAX_COMBINE) choices_.push_back(t.outputs[0]);
    }
    const auto by_buffer = [](const Lookup& a, const Lookup& b) {
      return a.buffer != b.buffer ? a.buffer < b.buffer : a.vocab < b.vocab;
    };
    std::sort(lookups_.begin(), lookups_.end(), by_buffer);
    const auto same = [](const Lookup& a, const Lookup& b) { return a.buffer == b.buffer && a.vocab == b.vocab; };
    lookups_.erase(std::unique(lookups_.begin(), lookups_.end(), same), lookups_.end());
  }

  void bind(const std::string& name, const void* ptr, uint64_t nbytes) override {
    AMK_CHECK(ptr, AMK_ERR_INVALID_ARGUMENT, "bind %s: the pointer is NULL", name.c_str());
    AMK_CHECK(reinterpret_cast<uintptr_t>(ptr) % AMK_VECTOR_BYTES == 0, AMK_ERR_INVALID_ARGUMENT,
              "bind %s: the address %p is not a multiple of %d", name.c_str(), ptr, AMK_VECTOR_BYTES);
    memory_.bind(name, ptr, nbytes);
  }

  void write(const std::string& name, uint64_t offset, const void* data, uint64_t nbytes) override {
    uint8_t* at = range("write", name, offset, data, nbytes, is_writable);
    if (nbytes) std::memcpy(at, data, nbytes);
    states_.written(memory_.find(name), nbytes);
  }

  void read(const std::string& name, uint64_t offset, void* data, uint64_t nbytes) override {
    const uint8_t* at = range("read", name, offset, data, nbytes, is_readable);
    states_.require_readable(memory_.find(name));
    if (nbytes) std::memcpy(data, at, nbytes);
  }

  void reseed(uint64_t seed) override { seed_ = seed; }

  int32_t batch() const override { return batch_; }

  void run(int32_t pos) override {
    AMK_CHECK(!is_broken_, AMK_ERR_POISONED, "an earlier step failed a check of the machine itself");
    states_.require_good();
    check_request(pos);
    try {
      step(pos);
    } catch (const std::exception& e) {
      states_.poison(e.what());
      throw;
    }
  }

  void reset_state() override {
    for (int32_t b : states_.buffers()) std::memset(memory_.at(b), 0, static_cast<size_t>(memory_.nbytes(b)));
    states_.reset();
  }

 private:
  struct Lookup {
    int32_t buffer, vocab, tokens;  // some tokens, and the rows of the table they index
  };

  uint8_t* range(const char* verb, const std::string& name, uint64_t offset, const void* data, uint64_t nbytes,
                 bool (*allowed)(int32_t)) const {
    const int64_t buffer = memory_.find(name);
    AMK_CHECK(buffer >= 0 && allowed(image_.bindings[buffer].kind), AMK_ERR_INVALID_ARGUMENT, "%s %s: %s", verb,
              name.c_str(),
              buffer < 0 ? "the image has no buffer of that name" : "a buffer of its kind is not open to it");
    const uint64_t size = static_cast<uint64_t>(memory_.nbytes(buffer));
    AMK_CHECK(offset <= size && nbytes <= size - offset, AMK_ERR_INVALID_ARGUMENT,
              "%s %s: %llu bytes at offset %llu, the buffer has %llu", verb, name.c_str(), (unsigned long long)nbytes,
              (unsigned long long)offset, (unsigned long long)size);
    AMK_CHECK(data || nbytes == 0, AMK_ERR_INVALID_ARGUMENT, "%s %s: the pointer is NULL", verb, name.c_str());
    return memory_.at(buffer) + offset;
  }

  void step(int32_t pos) {
    try {
      if (guard_) memory_.poison();
      walk(image_, seed_, threads_, [&](uint32_t task, int32_t worker) { run_task(task, worker, pos); });
      if (guard_) memory_.check_bands();
    } catch (const Error& e) {
      is_broken_ = e.status() == AMK_ERR_INTERNAL;
      throw;
    }
    check_outputs();
  }

  // Everything the caller can get wrong, before a byte changes.
  void check_request(int32_t pos) const {
    require_positions(pos, batch_, image_.launch().max_seq);
    const std::string unbound = memory_.unbound();
    AMK_CHECK(unbound.empty(), AMK_ERR_INVALID_ARGUMENT, "not bound: %s", unbound.c_str());
    for (const Lookup& lookup : lookups_) {
      if (image_.bindings[lookup.buffer].kind != AMK_KIND_IO_INPUT) continue;  // else the step itself makes it
      for (int32_t t = 0; t < lookup.tokens; ++t) {
        const int32_t token = number_at(lookup.buffer, t);
        AMK_CHECK(token >= 0 && token < lookup.vocab, AMK_ERR_INVALID_ARGUMENT,
                  "%s holds token %d, expected 0 <= token < %d", name_of(lookup.buffer).c_str(), token, lookup.vocab);
      }
    }
  }

  void run_task(uint32_t task, int32_t worker, int32_t pos) {
    const amk_instruction_t& t = image_.tasks[task];
    OpCall call{{t, image_.buffers.data(), image_.bindings.data()}, {}, {}, pos, scratch_[worker]};
    for (int i = 0; i < t.n_inputs; ++i) call.in[i] = memory_.at(t.inputs[i]);
    for (int i = 0; i < t.n_outputs; ++i) call.out[i] = memory_.at(t.outputs[i]);
    run_op(call);
  }

  void check_outputs() const {
    for (size_t b = 0; b < image_.buffers.size(); ++b) {
      const amk_buffer_t& buffer = image_.buffers[b];
      if (image_.bindings[b].kind != AMK_KIND_IO_OUTPUT || buffer.dtype != AMK_DTYPE_F32) continue;
      const float* values = reinterpret_cast<const float*>(memory_.at(static_cast<int64_t>(b)));
      for (int64_t i = 0; i < buffer.numel; ++i)
        AMK_CHECK(std::isfinite(values[i]), AMK_ERR_NONFINITE, "%s[%lld] is %s", name_of(b).c_str(), (long long)i,
                  std::isnan(values[i]) ? "NaN" : "infinite");
    }
    for (int32_t b : choices_) {
      for (int32_t t = 0; t < image_.buffers[b].numel; ++t)
        AMK_CHECK(number_at(b, t) >= 0, AMK_ERR_NONFINITE, "%s[%d] is %d: a logit is NaN", name_of(b).c_str(), t,
                  number_at(b, t));
    }
  }
  int32_t number_at(int32_t buffer, int32_t i) const {
    int32_t number;
    std::memcpy(&number, memory_.at(buffer) + int64_t{i} * static_cast<int64_t>(sizeof number), sizeof number);
    return number;
  }

  std::string name_of(size_t buffer) const { return std::string(image_.buffer_name.at(buffer)); }

  const std::shared_ptr<const std::vector<uint8_t>> bytes_;
  const ImageView image_;
  Memory memory_;
  States states_;
  const int32_t batch_;
  std::vector<Lookup> lookups_;
  std::vector<int32_t> choices_;  // buffers that ARGMAX_COMBINE writes
  std::vector<Scratch> scratch_;  // per worker
  uint64_t seed_ = 0;
  int32_t threads_ = 0;
  bool guard_ = false, is_broken_ = false;
};

}  // namespace

std::unique_ptr<Vm> make_reference_vm(std::shared_ptr<const std::vector<uint8_t>> image_bytes,
                                      const amk_vm_options_t& options) {
  AMK_CHECK(image_bytes, AMK_ERR_INVALID_ARGUMENT, "no image");
  AMK_CHECK(options.timeline == 0, AMK_ERR_UNAVAILABLE, "timeline is %d: the reference machine keeps none, expected 0",
            options.timeline);
  return std::make_unique<ReferenceVm>(std::move(image_bytes), options);
}

}  // namespace amk
