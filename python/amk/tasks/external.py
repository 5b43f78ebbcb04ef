"""An external baseline: any Python callable over DLPack tensors, beside our solution, called and timed in one way.

In: "torch", "torch.compile" or "module:function". Out: what it is and where it comes from; and the device class with
which a worker runs it. The callable has the signature of an oracle's torch_reference: (row, {operand: tensor}) ->
{output: tensor} (or a tensor, where there is one output). The tensors are torch's, which speak DLPack.
Where it comes from is looked up in its own checkout, never downloaded.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib
import importlib.util
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, Unavailable, show

__all__ = ["BUILT_IN", "DEVICE_CLASS", "IN_REPO", "External", "find_external", "load_callable"]

IN_REPO = "in-repo"  # what a task's own baseline is called beside external ones
BUILT_IN = ("torch", "torch.compile")
DEVICE_CLASS = "amk.tasks.torch_device:TorchDevice"
_GIT_S = 20.0
_MAX_FILES = 2000


@dataclass(frozen=True)
class External:
    spec: str  # as given
    task: str
    source: dict[str, Any] = field(default_factory=dict, compare=False)

    def describe(self) -> dict[str, Any]:
        return {"kind": "external", "spec": self.spec, **self.source}


def find_external(spec: str, task: str) -> External:
    """Found, and its source described; nothing of it is run here but its module's import."""
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("an external baseline is timed with the package torch, which is not installed")
    if spec in BUILT_IN:
        return External(spec, task, source=_source_of_torch(task))
    function = load_callable(spec, task)
    return External(spec, task, source=_source_of(function))


def load_callable(spec: str, task: str) -> Callable[..., Any]:
    """(row, tensors) -> outputs."""
    if spec in BUILT_IN:
        oracle = importlib.import_module(f"amk.tasks.oracles.{task}")
        if spec == "torch":
            return oracle.torch_reference
        import torch

        return torch.compile(oracle.torch_reference, dynamic=False)
    module, colon, name = spec.partition(":")
    if not colon or not module or not name.isidentifier():
        raise InputError(f"baseline: expected {', '.join((IN_REPO, *BUILT_IN))} or module:function, got {show(spec)}")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"baseline: expected {show(spec)} to be importable, got: {error}") from error
    if not callable(function):
        raise InputError(f"baseline: expected {show(spec)} to be callable, got {show(function)}")
    return function


def _source_of_torch(task: str) -> dict[str, Any]:
    import torch

    oracle = importlib.import_module(f"amk.tasks.oracles.{task}")
    return {
        "repository": "https://github.com/pytorch/pytorch",
        "branch": f"release {torch.__version__}",
        "commit": str(torch.version.git_version),
        "resolved": _now(),
        "files": [_file(Path(str(oracle.__file__)), Path(str(oracle.__file__)).parent)],
    }


def _source_of(function: Any) -> dict[str, Any]:
    """Of the checkout that its module lies in, as far as there is one."""
    module = importlib.import_module(function.__module__) if hasattr(function, "__module__") else None
    where = getattr(module, "__file__", None)
    if where is None:
        return {"repository": None, "branch": None, "commit": None, "resolved": _now(), "files": []}
    path = Path(where).resolve()
    package = path.parent if path.name != "__init__.py" and not (path.parent / "__init__.py").exists() else None
    files = [path] if package is not None else sorted(path.parent.rglob("*.py"))[:_MAX_FILES]
    return {
        "repository": _git(path.parent, "remote", "get-url", "origin"),
        "branch": _git(path.parent, "rev-parse", "--abbrev-ref", "HEAD"),
        "commit": _git(path.parent, "rev-parse", "HEAD"),
        "resolved": _now(),
        "files": [_file(one, path.parent) for one in files],
    }


def _file(path: Path, root: Path) -> dict[str, str]:
    return {"path": str(path.relative_to(root)), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=_GIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
