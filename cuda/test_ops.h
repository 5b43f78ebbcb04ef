// Opcodes that fail on purpose, far from those of amk.h. Only kernels built with AMK_TEST_FAULTS have code for them.
#pragma once

#include <cstdint>

namespace amk {

enum TestOp : int32_t { kTestSkipSignal = 1000, kTestLoopForever = 1001, kTestIllegalAddress = 1002 };

}  // namespace amk
