// How a weight matrix lies on a device: a permutation of its 16-byte vectors, so that what a warp multiplies at once is
// one contiguous copy. A matrix of 16-bit elements [rows, K], rows a multiple of 8 and K of 32, becomes groups of 8
// rows, one after the other; a group is K / 32 units of 512 bytes; lane l of a warp finds in its 16 bytes of a unit the
// elements 32u + 8(l % 4) ... + 7 of row l / 4, which are the two B fragments of two mma.m16n8k16 (PTX ISA, "Matrix
// Fragments"): which 8 elements of k an instruction takes does not matter as long as x is taken the same way.
// In: a packing and a place in the matrix. Out: the place on the device. The reference machine never packs.
#pragma once

#include <cstdint>

#include "amk.h"

#ifdef __CUDACC__
#define AMK_HOST_DEVICE __host__ __device__
#else
#define AMK_HOST_DEVICE
#endif

namespace amk {

// Numbers of the image: append-only.
enum class Packing : int32_t {
  kPlain = 0,      // as bound
  kRowGroups = 1,  // groups of 8 consecutive rows
  kGateUp = 2,     // [2N, K]: 8 gate rows, then the 8 up rows that they are multiplied with
  kScales = 3      // scales of a packed quantised matrix: they lie in its slots (ops/packing_int8.h)
};

constexpr int kGroupRows = AMK_ROW_GROUP;
constexpr int kUnitRowVectors = 4;                           // vectors of one row in a unit
constexpr int kUnitVectors = kGroupRows * kUnitRowVectors;   // one per lane
constexpr int kUnitElements = kUnitRowVectors * 8;           // of k
constexpr int kUnitBytes = kUnitVectors * AMK_VECTOR_BYTES;  // 512
static_assert(kUnitVectors == 32, "a lane holds one vector of a unit");

// Packed group that holds row `row` of `rows`, and the other way round.
AMK_HOST_DEVICE constexpr int64_t packed_group(Packing packing, int64_t rows, int64_t row) {
  if (packing != Packing::kGateUp) return row / kGroupRows;
  const int64_t half = rows / 2;
  return row < half ? row / kGroupRows * 2 : (row - half) / kGroupRows * 2 + 1;
}
AMK_HOST_DEVICE constexpr int64_t group_first_row(Packing packing, int64_t rows, int64_t group) {
  if (packing != Packing::kGateUp) return group * kGroupRows;
  return group / 2 * kGroupRows + (group % 2 ? rows / 2 : 0);
}

// Index of vector `vector` of row `row`, of row_vectors per row.
AMK_HOST_DEVICE constexpr int64_t packed_vector(Packing packing, int64_t rows, int64_t row_vectors, int64_t row,
                                                int64_t vector) {
  if (packing == Packing::kPlain) return row * row_vectors + vector;
  return packed_group(packing, rows, row) * kGroupRows * row_vectors + vector / kUnitRowVectors * kUnitVectors +
         row % kGroupRows * kUnitRowVectors + vector % kUnitRowVectors;
}

}  // namespace amk
