"""The border: constants, layouts, the drift guard and the mapping of statuses to exceptions."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import amk
from amk import _lib, errors


def test_enum_names_carry_their_numbers():
    opcodes = _lib.enum_names("amk_opcode", "AMK_OP_")
    assert opcodes[_lib.ffi.integer_const("AMK_OP_GEMV_TILE")] == "GEMV_TILE"
    assert list(opcodes) == sorted(opcodes)


def test_pinned_sizes():
    sizes = {"amk_params_t": 88, "amk_buffer_t": 96, "amk_instruction_t": 224, "amk_counter_t": 4}
    assert {name: _lib.table_dtype(name).itemsize for name in sizes} == sizes
    limits = [_lib.limit(name) for name in ("MAX_INPUTS", "MAX_OUTPUTS", "MAX_WAITS", "MAX_RANK")]
    assert limits == [8, 4, 8, 4]


@pytest.mark.parametrize("name", ["amk_instruction_t", "amk_buffer_t", "amk_target_t", "amk_launch_t", "amk_page_t"])
def test_numpy_layout_is_the_c_layout(name):
    dtype, struct = _lib.table_dtype(name), _lib.ffi.typeof(name)
    assert dtype.itemsize == _lib.ffi.sizeof(struct)
    assert {key: dtype.fields[key][1] for key in dtype.names} == {key: field.offset for key, field in struct.fields}
    # A value written through numpy is read at the same place through C.
    record = np.zeros(1, dtype)
    last = dtype.names[-1]
    if dtype[last].shape == () and dtype[last].kind in "if":
        record[last] = 7
        pointer = _lib.ffi.cast(f"{name} *", _lib.pointer(name, record))
        assert getattr(pointer, last) == 7


def test_every_status_has_an_exception():
    statuses = {name for number, name in _lib.enum_names("amk_status", "AMK_ERR_").items() if number != 0}
    assert statuses == set(_lib._EXCEPTIONS)
    for exception in _lib._EXCEPTIONS.values():
        assert issubclass(exception, errors.AmkError)
    assert _lib.check(0) is None


def test_a_failing_call_raises_its_sentence():
    target = _lib.ffi.new("amk_target_t *")
    with pytest.raises(amk.InputError, match="99"):
        _lib.check(_lib.lib.amk_target_preset(99, target))
    with pytest.raises(amk.InternalError, match="-12345"):
        _lib.check(-12345)


def test_exceptions_survive_pickling():
    error = pickle.loads(pickle.dumps(amk.Rejected("no", report=("V9",))))
    assert str(error) == "no" and error.report == ("V9",)


def import_with(library, code="import amk._lib"):
    environment = {**os.environ, "AMK_LIBRARY": library}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_missing_library_is_a_build_mismatch(tmp_path):
    result = import_with(str(tmp_path / "none.so"))
    assert "BuildMismatch" in result.stderr and "none.so" in result.stderr


def test_foreign_library_is_a_build_mismatch():
    result = import_with("libc.so.6")
    assert "BuildMismatch" in result.stderr and "amk_abi_version" in result.stderr


def test_library_of_another_header_is_a_build_mismatch():
    code = (
        "import amk._amk_abi as abi, cffi\n"
        "class Drifted:\n"
        "    def __getattr__(self, name): return getattr(abi_ffi, name)\n"
        "    def sizeof(self, what): return abi_ffi.sizeof(what) + (what == 'amk_cost_t')\n"
        "abi_ffi, abi.ffi = abi.ffi, Drifted()\n"
        "import amk._lib\n"
    )
    result = import_with(os.environ.get("AMK_LIBRARY", ""), code)
    assert "BuildMismatch" in result.stderr and "amk_cost_t" in result.stderr


def test_library_can_be_named_by_the_environment():
    result = import_with(_lib.LIBRARY_PATH, "import amk._lib; print(amk._lib.LIBRARY_PATH)")
    assert result.stdout.strip() == _lib.LIBRARY_PATH, result.stderr


def test_build_info_names_the_build():
    assert {"version", "build_id", "compiler", "cxx_flags", "cuda"} <= set(_lib.build_info())


@pytest.mark.parametrize("value", [10**5000, [[]], "x" * 500, object()], ids=errors.show)
def test_show_takes_any_value(value):
    assert 0 < len(errors.show(value)) <= 80


class TestTargets:
    def test_presets(self):
        assert set(amk.TARGETS) >= {"b200", "h200", "h100", "a100", "l40s", "rtx5090"}
        for name, target in amk.TARGETS.items():
            assert target.name == name and target.source and target.sm_count > 0 and target.hbm_gb_per_s > 0
            assert amk.resolve_target(name) is target and amk.resolve_target(target) is target

    @pytest.mark.parametrize("name", ["h999", "", None, 7, ["h200"], 10**5000], ids=errors.show)
    def test_unknown_name_lists_the_known(self, name):
        with pytest.raises(amk.InputError, match="h200"):
            amk.resolve_target(name)

    @pytest.mark.skipif(_lib.build_info()["cuda"]["enabled"], reason="this build has CUDA")
    def test_local_says_why_not(self):
        with pytest.raises(amk.Unavailable, match="local"):
            amk.resolve_target("local")

    @pytest.mark.parametrize(
        "edit",
        [
            {"sm_count": -1},
            {"sm_count": 1 << 40},
            {"sm_count": True},
            {"hbm_gb_per_s": float("nan")},
            {"name": "x" * 40},
        ],
        ids=str,
    )
    def test_absurd_figures_name_the_field(self, edit):
        with pytest.raises(amk.InputError, match=next(iter(edit))):
            amk.GpuTarget(**{**amk.TARGETS["h200"].to_dict(), **edit})
