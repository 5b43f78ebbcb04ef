"""The safetensors reader against the `safetensors` package, and against files that lie."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from amk.errors import InputError
from amk.safetensors import SafetensorsFile
from amk.strict_json import parse_strict_json

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def write(path: Path, header: Any, data: bytes = b"", *, declared: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if declared is None else declared).to_bytes(8, "little") + text + data)
    return path


def read_all(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    result = {}
    with SafetensorsFile(path) as file:
        for name, entry in file.tensors.items():
            content = bytearray(entry.nbytes)
            file.read_into(name, memoryview(content))
            result[name] = (entry.dtype, entry.shape, bytes(content))
        file.check_unchanged()
    return result


def test_agrees_with_the_safetensors_package(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal((4,)).astype(np.float16),
        "i64": rng.integers(-9, 9, (2, 2, 2, 2)),
        "u8": rng.integers(0, 255, (7,), dtype=np.uint8),
        "scalar": np.array(2.5),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "np"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert sorted(file.tensors) == sorted(tensors)
        for name, expected in tensors.items():
            found = np.empty_like(expected)
            file.read_into(name, found)
            assert np.array_equal(found, expected)
            assert file.tensors[name].shape == expected.shape
        tail = np.empty(2, dtype=np.float32)
        file.read_into("f32", tail, start_byte=13 * 4)
        assert np.array_equal(tail, tensors["f32"].reshape(-1)[13:])


def test_read_into_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "x", GOOD, bytes(24))
    with SafetensorsFile(path) as file:
        for name, buffer, start in (
            ("b", np.empty(6, np.float32), 0),
            ("a", np.empty(7, np.float32), 0),
            ("a", np.empty(6, np.float32), 1),
            ("a", np.empty(6, np.float32), -1),
            ("a", np.empty((6, 2), np.float32)[:, 0], 0),
            ("a", memoryview(bytes(24)), 0),
        ):
            with pytest.raises(InputError):
                file.read_into(name, buffer, start_byte=start)
    with pytest.raises(InputError, match="closed"):
        file.read_into("a", np.empty(6, np.float32))


def test_truncation_at_every_byte_and_trailing_bytes(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float16)}, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(InputError):
            SafetensorsFile(cut)
    cut.write_bytes(content + b"\0")
    with pytest.raises(InputError, match="end with the file"):
        SafetensorsFile(cut)


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24), **more: Any) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


BAD_HEADERS: dict[str, Any] = {
    "no object": b"[]",
    "leading space": b" {}",
    "empty": b"",
    "no JSON": b'{"a":',
    "two values": b"{} {}",
    "duplicate tensor": b'{"a":{"dtype":"U8","shape":[24],"data_offsets":[0,24]},'
    b'"a":{"dtype":"U8","shape":[24],"data_offsets":[0,24]}}',
    "duplicate key in a tensor": b'{"a":{"dtype":"U8","dtype":"U8","shape":[24],"data_offsets":[0,24]}}',
    "duplicate by escape": b'{"a":{"dtype":"U8","\\u0064type":"U8","shape":[24],"data_offsets":[0,24]}}',
    "not UTF-8": b'{"\xff":{"dtype":"U8","shape":[24],"data_offsets":[0,24]}}',
    "lone surrogate": b'{"\\ud800":{"dtype":"U8","shape":[24],"data_offsets":[0,24]}}',
    "NaN": b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,24]}}',
    "Infinity": b'{"a":{"dtype":"U8","shape":[24],"data_offsets":[0,-Infinity]}}',
    "number overflow": b'{"a":{"dtype":"U8","shape":[1e400],"data_offsets":[0,24]}}',
    "huge integer": b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,24]}}',
    "minus zero": b'{"a":{"dtype":"U8","shape":[24],"data_offsets":[-0,24]}}',
    "deep": b'{"a":' + b"[" * 65 + b"]" * 65 + b"}",
    "very deep": b'{"a":' + b"[" * 1_000_000,
    "unknown dtype": entry("F128"),
    "unknown dtype before offsets": entry("Q4", (2, 3), "nonsense"),
    "dtype no string": entry(["F32"]),
    "rank 5": entry(shape=(1, 1, 1, 2, 3)),
    "zero dim": entry(shape=(0, 3), offsets=(0, 0)),
    "negative dims": entry(shape=(-2, -3)),
    "float dim": entry(shape=(2.0, 3)),
    "bool dim": entry(shape=(True, 6)),
    "product overflow": entry(shape=(2**63, 2, 3, 1)),
    "product wraps to the size": entry(shape=(2**62 + 6, 4), offsets=(0, 96)),
    "shape no list": entry(shape=6),
    "offsets too few": entry(offsets=(24,)),
    "offsets float": entry(offsets=(0, 24.0)),
    "offsets bool": entry(offsets=(False, 24)),
    "offsets negative": entry(offsets=(-24, 0)),
    "offsets reversed": entry(offsets=(24, 0)),
    "offsets past the end": entry(shape=(4, 3), offsets=(0, 48)),
    "offsets gap at the start": entry("U8", (20,), (4, 24)),
    "unknown key": entry(extra=1),
    "missing key": {"a": {"dtype": "F32", "shape": [2, 3]}},
    "entry no object": {"a": [1]},
    "metadata no strings": {**GOOD, "__metadata__": {"x": 1}},
    "metadata null": {**GOOD, "__metadata__": None},
    "overlap": {**entry("U8", (16,), (0, 16)), "b": {"dtype": "U8", "shape": [16], "data_offsets": [8, 24]}},
    "gap": {**entry("U8", (8,), (0, 8)), "b": {"dtype": "U8", "shape": [8], "data_offsets": [16, 24]}},
    "same bytes twice": {**GOOD, "b": GOOD["a"]},
    "data unused": {},
    "half byte": entry("F4", (47,), (0, 24)),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers(tmp_path: Path, case: str) -> None:
    with pytest.raises(InputError, match="x"):
        SafetensorsFile(write(tmp_path / "x", BAD_HEADERS[case], bytes(24)))


@pytest.mark.parametrize("declared", [0, 1, 10**6, 2**31, 2**63, 2**64 - 1])
def test_bad_header_length(tmp_path: Path, declared: int) -> None:
    with pytest.raises(InputError):
        SafetensorsFile(write(tmp_path / "x", GOOD, bytes(24), declared=declared))


def test_header_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = tmp_path / "big"
    with sparse.open("wb") as file:
        file.write(((64 << 20) + 1).to_bytes(8, "little"))
        file.truncate(66 << 20)
    with pytest.raises(InputError, match="at most 67108864"):
        SafetensorsFile(sparse)
    many = {str(i): {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(3)}
    monkeypatch.setattr("amk.safetensors.MAX_TENSORS", 2)
    with pytest.raises(InputError, match="at most 2 tensors"):
        SafetensorsFile(write(tmp_path / "x", many, bytes(3)))


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "to_fifo").symlink_to(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path / "to_fifo", tmp_path / "loop", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError):
            SafetensorsFile(path)
    with pytest.raises(InputError):
        SafetensorsFile("nul\0name")
    with pytest.raises(InputError):
        SafetensorsFile(tmp_path / "absent")
    (tmp_path / "link").symlink_to(write(tmp_path / "x", GOOD, bytes(24)))
    assert read_all(tmp_path / "link")["a"][2] == bytes(24)


def test_file_that_changes_while_open(tmp_path: Path) -> None:
    path = write(tmp_path / "x", GOOD, bytes(24))
    with SafetensorsFile(path) as file:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(InputError, match="truncated"):
            file.read_into("a", np.empty(6, np.float32))
        with pytest.raises(InputError, match="written to"):
            file.check_unchanged()


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {}, b"data unused")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(InputError):
            SafetensorsFile(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_unterminated_string_is_linear() -> None:
    with pytest.raises(InputError):
        parse_strict_json(b'"' + b'\\"' * 2_000_000, "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.sampled_from(["F32", "BF16", "U8", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
dims = st.lists(st.integers(0, 4), max_size=5)


@st.composite
def nearly_valid_files(draw: st.DrawFn) -> bytes:
    """A valid file in which a few things may be a little wrong."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.text(max_size=4), unique=True, max_size=4)):
        shape, dtype = draw(dims), draw(st.sampled_from(["F32", "F16", "BF16", "U8", "I64", "BOOL", "F4"]))
        bits = {"F32": 32, "F16": 16, "BF16": 16, "U8": 8, "I64": 64, "BOOL": 8, "F4": 4}[dtype]
        nbytes = int(np.prod(shape, dtype=np.int64)) * bits // 8
        start = end + draw(st.sampled_from([0] * 9 + [1, -1]))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + nbytes]}
        end = start + nbytes
    if header and draw(st.integers(0, 9)) == 0:
        header[draw(st.sampled_from(sorted(header)))][draw(st.sampled_from(["dtype", "shape", "x"]))] = draw(
            json_values
        )
    text = json.dumps(header).encode() + b" " * draw(st.integers(0, 3))
    size = max(0, end + draw(st.sampled_from([0] * 9 + [1, -1])))
    return len(text).to_bytes(8, "little") + text + bytes(i % 251 for i in range(size))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=nearly_valid_files()
    | st.binary(max_size=64)
    | json_values.map(lambda v: json.dumps(v).encode()).map(lambda text: len(text).to_bytes(8, "little") + text)
)
@example(content=b"")
@example(content=b"\2\0\0\0\0\0\0\0{}")
def test_any_bytes_give_a_typed_error_or_what_the_package_reads(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fuzz"
    path.write_bytes(content)
    try:
        found = read_all(path)
    except InputError:
        return
    expected = dict(safetensors.deserialize(content))
    assert sorted(found) == sorted(expected)
    for name, (dtype, shape, data) in found.items():
        assert (dtype, list(shape), data) == (expected[name]["dtype"], expected[name]["shape"], expected[name]["data"])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()))
def test_strict_json_accepts_only_json(data: bytes) -> None:
    try:
        value = parse_strict_json(data, "fuzz")
    except InputError:
        return
    assert json.loads(data) == value
