"""What a verb of AMK is: a record of its name, options, tools and function, and what running it amounts to.

In: nothing. Out: the types that the verb table, the command line and the agent's server share, and the exit codes.
Nothing here imports anything of amk.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["EXIT_CODES", "Option", "Outcome", "Say", "Tool", "Verb", "failure"]

EXIT_CODES = {
    0: "done, and accepted",
    1: "judged, and the answer is no: rejected or incorrect",
    2: "usage: an argument or a file given is missing or malformed",
    3: "a model or feature that AMK does not support",
    4: "the environment: no GPU, driver, memory or usable library",
    8: "the result store is locked, cannot be written, or is damaged",
    70: "an internal error of AMK",
    130: "interrupted",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Option:
    flag: str  # "--gpu", or "MODEL" for a positional
    help: str
    kind: str = "str"  # "str" | "int" | "float" | "flag"
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    many: bool = False  # one or more values, as a list; a flag is given once for each
    holds: str = ""  # of a file: the published schema of what is in it; a tool takes the content, not a path

    @property
    def name(self) -> str:
        """What a tool calls it."""
        return self.flag.lstrip("-").lower().replace("-", "_")

    @property
    def metavar(self) -> str | None:
        return None if self.choices and self.flag.startswith("-") else self.flag.lstrip("-").upper().replace("-", "_")


@dataclass(frozen=True)
class Outcome:
    code: int
    status: str
    result: dict[str, Any] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Tool:
    """How an agent calls a verb. Its arguments are the verb's options by their names, less those named in `fixed`
    (set here) and `hidden` (left at their defaults)."""

    name: str
    help: str
    read_only: bool = True  # changes nothing but caches and AMK's own records of jobs
    destructive: bool = False  # may end or replace what was there
    idempotent: bool = True
    wait_s: float | None = None  # None: answered at once; else a job, which is waited for so long
    fixed: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    required: tuple[str, ...] = ()  # besides what the verb requires
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # fewer than the verb's
    paged: bool = False  # long lists of the result are given a page at a time


@dataclass(frozen=True)
class Verb:
    name: str
    help: str
    options: tuple[Option, ...]
    run: Callable[[Namespace, Say], Outcome]
    tools: tuple[Tool, ...] = ()


def failure(code: int, kind: str, message: str) -> Outcome:
    """What a verb that could not answer amounts to."""
    status = {1: "REJECTED", 130: "INTERRUPTED"}.get(code, "ERROR")
    return Outcome(code, status, {"error": {"code": kind, "message": message}}, message)
