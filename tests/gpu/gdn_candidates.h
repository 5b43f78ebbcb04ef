// The kernels that a gated delta net's step could be, and plain copies of as many bytes, for gpu_gdn to time.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "amk.h"

namespace gpu_test {

// bf16 operands, heads back to back. dependent: enqueued as a programmatic dependent launch.
struct GdnCandidate {
  std::string name;
  bool dependent;
  cudaError_t (*enqueue)(const amk_gdn_decode_t&, bool dependent, cudaStream_t);
};
std::vector<GdnCandidate> gdn_candidates();

struct CopyWay {
  std::string name;
  bool dependent;
  cudaError_t (*enqueue)(const void* from, void* to, int64_t nbytes, bool dependent, cudaStream_t);
};
std::vector<CopyWay> copy_ways();

}  // namespace gpu_test
