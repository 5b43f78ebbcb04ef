#include <cstring>
#include <exception>

#include "check.h"

// With an argument: only the tests whose name contains it.
int main(int argc, char** argv) {
  int run = 0, failed = 0;
  for (const auto& c : check::cases()) {
    if (argc > 1 && !std::strstr(c.name, argv[1])) continue;
    const int before = check::failures();
    try {
      c.body();
    } catch (const std::exception& e) {
      check::fail(c.name, 0, std::string("unexpected exception: ") + e.what());
    }
    ++run;
    if (check::failures() != before) {
      ++failed;
      std::printf("FAILED %s\n", c.name);
    }
  }
  std::printf("%d passed, %d failed\n", run - failed, failed);
  return run == 0 || failed != 0;
}
