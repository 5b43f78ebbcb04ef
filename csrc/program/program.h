// Program: the tables of one decode step. Anyone may build one; only validate() turns it into a ValidProgram.
// In: tables from the lowering or from outside. Out: the same tables. Judges nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "amk.h"

namespace amk {

// Strings back to back; offset has one entry more than there are strings, and is empty when all of them are empty.
class Strings {
 public:
  void push(std::string_view s);
  // "" past the end or when the table is empty.
  std::string_view at(int64_t i) const;
  // Copies n strings. INVALID_ARGUMENT when the offsets do not rise or point nowhere.
  static Strings from_view(const amk_strings_t& view, int64_t n, const char* what);
  amk_strings_t view() const { return {bytes_.data(), offset_.empty() ? nullptr : offset_.data()}; }
  const std::string& bytes() const { return bytes_; }
  const std::vector<uint64_t>& offsets() const { return offset_; }

 private:
  std::string bytes_;
  std::vector<uint64_t> offset_;
};

struct Program {
  std::vector<amk_buffer_t> buffers;
  std::vector<amk_binding_t> bindings;  // [buffers]
  std::vector<amk_counter_t> counter_init;
  std::vector<amk_instruction_t> tasks;  // the queue of SM s: tasks with sm == s, in this order
  std::vector<amk_page_t> pages;
  Strings buffer_name, buffer_source, task_label;
  amk_launch_t launch{};
  amk_target_t target{};

  static Program from_tables(const amk_program_tables_t& tables);
  amk_program_tables_t view() const;
};

// A contiguous row-major buffer record.
amk_buffer_t make_buffer(int32_t dtype, int32_t space, const std::vector<int64_t>& shape);

}  // namespace amk
