// How a quantised matrix lies on a device, so that a slot of the ring brings integers and their scales in one copy.
// A matrix of 8-bit elements [rows, K], rows a multiple of 8, and its 16-bit scales [rows, K / group] become groups of
// 8 rows, one after the other; a group of rows is cut every kInt8SlotElements of k; a cut is its units of 512 bytes and
// behind them its scales, those of the 8 rows side by side for each group of k. Lane l of a warp finds in its 16 bytes
// of a unit the elements 64u + 16(l % 4) ... + 15 of row l / 4: the B fragments of four mma.m16n8k16.
// An element's byte is its sign and magnitude, spread over the four bytes of a word so that two operations give two B
// registers: w & kInt8Mask holds elements 0 and 1 in its halves, rotate(w, 8 right) & kInt8Mask elements 2 and 3, each
// as sign bit and 7 low bits of a mantissa whose exponent is zero: a subnormal 16-bit float, an exact multiple of q.
// In: a packing and a place in the matrix or its scales. Out: the byte on the device. The reference machine never
// packs.
#pragma once

#include "ops/ring.h"

namespace amk {

constexpr int kInt8UnitElements = kUnitBytes / kGroupRows;         // of k: 64
constexpr int kInt8SlotElements = kSlotUnits * kInt8UnitElements;  // of k: 1,024
constexpr int kInt8VectorElements = AMK_VECTOR_BYTES;              // of one row
constexpr int kInt8ScaleBytes = 2, kInt8GroupScaleBytes = kGroupRows * kInt8ScaleBytes;
constexpr uint32_t kInt8Mask = 0x807f807f;
static_assert(kInt8ScaleRoom == kInt8SlotElements / AMK_MIN_WEIGHT_GROUP * kInt8GroupScaleBytes);

// A quantised matrix and how it is packed; group is one that is_int8_group allows.
struct Int8Matrix {
  Packing packing;
  int64_t rows, columns;
  int32_t group;
};

// Bytes of a whole slot, and of a row with its scales.
AMK_HOST_DEVICE constexpr int int8_slot_bytes(int32_t group) { return kSlotBytes + int8_scale_bytes(group); }
AMK_HOST_DEVICE constexpr int64_t int8_row_bytes(int64_t columns, int32_t group) {
  return columns + columns / group * kInt8ScaleBytes;
}
AMK_HOST_DEVICE constexpr int int8_slots(int64_t columns) {
  return static_cast<int>((columns + kInt8SlotElements - 1) / kInt8SlotElements);
}
// Units of the last slot of a row group.
AMK_HOST_DEVICE constexpr int int8_tail_units(int64_t columns) {
  return static_cast<int>((columns - (int8_slots(columns) - 1) * int64_t{kInt8SlotElements}) / kInt8UnitElements);
}

// First byte of the slot that holds element k of a row.
AMK_HOST_DEVICE constexpr int64_t int8_slot_byte(const Int8Matrix& m, int64_t row, int64_t k) {
  return packed_group(m.packing, m.rows, row) * kGroupRows * int8_row_bytes(m.columns, m.group) +
         k / kInt8SlotElements * int8_slot_bytes(m.group);
}
// First byte of vector `vector`, of kInt8VectorElements elements, of a row.
AMK_HOST_DEVICE constexpr int64_t int8_vector_byte(const Int8Matrix& m, int64_t row, int64_t vector) {
  const int64_t k = vector * kInt8VectorElements, in_slot = k % kInt8SlotElements;
  return int8_slot_byte(m, row, k) + in_slot / kInt8UnitElements * kUnitBytes +
         (row % kGroupRows * kUnitRowVectors + vector % kUnitRowVectors) * AMK_VECTOR_BYTES;
}
// Byte of the scale of group `index` of a row.
AMK_HOST_DEVICE constexpr int64_t int8_scale_byte(const Int8Matrix& m, int64_t row, int64_t index) {
  const int64_t k = index * m.group;
  const bool is_tail = k / kInt8SlotElements == int8_slots(m.columns) - 1;
  const int units = is_tail ? int8_tail_units(m.columns) : kSlotUnits;
  return int8_slot_byte(m, row, k) + units * kUnitBytes + k % kInt8SlotElements / m.group * kInt8GroupScaleBytes +
         row % kGroupRows * kInt8ScaleBytes;
}

// Four consecutive elements, element 0 in the lowest byte -> their word on the device.
AMK_HOST_DEVICE constexpr uint32_t int8_word(uint32_t plain) {
  uint32_t magnitude[4] = {}, sign[4] = {};
  for (int i = 0; i < 4; ++i) {
    const int q = static_cast<int>(plain >> (8 * i) & 0xff) - (plain >> (8 * i) & 0x80 ? 256 : 0);
    sign[i] = q < 0 ? 1 : 0;
    const int m = q < 0 ? -q : q;
    magnitude[i] = static_cast<uint32_t>(m > 127 ? 127 : m);  // -128 counts as -127
  }
  return magnitude[0] | sign[3] << 7 | magnitude[2] << 8 | sign[0] << 15 | magnitude[1] << 16 | sign[2] << 23 |
         magnitude[3] << 24 | sign[1] << 31;
}

}  // namespace amk
