"""Strict JSON for files that nobody vouches for: config.json, shard indexes, safetensors headers.

In: bytes and the place they came from (for messages). Out: plain Python values.
Stricter than `json.loads`: UTF-8 without a lone surrogate, no duplicate key at any level, no NaN or Infinity (written
out or by overflow), integers of at most 20 characters, nesting and number of values limited *before* parsing.
It must never raise anything but `InputError`, whatever the bytes.
Most of the time is that of `json.loads`: the checks work on the punctuation alone, and a duplicate key shows as a colon
without a key of its own; only then is it looked for.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from .errors import InputError

MAX_DEPTH = 64
MAX_VALUES = 4_000_000  # a header of 200,000 tensors has about 1.6 million; bounds the memory a small file can ask for

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_NO_PUNCTUATION = bytes(byte for byte in range(256) if byte not in b'"{}[],:')


def parse_strict_json(data: bytes, where: str, *, max_values: int = MAX_VALUES, wide_integers: bool = False) -> Any:
    """Parses one JSON value; `where` names the source in the InputError that any defect raises.

    wide_integers: integers beyond 64 bits are passed on, for a reader that judges them by name.
    """
    text = _decode(data, where)
    pair_count = _check_structure(data, where, max_values)

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

    key_count = 0

    def count_keys(table: dict[str, Any]) -> dict[str, Any]:
        nonlocal key_count
        key_count += len(table)
        return table

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InputError(f"{where}: expected every key once, got {key[:80]!r} twice in one object")
            seen.add(key)
        return dict(pairs)

    def load(**hook: Callable[..., Any]) -> Any:
        return json.loads(
            text,
            parse_constant=reject_constant,
            parse_int=None if wide_integers else parse_int,
            parse_float=parse_float,
            **hook,
        )

    try:
        with no_collection():
            value = load(object_hook=count_keys)
            if key_count != pair_count:
                value = load(object_pairs_hook=unique_keys)
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


def _check_structure(data: bytes, where: str, max_values: int) -> int:
    """Bounds nesting and value count on the punctuation outside strings, so that the parser meets only sane input.
    Returns the number of colons: of valid JSON, that of keys."""
    marks = _punctuation(data)
    value_count = marks.count(b"{") + marks.count(b"[") + marks.count(b",")
    if value_count > max_values:
        raise InputError(f"{where}: expected at most {max_values} JSON values, got {value_count}")
    brackets = np.frombuffer(marks.translate(None, b",:"), dtype=np.uint8)
    steps = np.where((brackets == ord("{")) | (brackets == ord("[")), np.int8(1), np.int8(-1))
    depth = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
    if depth > MAX_DEPTH:
        raise InputError(f"{where}: expected JSON nested at most {MAX_DEPTH} deep, got {depth}")
    return marks.count(b":")


def _punctuation(data: bytes) -> bytes:
    """The characters {}[],: outside strings. Right up to the first defect of the text, where a parser stops too."""
    if b"\\" in data:
        data = _ESCAPE.sub(b"", data)  # from here on every quote begins or ends a string
    # Most strings hold no punctuation, so that their quotes meet; taking both away changes no other string.
    marks = data.translate(None, _NO_PUNCTUATION).replace(b'""', b"")
    if b'"' not in marks:
        return marks
    symbols = np.frombuffer(marks, dtype=np.uint8)
    is_quote = symbols == ord('"')
    in_string = np.cumsum(is_quote, dtype=np.uint8) & 1  # wraps at 256, which is even
    return symbols[(in_string == 0) & ~is_quote].tobytes()


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the cyclic garbage collector: parsing makes no cycles, and passes over millions of new objects cost more
    than making them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
