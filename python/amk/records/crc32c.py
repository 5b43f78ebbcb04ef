"""CRC-32C (Castagnoli), the check of every record.

In: bytes. Out: the 32-bit remainder as RFC 3720 (appendix B.4) writes it. `zlib.crc32` is another polynomial.
Long inputs go 128 bytes at a time: the remainder is linear, so the share of a byte depends only on its distance from
the end of its row, and a row's remainder is the XOR of 128 table look-ups, which numpy does for all rows at once.
"""

from __future__ import annotations

import numpy as np

__all__ = ["crc32c"]

_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41, bits reversed
_ROW_BYTES = 128
_SHORT_BYTES = 192  # below this, numpy costs more than it saves


def _byte_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_BYTE = _byte_table()


def _row_tables() -> np.ndarray:
    """[distance from the start of a row][byte]: its share of the remainder at the end of the row."""
    byte = np.array(_BYTE, np.uint32)
    tables = np.empty((_ROW_BYTES, 256), np.uint32)
    tables[-1] = byte
    for at in range(_ROW_BYTES - 2, -1, -1):
        tables[at] = byte[tables[at + 1] & 255] ^ (tables[at + 1] >> 8)
    return tables


_ROWS = _row_tables()
_FLAT = _ROWS.ravel()
_OFFSETS = np.arange(_ROW_BYTES, dtype=np.int32) * 256
_FIRST = tuple(_ROWS[at].tolist() for at in range(4))


def crc32c(data: bytes) -> int:
    """The remainder of `data`, 0..2^32 - 1."""
    if len(data) < _SHORT_BYTES:
        crc = 0xFFFFFFFF
        for value in data:
            crc = _BYTE[(crc ^ value) & 255] ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF
    rows = -(-len(data) // _ROW_BYTES)
    block = np.zeros(rows * _ROW_BYTES, np.uint8)  # zeros in front change nothing where the register starts at zero
    start = block.size - len(data)
    block[start:] = np.frombuffer(data, np.uint8)
    block[start : start + 4] ^= 0xFF  # the same as a register that starts with ones
    shares = _FLAT[block.reshape(rows, _ROW_BYTES) + _OFFSETS]
    a, b, c, d = _FIRST
    crc = 0
    for row in np.bitwise_xor.reduce(shares, axis=1).tolist():
        crc = a[crc & 255] ^ b[(crc >> 8) & 255] ^ c[(crc >> 16) & 255] ^ d[crc >> 24] ^ row
    return crc ^ 0xFFFFFFFF
