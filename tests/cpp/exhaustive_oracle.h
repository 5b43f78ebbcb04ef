// An oracle for the validator: tiny programs, and whether any execution of one can go wrong, by trying all of them.
// In: a seed. Out: a tiny program, its tables, and a verdict with its reason. Must share nothing with csrc/validate or
// csrc/ops: what a task touches is written down here once more, as sets of bytes.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "program/program.h"

namespace oracle {

constexpr int kArenaBytes = 8, kOutputBytes = 4, kStateBytes = 4;
constexpr int kFirstState = kArenaBytes + kOutputBytes, kMemoryBytes = kFirstState + kStateBytes;
constexpr int kMaxTasks = 10, kMaxQueues = 4;

enum class Home { kInput, kArena, kOutput, kState };

// A buffer of one-byte (u8) or two-byte (bf16) elements. `first` counts bytes of the memory: arena, outputs, the state.
// Inputs are immutable and lie outside it.
struct TinyBuffer {
  Home home;
  int width, elements, first, page;
};

enum class Kind { kNop, kCopy, kAdd, kMul, kConv };

struct TinyWait {
  int counter, threshold_error;  // threshold = producers + threshold_error
};

// COPY: out[out_at + i] = a[a_at + i]; ADD, MUL: out[out_at + i] = a[out_at + i] op b[out_at + i]; for i < n.
// With rows 2 (COPY, ADD, MUL), a, b and out are two rows each, and this holds in both of them.
// CONV (two taps): out[out_at + i] of a[a_at + out_at + i] and state b[out_at + i], which is replaced.
struct TinyTask {
  Kind kind;
  int a, b, out, a_at, out_at, n;
  int queue, counter;
  std::vector<TinyWait> waits;
  int rows = 1;
};

struct TinyPage {
  int first, nbytes;
};

struct TinyProgram {
  std::vector<TinyPage> pages;
  std::vector<TinyBuffer> buffers;
  std::vector<TinyTask> tasks;
  int counters = 0, queues = 1, preset_counter = -1;  // preset_counter starts at 1
};

enum class Verdict { kSafe, kSignal, kSelfOverlap, kRace, kDeadlock, kUninitialised, kStale, kState, kOutput, kCount };
const char* verdict_name(Verdict verdict);

// About half of them are safe: built in a sequential order with the waits that it needs, then often damaged.
TinyProgram generate(std::mt19937_64& random);

// Walks every reachable state of the queue heads. Waits for anything but all producers are unsafe by rule.
Verdict judge(const TinyProgram& program);

amk::Program encode(const TinyProgram& program);

// For a failure: the program as text.
std::string describe(const TinyProgram& program);

}  // namespace oracle
