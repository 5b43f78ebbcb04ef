# Included by benchmarks/tasks/CMakeLists.txt. Writes task_build_info.cpp whenever a source of a task changes: the table
# behind amk_tasks_entry() and the JSON behind amk_tasks_build_info(), with the command line of each side as CMake
# gave it to the compiler (compile_commands.json) and the hashes of what was compiled.
string(JOIN " " task_flags ${AMK_TASK_FLAGS})
string(JOIN "," task_architectures ${AMK_CUDA_ARCHITECTURES})
string(JOIN "," task_names ${AMK_TASK_NAMES})
file(GLOB_RECURSE AMK_TASK_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cu ${CMAKE_CURRENT_SOURCE_DIR}/*.h
  ${CMAKE_CURRENT_SOURCE_DIR}/*.cuh)
file(GLOB AMK_TASK_HEADERS CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/amk.h ${PROJECT_SOURCE_DIR}/cuda/*.cuh
  ${PROJECT_SOURCE_DIR}/cuda/*.h ${CMAKE_CURRENT_SOURCE_DIR}/*/*.h ${CMAKE_CURRENT_SOURCE_DIR}/*/*.cuh
  ${CMAKE_CURRENT_SOURCE_DIR}/*/solution/*.cuh)
string(REPLACE ";" "\n" header_list "${AMK_TASK_HEADERS}")
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/task_headers.txt "${header_list}")
set(task_info_cpp ${CMAKE_CURRENT_BINARY_DIR}/task_build_info.cpp)
add_custom_command(
  OUTPUT ${task_info_cpp}
  COMMAND ${CMAKE_COMMAND}
    -D OUTPUT=${task_info_cpp}
    -D COMMANDS=${CMAKE_BINARY_DIR}/compile_commands.json
    -D TASK_DIR=${CMAKE_CURRENT_SOURCE_DIR}
    -D ROOT=${PROJECT_SOURCE_DIR}
    -D BUILD=${CMAKE_BINARY_DIR}
    -D HEADER_LIST=${CMAKE_CURRENT_BINARY_DIR}/task_headers.txt
    -D "NAMES=${task_names}"
    -D VERSION=${PROJECT_VERSION}
    -D "NVCC=${CMAKE_CUDA_COMPILER_VERSION}"
    -D "FLAGS=${task_flags}"
    -D "ARCHITECTURES=${task_architectures}"
    -P ${PROJECT_SOURCE_DIR}/cmake/write_task_build_info.cmake
  DEPENDS ${AMK_TASK_SOURCES} ${AMK_TASK_HEADERS} ${PROJECT_SOURCE_DIR}/cmake/write_task_build_info.cmake
    ${CMAKE_BINARY_DIR}/compile_commands.json
  VERBATIM)
target_sources(amk_tasks PRIVATE ${task_info_cpp})
