#include "validate/report.h"

namespace amk {

void Report::add(int code, int32_t task, int32_t buffer, int32_t counter, std::string text) {
  if (wants_text()) entries_.push_back({code, task, buffer, counter, std::move(text)});
  ++count_;
}

}  // namespace amk
