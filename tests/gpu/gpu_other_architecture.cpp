// F10: a library whose kernels were compiled for another architecture says which it has and which it found, before a
// launch and without compiling anything on the spot. CMake builds this program's kernels for AMK_OTHER_ARCHITECTURE.
#include <cstdio>

#include "gpu_pair.h"
#include "vm/device.h"

using namespace gpu_test;

int main() {
  try {
    const amk_target_t t = amk::query_device(0);
    const std::string found = amk::text("compute capability %d.%d", t.cc_major, t.cc_minor);
    std::string said = "nothing was thrown";
    bool ok = false;
    try {
      amk::make_cuda_vm(make_image(model(AMK_DTYPE_F32, 1, 64, 2, 1, 32, 64, 100, 16), amk::default_schedule(), 4),
                        options(), 0);
    } catch (const amk::Error& e) {
      said = amk::text("%d: %s", e.status(), e.what());
      ok = e.status() == AMK_ERR_UNAVAILABLE && said.find(found) != std::string::npos &&
           said.find("built for " AMK_OTHER_ARCHITECTURE) != std::string::npos;
    }
    report(ok, "F10 machine code for another architecture alone: " + said);
  } catch (const amk::Error& e) {
    report(false, amk::text("status %d: ", e.status()) + e.what());
  }
  std::printf("gpu_other_architecture: %d failures\n", failures);
  return failures;
}
