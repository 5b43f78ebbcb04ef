// Vm: what a machine offers. It owns the cache, the inputs, the outputs and the arena; weights are borrowed.
// In: an image's bytes and, by name, weights and inputs. Out: outputs by name. A machine synchronises, ops compute.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "amk.h"
#include "base/error.h"

namespace amk {

// INVALID_ARGUMENT: a token of a step of `batch` at pos would lie outside [0, max_seq).
inline void require_positions(int32_t pos, int32_t batch, int32_t max_seq) {
  AMK_CHECK(pos >= 0 && pos < max_seq, AMK_ERR_INVALID_ARGUMENT, "position %d is outside [0, %d)", pos, max_seq);
  AMK_CHECK(pos <= max_seq - batch, AMK_ERR_INVALID_ARGUMENT,
            "position %d: the last of the %d tokens of a step is outside [0, %d)", pos, batch, max_seq);
}

class Vm {
 public:
  virtual ~Vm() = default;
  // Borrows nbytes at ptr as the storage `name` of weights or constants. INVALID_ARGUMENT: no such storage, another
  // size, or ptr not 16-byte aligned.
  virtual void bind(const std::string& name, const void* ptr, uint64_t nbytes) = 0;
  // Copies into / out of a buffer by name. Writable: KV_CACHE, STATE, IO_INPUT; readable: those and IO_OUTPUT.
  // NONFINITE: what was read of an f32 output holds NaN or infinity, and run() did not look. POISONED: reset_state().
  virtual void write(const std::string& name, uint64_t offset, const void* data, uint64_t nbytes) = 0;
  virtual void read(const std::string& name, uint64_t offset, void* data, uint64_t nbytes) = 0;
  // How many tokens a step decodes.
  virtual int32_t batch() const = 0;
  // One step. INVALID_ARGUMENT before anything is touched: a position pos .. pos + batch() - 1 outside [0, max_seq),
  // something unbound, a token outside its table. NONFINITE: an output holds NaN or infinity. INTERNAL: a broken
  // promise of the program or of the machine; every later run is then POISONED.
  virtual void run(int32_t pos) = 0;
  // Zeroes every STATE and forgets that a failed step poisoned it: until then, or until each is written whole, reading
  // one and running are POISONED.
  virtual void reset_state() = 0;
  // One greedy token: writes input "token", runs, and reads output "next_token". NONFINITE where that is none;
  // UNSUPPORTED where a step decodes several.
  virtual int32_t decode(int32_t token, int32_t pos) {
    AMK_CHECK(batch() == 1, AMK_ERR_UNSUPPORTED,
              "decode: one token given, but a step of this program decodes %d: amk_vm_decode_batch takes them",
              batch());
    int32_t next = -1;
    decode_batch(&token, 1, pos, &next);
    return next;
  }
  // The same for the batch() tokens of a step. INVALID_ARGUMENT: n is another number.
  virtual void decode_batch(const int32_t* tokens, int32_t n, int32_t pos, int32_t* next) {
    AMK_CHECK(n == batch(), AMK_ERR_INVALID_ARGUMENT, "decode: %d tokens given, expected the %d of a step", n, batch());
    const uint64_t nbytes = sizeof(int32_t) * static_cast<uint64_t>(n);
    write("token", 0, tokens, nbytes);
    run(pos);
    read("next_token", 0, next, nbytes);
    for (int32_t t = 0; t < n; ++t)
      AMK_CHECK(next[t] >= 0, AMK_ERR_NONFINITE, "next_token[%d] is %d: a logit is NaN", t, next[t]);
  }
  virtual void reseed(uint64_t seed) = 0;

  // What only a machine with a device offers; amk.h says what each does. UNAVAILABLE from any other machine.
  virtual void prepare() { no_device(); }
  virtual void launch(int32_t /*pos*/, void* /*stream*/) { no_device(); }
  virtual void aim(int32_t /*pos*/) { no_device(); }
  virtual void finish() { no_device(); }
  virtual void time(int32_t /*pos*/, int32_t /*iterations*/, float* /*out_us*/) { no_device(); }
  virtual std::vector<amk_task_time_t> timeline() { no_device(); }
  virtual void cancel() { no_device(); }

 private:
  [[noreturn]] static void no_device() {
    throw Error(AMK_ERR_UNAVAILABLE, "this machine has no device: create it with amk_vm_create_cuda");
  }
};

// The reference machine: one CPU, any legal order, every counter asserted. image_bytes must be those of an Image (the
// hash is checked again here, V24). OUT_OF_MEMORY names the region and its bytes.
std::unique_ptr<Vm> make_reference_vm(std::shared_ptr<const std::vector<uint8_t>> image_bytes,
                                      const amk_vm_options_t& options);

// The GPU machine: one cooperative launch of the persistent kernel per step on device `device`, over the same bytes.
// UNAVAILABLE: no CUDA build, driver, device or machine code for it; REJECTED: the image does not fit the live device.
std::unique_ptr<Vm> make_cuda_vm(std::shared_ptr<const std::vector<uint8_t>> image_bytes,
                                 const amk_vm_options_t& options, int32_t device);

}  // namespace amk
