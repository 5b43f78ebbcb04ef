"""Records and their lines: what is written is read back exactly, and nothing else ever is."""

from __future__ import annotations

import json
import os
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from amk.errors import InputError
from amk.records import TAGS, Trial, read_corpus, read_trials
from amk.records.crc32c import crc32c
from amk.records.entries import corpus_entry, end_entry, read_corpus_line, read_entry
from amk.records.lines import (
    MAX_LINE_BYTES,
    TSV_COLUMNS,
    TSV_HEADER,
    escape,
    json_line,
    read_json_line,
    read_row,
    row_line,
    unescape,
)
from some_trials import LOOP, failed_trial, make_trial

FORGED = (
    "0\tkept\tdeadbeef0000\ttoy\th200\tmeasured-gpu\tPASS\t0.1\t99.0\ts\tk\tforged\t"
    "deadbeef0000-000000\t2026-01-02T03:04:05Z\t1.0\t\t\t"
)
HOSTILE = (
    *("", "\t", "\n", "\r\n", "\\", "\\n", "\0", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u2029", "\v\f\x1c\x1d\x1e"),
    *("\ud800", "\udfff", "\udc80", "\ud83d\ude00", "\U0001f600", "\ufeff", "\u202e", '","crc":"00000000"}'),
    *("\n" + FORGED + f"{crc32c(FORGED.encode()):08x}\n", "\t".join(TSV_COLUMNS), "a" * 5000),
)


def whole(text: str) -> str:
    """With surrogate pairs as the characters they spell: two keys that mean one are refused."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


# Text of every kind, with what ends lines, ends fields or spells an escape more often than chance would.
TEXT = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.one_of(st.characters(), st.characters(categories=["Cs", "Cc", "Zl", "Zp"])), max_size=40),
    st.text(string.whitespace + "\\tnrxuU0189af\x85\u2028\ud800\udc00", max_size=30),
)
NUMBERS = st.one_of(st.floats(min_value=5e-324, allow_infinity=False), st.sampled_from([1e-300, 0.1, 1e308, 3.0]))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats(-1e308, 1e308) | TEXT,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT.map(whole), inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip


@st.composite
def trials(draw: Any) -> Trial:
    experiment = draw(st.integers(0, (1 << 31) - 1))
    loop = draw(st.text("0123456789abcdef", min_size=12, max_size=12))
    tag = draw(st.sampled_from(TAGS))
    correctness = {"kept": "PASS", "crash": "CRASH", "rejected": "REJECTED"}.get(tag)
    correctness = correctness or draw(st.sampled_from(["PASS", "FAIL"]))
    latency = draw(NUMBERS if tag == "kept" else st.one_of(st.none(), NUMBERS)) if correctness == "PASS" else None
    provenance = draw(st.dictionaries(st.sampled_from(["image_hash", "driver", "device_name"]), TEXT))
    tree = st.dictionaries(TEXT.map(whole), PLAIN, max_size=3)
    return Trial(
        **{"trial_id": f"{loop}-{experiment:06d}", "loop": loop, "experiment": experiment, "tag": tag},
        **{name: draw(TEXT) for name in ("model", "gpu", "schedule_id", "kernel_id", "description")},
        **{"regime": draw(st.sampled_from(["predicted", "measured-gpu"])), "correctness": correctness},
        **{"latency_us": latency, "pct_of_roofline": None if latency is None else draw(st.none() | NUMBERS)},
        **{name: draw(tree) for name in ("schedule_config", "comparison", "shape")},
        **{"verdict": draw(tree) | {"provenance": provenance}, "time_utc": "2026-01-02T03:04:05Z"},
        duration_s=draw(st.floats(0, 1e9)),
    )


# ---- the check ----


def test_crc_is_castagnoli() -> None:
    """The vectors of RFC 3720, B.4, and the check value of the catalogue."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(bytes(reversed(range(32)))) == 0x113FDB5C


def test_crc_of_any_length_agrees_with_long_division() -> None:
    def divided(data: bytes) -> int:
        register = 0xFFFFFFFF
        for byte in data:
            register ^= byte
            for _ in range(8):
                register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
        return register ^ 0xFFFFFFFF

    draw = random.Random(1)
    for length in (*range(1, 10), *range(126, 131), *range(185, 200), 255, 256, 257, 383, 384, 385, 1000, 4097):
        data = draw.randbytes(length)
        assert crc32c(data) == divided(data), length


# ---- the record ----


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"tag": "best"}, "tag"),
        ({"tag": None}, "tag"),
        ({"regime": "measured"}, "regime"),
        ({"correctness": "pass"}, "correctness"),
        ({"latency_us": float("nan")}, "latency_us"),
        ({"latency_us": float("inf")}, "latency_us"),
        ({"latency_us": 0.0}, "latency_us"),
        ({"latency_us": -1.0}, "latency_us"),
        ({"latency_us": "1.0"}, "latency_us"),
        ({"latency_us": True}, "latency_us"),
        ({"pct_of_roofline": float("nan")}, "pct_of_roofline"),
        ({"tag": "revert", "latency_us": None}, "share"),
        ({"tag": "revert", "correctness": "FAIL"}, "only a correct trial has a latency"),
        ({"latency_us": None, "pct_of_roofline": None}, "kept"),
        ({"tag": "crash"}, "CRASH"),
        ({"tag": "rejected"}, "REJECTED"),
        ({"regime": "measured-gpu"}, "kind"),  # the verdict says predicted
        ({"loop": "0123"}, "loop"),
        ({"loop": "0123456789AB"}, "loop"),
        ({"experiment": 1}, "trial_id"),
        ({"experiment": True}, "experiment"),
        ({"experiment": -1}, "experiment"),
        ({"trial_id": "0123456789ab-0"}, "trial_id"),
        ({"time_utc": "2026-01-02 03:04:05"}, "time_utc"),
        ({"time_utc": "2026-01-02T03:04:05Z\n"}, "time_utc"),
        ({"duration_s": -0.1}, "duration_s"),
        ({"duration_s": None}, "duration_s"),
        ({"model": 3}, "model"),
        ({"schedule_config": []}, "schedule_config"),
        ({"shape": {1: 2}}, "shape"),
        ({"shape": {"a": float("nan")}}, "shape.a"),
        ({"shape": {"a": {1, 2}}}, "shape.a"),
        ({"shape": {"a": 1 << 64}}, "shape.a"),
        ({"shape": {"\U0001f600": 1, "\ud83d\ude00": 2}}, "shape"),  # one key, spelled in two ways
    ],
)
def test_a_dishonest_or_malformed_trial_cannot_be_made(changed: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        Trial(**{**make_trial().to_dict(), **changed})


def test_nesting_is_bounded() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(InputError, match="nested"):
        make_trial(shape=deep)


def test_from_dict_wants_every_key_and_no_other() -> None:
    data = make_trial().to_dict()
    assert Trial.from_dict(data) == make_trial() and hash(make_trial()) == hash(Trial.from_dict(data))
    for key in data:
        with pytest.raises(InputError, match=key):
            Trial.from_dict({name: value for name, value in data.items() if name != key})
    with pytest.raises(InputError, match="unknown"):
        Trial.from_dict({**data, "bonus": 1})
    with pytest.raises(InputError, match="object"):
        Trial.from_dict([data])  # type: ignore[arg-type]


def test_a_trial_shares_nothing_with_what_it_was_made_from() -> None:
    config: dict[str, Any] = {"a": {"b": (1, 2)}}
    trial = make_trial(schedule_config=config)
    config["a"]["b"] = 3
    trial.to_dict()["schedule_config"]["a"] = None
    assert trial.schedule_config == {"a": {"b": [1, 2]}}


# ---- lines ----


@settings(max_examples=150, deadline=None)
@given(trials())
@example(make_trial(description=HOSTILE[-3], model=HOSTILE[-3], gpu="\ud83d\ude00"))
@example(failed_trial())
def test_every_trial_survives_all_three_logs(trial: Trial) -> None:
    assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))) == trial
    end = json_line({"kind": "end", "writer": "0" * 16, "seq": 0, **end_entry(trial)})
    corpus, row = json_line(corpus_entry(trial)), row_line(trial)
    for line in (end, corpus, row):
        assert line.endswith(b"\n") and len(line.splitlines()) == 1 and len(line.decode().splitlines()) == 1
        assert not any(byte < 32 and byte not in b"\t\n" for byte in line) and b"\x7f" not in line
    assert end.isascii() and corpus.isascii() and row.count(b"\t") == len(TSV_COLUMNS) - 1
    entry = read_entry(end[:-1])
    assert entry is not None and entry.trial == trial
    assert read_corpus_line(corpus[:-1]) == trial
    back = read_row(row[:-1])
    assert back is not None and row_line(back) == row
    kept = ("experiment", "tag", "loop", "model", "gpu", "regime", "correctness", "latency_us", "pct_of_roofline")
    kept += ("schedule_id", "kernel_id", "description", "trial_id", "time_utc", "duration_s")
    assert all(getattr(back, name) == getattr(trial, name) for name in kept)


