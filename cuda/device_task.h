// What the host hands to the kernel: tasks with addresses for buffer ids, and the memory both sides read and write.
// In: filled by cuda_vm.cu from an image. Out: read by every block. Plain data, read by C++ and CUDA alike; it never
// says what a task means (ops/op_spec.h does).
#pragma once

#include <cstddef>
#include <cstdint>

#include "amk.h"

namespace amk {

constexpr int kWarpThreads = 32;
constexpr uint32_t kWholeWarp = 0xffffffffu;
// Registers change hands between groups of four warps, so the producer has a whole group, of which one lane works.
constexpr int kProducerThreads = 4 * kWarpThreads;

// One task, in queue order. Slots are input slots of operands that a flag adds, -1 where the flag is off.
struct alignas(16) DeviceTask {
  const void* in[AMK_MAX_INPUTS];
  void* out[AMK_MAX_OUTPUTS];
  int32_t wait_counter[AMK_MAX_WAITS];
  uint32_t wait_threshold[AMK_MAX_WAITS];
  amk_params_t params;
  int32_t op, task, n_waits, out_counter;
  int32_t dtype;      // T of the opcode's law
  int32_t out_dtype;  // of output 0
  int32_t early;      // bit i: no other task writes input i during a launch: it may be read before the waits are over
  int32_t rope_slot, norm_slot, bias_slot, residual_slot;
  int32_t k_norm_slot;
  int32_t packing;  // Packing (ops/packing.h) of input 1
  int32_t pad;
};
static_assert(sizeof(DeviceTask) == 304 && sizeof(DeviceTask) % 16 == 0, "the kernel fetches tasks 16 bytes at a time");

// The same for the kernel of several tokens. Widths are elements from one token's row to the next.
struct BatchTask : DeviceTask {
  int32_t tokens;
  int32_t in_width;     // of input 0
  int32_t other_width;  // of the residual, or of input 1 of ADD and MUL
  int32_t out_width;    // of output 0
};
static_assert(sizeof(BatchTask) == 320 && sizeof(BatchTask) % 16 == 0);

// What the producer copies for one task: groups of packed rows, each in `chunks` slots of chunk_bytes, the last of
// tail_bytes.
struct alignas(8) StreamTask {
  const char* weights;
  int32_t groups, chunks, chunk_bytes, tail_bytes;
};
static_assert(sizeof(StreamTask) == 24);

// Launch scalars: an argument of the kernel, or, so that a captured launch can be replayed at another position, one
// record in pinned memory that is copied to the device before each replay.
struct LaunchScalars {
  int32_t pos, pad;
  uint64_t nonce;
};

enum class FaultKind : int32_t { kNone, kUnknownOpcode, kStuckWait, kCancelled, kBadToken };

// Written once per launch by the first block that gives up; `abort` is what the others watch.
struct Fault {
  uint32_t abort;  // 0, or the code below; claimed by compare-and-swap
  int32_t code;    // -(op + 1) for an unknown opcode, else 1
  FaultKind kind;
  int32_t sm, task, counter;
  uint32_t seen, needed;
};

// The completion proof's device half, followed in memory by the counters: zero before a launch, and one range.
struct Ledger {
  Fault fault;
  uint64_t nonce;         // echoed by block 0 when it is done
  uint32_t tasks_done;    // tasks whose signal was sent
  uint32_t blocks_ended;  // whether their queue was empty or they gave up; counted together with tasks_done
  uint32_t pad[4];
};
static_assert(sizeof(Ledger) == 64, "counters start on a line of their own");
static_assert(offsetof(Ledger, tasks_done) % sizeof(uint64_t) == 0 &&
                  offsetof(Ledger, blocks_ended) == offsetof(Ledger, tasks_done) + sizeof(uint32_t),
              "one 64-bit addition counts both");
constexpr uint32_t kLedgerWords = sizeof(Ledger) / sizeof(uint32_t);

// A direct launch: what a step needs are arguments, and the last block to end sends the proof to the host itself, a
// word at a time, each with the low half of the step's number in its upper half: ledger, counters, choices. It leaves
// ledger and counters zero for the next launch.
struct DirectStep {
  uint64_t* proof;  // host memory; null: this launch is none, and copies around it do all that
  LaunchScalars scalars;
  int32_t tokens[AMK_MAX_BATCH];
  int32_t* token_home;  // where the tasks read them
  int32_t n_tokens;
  int32_t n_choices;
  const int32_t* choices;
};

constexpr int32_t kLongestPace = 1 << 20;  // clocks from one copy of weights to the next: half a millisecond

struct TaskClocks;
struct BlockClocks;

// All that the kernel is given. `cancel` is host memory.
struct MachineTables {
  const DeviceTask* tasks;       // BatchTasks for the kernel of several tokens
  const uint32_t* queue_start;   // [grid + 1]
  const LaunchScalars* scalars;  // null: the launch is direct
  Ledger* ledger;
  uint32_t* counters;  // behind the ledger
  uint32_t n_counters;
  const uint32_t* cancel;
  uint64_t deadline_ns;
  const StreamTask* streams;     // in queue order
  const uint32_t* stream_start;  // [grid + 1]
  int32_t ring_slots;            // 0: no task streams
  int32_t ring_window;           // slots that may be on their way at a time
  int32_t ring_slot_bytes;       // from one slot to the next
  float ring_pace;               // clocks of an SM for a byte of weights, at least; kLongestPace for a slot, at most
  int32_t task_bytes;            // dynamic shared memory behind the ring
  TaskClocks* task_clocks;       // in queue order; null without a timeline
  BlockClocks* block_clocks;     // [grid]
  DirectStep direct;
};

}  // namespace amk
