"""The machine code inside the installed library, read with cuobjdump from PyPI: no GPU and no CUDA toolkit needed.

Fails closed: with a CUDA build, a missing tool or a tool that prints nothing is a failure, never a skip.
"""

import importlib.metadata
import re
import subprocess
from collections import defaultdict
from functools import cache
from itertools import product
from pathlib import Path

import pytest

import amk
from amk import _lib

CUDA = amk.build_info()["cuda"]
LIBRARY = Path(_lib.LIBRARY_PATH)
ARCHITECTURES = {"sm_90a", "sm_100a"}
REGISTERS_PER_SM = 65536
PRODUCER_THREADS = 128  # of a block, beside those of the tasks that a variant is named after (cuda/device_task.h)
# Stack per thread, spills included, that the kernels may have: none. Each acquire load empties L1, so a word that was
# put away costs a trip to L2, and 64 bytes were worth 5 % of a step of 0.6B (docs/performance.md).
MAX_STACK_BYTES = 0
# What no kernel's PTX may hold, and a line that would be it.
FORBIDDEN = {
    "flushes denormals": (r"\b(?:add|sub|mul|fma|div|sqrt)\.\S*ftz", "fma.rn.ftz.f32 \t%f1, %f2, %f3, %f4;"),
    "approximate division or root": (r"\b(?:div|sqrt)\.(?:approx|full)", "div.approx.f32 \t%f1, %f2, %f3;"),
    "an atomic sum of floats (V22)": (
        r"\b(?:red|atom)\.\S*(?:f16|bf16|f32|f64)",
        "red.global.add.f32 \t[%rd1], %f1;",
    ),
    # .nc is outside the memory model: for weights alone, whose loader is the one that also skips L1.
    "a non-coherent load that is no weight's": (
        r"\bld\.global\.nc(?!\.L1::no_allocate)",
        "ld.global.nc.v4.u32 \t{%r1, %r2, %r3, %r4}, [%rd1];",
    ),
}

needs_cuda_build = pytest.mark.skipif(not CUDA["enabled"], reason="this library was built without CUDA")