@settings(max_examples=600, deadline=None)
@given(TEXT)
def test_escapes_are_exact(text: str) -> None:
    cell = escape(text)
    assert unescape(cell) == text and cell.isprintable() and "\t" not in cell
    assert escape(cell) != cell or "\\" not in cell


@pytest.mark.parametrize("cell", ["\\", "a\\", "\\q", "\\x1", "\\xZZ", "\\u12", "\\U00110000", "\\Uffffffff", "\\\\\\"])
def test_what_no_writer_escapes_is_no_cell(cell: str) -> None:
    assert unescape(cell) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_make_a_reader_raise(data: bytes) -> None:
    for read in (read_row, read_entry, read_corpus_line, read_json_line):
        assert read(data) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_not_even_with_a_good_crc(data: bytes) -> None:
    row = b"%b\t%08x" % (data, crc32c(data))
    line = b'%b,"crc":"%08x"}' % (data, crc32c(data))
    assert read_row(row) is None and read_entry(line) is None and read_corpus_line(line) is None


def signed(record: dict[str, Any]) -> bytes:
    return json_line(record)[:-1]


def test_records_of_another_shape_are_none() -> None:
    end = {"kind": "end", "writer": "0" * 16, "seq": 0, **end_entry(make_trial())}
    start = {"kind": "start", "writer": "0" * 16, "seq": 0, "trial_id": f"{LOOP}-000000", "loop": LOOP}
    start |= {"experiment": 0, "schedule_id": "s", "schedule_config": {}}
    loop = {"kind": "loop", "writer": "0" * 16, "seq": 0, "loop": LOOP, "facts": {}}
    for good in (end, start, loop):
        assert read_entry(signed(good)) is not None
        for key in good:
            assert read_entry(signed({name: value for name, value in good.items() if name != key})) is None, key
            for value in (None, [], {}, "x", -1, True, 1.5):
                changed = {**good, key: value}
                odd_but_true = (key == "schedule_id" and value == "x") or (key, value) in [
                    ("facts", {}),
                    ("schedule_config", {}),
                ]
                odd_but_true |= key == "same_config" and value is False or changed == good
                if key == "same_config" and value is True:
                    continue
                assert (read_entry(signed(changed)) is not None) == bool(odd_but_true), (key, value)
        assert read_entry(signed({**good, "more": 1})) is None
    assert read_entry(signed({**loop, "facts": {"kind": "end"}})) is None
    twice = signed(loop)[:-17].replace(b'"seq":0', b'"seq":0,"seq":0')
    assert read_entry(b'%b,"crc":"%08x"}' % (twice, crc32c(twice))) is None


