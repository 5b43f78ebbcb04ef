// The kernel of gdn_kernels.cuh in another form, which the copy engine feeds: a candidate that tests/gpu/gpu_gdn times.
// In and out: as there, for packed operands.
#pragma once

#include "gdn_kernels.cuh"

namespace amk {

// The state goes through shared memory, moved by the copy engine; each warp has kTiles tiles of kRows sets of its own
// and waits for nobody else. For packed operands alone.
template <class T, int kLanes, int kRows, int kTiles, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarpThreads) gdn_bulk(const __grid_constant__ GdnOperands o) {
  using Owner = GdnOwner<kLanes, kRows>;
  constexpr int kWarpRows = kTiles * Owner::kRowsPerWarp, kBlockRows = kWarps * kWarpRows;
  constexpr int kTileFloats = Owner::kRowsPerWarp * kGdnDim;
  static_assert(kGdnDim % kBlockRows == 0);
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t landed[kWarps][kTiles];
  const GdnPlace<true> place(kBlockRows, kWarpRows, o.heads_per_key);
  const int warp_id = static_cast<int>(threadIdx.x) / kWarpThreads;
  const bool is_leader = threadIdx.x % kWarpThreads == 0;
  float* tiles = reinterpret_cast<float*>(shared) + warp_id * kTiles * kTileFloats;
  if (is_leader) {
    for (int t = 0; t < kTiles; ++t) ptx::mbarrier_init(&landed[warp_id][t], 1);
    ptx::fence_mbarrier_init();
  }
  __syncwarp();
  const int64_t head_at = int64_t{place.head * kGdnDim} * kGdnDim + place.first_row * kGdnDim;
  const float* from = o.state_in + place.batch * o.state_in_batch + head_at;
  ptx::await_prior_kernels();
  if (is_leader) {
    for (int t = 0; t < kTiles; ++t) {
      ptx::mbarrier_arrive_expect(&landed[warp_id][t], kTileFloats * 4);
      ptx::bulk_load(tiles + t * kTileFloats, from + t * kTileFloats, kTileFloats * 4, &landed[warp_id][t]);
    }
  }
  GdnWarp<T, true, Owner> warp(o, place);
  ptx::admit_next_kernel();
  const GdnFactors factors = warp.factors();
  float* to = o.state_out + place.batch * o.state_out_batch + head_at;
  const int lane_at = Owner::lane_row() * kGdnDim + Owner::lane_element();
#pragma unroll 1
  for (int t = 0; t < kTiles; ++t) {
    float* tile = tiles + t * kTileFloats;
    float4 state[kRows][Owner::kPieces];
    if (t > 0) warp.load_value(t * kRows);
    while (!ptx::mbarrier_try_wait(&landed[warp_id][t], 0)) {
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int p = 0; p < Owner::kPieces; ++p)
        state[r][p] =
            *reinterpret_cast<const float4*>(tile + lane_at + Owner::set_row(r) * kGdnDim + Owner::piece_element(p));
    }
    const float y = gdn_step<Owner>(state, warp.k, warp.q, factors, warp.v);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int p = 0; p < Owner::kPieces; ++p)
        *reinterpret_cast<float4*>(tile + lane_at + Owner::set_row(r) * kGdnDim + Owner::piece_element(p)) =
            state[r][p];
    }
    ptx::fence_async_shared();  // each lane's writes, before the leader's copy of them
    __syncwarp();
    if (is_leader) ptx::bulk_store(to + t * kTileFloats, tile, kTileFloats * 4);
    warp.store(t * kRows, y);
  }
  if (is_leader) ptx::bulk_stores_read();
}

template <class T, int kLanes, int kRows, int kTiles, int kWarps>
cudaError_t launch_gdn_bulk(const GdnOperands& o, bool dependent, cudaStream_t stream) {
  constexpr int kBlockRows = kWarps * kTiles * kRows * kWarpThreads / kLanes;
  return gdn_launch(gdn_bulk<T, kLanes, kRows, kTiles, kWarps>, o, kGdnDim / kBlockRows, kWarps * kWarpThreads,
                    kBlockRows * kGdnDim * 4, dependent, stream);
}

}  // namespace amk
