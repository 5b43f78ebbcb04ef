// The law: for each opcode its operands, parameters and the exact bytes it reads and writes.
// In: one instruction and the buffer tables it points into. Out: the first broken rule, or the list of accesses.
// The validator, the reference machine, the cost model and the kernel's conformance tests all read this one table;
// nothing else may know what an opcode touches.
#pragma once

#include <cstdint>
#include <string>

#include "amk.h"

namespace amk {

// A task with the tables its operand ids index. Ids must already be in range (V1).
struct TaskView {
  const amk_instruction_t& task;
  const amk_buffer_t* buffers;
  const amk_binding_t* bindings;

  const amk_buffer_t& input(int slot) const { return buffers[task.inputs[slot]]; }
  const amk_buffer_t& output(int slot) const { return buffers[task.outputs[slot]]; }
  int32_t input_kind(int slot) const { return bindings[task.inputs[slot]].kind; }
  int32_t output_kind(int slot) const { return bindings[task.outputs[slot]].kind; }
};

// What part of a buffer an access means. The cache is described symbolically in the launch position.
enum class Region : uint8_t {
  kPlain,      // fixed bytes
  kKvHistory,  // rows [0, pos) of some kv heads: older than this step
  kKvRow       // rows [pos, pos + B) of some kv heads: appended in this step
};

// `rows` ranges of row_bytes bytes, stride_bytes apart, from offset_bytes in the buffer; affine in the position:
// at position p the offset is offset_bytes + p * offset_per_pos and the row length row_bytes + p * row_bytes_per_pos.
struct Access {
  int32_t buffer = 0;
  int8_t slot = 0;  // input or output slot
  bool write = false;
  int32_t some_rows = 0;  // if not 0, only so many of the rows are read, or fewer; which ones depends on data
  Region region = Region::kPlain;
  int32_t align_bytes = 1;  // the physical offset and the stride must be multiples of this (V5)
  int64_t offset_bytes = 0, row_bytes = 0, rows = 1, stride_bytes = 0;
  int64_t offset_per_pos = 0, row_bytes_per_pos = 0;
  // For cache regions: kv heads [head_first, head_first + head_count), and the bytes of one's rows of this step (B * D
  // elements).
  int32_t head_first = 0, head_count = 0;
  int64_t head_row_bytes = 0;
};

// A partial result of attention may take one for each token.
constexpr int kMaxAccesses = AMK_MAX_INPUTS + 4 + AMK_MAX_OUTPUTS * AMK_MAX_BATCH;

struct AccessList {
  int count = 0;
  Access items[kMaxAccesses];
  const Access* begin() const { return items; }
  const Access* end() const { return items + count; }
};

// A broken rule: V-number (3 = operands, 4 = parameters, 5 = a tile leaves its operand), the operand's buffer or -1,
// and a sentence.
struct Problem {
  int code = 0;
  int32_t buffer = -1;
  std::string text;
};

// How many tokens a task works on, 1 for an opcode that knows none. The task passed op_check.
int32_t op_tokens(const amk_instruction_t& task);

// Whether the position of a token is part of the opcode's law: these tasks have one number of tokens in a program
// (V19).
bool op_knows_position(int32_t op);

// B of a program: how many tokens its steps decode. In: tasks that passed V19.
template <class Tasks>
int32_t program_batch(const Tasks& tasks) {
  for (const amk_instruction_t& task : tasks)
    if (op_knows_position(task.op)) return op_tokens(task);
  return 1;
}

// Whether the weight of a matrix-vector tile is quantised, and its scales are an operand.
bool is_quantised(const amk_instruction_t& task);

// Whether attention writes its heads itself, and there are no partials.
bool is_direct(const amk_instruction_t& task);

// Input slots of the operands that flags add, -1 where the flag is off. They follow the opcode's own inputs in the
// order scale (of a quantised weight), inv_freq (where ROPE is a flag), norm weight, k_norm (attention's second norm
// weight), bias, residual.
struct FlagSlots {
  int scale = -1, rope = -1, norm = -1, k_norm = -1, bias = -1, residual = -1;
  int end = 0;  // inputs in all
};
FlagSlots flag_slots(const amk_instruction_t& task);

// Name of an opcode ("GEMV_TILE"), or nullptr for a number that names none.
const char* op_name(int32_t op);

// Whether the opcode has a law here and an implementation in the machines.
bool op_supported(int32_t op);

// Which outputs may occupy the same bytes, at the same index, as an input: bit (output * 8 + input). 0 = none (V18). A
// state is always read and written so.
uint32_t op_in_place_mask(const amk_instruction_t& task);

// V3, V4, V5: arity, dtypes, layout, operand kinds, flags, parameters nobody asked for; the parameters against the
// bound shapes; each tile inside its operand. Total: any numbers in the task are fine as long as its operand ids are in
// range and the shapes of its buffers passed V2. Returns true when lawful; else fills *problem.
bool op_check(const TaskView& view, Problem* problem);

// Byte ranges of a task that passed op_check; all of them lie in their buffers. Alignment is left to V5.
void op_footprint(const TaskView& view, AccessList* out);

// Floating-point operations of a task that passed op_check, at a position.
double op_flops(const TaskView& view, int32_t pos);

// Fields of amk_params_t by name, for messages and for readers of programs as data. nullptr past the end.
struct ParamField {
  const char* name;
  int32_t amk_params_t::* as_int;  // nullptr for the float fields
  float amk_params_t::* as_float;
};
constexpr int kParamFieldCount = 22;
const ParamField* param_field(int index);

}  // namespace amk
