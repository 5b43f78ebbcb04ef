#include "base/target.h"

namespace amk {
namespace {

struct Preset {
  amk_target_t target;
  const char* source;
};

constexpr int64_t kMiB = int64_t{1} << 20, kGB = 1000 * 1000 * 1000;
constexpr int32_t kKiB = 1024;

// Shared memory, registers and threads per SM: CUDA C++ Programming Guide 13.0, table "Technical Specifications per
// Compute Capability" (opt-in per block = per SM less 1 KB kept by the system).
// name, SMs, cc, threads/block, threads/SM, warp, smem opt-in, smem/SM, regs/SM, boost MHz, L2, HBM bytes, GB/s
constexpr Preset kPresets[] = {
    {{"b200", 148, 10, 0, 1024, 2048, 32, 227 * kKiB, 228 * kKiB, 65536, 1965, 126 * kMiB, 180 * kGB, 8000.0},
     "NVIDIA DGX B200 data sheet (180 GB and 8 TB/s per GPU); NVIDIA Blackwell tuning guide (126 MB L2); SM count and "
     "clock as the device reports them"},
    {{"h200", 132, 9, 0, 1024, 2048, 32, 227 * kKiB, 228 * kKiB, 65536, 1980, 50 * kMiB, 141 * kGB, 4800.0},
     "NVIDIA H200 Tensor Core GPU data sheet (141 GB, 4.8 TB/s, SXM); NVIDIA H100 architecture white paper (132 SMs, "
     "50 MB L2, 1980 MHz boost of the SXM part)"},
    {{"h100", 132, 9, 0, 1024, 2048, 32, 227 * kKiB, 228 * kKiB, 65536, 1980, 50 * kMiB, 80 * kGB, 3350.0},
     "NVIDIA H100 Tensor Core GPU data sheet (SXM: 80 GB, 3.35 TB/s); NVIDIA H100 architecture white paper"},
    {{"a100", 108, 8, 0, 1024, 2048, 32, 163 * kKiB, 164 * kKiB, 65536, 1410, 40 * kMiB, 80 * kGB, 2039.0},
     "NVIDIA A100 Tensor Core GPU data sheet (SXM 80 GB: 2,039 GB/s); NVIDIA A100 architecture white paper"},
    {{"l40s", 142, 8, 9, 1024, 1536, 32, 99 * kKiB, 100 * kKiB, 65536, 2520, 96 * kMiB, 48 * kGB, 864.0},
     "NVIDIA L40S data sheet (48 GB, 864 GB/s); NVIDIA Ada GPU architecture white paper (142 SMs, 96 MB L2)"},
    {{"rtx5090", 170, 12, 0, 1024, 1536, 32, 99 * kKiB, 100 * kKiB, 65536, 2407, 96 * kMiB, 32 * kGB, 1792.0},
     "NVIDIA RTX Blackwell GPU architecture white paper (GeForce RTX 5090: 170 SMs, 96 MB L2, 32 GB, 1,792 GB/s)"},
};
constexpr int kCount = sizeof(kPresets) / sizeof(kPresets[0]);

}  // namespace

int target_count() { return kCount; }
const amk_target_t* target_preset(int i) { return i >= 0 && i < kCount ? &kPresets[i].target : nullptr; }
const char* target_source(int i) { return i >= 0 && i < kCount ? kPresets[i].source : nullptr; }

}  // namespace amk
