"""`Trial`: one finished trial, the record that every log line and every front end is made from.

In: what the loop knows when a trial is over. Out: a frozen `Trial` of plain values, also as a plain dict and back.
The rules of honesty are enforced where the record is made: a latency exists only with PASS, is finite and positive, and
belongs to the regime of its loop; a kept trial is a right one. A value is never repaired: it is taken, or refused by
name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from ..errors import InputError, show

__all__ = ["CORRECTNESS", "REGIMES", "TAGS", "Trial", "plain", "require_loop", "require_trial_id"]

TAGS = ("kept", "tried", "revert", "rejected", "crash")
CORRECTNESS = ("PASS", "FAIL", "REJECTED", "CRASH")
REGIMES = ("predicted", "measured-gpu")

_LOOP = re.compile(r"[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)
_MAX_EXPERIMENT = (1 << 31) - 1
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Trial:
    """Validated when made: InputError names the field, what was expected and what was found."""

    trial_id: str  # "{loop}-{experiment:06d}"
    loop: str  # id of the loop that ran it, 12 hex digits
    experiment: int  # 0.. within the loop
    tag: str  # one of TAGS
    model: str
    gpu: str
    regime: str  # the kind of every latency of the loop: "predicted" or "measured-gpu"
    correctness: str  # one of CORRECTNESS
    latency_us: float | None  # only with PASS
    pct_of_roofline: float | None  # only with a latency
    schedule_id: str
    kernel_id: str  # the library's build id
    description: str  # a sentence: what was changed, and why it was kept or not
    schedule_config: Mapping[str, Any]
    verdict: Mapping[str, Any]  # Verdict.to_dict(), or {} for a crash
    comparison: Mapping[str, Any]  # with the incumbent; {} where there was none
    shape: Mapping[str, Any]  # what a later loop needs to find its nearest relatives
    time_utc: str  # ISO 8601, seconds, "Z"
    duration_s: float

    def __post_init__(self) -> None:
        for name in ("model", "gpu", "schedule_id", "kernel_id", "description"):
            value = getattr(self, name)
            _require(isinstance(value, str), name, "text", value)
            object.__setattr__(self, name, _text(value))
        require_trial_id(self.trial_id, self.loop, self.experiment)
        _require_among(self.tag, "tag", TAGS)
        _require_among(self.regime, "regime", REGIMES)
        _require_among(self.correctness, "correctness", CORRECTNESS)
        _require(
            isinstance(self.time_utc, str) and bool(_TIME.fullmatch(self.time_utc)),
            *("time_utc", "YYYY-MM-DDTHH:MM:SSZ", self.time_utc),
        )
        self._take_number("duration_s", 0.0)
        self._take_number("latency_us", None)
        self._take_number("pct_of_roofline", None)
        for name in ("schedule_config", "verdict", "comparison", "shape"):
            value = getattr(self, name)
            _require(isinstance(value, Mapping), name, "an object", value)
            object.__setattr__(self, name, plain(value, name))
        self._require_honest()

    def _take_number(self, name: str, at_least: float | None) -> None:
        """A finite float, >= `at_least`; where that is None: > 0, or absent."""
        value = getattr(self, name)
        if value is None and at_least is None:
            return
        number = float(value) if type(value) is int and abs(value) < 1 << 53 else value
        holds = isinstance(number, float) and math.isfinite(number)
        holds = holds and (number > 0 if at_least is None else number >= at_least)
        _require(
            holds, name, "a finite number, positive or none" if at_least is None else "a finite number >= 0", value
        )
        object.__setattr__(self, name, float(number))

    def _require_honest(self) -> None:
        where = f"trial {self.trial_id}"
        rules = (
            (self.latency_us is None or self.correctness == "PASS", "only a correct trial has a latency"),
            (self.pct_of_roofline is None or self.latency_us is not None, "only a latency has a share of the roofline"),
            (self.tag != "kept" or self.latency_us is not None, "only a correct trial with a latency is kept"),
            ((self.tag == "crash") == (self.correctness == "CRASH"), "the tag crash goes with CRASH"),
            ((self.tag == "rejected") == (self.correctness == "REJECTED"), "the tag rejected goes with REJECTED"),
            (
                self.latency_us is None or self.verdict.get("latency_kind", self.regime) in (None, self.regime),
                "the latency is of the kind that the whole loop has",
            ),
        )
        for holds, rule in rules:
            if not holds:
                raise InputError(f"{where}: {rule}")

    def __hash__(self) -> int:
        return hash(self.trial_id)

    @property
    def in_corpus(self) -> bool:
        """Is it something for later loops to learn from?"""
        return self.tag == "kept" and self.correctness == "PASS"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of the fields; what `from_dict` reads back, also after JSON."""
        return {f.name: plain(value, f.name) if isinstance(value := getattr(self, f.name), dict) else value
                for f in fields(self)}  # fmt: skip

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Trial:
        """InputError for a missing key, an unknown one or a value of the wrong type."""
        if not isinstance(given, Mapping):
            raise InputError(f"trial: expected an object, got {show(given)}")
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in given]
        unknown = [key for key in given if key not in names]
        if missing or unknown:
            what = f"no {missing[0]!r}" if missing else f"the unknown {show(unknown[0])}"
            raise InputError(f"trial: expected the keys {', '.join(names)}, got {what}")
        return cls(**{name: given[name] for name in names})


def require_loop(loop: object) -> str:
    """The id of a loop, or InputError."""
    _require(isinstance(loop, str) and bool(_LOOP.fullmatch(loop)), "loop", "12 hex digits", loop)
    return loop  # type: ignore[return-value]


def require_trial_id(trial_id: object, loop: object, experiment: object) -> None:
    """InputError unless the three belong together."""
    require_loop(loop)
    whole = type(experiment) is int and 0 <= experiment <= _MAX_EXPERIMENT
    _require(whole, "experiment", f"an integer in 0..{_MAX_EXPERIMENT}", experiment)
    expected = f"{loop}-{experiment:06d}"
    _require(trial_id == expected, "trial_id", repr(expected), trial_id)


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of dict, list, str, int, float, bool and None, or InputError: what JSON gives back unchanged."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        _require(abs(value) < 1 << 64, where, "an integer of at most 64 bits", value)
        return int(value)
    if isinstance(value, float):
        _require(math.isfinite(value), where, "a finite number", value)
        return float(value)
    if depth > _MAX_DEPTH:
        raise InputError(f"{where:.120}: expected values nested at most {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for key in value:
            _require(isinstance(key, str), where, "text as keys", key)
        out = {_text(key): plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
        _require(len(out) == len(value), where, "each key once", value)
        return out
    if isinstance(value, list | tuple):
        return [plain(item, where, depth + 1) for item in value]
    return _refuse(where, "plain data", value)


def _text(value: str) -> str:
    """The text itself; two surrogates that spell one character are that character, as they are in JSON."""
    if value.isprintable():  # no surrogate is
        return str(value)
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _require(holds: bool, where: str, expected: str, got: object) -> None:
    if not holds:
        _refuse(where, expected, got)


def _require_among(value: object, name: str, known: tuple[str, ...]) -> None:
    _require(isinstance(value, str) and value in known, name, f"one of {', '.join(known)}", value)


def _refuse(where: str, expected: str, got: object) -> NoReturn:
    raise InputError(f"trial: {where:.120}: expected {expected}, got {show(got)}")
