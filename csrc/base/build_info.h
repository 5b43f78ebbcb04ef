// Identity of this build, written by CMake: part of every image's certificate (V24).
#pragma once

namespace amk {

// 64 hexadecimal digits: SHA-256 over the library's sources, flags and compiler.
const char* build_id();

}  // namespace amk
