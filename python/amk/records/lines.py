"""One record, one line: how trials are written to the three logs and read back.

In: records, or bytes that nobody vouches for. Out: a line of at most 64 KiB that ends in LF and whose last field is the
CRC-32C of everything before that field; or a record, or None where the line is not exactly what a writer here writes.
No text in any field can end a field or a line, or look like another row: JSON lines are ASCII, and in the TSV every
character that is not printable is escaped. Nothing here raises for a line that is read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .crc32c import crc32c
from .trial import Trial

__all__ = [
    "CORPUS_HEADER",
    "JOURNAL_HEADER",
    "MAX_LINE_BYTES",
    "TSV_COLUMNS",
    "TSV_HEADER",
    "cells",
    "escape",
    "intact_json",
    "json_line",
    "read_json_line",
    "read_row",
    "row_id",
    "row_line",
    "unescape",
]

MAX_LINE_BYTES = 64 << 10
TSV_COLUMNS = (
    *("experiment", "tag", "loop", "model", "gpu", "regime", "correctness", "latency_us", "pct_of_roofline"),
    *("schedule_id", "kernel_id", "description", "trial_id", "time_utc", "duration_s"),
    *("image_hash", "driver", "device_name", "crc"),
)
_ID_COLUMN = TSV_COLUMNS.index("trial_id")
_PROVENANCE = ("image_hash", "driver", "device_name")
_NUMBERS = ("latency_us", "pct_of_roofline", "duration_s")

_JSON_END = re.compile(rb',"crc":"([0-9a-f]{8})"\}\Z')
_ROW_END = re.compile(rb"\t([0-9a-f]{8})\Z")
_ESCAPE = re.compile(r"\\(?:([\\tnr])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))?")
_NEVER_RAW = re.compile("[\\x00-\\x08\\x0a-\\x1f\\x7f-\\x9f\\u2028\\u2029]")  # what could end a line for some reader
_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_LONG = {escaped[1]: char for char, escaped in _SHORT.items()}


# ---- JSON lines: the journal and the corpus ----


def json_line(record: Mapping[str, Any]) -> bytes:
    """The record as one line with its CRC. InputError: not JSON, or over 64 KiB."""
    try:
        text = json.dumps(record, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"record: expected plain data, got what JSON cannot hold: {error!s:.120}") from error
    head = text[:-1].replace("\x7f", "\\u007f").encode("ascii")
    return _bounded(b'%b,"crc":"%08x"}\n' % (head, crc32c(head)))


def intact_json(line: bytes) -> bytes | None:
    """The line without its LF and its last field, if that is the right CRC."""
    end = _JSON_END.search(line)
    if end is None or crc32c(line[: end.start()]) != int(end[1], 16):
        return None
    return line[: end.start()]


def read_json_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line without its LF, or None: whatever the bytes are."""
    head = intact_json(line)
    if head is None:
        return None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key twice")
        return result

    try:
        value = json.loads(head.decode("ascii") + "}", object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# ---- rows of results.tsv ----


def escape(text: str) -> str:
    """The text as one cell: what is not printable, and the backslash, become escapes of printable ASCII."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(char if char.isprintable() and char != "\\" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    wide = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return _SHORT.get(char, wide)


def unescape(cell: str) -> str | None:
    """What `escape` made the cell from, or None where it cannot have made it."""
    if "\\" not in cell:
        return cell
    whole = True

    def character(found: re.Match[str]) -> str:
        nonlocal whole
        if found[1]:
            return _LONG[found[1]]
        digits = found[2] or found[3] or found[4]
        if digits is None or int(digits, 16) > 0x10FFFF:
            whole = False
            return ""
        return chr(int(digits, 16))

    text = _ESCAPE.sub(character, cell)
    return text if whole else None


def cells(trial: Trial) -> dict[str, str]:
    """The trial as text by column, without the CRC; every cell escaped."""
    provenance = trial.verdict.get("provenance")
    provenance = provenance if isinstance(provenance, Mapping) else {}
    out: dict[str, str] = {}
    for name in TSV_COLUMNS[:-1]:
        value = provenance.get(name) if name in _PROVENANCE else getattr(trial, name)
        out[name] = escape("" if value is None else repr(value) if isinstance(value, float) else str(value))
    return out


def row_line(trial: Trial) -> bytes:
    """The trial as one row with its CRC. InputError: over 64 KiB."""
    head = "\t".join(cells(trial).values()).encode("utf-8")
    return _bounded(b"%b\t%08x\n" % (head, crc32c(head)))


def read_row(line: bytes) -> Trial | None:
    """The trial of a row without its LF, or None. What a row does not hold (the schedule, the verdict) is empty."""
    end = _ROW_END.search(line)
    if end is None or crc32c(line[: end.start()]) != int(end[1], 16):
        return None
    try:
        text = line[: end.start()].decode("utf-8")
    except UnicodeDecodeError:
        return None
    if _NEVER_RAW.search(text):
        return None
    given = [unescape(cell) for cell in text.split("\t")]
    if len(given) != len(TSV_COLUMNS) - 1 or None in given:
        return None
    values: dict[str, Any] = dict(zip(TSV_COLUMNS, given, strict=False))
    provenance = {name: text for name in _PROVENANCE if (text := values.pop(name))}
    try:
        values["experiment"] = _canonical(int, str, values["experiment"])
        for name in _NUMBERS:
            values[name] = _canonical(float, repr, values[name]) if values[name] else None
        verdict = {"provenance": provenance} if provenance else {}
        return Trial(**values, schedule_config={}, verdict=verdict, comparison={}, shape={})
    except (InputError, ValueError):
        return None


def row_id(line: bytes) -> str | None:
    """The trial_id of a row without its LF, if its CRC is right."""
    end = _ROW_END.search(line)
    if end is None or crc32c(line[: end.start()]) != int(end[1], 16):
        return None
    given = line.split(b"\t")
    return given[_ID_COLUMN].decode("utf-8", "replace") if len(given) == len(TSV_COLUMNS) else None


def _canonical(read: Any, write: Any, text: str) -> Any:
    """The number that a writer here spells like this; ValueError for another spelling of it."""
    value = read(text)
    if write(value) != text or not math.isfinite(value):
        raise ValueError(text)
    return value


def _bounded(line: bytes) -> bytes:
    if len(line) > MAX_LINE_BYTES:
        raise InputError(f"record: expected a line of at most {MAX_LINE_BYTES} bytes, got {len(line)}")
    return line


JOURNAL_HEADER = json_line({"kind": "header", "format": "amk.journal", "version": 1})
CORPUS_HEADER = json_line({"kind": "header", "format": "amk.corpus", "version": 1})
TSV_HEADER = ("\t".join(TSV_COLUMNS) + "\n").encode("ascii")
