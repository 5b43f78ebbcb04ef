#include "base/error.h"

#include <cstdio>
#include <cstring>

namespace amk {
namespace {

// A fixed array, so that reporting "out of memory" needs no memory.
constexpr size_t kMessageBytes = 2048;
thread_local char t_message[kMessageBytes] = "";

}  // namespace

std::string text(const char* format, ...) {
  char buffer[kMessageBytes];
  va_list args;
  va_start(args, format);
  int written = std::vsnprintf(buffer, sizeof buffer, format, args);
  va_end(args);
  return written < 0 ? std::string(format) : std::string(buffer);
}

void set_last_error(const char* message) noexcept {
  std::strncpy(t_message, message, kMessageBytes - 1);
  t_message[kMessageBytes - 1] = '\0';
}

const char* last_error() noexcept { return t_message; }

}  // namespace amk
