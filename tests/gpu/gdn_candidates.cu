#include "gdn_candidates.h"

#include "gdn_bulk.cuh"
#include "gdn_launch.cuh"

namespace gpu_test {
namespace {

using namespace amk;
using Bf16 = __nv_bfloat16;

template <int kLanes, int kRows, int kWarps, class Access, int kBlocksPerSm>
cudaError_t direct(const amk_gdn_decode_t& g, bool dependent, cudaStream_t stream) {
  return launch_gdn_direct<Bf16, true, kLanes, kRows, kWarps, Access, kBlocksPerSm>(gdn_operands(g), dependent, stream);
}
template <int kLanes, int kRows, int kTiles, int kWarps>
cudaError_t bulk(const amk_gdn_decode_t& g, bool dependent, cudaStream_t stream) {
  return launch_gdn_bulk<Bf16, kLanes, kRows, kTiles, kWarps>(gdn_operands(g), dependent, stream);
}

struct List {
  std::vector<GdnCandidate> all;
  void add(std::string name, decltype(GdnCandidate::enqueue) enqueue) {
    all.push_back({name, false, enqueue});
    all.push_back({name + " dependent", true, enqueue});
  }
  // Named by rows per warp, warps per block, lanes per row.
  template <int kLanes, int kRows, int kWarps, class Access = CachedAccess, int kBlocksPerSm = 1>
  void add_direct(const char* how = "") {
    std::string name = "rows " + std::to_string(kRows * kWarpThreads / kLanes) + " warps " + std::to_string(kWarps) +
                       " lanes " + std::to_string(kLanes);
    if (kBlocksPerSm > 1) name += " blocks " + std::to_string(kBlocksPerSm);
    add(name + how, direct<kLanes, kRows, kWarps, Access, kBlocksPerSm>);
  }
  template <int kLanes, int kRows, int kTiles, int kWarps>
  void add_bulk() {
    add("bulk rows " + std::to_string(kRows * kWarpThreads / kLanes) + " x " + std::to_string(kTiles) + " warps " +
            std::to_string(kWarps) + " lanes " + std::to_string(kLanes),
        bulk<kLanes, kRows, kTiles, kWarps>);
  }
  template <int kLanes, int kRows>
  void add_warps() {
    add_direct<kLanes, kRows, 2>();
    add_direct<kLanes, kRows, 4>();
    add_direct<kLanes, kRows, 8>();
  }
};

// kAhead vectors of 16 bytes per thread, all loaded before the first is stored.
template <int kAhead, bool kStreamed>
__global__ void copy(const uint4* from, uint4* to, int64_t count) {
  ptx::await_prior_kernels();
  const int64_t first = int64_t{blockIdx.x} * blockDim.x * kAhead + threadIdx.x;
  uint4 v[kAhead]{};
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int64_t at = first + i * int64_t{blockDim.x};
    if (at < count) v[i] = kStreamed ? __ldcs(from + at) : from[at];
  }
  ptx::admit_next_kernel();
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int64_t at = first + i * int64_t{blockDim.x};
    if (at >= count) continue;
    if (kStreamed) {
      __stcs(to + at, v[i]);
    } else {
      to[at] = v[i];
    }
  }
}
// A grid that is resident as a whole; blocks go round and round.
__global__ void copy_striped(const uint4* from, uint4* to, int64_t count) {
  ptx::await_prior_kernels();
  ptx::admit_next_kernel();
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    to[i] = from[i];
}

