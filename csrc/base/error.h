// Error: the single exception type of the core, and the sentence kept for amk_last_error.
// In: a status and a printf-style message (what, where, expected, got). Out: nothing printed, nothing aborted.
#pragma once

#include <cstdarg>
#include <exception>
#include <string>

#include "amk.h"

namespace amk {

// printf into a std::string. Never throws on a bad conversion: the text is then the format itself.
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

class Error : public std::exception {
 public:
  Error(amk_status status, std::string message) : status_(status), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  amk_status status() const noexcept { return status_; }

 private:
  amk_status status_;
  std::string message_;
};

// Thread-local message behind amk_last_error(). Setting it cannot fail: without memory the text is cut.
void set_last_error(const char* message) noexcept;
const char* last_error() noexcept;

}  // namespace amk

// Throws Error{status, text(...)} when cond is false.
#define AMK_CHECK(cond, status, ...)                                     \
  do {                                                                   \
    if (!(cond)) throw ::amk::Error((status), ::amk::text(__VA_ARGS__)); \
  } while (0)
