// Tasks of several tokens: B consecutive tokens of one sequence, token t at position pos + t (amk.h). Their ops are
// those of batch_*.cuh, in a kernel of their own: the one for single tokens does not grow by them.
// In: a task and its rows. Out: addresses of rows.
#pragma once

#include "batch_ring.cuh"
#include "sync.cuh"
#include "tile_io.cuh"

namespace amk {

struct BatchContext : TaskContext {
  BatchTask& record;  // in shared memory, this block's own copy
  BatchRing& slots;

  __device__ int tokens() const { return record.tokens; }
  // Row t of input 0 and of output 0, and of what is added to it: the residual, or input 1 of ADD and MUL.
  template <class T>
  __device__ const T* in_row(int t) const {
    return in<T>(0) + int64_t{t} * record.in_width;
  }
  template <class T>
  __device__ const T* other_row(int slot, int t) const {
    return in<T>(slot) + int64_t{t} * record.other_width;
  }
  template <class T>
  __device__ T* out_row(int t) const {
    return out<T>(0) + int64_t{t} * record.out_width;
  }
};

}  // namespace amk
