# Run with cmake -P by amk_build_info.cmake.
file(STRINGS ${SOURCE_LIST} sources)
list(SORT sources)
set(all "${VERSION}|${COMPILER}|${CXX_FLAGS}|${CUDA_ENABLED}|${NVCC}|${CUDA_FLAGS}|${ARCHITECTURES}|${VARIANTS}|${SANITIZE}")
foreach(source ${sources})
  file(SHA256 ${source} hash)
  file(RELATIVE_PATH name ${ROOT} ${source})
  string(APPEND all "|${name}=${hash}")
endforeach()
string(SHA256 build_id "${all}")

if(CUDA_ENABLED)
  string(REPLACE "," "\", \"" quoted "${ARCHITECTURES}")
  set(cuda "{\"enabled\": true, \"nvcc\": \"${NVCC}\", \"flags\": \"${CUDA_FLAGS}\", \"architectures\": [\"${quoted}\"], \"variants\": [${VARIANTS}]}")
else()
  set(cuda "{\"enabled\": false, \"nvcc\": null, \"flags\": null, \"architectures\": [], \"variants\": []}")
endif()
file(WRITE ${OUTPUT} "// Written by cmake/write_build_info.cmake.
#include \"amk.h\"
#include \"base/build_info.h\"

extern \"C\" const char* amk_build_info(void) {
  return R\"json({\"version\": \"${VERSION}\", \"build_id\": \"${build_id}\", \"compiler\": \"${COMPILER}\", \"cxx_flags\": \"${CXX_FLAGS}\", \"sanitize\": \"${SANITIZE}\", \"cuda\": ${cuda}})json\";
}

namespace amk {
const char* build_id() { return \"${build_id}\"; }
}  // namespace amk
")
