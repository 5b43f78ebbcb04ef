// Opcodes for the fault tests, far from those of amk.h: four fail on purpose, kTestPause is a NOP that takes 20 ms.
// Only kernels built with AMK_TEST_FAULTS have code for them.
#pragma once

#include <cstdint>

namespace amk {

enum TestOp : int32_t {
  kTestSkipSignal = 1000,
  kTestLoopForever = 1001,
  kTestIllegalAddress = 1002,
  kTestPause = 1003,
  kTestVanish = 1004  // the block's threads end, and nothing behind the task is done
};

constexpr uint64_t kTestPauseNs = 20'000'000;

}  // namespace amk
