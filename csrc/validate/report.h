// Report: what the validator found. A rejection is a result, never an exception.
// In: V-numbers, ids and sentences. Out: the first AMK_MAX_REPORTED of them, and the count of all.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "amk.h"

namespace amk {

struct Rejection {
  int code = 0;  // V-number
  int32_t task = -1, buffer = -1, counter = -1;
  std::string text;
};

class Report {
 public:
  void add(int code, int32_t task, int32_t buffer, int32_t counter, std::string text);
  bool ok() const { return count_ == 0; }
  int64_t count() const { return count_; }
  const std::vector<Rejection>& entries() const { return entries_; }
  // False once nothing more is kept: then the sentence need not be written.
  bool wants_text() const { return entries_.size() < AMK_MAX_REPORTED; }

 private:
  std::vector<Rejection> entries_;
  int64_t count_ = 0;
};

}  // namespace amk
