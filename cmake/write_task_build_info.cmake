# Run with cmake -P by amk_task_build_info.cmake.
cmake_policy(VERSION 3.25)
file(READ ${COMMANDS} commands)
string(JSON n_commands LENGTH "${commands}")
math(EXPR last "${n_commands} - 1")

# The command line that compiles `source`, with what differs between any two files replaced: the file and its object.
function(command_of source out)
  foreach(i RANGE ${last})
    string(JSON file GET "${commands}" ${i} file)
    if(file STREQUAL source)
      string(JSON line GET "${commands}" ${i} command)
      string(REPLACE "${source}" "{source}" line "${line}")
      string(REGEX REPLACE "[^ ]*\\.cu\\.o" "{object}" line "${line}")
      string(REPLACE "${BUILD}" "{build}" line "${line}")
      string(REPLACE "${ROOT}" "{root}" line "${line}")
      string(REPLACE "\\" "\\\\" line "${line}")
      string(REPLACE "\"" "\\\"" line "${line}")
      set(${out} "${line}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "${COMMANDS} does not say how ${source} is compiled")
endfunction()

file(STRINGS ${HEADER_LIST} headers)
list(SORT headers)
set(all "")
foreach(header ${headers})
  file(SHA256 ${header} hash)
  file(RELATIVE_PATH name ${ROOT} ${header})
  string(APPEND all "|${name}=${hash}")
endforeach()
string(SHA256 headers_sha256 "${all}")

string(REPLACE "," ";" NAMES "${NAMES}")
set(tasks "")
set(declared "")
set(table "")
foreach(name ${NAMES})
  set(sides "")
  foreach(side baseline solution)
    set(source ${TASK_DIR}/${name}/${side}/${name}_${side}.cu)
    command_of(${source} command)
    file(SHA256 ${source} hash)
    file(RELATIVE_PATH relative ${ROOT} ${source})
    list(APPEND sides "\"${side}\": {\"source\": \"${relative}\", \"sha256\": \"${hash}\", \"command\": \"${command}\"}")
    string(APPEND declared "amk_task_fn amk_task_${name}_${side};\n")
    string(APPEND table "    {\"${name}\", \"${side}\", amk_task_${name}_${side}},\n")
  endforeach()
  string(JOIN ", " sides ${sides})
  list(APPEND tasks "\"${name}\": {${sides}}")
endforeach()
string(JOIN ",\n" tasks ${tasks})
string(REPLACE "," "\", \"" quoted "${ARCHITECTURES}")
file(WRITE ${OUTPUT} "// Written by cmake/write_task_build_info.cmake.
#include <cstring>

#include \"amk_task_harness.h\"

extern \"C\" {
${declared}
const char* amk_tasks_build_info(void) {
  return R\"json({\"version\": \"${VERSION}\", \"nvcc\": \"${NVCC}\", \"flags\": \"${FLAGS}\", \"architectures\": [\"${quoted}\"],
\"headers_sha256\": \"${headers_sha256}\", \"tasks\": {${tasks}}})json\";
}

amk_task_fn* amk_tasks_entry(const char* task, const char* side) {
  static const struct {
    const char *task, *side;
    amk_task_fn* entry;
  } kEntries[] = {
${table}  };
  if (!task || !side) return nullptr;
  for (const auto& row : kEntries)
    if (!std::strcmp(row.task, task) && !std::strcmp(row.side, side)) return row.entry;
  return nullptr;
}
}
")