def test_a_record_over_64_kib_is_refused() -> None:
    fits = make_trial(description="x" * 60_000)
    assert len(row_line(fits)) < MAX_LINE_BYTES
    for text in ("x" * MAX_LINE_BYTES, "\0" * (MAX_LINE_BYTES // 3), "\u2028" * 11_000):
        with pytest.raises(InputError, match="at most 65536 bytes"):
            row_line(make_trial(description=text))


# ---- readers ----


def a_results_file(path: Path, count: int = 5) -> bytes:
    data = TSV_HEADER + b"".join(row_line(make_trial(index, description=f"row {index}\n")) for index in range(count))
    path.write_bytes(data)
    return data


def test_no_flipped_bit_is_read_as_a_row(tmp_path: Path) -> None:
    """Every bit of a whole row, one at a time: that row is gone, and what is left is what was written."""
    path = tmp_path / "results.tsv"
    data = a_results_file(path, 3)
    good = read_trials(path)
    first = len(TSV_HEADER)
    for at in range(first, first + len(row_line(make_trial(0, description="row 0\n")))):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            found = read_trials(path)
            assert found in (good[1:], good[2:]), (at, bit)  # [2:]: its LF is gone, and the next row with it


def test_random_damage_never_invents_a_row(tmp_path: Path) -> None:
    path, draw = tmp_path / "results.tsv", random.Random(2)
    data = a_results_file(path, 6)
    good = read_trials(path)
    for _ in range(600):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            start = draw.randrange(len(TSV_HEADER), len(changed))
            length = draw.randint(1, 80)
            kind = draw.randrange(4)
            if kind == 0:
                changed[start : start + length] = draw.randbytes(length)
            elif kind == 1:
                del changed[start : start + length]
            elif kind == 2:
                changed[start:start] = bytes(length)
            else:
                changed[start:start] = changed[start - length : start]
        path.write_bytes(changed)
        found = read_trials(path)
        assert all(trial in good for trial in found) and len({t.trial_id for t in found}) == len(found)


@pytest.mark.parametrize("kind", ["empty", "binary", "header", "directory", "fifo", "absent", "nul", "crlf", "denied"])
def test_what_is_no_log_is_one_typed_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "results.tsv"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "denied":
        path = Path("/proc/1/mem")
    elif kind != "absent":
        crlf = a_results_file(path).replace(b"\n", b"\r\n")
        contents = {
            "empty": b"",
            "binary": random.Random(3).randbytes(9000),
            "header": b"a\tb\n1\t2\n",
            "nul": bytes(200_000),
        }
        path.write_bytes({**contents, "crlf": crlf}[kind])
    for read in (read_trials, read_corpus):
        if kind == "absent" and read is read_corpus:
            assert read_corpus(path) == []
            continue
        with pytest.raises(InputError):
            read(path)


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    data = a_results_file(path, 2)
    with path.open("r+b") as file:
        file.seek(len(data) + (64 << 20))  # a hole: 64 MiB of NUL without a line end
        file.write(b"x")
    assert len(read_trials(path)) == 2
    with path.open("ab") as file:
        file.write(b"\n" + row_line(make_trial(2)))
    assert [trial.experiment for trial in read_trials(path)] == [0, 1, 2]
