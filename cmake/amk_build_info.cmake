# Writes build_info.cpp whenever a source changes: the JSON behind amk_build_info(), with the exact flags and a
# build_id = SHA-256 over every source of the library and these flags.
string(JOIN " " flags ${AMK_CXX_FLAGS})
string(JOIN " " cuda_flags ${AMK_CUDA_FLAGS})
string(JOIN "," architectures ${AMK_CUDA_ARCHITECTURES})
string(JOIN ", " variants ${AMK_CUDA_VARIANTS})
file(GLOB_RECURSE AMK_HASHED_SOURCES CONFIGURE_DEPENDS csrc/*.h csrc/*.cpp cuda/*.cu cuda/*.cuh cuda/*.h cuda/*.cpp)
set(info_cpp ${CMAKE_CURRENT_BINARY_DIR}/build_info.cpp)
string(REPLACE ";" "\n" hashed_list "${AMK_HASHED_SOURCES}")
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/hashed_sources.txt "${hashed_list}")
add_custom_command(
  OUTPUT ${info_cpp}
  COMMAND ${CMAKE_COMMAND}
    -D OUTPUT=${info_cpp}
    -D SOURCE_LIST=${CMAKE_CURRENT_BINARY_DIR}/hashed_sources.txt
    -D ROOT=${PROJECT_SOURCE_DIR}
    -D VERSION=${PROJECT_VERSION}
    -D "COMPILER=${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
    -D "CXX_FLAGS=${flags}"
    -D CUDA_ENABLED=${AMK_CUDA_ENABLED}
    -D "NVCC=${CMAKE_CUDA_COMPILER_VERSION}"
    -D "CUDA_FLAGS=${cuda_flags}"
    -D "ARCHITECTURES=${architectures}"
    -D "VARIANTS=${variants}"
    -D "SANITIZE=${AMK_SANITIZE}"
    -P ${PROJECT_SOURCE_DIR}/cmake/write_build_info.cmake
  DEPENDS ${AMK_HASHED_SOURCES} ${PROJECT_SOURCE_DIR}/cmake/write_build_info.cmake
  VERBATIM)
add_library(amk_build_info OBJECT ${info_cpp})
target_include_directories(amk_build_info PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
amk_apply_flags(amk_build_info)
