// A decoder of the Llama kind as a Graph; layers of a hybrid are linear attention where the model says so.
// In: amk_model_t, which may hold anything. Out: its Graph, or Error (INVALID_ARGUMENT: a field outside its domain;
// UNSUPPORTED: well-formed, but no opcode computes it).
#pragma once

#include "amk.h"
#include "graph/graph.h"

namespace amk {

Graph build_decoder(const amk_model_t& model);

}  // namespace amk
