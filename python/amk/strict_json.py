"""Strict JSON for files that nobody vouches for: config.json, shard indexes, safetensors headers.

In: bytes and the place they came from (for messages). Out: plain Python values.
Stricter than `json.loads`: UTF-8 without a lone surrogate, no duplicate key at any level, no NaN or Infinity (written
out or by overflow), integers of at most 20 characters, nesting and number of values limited *before* parsing.
It must never raise anything but `InputError`, whatever the bytes.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import numpy as np

from .errors import InputError

MAX_DEPTH = 64
MAX_VALUES = 4_000_000  # a header of 200,000 tensors has about 1.6 million; bounds the memory a small file can ask for

# The closing quote is optional so that the pattern never fails after its first character: the scan stays linear.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


def parse_strict_json(data: bytes, where: str, *, max_values: int = MAX_VALUES, wide_integers: bool = False) -> Any:
    """Parses one JSON value; `where` names the source in the InputError that any defect raises.

    wide_integers: integers beyond 64 bits are passed on, for a reader that judges them by name.
    """
    text = _decode(data, where)
    _check_structure(data, where, max_values)

    def reject_constant(token: str) -> NoReturn:
        raise InputError(f"{where}: expected a finite number, got {token}")

    def parse_int(token: str) -> int | float:
        if len(token) > 20:  # 2^64 - 1 and -2^63 both have 20 characters
            raise InputError(f"{where}: expected an integer of at most 64 bits, got one of {len(token)} characters")
        return -0.0 if token == "-0" else int(token)  # JSON's -0 is no integer

    def parse_float(token: str) -> float:
        value = float(token)
        if not math.isfinite(value):
            raise InputError(f"{where}: expected a finite number, got {token[:40]}")
        return value

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise InputError(f"{where}: expected every key once, got {key[:80]!r} twice in one object")
                seen.add(key)
        return result

    try:
        value = json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_constant=reject_constant,
            parse_int=None if wide_integers else parse_int,
            parse_float=parse_float,
        )
        if "\\u" in text:  # only an escape can smuggle in a lone surrogate
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected Unicode text, got a lone surrogate in a string escape") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected valid JSON, got {error}") from error
    return value


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        byte, at = data[error.start], error.start
        raise InputError(f"{where}: expected UTF-8 text, got byte 0x{byte:02x} at {at}") from error


def _check_structure(data: bytes, where: str, max_values: int) -> None:
    """Bounds nesting and value count on the punctuation outside strings, so that the parser meets only sane input."""
    symbols = np.frombuffer(_STRING.sub(b"", data), dtype=np.uint8)
    opens = (symbols == ord("{")) | (symbols == ord("["))
    closes = (symbols == ord("}")) | (symbols == ord("]"))
    value_count = int(np.count_nonzero(opens)) + int(np.count_nonzero(symbols == ord(",")))
    if value_count > max_values:
        raise InputError(f"{where}: expected at most {max_values} JSON values, got {value_count}")
    steps = opens.astype(np.int8) - closes.astype(np.int8)
    depth = int(np.cumsum(steps[steps != 0], dtype=np.int32).max(initial=0))
    if depth > MAX_DEPTH:
        raise InputError(f"{where}: expected JSON nested at most {MAX_DEPTH} deep, got {depth}")
