"""A side of a kernel task, built by the C++ compiler and run thread by thread on the CPU (tests/kernels_on_cpu).

In: a task's source, a row. Out: what is wrong with its results against the float64 oracle, with guards around and
between the elements. Indexing, dispatch, refusals and barriers are those of the device's own source; nothing here needs
a GPU or nvcc.
"""

import ctypes
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amk.oracle import round_to, to_float64
from amk.tasks.workloads import DTYPES, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "benchmarks" / "tasks"
COMPILER = shutil.which("g++")
STATUS = {"INVALID_ARGUMENT": -1, "UNSUPPORTED": -3}
GUARD = 64  # elements before and behind; a multiple of every alignment
GUARD_BYTE = 0xA7
# Of the solution, which rounds once: a little over half a unit in the last place.
ROUNDING = {"f32": 0.0, "f16": 0.6 * 2.0**-10, "bf16": 0.6 * 2.0**-7}

needs_compiler = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="needs g++, and ucontext for coroutines"
)


class TaskTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4), ("stride", ctypes.c_int64 * 4),
    ]  # fmt: skip


def enumerator(dtype):
    header = (ROOT / "csrc/amk.h").read_text() + (TASKS / "include/amk_task.h").read_text().replace("#define ", "")
    name = f"{DTYPES[dtype][1]}"
    line = next(
        s for s in header.splitlines() if s.strip().startswith((f"AMK_DTYPE_{name} =", f"AMK_TASK_DTYPE_{name} "))
    )
    return int(line.replace("=", " ").replace(",", " ").split()[1])


ENUMERATOR = {dtype: enumerator(dtype) for dtype in DTYPES}


class Operand:
    """A tensor in host memory with guards; without values it is poisoned."""

    def __init__(self, spec: TensorSpec, values):
        self.spec = spec
        storage = DTYPES[spec.dtype][0]
        nbytes = (spec.extent + 2 * GUARD) * storage.itemsize
        raw = np.full(nbytes + 256, GUARD_BYTE, np.uint8)
        first = -raw.ctypes.data % 256
        self.flat = raw[first : first + nbytes].view(storage)
        self.view = np.lib.stride_tricks.as_strided(
            self.flat[GUARD:], spec.shape, [step * storage.itemsize for step in spec.stride]
        )
        if values is not None:
            self.view[...] = round_to(values, spec.dtype) if spec.dtype in ROUNDING else values
        self.before = self.flat.copy()

    def values(self):
        return to_float64(self.view.copy(), self.spec.dtype) if self.spec.dtype in ROUNDING else self.view.copy()

    def untouched_outside(self):
        mine = np.zeros(self.flat.shape, bool)
        steps = [step * mine.itemsize for step in self.spec.stride]
        np.lib.stride_tricks.as_strided(mine[GUARD:], self.spec.shape, steps)[...] = True
        return np.array_equal(self.flat[~mine], self.before[~mine])

    def tensor(self):
        shape, stride = (ctypes.c_int64 * 4)(*self.spec.shape), (ctypes.c_int64 * 4)(*self.spec.stride)
        address = self.flat.ctypes.data + GUARD * self.flat.itemsize
        return TaskTensor(address, ENUMERATOR[self.spec.dtype], len(self.spec.shape), shape, stride)


class Side:
    def __init__(self, library, name, oracle):
        self.entry, self.oracle, self.rounds_once = getattr(library, name), oracle, name.endswith("_solution")
        self.entry.restype = ctypes.c_int32
        self.backwards = ctypes.c_int.in_dll(library, "kernels_on_cpu_backwards")
        self.loaded = library

    def choose(self, candidate):
        ctypes.c_int.in_dll(self.loaded, "kernels_on_cpu_candidate").value = candidate

    def __call__(self, row, operands):
        names = self.oracle.OPERANDS
        inputs, outputs = (
            [operands[name].tensor() if name in operands else TaskTensor() for name in names[which]]
            for which in ("inputs", "outputs")
        )
        scalars = [row.scalars[name] for name in names["scalars"]]
        return self.entry(
            (TaskTensor * len(inputs))(*inputs), len(inputs), (ctypes.c_double * len(scalars))(*scalars), len(scalars),
            (TaskTensor * len(outputs))(*outputs), len(outputs), None,
        )  # fmt: skip


def build(folder, name, side, *sources):
    return build_source(folder, TASKS / name / side / f"{name}_{side}.cu", name, side, *sources)


