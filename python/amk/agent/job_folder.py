"""What a job leaves on disk: one folder, small JSON files that appear whole, and the child's two streams.

In: a folder. Out: the names in it, and reading and writing that cannot show half a file. Nothing here judges.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

__all__ = [
    "ABANDONED", "CANCEL", "END", "JOB", "PROCESS", "STDERR", "STDOUT", "jobs_root", "read_json", "read_result",
    "read_tail", "write_json",
]  # fmt: skip

JOB = "job.json"  # what was asked; written before the child is started
PROCESS = "process.json"  # who the child is; written by the child before it works
ABANDONED = "abandoned"  # given up before the child signed in: it must not work
CANCEL = "cancel.json"  # when it was cancelled, and how long it may take to end
END = "end.json"  # how it ended; written by the first who saw it
STDOUT, STDERR = "stdout", "stderr"

MAX_RESULT_BYTES = 256 << 20
TAIL_BYTES = 64 << 10


def jobs_root() -> str:
    """$AMK_HOME/jobs, or amk/jobs in the XDG state directory."""
    home = os.environ.get("AMK_HOME")
    if home:
        return os.path.join(home, "jobs")
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "amk", "jobs")


def write_json(path: str, value: Any) -> None:
    """The whole file or none of it, also for a reader at the same moment."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, allow_nan=False)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_json(path: str) -> Any:
    """None when it is not there or is no JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def read_result(folder: str) -> dict[str, Any] | None:
    """The one object that a verb prints with --json, if all of it is there. Its first line is a brace alone; whatever
    was printed around it (by an interpreter that starts or ends) is not looked at."""
    try:
        with open(os.path.join(folder, STDOUT), "rb") as file:
            text = "\n" + file.read(MAX_RESULT_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    start = text.rfind("\n{\n")
    if start < 0:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text, start + 1)
    except ValueError:
        return None
    named = isinstance(found.get("schema"), str) and found["schema"].startswith("amk.")
    return found if named and type(found.get("exit_code")) is int else None


def read_tail(path: str, count: int) -> list[str]:
    """The last lines of a text file, without control characters."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    except OSError:
        return []
    shown = ("".join(char if char.isprintable() else " " for char in line).strip()[:500] for line in lines)
    return [line for line in shown if line][-count:]
