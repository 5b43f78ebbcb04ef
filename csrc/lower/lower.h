// Graph + schedule + target -> Program: the order of the passes and nothing else.
// Out: a program that validate() accepts; equal inputs give equal bytes. Error REJECTED for the schedule.
#pragma once

#include "amk.h"
#include "graph/graph.h"
#include "program/program.h"

namespace amk {

Program lower(const Graph& graph, const amk_schedule_t& schedule, const amk_target_t& target);

}  // namespace amk
