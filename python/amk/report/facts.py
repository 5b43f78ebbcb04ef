"""What plots and pages say of trials, worked out once: groups, the best so far, knobs, and the commands that redo them.

In: trials, as the log holds them. Out: plain facts. Latencies are compared within a group only: one model, one GPU, one
kind of latency. Every text of a record may be hostile: what is shown to a person goes through `printable`, what goes
into a command through `shell_word`. Nothing here draws, reads a file or imports anything outside the standard library.
"""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..verdict import LATENCY_KINDS

if TYPE_CHECKING:
    from ..records import Trial

__all__ = [
    "MEASURED",
    "Group",
    "Knob",
    "best_so_far",
    "best_trial",
    "count_tags",
    "group_trials",
    "knobs_of",
    "latency_label",
    "printable",
    "redo_loop",
    "redo_trial",
    "shell_word",
]

MEASURED = LATENCY_KINDS[0]
MAX_VALUES = 24  # of one knob told apart; the rarest of more are shown as one
_OTHER = "other values"


@dataclass(frozen=True)
class Group:
    """Trials whose latencies may be compared, oldest first."""

    model: str
    gpu: str
    regime: str
    trials: tuple[Trial, ...]

    @property
    def title(self) -> str:
        return f"{printable(self.model, 36)} on {printable(self.gpu, 16)}"


@dataclass(frozen=True)
class Knob:
    """One knob that was varied: `labels` are its values in order, `choices` gives each trial's (None: not known)."""

    path: str
    labels: tuple[str, ...]
    choices: tuple[int | None, ...]


def group_trials(trials: Iterable[Trial]) -> list[Group]:
    """In the order of their first trials."""
    found: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        found.setdefault((trial.model, trial.gpu, trial.regime), []).append(trial)
    return [Group(*key, tuple(members)) for key, members in found.items()]


def best_so_far(group: Group) -> list[list[tuple[int, float]]]:
    """Of each loop: (number of the trial in its group, latency) of every trial that the loop kept, which is its best
    from then on; the last point reaches the loop's last trial. The rule of keeping is the loop's, not ours."""
    lines: dict[str, list[tuple[int, float]]] = {}
    last: dict[str, int] = {}
    for number, trial in enumerate(group.trials, 1):
        last[trial.loop] = number
        if trial.tag == "kept" and trial.latency_us is not None:
            lines.setdefault(trial.loop, []).append((number, trial.latency_us))
    for loop, line in lines.items():
        if last[loop] > line[-1][0]:
            line.append((last[loop], line[-1][1]))
    return list(lines.values())


def best_trial(group: Group) -> Trial | None:
    """The fastest of those that were kept; the first of equals."""
    kept = [trial for trial in group.trials if trial.tag == "kept" and trial.latency_us is not None]
    return min(kept, key=lambda trial: trial.latency_us or 0.0) if kept else None


def count_tags(trials: Sequence[Trial], tags: Sequence[str]) -> dict[str, int]:
    counted = Counter(trial.tag for trial in trials)
    return {tag: counted[tag] for tag in tags}


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
    words = ["amk", "eval", _operand(trial.model if model is None else model), "--gpu", trial.gpu, "--config", "-"]
    words += ["--device", "cuda" if trial.regime == MEASURED else "cpu"]
    for flag, name in (("--max-seq", "max_seq"), ("--position", "latency_position"), ("--seed", "seed")):
        if type(trial.verdict.get(name)) is int:
            words += [flag, str(trial.verdict[name])]
    text = json.dumps(_plain(trial.schedule_config), sort_keys=True, separators=(",", ":"))
    return f"printf %s {shell_word(text)} | {' '.join(map(shell_word, words))}"


_LOOP_FLAGS = (
    "gpu", "budget", "device", "seed", "explore_fraction", "sampler", "engine", "workers", "max_seq", "position",
    "timeout_s",
)  # fmt: skip
_FLAG_NAMES = {"explore_fraction": "--explore", "timeout_s": "--timeout"}


def redo_loop(facts: Mapping[str, Any], results: str) -> str | None:
    """The command that runs a loop again, from its record in the journal, into new files; None where the record does
    not say which model it was."""
    if not isinstance(facts.get("model"), str):
        return None
    words = ["amk", "loop", _operand(facts["model"])]
    for name in _LOOP_FLAGS:
        value = facts.get(name)
        if type(value) in (str, int, float) and value != "":
            words += [_FLAG_NAMES.get(name, "--" + name.replace("_", "-")), str(value)]
    if facts.get("cold") is True:
        words.append("--cold")
    words += ["--results", results]
    return " ".join(map(shell_word, words))


def _operand(model: str) -> str:
    """A model that no parser takes for an option."""
    return f"./{model}" if model.startswith("-") else model


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
