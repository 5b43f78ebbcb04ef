# Decides whether the CUDA part is built, and makes the object library amk_device either way: with nvcc from
# cuda/*.cu, without it from cuda/device_absent.cpp. Sets AMK_CUDA_ENABLED, AMK_CUDA_FLAGS, AMK_CUDA_LIBRARIES.
set(AMK_CUDA_ENABLED OFF)
set(AMK_CUDA_LIBRARIES "")
# The variants of the kernel that are compiled, by threads per block: the one table. Each is a translation unit of its
# own; a program that asks for another one is refused with this list.
set(AMK_CUDA_VARIANTS 256)
# The same for every architecture and every variant; no fast math.
set(AMK_CUDA_FLAGS -O3 --fmad=true -lineinfo -Xcompiler=-fvisibility=hidden,-fstack-protector-strong)

if(NOT AMK_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "AMK_CUDA is '${AMK_CUDA}', expected AUTO, ON or OFF")
endif()
if(NOT AMK_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES ${AMK_CUDA_ARCHITECTURES})
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake 3.25.1 does not know that nvcc has it
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(AMK_CUDA_ENABLED ON)
  elseif(AMK_CUDA STREQUAL "ON")
    message(FATAL_ERROR "AMK_CUDA=ON, but no CUDA compiler was found (set CUDACXX, or AMK_CUDA=OFF for a CPU-only library)")
  endif()
endif()

if(AMK_CUDA_ENABLED)
  file(GLOB AMK_CUDA_SOURCES CONFIGURE_DEPENDS cuda/*.cu)
  list(REMOVE_ITEM AMK_CUDA_SOURCES ${PROJECT_SOURCE_DIR}/cuda/megakernel.cu)
  # target's kernels, one file per variant; further arguments are compile definitions.
  function(amk_add_kernels target)
    foreach(threads IN LISTS AMK_CUDA_VARIANTS)
      foreach(timed "" "#define AMK_TIMED\n") # without a timeline and with one
        string(REGEX REPLACE ".+" "_timed" suffix "${timed}")
        set(variant ${CMAKE_CURRENT_BINARY_DIR}/${target}_${threads}${suffix}.cu)
        file(CONFIGURE OUTPUT ${variant} CONTENT
          "#define AMK_THREADS ${threads}\n${timed}#include \"${PROJECT_SOURCE_DIR}/cuda/megakernel.cu\"\n")
        target_sources(${target} PRIVATE ${variant})
      endforeach()
    endforeach()
    list(TRANSFORM AMK_CUDA_VARIANTS REPLACE "(.+)" "X(\\1)" OUTPUT_VARIABLE table)
    string(JOIN " " table ${table})
    string(JOIN ", " architectures ${AMK_CUDA_ARCHITECTURES})
    target_compile_definitions(${target} PRIVATE
      "AMK_CUDA_VARIANTS=${table}" "AMK_CUDA_ARCHITECTURES=\"${architectures}\"" ${ARGN})
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${AMK_CUDA_FLAGS}>)
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR}/cuda)
  endfunction()
  add_library(amk_device OBJECT ${AMK_CUDA_SOURCES})
  amk_add_kernels(amk_device)
  find_package(CUDAToolkit REQUIRED)
  # Static, and the runtime itself opens the driver lazily: the library loads on machines without one.
  set(AMK_CUDA_LIBRARIES CUDA::cudart_static)
  message(STATUS "amk: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${AMK_CUDA_ARCHITECTURES}")
else()
  add_library(amk_device OBJECT cuda/device_absent.cpp)
  amk_apply_flags(amk_device)
  message(STATUS "amk: without CUDA")
endif()
target_include_directories(amk_device PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
