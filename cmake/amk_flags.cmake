# One set of compiler and linker flags for every translation unit of the library and of its tests.
set(AMK_CXX_FLAGS
  -Wall -Wextra -O3
  -ffp-contract=off # the same rounding on every machine: no fused multiply-add behind the source's back
  -fstack-protector-strong)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  list(APPEND AMK_CXX_FLAGS -Wno-restrict) # GCC 12 warns of std::string's own code (GCC bug 105651)
endif()
if(AMK_WARNINGS_AS_ERRORS)
  list(APPEND AMK_CXX_FLAGS -Werror)
endif()
if(AMK_SANITIZE)
  list(APPEND AMK_CXX_FLAGS -fsanitize=${AMK_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
else()
  list(APPEND AMK_CXX_FLAGS -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
endif()

function(amk_apply_flags target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX,C>:${AMK_CXX_FLAGS}>)
endfunction()

function(amk_apply_link_flags target)
  if(AMK_SANITIZE)
    target_link_options(${target} PRIVATE -fsanitize=${AMK_SANITIZE})
  endif()
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "SHARED_LIBRARY" AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_link_options(${target} PRIVATE
      -Wl,-z,relro,-z,now,-z,defs -Wl,--exclude-libs,ALL
      -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/exports.map)
    set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/exports.map)
    if(NOT AMK_SANITIZE)
      # The library then needs nothing but libc, so one wheel serves machines with an older libstdc++.
      target_link_options(${target} PRIVATE -static-libstdc++ -static-libgcc)
    endif()
  endif()
endfunction()