def build_source(folder, source, name, side, *sources):
    library = compiled(folder, source, f"{name}_{side}", *sources)
    return Side(library, f"amk_task_{name}_{side}", importlib.import_module(f"amk.tasks.oracles.{name}"))


def compiled(folder, source, name, *sources):
    """As for compute capability 9.0, whose kernels are the most."""
    out = folder / f"{name}.so"
    subprocess.run(
        [COMPILER, "-x", "c++", "-std=c++20", "-O0", "-fno-strict-aliasing", "-ffp-contract=off", "-w", "-shared",
         "-fPIC", "-D__CUDA_ARCH_LIST__=900",
         *(f"-I{ROOT / at}" for at in ("tests/kernels_on_cpu", "benchmarks/tasks/include", "csrc", "cuda")),
         source, *(ROOT / "csrc" / more for more in sources), "-o", out],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(out)


def build_candidates(folder, name):
    """The plans of a tuner that nothing dispatches yet. `choose` says which."""
    side = build_source(folder, ROOT / "tests/kernels_on_cpu" / f"{name}_candidates.cu", name, "candidate")
    side.rounds_once = True
    return side


def drawn_operands(row, side):
    """All operands of a row, and the values that the oracle sees of what was drawn for them."""
    drawn = {} if row.rejects else side.oracle.make_inputs(row, np.random.default_rng(row.seed))
    operands = {
        name: Operand(spec, drawn.get(name, 0 if name in row.inputs else None))
        for name, spec in {**row.inputs, **row.outputs}.items()
    }
    return operands, {name: operands[name].values() for name in drawn}


def faults_of(row, side):
    """One run of a row through the entry, judged: sentences, none where all is right."""
    operands, inputs = drawn_operands(row, side)
    status = side(row, operands)
    if row.rejects:
        same = all(np.array_equal(o.flat, o.before) for o in operands.values())
        right = status == STATUS[row.rejects] and same
        return [] if right else [f"{row.name}: expected {row.rejects} and nothing written, got {status}"]
    if status != 0:
        return [f"{row.name}: status {status}"]
    wrong = []
    want = side.oracle.reference(row, inputs)
    for name, operand in operands.items():
        if not operand.untouched_outside():
            wrong.append(f"{row.name}: {name}: written outside its elements")
        if name in row.inputs and not np.array_equal(operand.flat, operand.before):
            wrong.append(f"{row.name}: {name}: an input was written")
    for name in row.outputs:
        limit, size = row.tolerance[name], np.abs(want[name])
        allowed = limit.atol + limit.rtol * size
        if side.rounds_once:
            allowed = np.minimum(allowed, 1e-5 + (1e-5 + ROUNDING[row.outputs[name].dtype]) * size)
        away = np.abs(operands[name].values() - want[name])
        if not np.all(away <= allowed):
            wrong.append(f"{row.name}: {name}: {np.count_nonzero(~(away <= allowed))} off, by {np.nanmax(away):.3g}")
    return wrong


def outputs_of(row, side, backwards):
    """The bits of the outputs, with the threads of a block in one order or the other."""
    side.backwards.value = backwards
    operands, _ = drawn_operands(row, side)
    assert side(row, operands) == 0
    side.backwards.value = 0
    return [operands[name].flat.tobytes() for name in row.outputs]


def side_fixture(name, *sources):
    """A fixture of a test module: each side of the task in turn."""

    @pytest.fixture(scope="module", params=["baseline", "solution"])
    def side(request, tmp_path_factory):
        return build(tmp_path_factory.mktemp("kernels"), name, request.param, *sources)

    return side


def assert_right(rows, side):
    wrong = [fault for row in rows for fault in faults_of(row, side)]
    assert not wrong, f"{len(wrong)}: " + "; ".join(wrong[:8])


def assert_order_of_threads_does_not_matter(rows, side):
    """A missing barrier shows here: the threads of a block run one after another, in two orders."""
    for row in rows:
        assert outputs_of(row, side, backwards=0) == outputs_of(row, side, backwards=1), row.name


def regression_rows(task, most=1 << 40, rejects=True):
    """Those of up to `most` elements."""
    rows = [row for row in task.rows if row.kind == "regression" and elements(row) <= most]
    return [row for row in rows if rejects or not row.rejects]


def shortest_production_row(task):
    return min((row for row in task.rows if row.kind == "production"), key=elements)


def elements(row):
    return max(int(np.prod(spec.shape)) for spec in row.outputs.values())
