"""The kinds of record in the journal and the corpus: made here, and judged here when read.

In: a loop, a start or a trial; or a line that nobody vouches for. Out: the dict that becomes a line; or an `Entry`, or
None for a line that no writer here writes. A schedule is written once, although a trial and its verdict both hold it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, show
from .lines import intact_json, read_json_line
from .trial import Trial, plain, require_loop, require_trial_id

__all__ = [
    "Entry",
    "corpus_entry",
    "corpus_id",
    "end_entry",
    "end_id",
    "ended_ids",
    "loop_entry",
    "read_corpus_line",
    "read_entry",
    "start_entry",
]

_ENDED = re.compile(rb'^\{"kind":"end","writer":"[0-9a-f]{16}","seq":\d+,"trial":\{"trial_id":"([0-9a-f-]+)"', re.M)
_IN_CORPUS = re.compile(rb'\{"kind":"corpus","trial":\{"trial_id":"([0-9a-f-]+)"')
_WRITER = re.compile(r"[0-9a-f]{16}")
_START_TYPES = {"trial_id": str, "loop": str, "experiment": int, "schedule_id": str, "schedule_config": dict}
_KEYS = {
    "loop": {"kind", "writer", "seq", "loop", "facts"},
    "start": {"kind", "writer", "seq", *_START_TYPES},
    "end": {"kind", "writer", "seq", "trial", "same_config"},
}


@dataclass(frozen=True)
class Entry:
    """One record of the journal; `seq` counts those of one writer from 0."""

    kind: str  # "loop", "start" or "end"
    writer: str
    seq: int
    facts: Mapping[str, Any]  # of a loop or a start, as the store returns them; {} of an end
    trial: Trial | None = None  # of an end


def loop_entry(loop: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """InputError: no loop id, no plain data, or a fact named as the record's own keys are."""
    if not isinstance(facts, Mapping):
        raise InputError(f"loop: expected facts as an object, got {show(facts)}")
    clash = {"kind", "loop"} & set(facts)
    if clash:
        raise InputError(f"loop: expected facts under other names than kind and loop, got {sorted(clash)[0]!r}")
    return {"loop": require_loop(loop), "facts": plain(facts, "facts")}


def start_entry(
    trial_id: str, loop: str, experiment: int, schedule_id: str, schedule_config: Mapping[str, Any]
) -> dict[str, Any]:
    """InputError for what could not become a trial later."""
    require_trial_id(trial_id, loop, experiment)
    if not isinstance(schedule_id, str) or not isinstance(schedule_config, Mapping):
        raise InputError(f"start of {trial_id}: expected text and an object for its schedule_id and schedule_config")
    return {
        **{"trial_id": trial_id, "loop": loop, "experiment": experiment},
        **{
            "schedule_id": plain(schedule_id, "schedule_id"),
            "schedule_config": plain(schedule_config, "schedule_config"),
        },
    }


def end_entry(trial: Trial) -> dict[str, Any]:
    data = trial.to_dict()
    same = data["verdict"].get("schedule_config") == data["schedule_config"] and "schedule_config" in data["verdict"]
    if same:
        del data["verdict"]["schedule_config"]
    return {"trial": data, "same_config": same}


def corpus_entry(trial: Trial) -> dict[str, Any]:
    return {"kind": "corpus", **end_entry(trial)}


def read_corpus_line(line: bytes) -> Trial | None:
    record = read_json_line(line)
    if record is None or record.keys() != {"kind", "trial", "same_config"} or record["kind"] != "corpus":
        return None
    return _trial(record)


def read_entry(line: bytes) -> Entry | None:
    """The record of a journal line without its LF, or None."""
    record = read_json_line(line)
    if record is None or record.keys() != _KEYS.get(str(record.get("kind"))):
        return None
    kind, writer, seq = record["kind"], record["writer"], record["seq"]
    if not isinstance(writer, str) or not _WRITER.fullmatch(writer) or type(seq) is not int or seq < 0:
        return None
    if kind == "end":
        trial = _trial(record)
        return None if trial is None else Entry(kind, writer, seq, {}, trial)
    try:
        if kind == "loop":
            made = loop_entry(record["loop"], record["facts"])
            return Entry(kind, writer, seq, {"kind": "loop", "loop": made["loop"], **made["facts"]})
        if any(type(record[name]) is not wanted for name, wanted in _START_TYPES.items()):
            return None
        made = start_entry(**{name: record[name] for name in _START_TYPES})
        return Entry(kind, writer, seq, {"kind": "start", **made})
    except (InputError, TypeError):
        return None


def ended_ids(data: bytes) -> set[str]:
    """The ids in whatever looks like an end: all that are there, and perhaps some whose line is damaged."""
    return {found.decode("ascii") for found in _ENDED.findall(data)}


def end_id(line: bytes) -> str | None:
    """The trial of what looks like an end."""
    found = _ENDED.match(line)
    return None if found is None else found[1].decode("ascii")


def corpus_id(line: bytes) -> str | None:
    """The trial of a line of the corpus, if its CRC is right."""
    found = _IN_CORPUS.match(line)
    return None if found is None or intact_json(line) is None else found[1].decode("ascii")


def _trial(record: Mapping[str, Any]) -> Trial | None:
    data, same = record["trial"], record["same_config"]
    try:
        if same is True and isinstance(data["verdict"], dict) and "schedule_config" not in data["verdict"]:
            data["verdict"]["schedule_config"] = plain(data["schedule_config"], "schedule_config")
        elif same is not False:
            return None
        return Trial.from_dict(data)
    except (InputError, TypeError, KeyError):
        return None
