"""What plots and pages say of trials, worked out once: groups, the best so far, knobs, and the commands that redo them.

In: groups of trials whose latencies can be compared (`records.digest`), and what loops were started with. Out: plain
facts. Every text of a record may be hostile: what is shown to a person goes through `printable`, what goes into a
command through `shell_word`. Nothing here draws or reads a file.
"""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..records.digest import as_operand, loop_identity, loop_model
from ..verdict import LATENCY_KINDS

if TYPE_CHECKING:
    from ..records import Trial
    from ..records.digest import Group

__all__ = [
    "MEASURED",
    "Knob",
    "best_so_far",
    "knobs_of",
    "latency_label",
    "printable",
    "redo_loop",
    "redo_trial",
    "shell_word",
    "title_of",
]

MEASURED = LATENCY_KINDS[0]
MAX_VALUES = 24  # of one knob told apart; the rarest of more are shown as one
_OTHER = "other values"


@dataclass(frozen=True)
class Knob:
    """One knob that was varied: `labels` are its values in order, `choices` gives each trial's (None: not known)."""

    path: str
    labels: tuple[str, ...]
    choices: tuple[int | None, ...]


def title_of(group: Group) -> str:
    """Short: model, GPU, and the context that its latencies are for."""
    context = "" if group.position is None else f", position {group.position:,}"
    return f"{printable(group.model, 36)} on {printable(group.gpu, 16)}{context}"


def best_so_far(group: Group) -> list[list[tuple[int, float]]]:
    """Of each loop: (number of the trial in its group, from 0; latency) of every trial that the loop kept, which is its
    best from then on; the last point reaches the loop's last trial. The rule of keeping is the loop's, not ours."""
    lines: dict[str, list[tuple[int, float]]] = {}
    last: dict[str, int] = {}
    for number, trial in enumerate(group.trials):
        last[trial.loop] = number
        if trial.tag == "kept" and trial.latency_us is not None:
            lines.setdefault(trial.loop, []).append((number, trial.latency_us))
    for loop, line in lines.items():
        if last[loop] > line[-1][0]:
            line.append((last[loop], line[-1][1]))
    return list(lines.values())


def latency_label(regime: str) -> str:
    return f"us per token, {'measured' if regime == MEASURED else 'predicted'}"


def knobs_of(group: Group) -> list[Knob]:
    """Every path of the schedules that took more than one value, by name."""
    tables = [_flatten(trial.schedule_config) for trial in group.trials]
    knobs = []
    for path in sorted({path for table in tables for path in table}):
        values = [table.get(path) for table in tables]
        keys = [None if value is None else _key(value) for value in values]
        counted = Counter(key for key in keys if key is not None)
        if len(counted) < 2:
            continue
        by_key = {key: value for key, value in zip(keys, values, strict=True) if key is not None}
        shown = [key for key, _ in counted.most_common(MAX_VALUES)]
        shown.sort(key=lambda key: _order(by_key[key]))
        labels = [_label(by_key[key], list(by_key.values())) for key in shown]
        if len(counted) > len(shown):
            labels.append(_OTHER)
        index = {key: number for number, key in enumerate(shown)}
        choices = tuple(None if key is None else index.get(key, len(shown)) for key in keys)
        knobs.append(Knob(printable(path, 48), tuple(labels), choices))
    return knobs


# ---- commands ----


def redo_trial(trial: Trial, model: str | None = None) -> str | None:
    """The command that judges the trial's schedule again under the same questions; None where the log does not say
    what was run. `model` is what its loop was given, where that is known: a directory, for a checkpoint."""
    if not trial.schedule_config:
        return None
    words = ["amk", "eval", as_operand(trial.model if model is None else model), "--gpu", trial.gpu, "--config", "-"]
    words += ["--device", "cuda" if trial.regime == MEASURED else "cpu"]
    for flag, name in (("--max-seq", "max_seq"), ("--position", "latency_position"), ("--seed", "seed")):
        if type(trial.verdict.get(name)) is int:
            words += [flag, str(trial.verdict[name])]
    text = json.dumps(_plain(trial.schedule_config), sort_keys=True, separators=(",", ":"))
    return f"printf %s {shell_word(text)} | {' '.join(map(shell_word, words))}"


_LOOP_FLAGS = {
    "gpu": "--gpu", "device": "--device", "budget": "--budget", "seed": "--seed", "explore_fraction": "--explore",
    "sampler": "--sampler", "engine": "--engine", "workers": "--workers", "max_seq": "--max-seq",
    "position": "--position",
}  # fmt: skip


def redo_loop(facts: Mapping[str, Any], results: str) -> str | None:
    """The command that runs a loop again, from its record in the journal, into new files; None where the record does
    not say which model it was."""
    model, given = loop_model(facts), loop_identity(facts) | facts
    if model is None:
        return None
    target, conditions = given.get("target"), given.get("conditions")
    if isinstance(target, Mapping):
        given["gpu"] = target.get("name")
    if isinstance(conditions, Mapping):
        given["device"] = "cuda" if conditions.get("regime") == MEASURED else "cpu"
    words = ["amk", "loop", as_operand(model)]
    for name, flag in _LOOP_FLAGS.items():
        if type(given.get(name)) in (str, int, float):
            words += [flag, str(given[name])]
    if given.get("cold") is True:
        words.append("--cold")
    words += ["--results", results]
    return " ".join(map(shell_word, words))


def shell_word(text: str) -> str:
    """One word of a POSIX shell; what cannot be seen is written as an escape that bash and zsh read."""
    if text.isprintable() and not any(_is_hidden(char) for char in text):
        return shlex.quote(text)
    out = []
    for char in text:
        if char in "\\'":
            out.append("\\" + char)
        else:
            out.append(_escape(char) if not char.isprintable() or _is_hidden(char) else char)
    return f"$'{''.join(out)}'"


def printable(text: Any, limit: int | None = None) -> str:
    """A text whose every character can be seen where it stands: no control, no change of direction, no line break."""
    whole = text if isinstance(text, str) else str(text)
    out = "".join(_escape(char) if _is_hidden(char) else char for char in whole)
    return out if limit is None or len(out) <= limit else out[: limit - 1] + "…"


def _is_hidden(char: str) -> bool:
    return unicodedata.category(char)[0] == "C" or unicodedata.category(char) in ("Zl", "Zp")


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# ---- knobs ----


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value. An explicit map from task to SM is one value."""
    out: dict[str, Any] = {}
    for name, value in table.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path != "sm_assignment":
            out |= _flatten(value, f"{path}.")
        else:
            out[path] = value
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _key(value: Any) -> str:
    """For comparing values of a knob: a list of fusions is a set."""
    plain = _plain(value)
    if isinstance(plain, list):
        plain = sorted(map(str, plain))
    return json.dumps(plain, sort_keys=True)


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then texts, then lists by length."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    if isinstance(value, str):
        return 1, 0.0, value
    return 2, float(len(value)) if isinstance(value, list | tuple | Mapping) else 0.0, _key(value)


def _label(value: Any, values: Sequence[Any]) -> str:
    """Short: a list says what it leaves out of all that appears, where that is shorter."""
    if isinstance(value, Mapping):
        return f"explicit, {len(value)} tasks"
    if not isinstance(value, list | tuple):
        return printable(value, 32)
    names = [str(item) for item in value]
    every = sorted({str(item) for other in values if isinstance(other, list | tuple) for item in other})
    missing = [name for name in every if name not in names]
    if not names:
        return "none"
    if not missing:
        return "all"
    if len(missing) < len(names):
        return printable("all but " + ", ".join(missing), 40)
    return printable(", ".join(names), 40)
