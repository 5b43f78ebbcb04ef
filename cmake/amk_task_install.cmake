# Included by benchmarks/tasks/CMakeLists.txt when scikit-build-core drives the build: what `amk bench kernel` needs in
# the package. The data has a folder of its own: in an editable install a folder that also holds modules is found twice.
if(TARGET amk_tasks)
  install(TARGETS amk_tasks LIBRARY DESTINATION amk COMPONENT amk)
endif()
foreach(name IN LISTS AMK_TASK_NAMES)
  install(FILES ${name}/task.toml ${name}/workloads.json DESTINATION amk/task_data/${name} COMPONENT amk)
  # For people: the lines that results are generated from stay in the repository.
  install(DIRECTORY ${name}/docs DESTINATION amk/task_data/${name} COMPONENT amk PATTERN "*.jsonl" EXCLUDE)
endforeach()
set(tasks_abi_py ${CMAKE_CURRENT_BINARY_DIR}/_amk_tasks_abi.py)
add_custom_command(
  OUTPUT ${tasks_abi_py}
  COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/cmake/generate_abi.py ${CMAKE_CURRENT_SOURCE_DIR}/include/amk_task.h
    ${CMAKE_CURRENT_SOURCE_DIR}/include/amk_task_harness.h ${tasks_abi_py}
  DEPENDS include/amk_task.h include/amk_task_harness.h ${PROJECT_SOURCE_DIR}/cmake/generate_abi.py
  VERBATIM)
add_custom_target(amk_tasks_abi ALL DEPENDS ${tasks_abi_py})
install(FILES ${tasks_abi_py} DESTINATION amk COMPONENT amk)
