"""The rules of CONTRIBUTING.md that a machine can read: arrows of dependency, file sizes, one home per fact."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "amk"
SOFT, HARD = 400, 600

# room -> rooms of csrc/ it may include, besides itself, amk.h and base/.
CXX_ARROWS = {
    "base": set(),
    "ops": set(),
    "graph": {"ops"},
    "program": {"ops"},
    "cost": {"ops", "program"},
    "lower": {"ops", "graph", "program", "cost"},
    "validate": {"ops", "program"},  # never lower/: the judge does not include the maker
    "pack": {"ops", "program", "validate"},
    "vm": {"ops"},
    "gdn": {"vm"},  # vm/ref_number.h: the storage types
}
VM_MAY_ALSO = {"pack/layout.h"}
CUDA_MAY = {
    *{"gdn/gdn.h", "pack/layout.h", "vm/vm.h", "vm/device.h", "vm/states.h"},
    *{"ops/batch_slots.h", "ops/op_spec.h", "ops/packing.h", "ops/packing_int8.h", "ops/ring.h"},
}

# python/amk module -> modules of amk it may import. Modules not listed may import nothing of amk.
PY_ARROWS = {
    "errors": set(),
    "verb": set(),
    "strict_json": {"errors"},
    "safetensors": {"errors", "strict_json"},
    "config_keys": {"errors"},
    "config_hybrid": {"config_keys"},
    "model_config": {"config_hybrid", "config_keys", "errors", "strict_json"},
    "weight_plan": {"model_config"},
    "checkpoint": {"errors", "strict_json", "safetensors", "model_config", "weight_plan"},
    "quantize": {"checkpoint", "errors", "safetensors", "weight_plan"},
    "embedded": {"errors", "model_config", "checkpoint", "quantize", "safetensors", "weight_plan"},
    "oracle": {"oracle_delta"},  # the judge of everything shares nothing with it
    "oracle_delta": set(),
    "oracle_cache": {"oracle", "oracle_delta"},
    "_lib": {"errors", "_amk_abi"},
    "targets": {"_lib", "errors"},
    "config": {"_lib", "errors", "targets"},
    "columns": {"_lib", "errors"},
    "tables": {"_lib", "errors"},
    "program_read": {"_lib", "errors", "strict_json", "config", "targets", "columns", "tables"},
    "program_write": {"errors", "config", "targets", "columns", "tables", "program_read"},
    "program": {
        *{"_lib", "errors", "config", "targets", "model_config"},
        *{"columns", "tables", "program_read", "program_write"},
    },
    "vm": {"_lib", "errors", "program"},
    "history": {"model_config", "oracle"},
    "exam": {"errors", "history", "oracle", "oracle_cache"},  # the questions and the marks: no lowering, no machine
    "verdict": {"errors"},
    "output": {"errors"},
    "evaluate": {
        *{"_lib", "errors", "checkpoint", "config", "embedded", "exam", "gpu_trial", "machine", "oracle_cache"},
        *{"program", "quantize", "targets", "timing", "verdict", "vm"},
    },
    "megakernel": {"_lib", "errors", "program", "streams", "vm"},
    "streams": {"errors"},
    "dlpack": {"errors"},
    "gdn": {"_lib", "dlpack", "errors", "streams"},
    "nvml": set(),
    "machine": {"errors", "megakernel", "program", "targets", "vm"},  # one is opened here; what it is told, elsewhere
    "timing": {"errors", "exam", "history"},
    "gpu_lock": {"errors"},
    "measure": {
        *{"_lib", "embedded", "errors", "exam", "gpu_lock", "megakernel", "nvml", "program", "targets", "timing", "vm"},
    },
    "frames": {"errors"},
    "measure_pair": {"_lib", "embedded", "errors", "gpu_lock", "history", "measure", "program", "timing"},
    "measure_profile": {"_lib", "embedded", "errors", "gpu_lock", "history", "measure", "program"},
    "worker": {"errors", "frames", "measure", "measure_pair", "measure_profile", "tasks/measure"},
    "supervisor": {"errors", "frames"},  # it starts a worker, and imports none
    "gpu_trial": {"_lib", "checkpoint", "errors", "exam", "history", "nvml", "program", "supervisor", "timing"},
    "sampling": {"errors"},
    "tokenizer": {"errors", "safetensors", "strict_json"},
    "prompt": {"_lib", "errors"},
    "generate": {
        *{"checkpoint", "embedded", "errors", "evaluate", "machine", "prompt", "safetensors", "sampling"},
        *{"strict_json", "targets", "tokenizer"},
    },
    "propose": {"config", "embedded", "errors", "evaluate", "schema", "targets"},  # it never judges
    "schema": {"_lib", "config", "errors", "records/trial", "verdict"},
    "timeline": {"errors", "program", "verdict"},
    "trace": {"_lib", "errors", "program", "strict_json", "timeline"},
    "explanation": {"errors", "program", "timeline", "trace"},
    "explain_verb": {"core_verbs", "errors", "explanation", "safetensors", "timeline", "trace", "verb"},
    "profile": {
        *{"_lib", "checkpoint", "embedded", "errors", "evaluate", "exam", "explanation", "gpu_trial", "machine"},
        *{"measure_profile", "program", "supervisor", "targets", "timeline", "trace"},
    },
    "profile_verb": {"errors", "output", "profile", "timeline", "trace", "verb", "verbs"},
    "agent": set(),
    "agent/processes": set(),
    "agent/job_folder": set(),
    "agent/child": {"agent/job_folder", "agent/processes", "cli"},
    "agent/tools": {"agent/job_folder", "errors", "schema", "verb"},
    "agent/jobs_verb": {"agent/jobs", "agent/tools", "errors", "verb"},
    "agent/server": {"agent/jobs", "agent/tools", "cli", "doctor", "errors", "verb", "verbs"},
    "agent/jobs": {"agent/job_folder", "agent/processes", "errors"},
    "records": {"records/read", "records/store", "records/trial"},
    "records/crc32c": set(),
    "records/trial": {"errors"},
    "records/lines": {"errors", "records/crc32c", "records/trial"},
    "records/entries": {"errors", "records/lines", "records/trial"},
    "records/calls": set(),
    "records/read": {"errors", "records/calls", "records/entries", "records/lines", "records/trial"},
    "records/append_log": {"errors", "records/calls"},
    "records/audit": {
        *{"errors", "records/append_log", "records/calls", "records/entries", "records/lines", "records/read"},
        *{"records/trial"},
    },
    "records/digest": {"records/lines", "records/trial"},
    "results_verb": {
        *{"errors", "records/audit", "records/digest", "records/lines", "records/read", "records/trial"},
        *{"report/plots", "verbs"},
    },
    "records/store": {
        *{"errors", "records/append_log", "records/calls", "records/entries", "records/lines", "records/read"},
        *{"records/trial"},
    },
    "report": set(),
    "report/facts": {"records", "records/digest", "verdict"},
    "report/canvas": {"errors"},
    "report/plots": {"errors", "output", "records", "records/digest", "report/canvas", "report/facts"},
    "report/history": {"records", "records/entries", "records/read"},
    "report/page": {"errors", "records", "records/digest", "report/facts", "report/history", "report/plots"},
    "bench_peers": {"errors"},  # it starts a peer, and imports none
    "bench": {"_lib", "bench_peers", "embedded", "errors", "evaluate", "machine", "targets", "verdict"},
    "bench_plot": {"report/canvas", "report/facts"},
    "peers": set(),
    "peers/torch_decode": set(),  # not of the package: a program beside it
    "search": set(),
    "search/interrupts": set(),
    "search/result": {"records"},
    "search/keep": {"config"},
    "search/pairs": {"exam", "search/keep"},
    "search/prior": {"checkpoint", "config", "errors", "records", "targets"},
    "search/sampler": {"config", "exam", "propose", "records"},
    "search/optuna_sampler": {"config", "errors", "records", "search/sampler"},
    "search/campaign": {"config", "errors", "records", "verdict"},
    "search/plan": {"_lib", "checkpoint", "config", "gpu_trial", "search/prior", "targets"},
    "search/executor": {"errors", "search/pool", "search/ray_executor"},
    "search/zygote": {"errors", "evaluate", "frames", "search/executor", "worker"},
    "search/pool": {"errors", "frames", "search/executor", "search/zygote", "supervisor"},
    "search/ray_executor": {"errors", "search/executor", "search/pool", "supervisor"},
    "search/jobs": {"evaluate", "megakernel", "search/pair_job", "targets"},  # what runs in a worker
    "search/pair_job": {
        *{"_lib", "config", "embedded", "errors", "evaluate", "exam", "gpu_trial", "measure_pair", "nvml"},
        *{"history", "oracle_cache", "search/jobs", "search/pairs", "supervisor", "timing"},
    },
    "search/resume": {
        *{"config", "errors", "propose", "records", "search/campaign", "search/optuna_sampler", "search/plan"},
        *{"search/prior", "search/sampler"},
    },
    "search/run": {  # it asks for judgements, and makes none
        *{"config", "errors", "exam", "gpu_lock", "records", "search/campaign", "search/executor"},
        *{"search/interrupts", "search/keep", "search/pairs", "search/plan", "search/result", "search/resume"},
        *{"search/sampler"},
    },
    "loop": {
        *{"embedded", "errors", "evaluate", "machine", "records", "search/plan", "search/result", "search/run"},
        *{"targets"},
    },
    "loop_verb": {"core_verbs", "loop", "records", "verb"},
    "tasks": set(),
    "tasks/workloads": {"errors", "strict_json"},
    "tasks/oracles": set(),
    "tasks/oracles/norm_scale_shift": set(),
    "tasks/oracles/qknorm_rope": set(),
    "tasks/oracles/gdn_decode": set(),
    "tasks/oracles/residual_gate_add": set(),  # a judge that shares nothing with what it judges
    "tasks/stats": set(),
    "tasks/cubins": {"errors"},
    "tasks/native": {"_lib", "errors", "tasks/harness_library", "tasks/workloads"},
    "tasks/operands": {"errors", "tasks/native", "tasks/workloads"},
    "tasks/judge": {"errors", "tasks/native", "tasks/operands", "tasks/workloads"},
    "tasks/harness_library": {"_amk_tasks_abi", "_lib", "errors"},  # the border of the small library
    "tasks/device": {"_lib", "errors", "nvml", "tasks/cubins", "tasks/harness_library", "tasks/workloads"},
    "tasks/check": {"_lib", "errors", "tasks/device", "tasks/judge", "tasks/operands", "tasks/workloads"},
    "tasks/time_row": {"errors", "tasks/check", "tasks/device", "tasks/judge", "tasks/operands", "tasks/workloads"},
    "tasks/measure": {"errors", "tasks/check", "tasks/judge", "tasks/time_row", "tasks/workloads"},
    "tasks/external": {"errors"},
    "tasks/journal": {"errors", "records/append_log", "records/calls", "strict_json"},
    "tasks/torch_device": {
        *{"errors", "tasks/check", "tasks/device", "tasks/external", "tasks/judge", "tasks/workloads"},
    },
    "tasks/record": {
        *{"tasks/check", "tasks/cubins", "tasks/judge", "tasks/stats", "tasks/time_row", "tasks/workloads"},
    },
    "tasks/run": {
        *{"errors", "gpu_lock", "nvml", "supervisor", "tasks/check", "tasks/external", "tasks/journal"},
        *{"tasks/judge", "tasks/measure", "tasks/record", "tasks/workloads"},
    },
    "tasks/write": {"tasks/check", "tasks/time_row"},
    "tasks/plot": {"errors", "report/canvas", "tasks/check"},
    "tasks/verb": {
        *{"errors", "output", "report/canvas", "tasks/external", "tasks/harness_library", "tasks/plot", "tasks/run"},
        *{"tasks/workloads", "tasks/write", "verb"},
    },
}
# Every file in them is listed above.
SUB_PACKAGES = {"agent", "peers", "records", "report", "search", "tasks", "tasks/oracles"}


def tracked(*patterns: str) -> list[Path]:
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, capture_output=True)
    if out.returncode:  # an unpacked sdist has no git
        return [p for pattern in patterns for p in ROOT.glob(pattern.replace("/*", "/**/*"))]
    return [ROOT / line for line in out.stdout.decode().splitlines() if (ROOT / line).exists()]


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.M)


CXX = [p for p in tracked("csrc/*", "cuda/*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]


def test_there_is_something_to_check():
    rooms = {p.relative_to(ROOT / "csrc").parts[0] for p in CXX if "csrc" in p.parts and p.parent.name != "csrc"}
    assert rooms == set(CXX_ARROWS)
    assert sum(len(includes(p)) for p in CXX) > 50


@pytest.mark.parametrize("path", CXX, ids=lambda p: str(p.relative_to(ROOT)))
def test_cxx_arrows(path):
    room = path.relative_to(ROOT).parts[0 if path.is_relative_to(ROOT / "cuda") else 1]
    for target in includes(path):
        if target == "amk.h" or target.startswith("base/"):
            continue
        assert "cuda/" not in target, f"{path.name} includes {target}: csrc never includes cuda/"
        if path.is_relative_to(ROOT / "cuda"):
            assert target in CUDA_MAY or (ROOT / "cuda" / target).exists(), f"{path.name} includes {target}"
        elif room == "c_api.cpp":
            continue
        else:
            allowed = target.split("/")[0] in CXX_ARROWS[room] | {room}
            assert allowed or (room == "vm" and target in VM_MAY_ALSO), f"{room}/ may not include {target}"


def amk_imports(path: Path) -> set[str]:
    """The modules of amk that a file imports: `name`, or `package/name` inside a sub-package."""
    package = ["amk", *path.relative_to(PACKAGE).parent.parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            if base[:1] == ["amk"]:
                found.update(module_of(base[1:]) or module_of([*base[1:], alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(module_of(a.name.split(".")[1:]) for a in node.names if a.name.startswith("amk."))
    return found - {""}


def module_of(parts: list[str]) -> str:
    """["records", "store", ...] -> "records/store"; a name that is no module belongs to the package before it."""
    package = ""
    for part in parts:
        name = f"{package}/{part}" if package else part
        if name not in SUB_PACKAGES:
            is_module = not package or (PACKAGE / f"{name}.py").exists()
            return name if is_module else package
        package = name
    return package


def module_path(module: str) -> Path:
    return PACKAGE / module / "__init__.py" if module in SUB_PACKAGES else PACKAGE / f"{module}.py"


@pytest.mark.parametrize("module", sorted(PY_ARROWS))
def test_python_arrows(module):
    found = amk_imports(module_path(module))
    assert found <= PY_ARROWS[module], f"{module} imports {found - PY_ARROWS[module]}"


def test_every_file_of_a_sub_package_has_its_arrows():
    files = {p.relative_to(PACKAGE).with_suffix("").as_posix() for p in PACKAGE.rglob("*/*.py")}
    assert {name.removesuffix("/__init__") for name in files} == {
        name for name in PY_ARROWS if module_path(name).parent != PACKAGE
    }


def test_only_lib_talks_to_cffi():
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if path.name not in {"_lib.py", "_amk_abi.py", "_amk_tasks_abi.py"}:
            assert not re.search(r"^\s*(import|from)\s+_?cffi", source, re.M), path.name
            assert "_amk_abi" not in source, path.name
            if (
                path.parent.name != "tasks" or path.name != "harness_library.py"
            ):  # the small library has a border of its own
                assert "_amk_tasks_abi" not in source, path.name


def test_no_file_is_a_monster():
    long = {}
    for path in tracked("csrc/*", "cuda/*", "python/*", "tests/*", "benchmarks/*", "cmake/*"):
        if path.suffix in {".h", ".c", ".cpp", ".cu", ".cuh", ".py", ".cmake"}:
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > HARD:
                long[str(path.relative_to(ROOT))] = lines
    assert not long, f"over {HARD} lines (aim for {SOFT}): {long}"


def test_no_drawer_files():
    names = {p.stem for p in tracked("csrc/*", "cuda/*", "python/*", "tests/*", "benchmarks/*")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def test_the_root_stays_simple():
    names = {p.relative_to(ROOT).parts[0] for p in tracked("*")}
    allowed = {"csrc", "cuda", "python", "cmake", "benchmarks", "tests", "docs", "CMakeLists.txt", "pyproject.toml"}
    allowed |= {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "AGENTS.md"}
    assert {n for n in names if not n.startswith(".")} <= allowed


def test_opcodes_have_one_home():
    """No Python or C++ file writes an opcode, dtype or limit as a number of its own."""
    numbers = dict(
        re.findall(r"^\s*(AMK_(?:OP|DTYPE|KIND|SPACE)_[A-Z0-9_]+) = (\d+)", (ROOT / "csrc/amk.h").read_text(), re.M)
    )
    assert len(numbers) > 35
    for path in tracked("csrc/*", "cuda/*", "python/*"):
        if path.name == "amk.h" or path.suffix not in {".h", ".cpp", ".cu", ".cuh", ".py"}:
            continue
        text = path.read_text(encoding="utf-8")
        for name in numbers:
            assert not re.search(rf"{name}\s*=\s*\d", text), f"{path.name} redefines {name}"


def test_frozen_numbers():
    """The pinned numbers of the format: changing one breaks every stored program and image."""
    header = (ROOT / "csrc/amk.h").read_text()
    pinned = {
        "AMK_DTYPE": "F32 0 F16 1 BF16 2 F8E4M3 3 F8E5M2 4 I32 5 I8 6 I4 7 U8 8 BOOL 9",
        "AMK_SPACE": "HBM 0 GLOBAL_SCRATCH 1 SMEM 2 REGISTER 3",
        "AMK_KIND": "WEIGHT 0 ACTIVATION 1 KV_CACHE 2 IO_INPUT 3 IO_OUTPUT 4 CONST 5 STATE 6",
        "AMK_OP": "NOP 0 COPY 1 EMBED 2 RMSNORM 3 LAYERNORM 4 GEMV_TILE 5 GEMM_TILE 6 ATTENTION_TILE 7 ROPE 8 "
        "SILU_MUL 9 GELU 10 ADD 11 MUL 12 DEQUANT 13 SOFTMAX 14 ALLREDUCE_SHARD 15 KV_APPEND 16 SAMPLE_ARGMAX 17 "
        "ATTENTION_COMBINE 18 FUSED 19 ARGMAX_COMBINE 20 CAUSAL_CONV 21 GDN_DECODE 22 GATED_RMSNORM 23 SIGMOID_MUL 24",
    }
    for prefix, row in pinned.items():
        words = row.split()
        want = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        got = {n: int(v) for n, v in re.findall(rf"^\s*{prefix}_([A-Z0-9_]+) = (\d+)", header, re.M)}
        assert got == want
