"""The small library of kernel tasks as it was built: one set of flags, machine code for every target, no fast math.

Needs no GPU. Skipped where the build has no CUDA; with a CUDA build, a missing library or tool is a failure.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import amk
from amk.tasks.cubins import read_cubins, without_path
from amk.tasks.device import HarnessDevice
from amk.tasks.harness_library import library_path, open_library
from amk.tasks.workloads import load_task, task_names
from test_cubins import FORBIDDEN, cuobjdump

BUILT = amk.build_info()["cuda"]["enabled"] or bool(os.environ.get("AMK_TASKS_LIBRARY"))
SIDES = ("baseline", "solution")
pytestmark = pytest.mark.skipif(not BUILT, reason="this build has no CUDA, and so no library of tasks")


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    open_library.cache_clear()
    return HarnessDevice(0).facts_of_library()  # names no device


def test_every_task_is_in_the_library(built: dict[str, Any]) -> None:
    assert sorted(built["build"]["tasks"]) == task_names()
    device = HarnessDevice(0)
    for name in task_names():
        for side in SIDES:
            assert device.entry(name, side)
    with pytest.raises(amk.errors.BuildMismatch, match="found none"):
        device.entry("no_such_task", "solution")
    assert len(device.copies()) >= 4


def test_both_sides_were_compiled_by_one_command_line(built: dict[str, Any]) -> None:
    """As CMake gave it to the compiler, with the names of source and object taken out."""
    commands = {sides[side]["command"] for sides in built["build"]["tasks"].values() for side in SIDES}
    assert len(commands) == 1, commands
    (command,) = commands
    words = command.split()
    assert "{source}" in words and "{object}" in words and "-O3" in words
    assert not re.search(r"fast[-_]?math|--?(ftz|prec-div|prec-sqrt)", command)
    for flag in built["build"]["flags"].split():
        assert flag in words
    for arch in built["build"]["architectures"]:
        assert f"sm_{arch}" in command
    hashes = [sides[side]["sha256"] for sides in built["build"]["tasks"].values() for side in SIDES]
    assert len(set(hashes)) == len(hashes) and all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes)


def test_every_kernel_has_machine_code_for_every_target(built: dict[str, Any]) -> None:
    wanted = {f"sm_{arch}" for arch in built["build"]["architectures"]}
    by_kernel: dict[str, set[str]] = {}
    for cubin in built["cubins"]:
        for kernel in cubin["kernels"]:
            by_kernel.setdefault(without_path(kernel), set()).add(cubin["arch"])
    for kernel, found in by_kernel.items():
        assert found == wanted, f"{kernel} has machine code for {sorted(found)}"
    for name in task_names():
        assert sum(name in kernel for kernel in by_kernel) >= 2, f"no kernels of {name}"
        if amk.build_info()["cuda"]["enabled"]:
            assert set(load_task(name).targets) <= wanted


def test_our_reader_finds_what_cuobjdump_finds(tmp_path: Path) -> None:
    """The proof in a record rests on a reader of our own, as a GPU machine has no cuobjdump."""
    import hashlib

    cuobjdump("-xelf", "all", Path(library_path()).resolve(), cwd=tmp_path)
    theirs = set()
    for path in tmp_path.glob("*.cubin"):
        listed = set(re.findall(r"^\s*Function (\S+):\s*$", cuobjdump("-res-usage", path), re.M))
        if listed:
            arch = re.search(r"\.(sm_\d+[a-z]?)\.cubin$", path.name)
            assert arch
            theirs.add((arch[1], hashlib.sha256(path.read_bytes()).hexdigest()))
    ours = read_cubins(Path(library_path()).read_bytes(), "libamk_tasks")
    assert {(cubin.arch, cubin.sha256) for cubin in ours} == theirs and theirs


def test_no_kernel_spills_and_none_has_forbidden_instructions(tmp_path: Path) -> None:
    cuobjdump("-xptx", "all", Path(library_path()).resolve(), cwd=tmp_path)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in tmp_path.glob("*.ptx")]
    assert sum(".entry" in text for text in texts) >= 2
    for text in texts:
        lines = [line for line in text.split(".section")[0].splitlines() if line.rstrip().endswith(";")]
        for what in ("flushes denormals", "approximate division or root", "an atomic sum of floats (V22)"):
            found = re.search(FORBIDDEN[what][0], "\n".join(lines))
            assert not found, f"{what}: {found[0]}"
    usage = cuobjdump("-res-usage", Path(library_path()).resolve())
    assert "REG:" in usage
    assert set(re.findall(r"LOCAL:(\d+)", usage)) == {"0"}