template <class Kernel>
cudaError_t launch(Kernel kernel, int64_t blocks, int threads, const void* from, void* to, int64_t nbytes,
                   bool dependent, cudaStream_t stream) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<const uint4*>(from), static_cast<uint4*>(to), nbytes / 16);
}
template <int kAhead, int kThreads, bool kStreamed>
cudaError_t copy_pieces(const void* from, void* to, int64_t nbytes, bool dependent, cudaStream_t stream) {
  const int64_t piece = int64_t{kAhead} * kThreads * 16;
  return launch(copy<kAhead, kStreamed>, (nbytes + piece - 1) / piece, kThreads, from, to, nbytes, dependent, stream);
}
template <int kThreads>
cudaError_t copy_resident(const void* from, void* to, int64_t nbytes, bool dependent, cudaStream_t stream) {
  int device = 0, sms = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  return launch(copy_striped, int64_t{sms} * (2048 / kThreads), kThreads, from, to, nbytes, dependent, stream);
}

template <int kAhead, int kThreads>
void add_copies(std::vector<CopyWay>& ways) {
  const std::string name = std::to_string(kAhead) + " x 16 bytes, " + std::to_string(kThreads) + " threads";
  for (bool dependent : {false, true}) {
    const std::string suffix = dependent ? ", dependent" : "";
    ways.push_back({name + suffix, dependent, copy_pieces<kAhead, kThreads, false>});
    ways.push_back({name + ", streamed" + suffix, dependent, copy_pieces<kAhead, kThreads, true>});
  }
}

}  // namespace

std::vector<GdnCandidate> gdn_candidates() {
  List list;
  list.add_direct<8, 1, 1>();
  list.add_warps<8, 1>();
  list.add_warps<8, 2>();
  list.add_direct<8, 4, 1>();
  list.add_direct<8, 4, 2>();
  list.add_direct<8, 4, 4>();
  list.add_warps<16, 1>();
  list.add_warps<16, 2>();
  list.add_warps<16, 4>();
  list.add_direct<16, 8, 2>();
  list.add_warps<32, 1>();
  list.add_warps<32, 2>();
  list.add_warps<32, 4>();
  list.add_warps<32, 8>();
  list.add_direct<8, 2, 4, StreamedAccess>(" streamed");
  list.add_direct<8, 4, 4, StreamedAccess>(" streamed");
  list.add_direct<16, 1, 4, StreamedAccess>(" streamed");
  list.add_direct<16, 2, 4, StreamedAccess>(" streamed");
  list.add_direct<16, 4, 4, StreamedAccess>(" streamed");
  list.add_direct<32, 4, 4, StreamedAccess>(" streamed");
  list.add_direct<8, 1, 2, L2Access>(" past L1");
  list.add_direct<16, 2, 4, L2Access>(" past L1");
  list.add_direct<16, 4, 4, L2Access>(" past L1");
  list.add_direct<16, 2, 4, CachedAccess, 10>();
  list.add_direct<16, 2, 4, CachedAccess, 12>();
  list.add_direct<32, 4, 4, CachedAccess, 10>();
  list.add_direct<32, 4, 4, CachedAccess, 12>();
  list.add_direct<32, 2, 4, CachedAccess, 16>();
  list.add_bulk<8, 1, 1, 4>();
  list.add_bulk<8, 1, 2, 4>();
  list.add_bulk<8, 1, 4, 4>();
  list.add_bulk<8, 2, 2, 4>();
  list.add_bulk<8, 2, 4, 2>();
  list.add_bulk<8, 2, 4, 4>();
  list.add_bulk<16, 2, 2, 4>();
  list.add_bulk<16, 2, 4, 4>();
  list.add_bulk<16, 4, 4, 2>();
  return list.all;
}

std::vector<CopyWay> copy_ways() {
  std::vector<CopyWay> ways;
  add_copies<1, 128>(ways);
  add_copies<1, 256>(ways);
  add_copies<1, 1024>(ways);
  add_copies<2, 256>(ways);
  add_copies<4, 128>(ways);
  add_copies<4, 256>(ways);
  add_copies<4, 512>(ways);
  add_copies<8, 128>(ways);
  add_copies<8, 256>(ways);
  for (bool dependent : {false, true})
    ways.push_back(
        {std::string("striped, 256 threads") + (dependent ? ", dependent" : ""), dependent, copy_resident<256>});
  return ways;
}

}  // namespace gpu_test
