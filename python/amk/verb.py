"""What a verb of AMK is: a record of its name, options and function, and what running it amounts to.

In: nothing. Out: the types that the verb table, the command line and the agent's server share, and the exit codes.
Nothing here imports anything of amk.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["EXIT_CODES", "Option", "Outcome", "Say", "Verb", "failure"]

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
class Verb:
    name: str
    help: str
    options: tuple[Option, ...]
    run: Callable[[Namespace, Say], Outcome]


def failure(code: int, kind: str, message: str) -> Outcome:
    """What a verb that could not answer amounts to."""
    status = {1: "REJECTED", 130: "INTERRUPTED"}.get(code, "ERROR")
    return Outcome(code, status, {"error": {"code": kind, "message": message}}, message)