def cuobjdump(*arguments: object, cwd: Path | None = None) -> str:
    try:
        files = importlib.metadata.files("nvidia-cuda-cuobjdump") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("nvidia-cuda-cuobjdump is not installed: pip install '.[test]'")
    tools = [file for file in files if file.name == "cuobjdump"]
    assert len(tools) == 1, f"nvidia-cuda-cuobjdump holds {len(tools)} programs named cuobjdump"
    command = [str(tools[0].locate()), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    assert done.stdout.strip(), f"{' '.join(command)} printed nothing"
    return done.stdout


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    """A folder with every cubin and every PTX text of the library."""
    folder = tmp_path_factory.mktemp("code")
    cuobjdump("-xelf", "all", LIBRARY.resolve(), cwd=folder)
    cuobjdump("-xptx", "all", LIBRARY.resolve(), cwd=folder)
    return folder


def architecture_of(path: Path) -> str:
    found = re.search(r"\.(sm_\d+[a-z]?)\.(?:cubin|ptx)$", path.name)
    assert found, f"{path.name} names no architecture"
    return found[1]


@cache
def kernels_in(cubin: Path) -> dict[str, dict[str, int]]:
    """Kernel -> REG, STACK, SHARED, LOCAL as ptxas left them."""
    kernels = {}
    text = cuobjdump("-res-usage", cubin)
    for name, usage in re.findall(r"^\s*Function (\S+):\s*\n\s*(REG:.*)$", text, re.M):
        kernels[name] = {key: int(value) for key, value in re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", usage)}
    assert kernels or "Function" not in text, f"{cubin.name}: not understood: {text}"
    return kernels


def without_path(name: str) -> str:
    return re.sub(r"_GLOBAL__N__\w+?_\d+_(\w+?)_cu_[0-9a-f]{8}", r"\1", name)


def usage_of(name: str, cubin: Path) -> dict[str, int]:
    (usage,) = (usage for found, usage in kernels_in(cubin).items() if without_path(found) == name)
    return usage


def kernels(code: Path) -> dict[str, dict[str, Path]]:
    """Kernel -> architecture -> its cubin. The two names differ in a hash of the file's path only."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for cubin in sorted(code.glob("*.cubin")):
        for name in kernels_in(cubin):
            key = without_path(name)
            assert architecture_of(cubin) not in found[key], f"{key} twice for {architecture_of(cubin)}"
            found[key][architecture_of(cubin)] = cubin
    return found


def test_a_library_without_cuda_says_so_and_holds_no_machine_code():
    if CUDA["enabled"]:
        assert CUDA["nvcc"] and CUDA["flags"] and CUDA["architectures"] and CUDA["variants"]
        return
    assert (CUDA["nvcc"], CUDA["flags"], CUDA["architectures"], CUDA["variants"]) == (None, None, [], [])
    content = LIBRARY.read_bytes()
    assert b".nv_fatbin" not in content and b"sm_90" not in content


@needs_cuda_build
def test_every_kernel_has_machine_code_for_every_architecture(code, capsys):
    assert {f"sm_{name}" for name in CUDA["architectures"]} == ARCHITECTURES
    found = kernels(code)
    for threads in CUDA["variants"]:
        for timed, batched in product((0, 1), (0, 1)):  # with a timeline or not, for several tokens or for one
            name = f"megakernelILi{threads}ELb{timed}ELb{batched}E"
            assert sum(name in kernel for kernel in found) == 1, f"no kernel of {threads} threads: {name}"
    with capsys.disabled():
        print()
        for name, cubins in found.items():
            for architecture, cubin in sorted(cubins.items()):
                print(f"{architecture:8} {name}: {usage_of(name, cubin)}")
    for name, cubins in found.items():
        assert set(cubins) == ARCHITECTURES, f"{name} has machine code for {sorted(cubins)}"


@needs_cuda_build
def test_kernels_fit_an_sm_and_do_not_spill(code):
    for threads in CUDA["variants"]:
        for name, cubins in kernels(code).items():
            if f"megakernelILi{threads}E" not in name:
                continue
            for architecture, cubin in cubins.items():
                usage = usage_of(name, cubin)
                assert 0 < usage["REG"] * (threads + PRODUCER_THREADS) <= REGISTERS_PER_SM, (
                    f"{name} {architecture}: {usage}"
                )
                assert usage["LOCAL"] == 0 and usage["STACK"] <= MAX_STACK_BYTES, f"{name} {architecture}: {usage}"


@needs_cuda_build
def test_every_way_of_reading_fills_its_sms(code):
    """A block too few resident at once, and the probe that sets the floor reads low without a sign of it."""
    ways = {name: cubins for name, cubins in kernels(code).items() if "read_bandwidth" in name}
    assert len(ways) >= 4
    for name, cubins in ways.items():
        threads, blocks = map(int, re.search(r"LoadELi\d+ELi(\d+)ELi(\d+)E", name).groups())
        for architecture, cubin in cubins.items():
            usage = usage_of(name, cubin)
            fits = 0 < usage["REG"] * threads * blocks <= REGISTERS_PER_SM
            assert fits and usage["STACK"] == usage["LOCAL"] == 0, f"{name} {architecture}: {usage}"


@needs_cuda_build
def test_one_set_of_flags(code):
    """What ptxas wrote into each cubin, the architecture aside, and what build_info says."""
    flags = set()
    cubins = {cubin for found in kernels(code).values() for cubin in found.values()}
    assert len(cubins) >= len(ARCHITECTURES) * len(CUDA["variants"])
    for cubin in cubins:
        arguments = re.findall(r"Tool Command Line Arguments:(.*)", cuobjdump("-elf", cubin))
        assert arguments, f"{cubin.name} does not say how it was compiled"
        for line in arguments:
            words = line.split()
            assert words[words.index("-arch") + 1] == architecture_of(cubin)
            words[words.index("-arch") + 1] = "ARCH"
            flags.add(tuple(sorted(words)))
    assert len(flags) == 1, f"cubins were compiled differently: {flags}"
    assert "-lineinfo" in CUDA["flags"].split() and "-lineinfo" in flags.pop()


@needs_cuda_build
def test_no_fast_math_no_float_atomics_and_no_stray_cached_loads(code):
    assert not re.search(r"fast[-_]?math|--?(ftz|prec-div|prec-sqrt)", CUDA["flags"])
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in code.glob("*.ptx")}
    with_kernels = {path: text for path, text in texts.items() if ".entry" in text}
    assert {architecture_of(path) for path in with_kernels} == ARCHITECTURES
    for path, text in with_kernels.items():
        instructions = "\n".join(line for line in text.split(".section")[0].splitlines() if line.rstrip().endswith(";"))
        assert "ld.global" in instructions, f"{path.name}: not understood"
        for what, (pattern, _) in FORBIDDEN.items():
            found = re.search(pattern, instructions)
            assert not found, f"{path.name}: {what}: {found[0]}"


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_forbidden_would_be_found(what):
    pattern, planted = FORBIDDEN[what]
    assert re.search(pattern, planted)
    assert not re.search(pattern, "ld.global.nc.L1::no_allocate.v4.u32 \t{%r1, %r2, %r3, %r4}, [%rd1];")
    assert not re.search(pattern, "ld.shared.f32 \t%f1, [%r1];")
