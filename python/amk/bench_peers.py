"""What AMK is compared with, run apart: a peer's file in a process of its own, with this interpreter's own packages.

In: a model's configuration, contexts, a device, a deadline. Out: what the peer measured, or why it was skipped; never
an exception for what happens over there, never a hang, and nothing of it left running. The peer's answers are data: a
row that is not what a row must be is a reason, not a number.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import IO, Any

from .errors import InputError, show

__all__ = ["PEERS", "PeerRun", "pick_peers", "run_peer"]

# name -> (file under peers/, version that the file is asked for)
PEERS = {
    "torch-eager": ("torch_decode.py", "eager"),  # the quick one first
    "torch-compile": ("torch_decode.py", "compile"),
}
_KEPT_STDERR_BYTES = 4096
_MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class PeerRun:
    """Rows by context. `skipped` says why some or all are missing; `about` is the peer's own version and device."""

    peer: str
    rows: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    skipped: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def pick_peers(names: Sequence[str]) -> tuple[str, ...]:
    """The peers meant: "torch" is every one that begins so."""
    chosen: dict[str, None] = {}
    for name in names:
        found = [peer for peer in PEERS if peer == name or peer.partition("-")[0] == name]
        if not found:
            known = ", ".join(dict.fromkeys([peer.partition("-")[0] for peer in PEERS] + list(PEERS)))
            raise InputError(f"peers: expected some of {known}, got {show(name)}")
        chosen |= dict.fromkeys(found)
    return tuple(chosen)


def run_peer(peer: str, config: Any, contexts: Sequence[int], device: str, limit_s: float) -> PeerRun:
    """Everything the peer measured of this shape within `limit_s` seconds."""
    file, version = PEERS[peer]
    if config.has_state:
        return PeerRun(peer, skipped="its decoder has no linear layers")
    if not sys.executable:
        return PeerRun(peer, skipped="this interpreter does not know its executable")
    index = int(device.partition(":")[2] or 0)
    job = {"shape": asdict(config), "versions": [version], "contexts": list(contexts), "device": index}
    with (
        resources.as_file(resources.files("amk").joinpath("peers", file)) as path,
        tempfile.TemporaryFile() as stderr,
    ):
        command = [sys.executable, os.fspath(path), json.dumps(job)]
        output, ended = _run(command, stderr, limit_s)
        last = _last_line(stderr)
    return _read(peer, contexts, output, ended and f"{ended}{last}")


def _run(command: list[str], stderr: IO[bytes], limit_s: float) -> tuple[bytes, str | None]:
    """(what it said, None or how it ended early). It and its children are gone on return."""
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
    ) as child:
        ended: str | None = None
        try:
            output, _ = child.communicate(timeout=limit_s)
            if child.returncode:
                ended = f"it ended with exit status {child.returncode}"
                if child.returncode < 0:
                    ended = f"it was ended by {signal.Signals(-child.returncode).name}"
        except subprocess.TimeoutExpired:
            _kill(child)
            output, _ = child.communicate()
            ended = f"it was ended after {limit_s:g} s"
        finally:
            _kill(child)
    return output, ended


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The whole group: a compiler has processes of its own."""
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)


def _last_line(stderr: IO[bytes]) -> str:
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _KEPT_STDERR_BYTES))
    said = [line.strip() for line in stderr.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f": {said[-1][:300]}" if said else ""


def _read(peer: str, contexts: Sequence[int], output: bytes, ended: str | None) -> PeerRun:
    rows: dict[int, Mapping[str, Any]] = {}
    about: Mapping[str, Any] = {}
    why, stage = ended, ""
    for line in output.splitlines():
        message = _parse(line)
        if message is None:
            why = why or "it gave an answer that is no JSON object"
        elif isinstance(message.get("skipped"), str):
            why = message["skipped"][:300]
        elif isinstance(message.get("stage"), str):
            stage = message["stage"][:100]
        elif isinstance(message.get("about"), dict):
            about = {str(name): str(value)[:100] for name, value in message["about"].items()}
        elif (fault := _fault(message, contexts)) is not None:
            why = why or fault
        else:
            rows[message["context"]] = message
    if ended is not None and why == ended and stage:
        why = f"{ended} (while {stage})"
    missing = [context for context in contexts if context not in rows]
    if missing and why is None:
        why = f"it gave no row for context {', '.join(map(str, missing))}"
    return PeerRun(peer, rows, why, about)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line) if len(line) <= _MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _fault(row: Mapping[str, Any], contexts: Sequence[int]) -> str | None:
    """Why a row is none; it is used as it is otherwise."""
    context = row.get("context")
    if type(context) is not int or context not in contexts:
        return f"it gave a row for {show(context)}, which was not asked for"
    times = [row.get(name) for name in ("latency_p10_us", "latency_us", "latency_p90_us")]
    if not all(isinstance(us, float | int) and math.isfinite(us) and us > 0 for us in times) or times != sorted(times):
        return f"its times at context {context} are {show(times)}"
    if row.get("finite") is not True:
        return f"its logits at context {context} are not finite"
    return None
