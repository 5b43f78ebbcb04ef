# Two layouts: inside the Python package when scikit-build-core drives the build, else the usual prefix.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
if(SKBUILD)
  set(AMK_LIBDIR amk)
  set(AMK_INCLUDEDIR amk/include)
  set(AMK_CMAKEDIR amk/cmake)
else()
  set(AMK_LIBDIR ${CMAKE_INSTALL_LIBDIR})
  set(AMK_INCLUDEDIR ${CMAKE_INSTALL_INCLUDEDIR})
  set(AMK_CMAKEDIR ${CMAKE_INSTALL_LIBDIR}/cmake/amk)
  # A wheel cannot hold the symbolic links of a versioned library.
  set_target_properties(amk PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 1)
endif()

target_include_directories(amk INTERFACE $<INSTALL_INTERFACE:${AMK_INCLUDEDIR}>)
install(TARGETS amk EXPORT amk-targets LIBRARY DESTINATION ${AMK_LIBDIR} COMPONENT amk)
install(FILES csrc/amk.h DESTINATION ${AMK_INCLUDEDIR} COMPONENT amk)
install(EXPORT amk-targets NAMESPACE amk:: DESTINATION ${AMK_CMAKEDIR} COMPONENT amk)
configure_package_config_file(cmake/amk-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/amk-config.cmake
  INSTALL_DESTINATION ${AMK_CMAKEDIR})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/amk-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/amk-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/amk-config-version.cmake
  DESTINATION ${AMK_CMAKEDIR} COMPONENT amk)

if(SKBUILD)
  # The cffi side of the header: generated from its text, so no struct, opcode or constant is written twice.
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  set(abi_py ${CMAKE_CURRENT_BINARY_DIR}/_amk_abi.py)
  add_custom_command(
    OUTPUT ${abi_py}
    COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/cmake/generate_abi.py ${PROJECT_SOURCE_DIR}/csrc/amk.h ${abi_py}
    DEPENDS csrc/amk.h cmake/generate_abi.py
    VERBATIM)
  add_custom_target(amk_abi ALL DEPENDS ${abi_py})
  install(FILES ${abi_py} DESTINATION amk COMPONENT amk)
else()
  configure_file(cmake/amk.pc.in ${CMAKE_CURRENT_BINARY_DIR}/amk.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/amk.pc DESTINATION ${AMK_LIBDIR}/pkgconfig COMPONENT amk)
endif()
