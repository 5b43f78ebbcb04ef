// What comes into shared memory by itself, without a register, while a kernel works on what came before.
// In: global memory, 16 bytes at a time and on 16 bytes; slots of the block's dynamic shared memory. Out: the slots. A
// header of its own, so that a test can put another in its place and run a kernel that stages on a CPU.
#pragma once

#include "ptx.cuh"

namespace amk::task {

__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ uint4 dynamic[];
  return reinterpret_cast<char*>(dynamic);
}

// A thread's own vectors, in groups: it alone may read them, when no more than kNewer groups are missing.
__device__ __forceinline__ void stage_vector(void* shared, const void* global) { ptx::copy_async_16(shared, global); }
__device__ __forceinline__ void end_group() { ptx::copy_async_commit(); }
template <int kNewer>
__device__ __forceinline__ void await_groups() {
  ptx::copy_async_wait<kNewer>();
}

// Bytes in one piece that one thread requests and many read, brought by the copy engine (compute capability 9.0).
class Arrival {
 public:
  // By one thread, and then a barrier of those that wait.
  __device__ __forceinline__ void init() {
    ptx::mbarrier_init(&word_, 1);
    ptx::fence_mbarrier_init();
  }
  // By one thread, when the slot's readers are done with what came before.
  __device__ __forceinline__ void expect(int nbytes) { ptx::mbarrier_arrive_expect(&word_, nbytes); }
  // streams: what is read leaves L2 first.
  __device__ __forceinline__ void request(void* shared, const void* global, int nbytes, bool streams = true) {
    if (streams) {
      ptx::bulk_copy(shared, global, nbytes, &word_);
    } else {
      ptx::bulk_load(shared, global, nbytes, &word_);
    }
  }
  // parity: 0 for what comes first, 1 for the next, 0 again ...
  __device__ __forceinline__ void await(uint32_t parity) const {
    while (!ptx::mbarrier_try_wait(&word_, parity)) {
    }
  }

 private:
  uint64_t word_;
};

// Bytes in one piece that the copy engine takes from shared to global memory. Who wrote them exposes them; behind a
// barrier of those threads one sends them, and the slot may be written again when that one has awaited what it sent.
__device__ __forceinline__ void expose() { ptx::fence_async_shared(); }
__device__ __forceinline__ void send(void* global, const void* shared, int nbytes) {
  ptx::bulk_store(global, shared, nbytes);
}
__device__ __forceinline__ void await_sent() { ptx::bulk_stores_read(); }

}  // namespace amk::task
