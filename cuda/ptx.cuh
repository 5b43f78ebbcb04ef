// The only file with inline PTX: one function per instruction that C++ has no name for.
// In and out: plain values and generic pointers. It decides nothing: which accesses pair with which is sync.cuh's.
#pragma once

#include <cstdint>

namespace amk::ptx {

// threadIdx.x, read anew wherever a task asks for it. What depends on threadIdx.x alone the compiler computes before
// the loop over tasks and keeps through every op: some 45 registers, for which others go to local memory, and each
// acquire empties the cache in front of that.
__device__ __forceinline__ uint32_t thread_id() {
#ifdef __CUDA_ARCH__
  uint32_t id;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(id));
  return id;
#else
  return threadIdx.x;  // tests/kernels_on_cpu
#endif
}

// Memory operations at GPU scope (PTX ISA, "Memory Consistency Model"). Each carries a memory clobber, so that the
// compiler keeps the ordinary accesses around it where they stand.
__device__ __forceinline__ uint32_t load_acquire_gpu(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void add_release_gpu(uint32_t* p, uint32_t v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ uint32_t load_relaxed_gpu(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed_gpu(uint32_t* p, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// The value before.
__device__ __forceinline__ uint64_t add_acquire_release_gpu(uint64_t* p, uint64_t v) {
  uint64_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], %2;" : "=l"(before) : "l"(p), "l"(v) : "memory");
  return before;
}
// Words that the host reads while the kernel runs.
__device__ __forceinline__ void store_relaxed_system(uint64_t* p, uint64_t v) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ void store_release_system(uint64_t* p, uint64_t v) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
// Words that the host writes while the kernel runs.
__device__ __forceinline__ uint32_t load_relaxed_system(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// The policy that createpolicy.fractional.L2::evict_first makes for all of an access: what is streamed once leaves L2
// first, so that activations, cache rows, records and the kernel's own code stay.
constexpr uint64_t kEvictFirst = 0x12f0000000000000;

// Weights: read once, through the non-coherent path, past L1. Only for bytes that nobody writes during the launch.
__device__ __forceinline__ uint4 load_weight(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p), "l"(kEvictFirst));
  return v;
}
// Starts a line's way into L2; what is read afterwards is still read from there, so this cannot make data stale.
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// 16 bytes from global to shared memory without a register. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kNewerGroups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewerGroups) : "memory");
}

// The first n threads that use barrier `id`, and only they: the others of the block have another role.
__device__ __forceinline__ void barrier_sync(int id, int n) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(n) : "memory");
}
__device__ __forceinline__ bool barrier_or(int id, int n, bool value) {
  int any;
  asm volatile(
      "{.reg .pred p, q; setp.ne.s32 p, %3, 0; barrier.cta.red.or.aligned.pred q, %1, %2, p; selp.s32 %0, 1, 0, q;}"
      : "=r"(any)
      : "r"(id), "r"(n), "r"(static_cast<int>(value))
      : "memory");
  return any != 0;
}

// The copy engine and the mbarriers it completes are of compute capability 9.0; the host sends no work to them before.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define AMK_HAS_COPY_ENGINE 1
#else
#define AMK_HAS_COPY_ENGINE 0
#endif

// mbarriers in shared memory (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier").
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
// The same, worked out once: from a pointer into static shared memory the compiler does it before each use, beginning
// with the block's number in its cluster.
__device__ __forceinline__ uint32_t pinned_shared_address(const void* shared) {
  uint32_t pinned;
  asm volatile("mov.u32 %0, %1;" : "=r"(pinned) : "r"(shared_address(shared)));
  return pinned;
}
__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t v;
  asm volatile("ld.volatile.shared::cta.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes the initialisation visible to the copy engine too.
__device__ __forceinline__ void fence_mbarrier_init() {
#if AMK_HAS_COPY_ENGINE
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t nbytes) {
#if AMK_HAS_COPY_ENGINE
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(nbytes) : "memory");
#endif
}
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t nbytes) {
  mbarrier_arrive_expect(shared_address(barrier), nbytes);
}
// Whether the phase of this parity is complete; waits a little, as long as the hardware likes. Acquires.
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
#if AMK_HAS_COPY_ENGINE
  asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
#endif
  return done != 0;
}
__device__ __forceinline__ bool mbarrier_try_wait(const uint64_t* barrier, uint32_t parity) {
  return mbarrier_try_wait(shared_address(barrier), parity);
}
// nbytes (a multiple of 16) from global to shared memory by the copy engine, which completes them on the mbarrier.
// Weights only: leaves L2 first.
__device__ __forceinline__ void bulk_copy(uint32_t shared, const void* global, uint32_t nbytes, uint32_t barrier) {
#if AMK_HAS_COPY_ENGINE
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared),
      "l"(global), "r"(nbytes), "r"(barrier), "l"(kEvictFirst)
      : "memory");
#endif
}

__device__ __forceinline__ void bulk_copy(void* shared, const void* global, uint32_t nbytes, uint64_t* barrier) {
  bulk_copy(shared_address(shared), global, nbytes, shared_address(barrier));
}

// Bulk copies of data that other kernels read again: no hint to L2. nbytes is a multiple of 16, and so are both
// addresses.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t nbytes, uint64_t* barrier) {
#if AMK_HAS_COPY_ENGINE
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(nbytes), "r"(shared_address(barrier))
               : "memory");
#endif
}
// The copy engine sees this thread's earlier writes to shared memory.
__device__ __forceinline__ void fence_async_shared() {
#if AMK_HAS_COPY_ENGINE
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void bulk_store(void* global, const void* shared, uint32_t nbytes) {
#if AMK_HAS_COPY_ENGINE
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared_address(shared)),
               "r"(nbytes)
               : "memory");
#endif
}
// This thread's bulk stores so far have read their shared memory: it may be overwritten, or the block may end.
__device__ __forceinline__ void bulk_stores_read() {
#if AMK_HAS_COPY_ENGINE
  asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}

// Programmatic dependent launch: the first returns when the kernels before this one are over and their writes visible
// (at once in a plain launch); the second lets the next kernel's blocks be placed from here on.
__device__ __forceinline__ void await_prior_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void admit_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// 1 / x to 1 ulp, for normal numbers whose reciprocal is one.
__device__ __forceinline__ float reciprocal_approximate(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

// c += A B. Fragments as the PTX ISA lays them out.
__device__ __forceinline__ void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_f16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                        uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The compiler no longer knows what v is.
__device__ __forceinline__ void forget(int& v) { asm volatile("" : "+r"(v)); }

// Registers per thread of a warp group from here on: all its warps take part. Only architecture-specific code (sm_90a,
// sm_100a) can; elsewhere all roles keep what the block started with.
#if defined(__CUDA_ARCH_SPECIFIC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define AMK_HAS_REGISTER_POOL 1
#else
#define AMK_HAS_REGISTER_POOL 0
#endif
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
#if AMK_HAS_REGISTER_POOL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
#if AMK_HAS_REGISTER_POOL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

__device__ __forceinline__ void end_thread() { asm volatile("exit;"); }

__device__ __forceinline__ uint64_t global_time_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}
__device__ __forceinline__ uint32_t sm_id() {
  uint32_t id;
  asm volatile("mov.u32 %0, %smid;" : "=r"(id));
  return id;
}

}  // namespace amk::ptx
