"""`amk results ACTION`: questions to the logs of a search, and their repair.

In: parsed arguments and `say`. Out: an `Outcome`; exit code 8 where something that was recorded is damaged or missing.
Reading never changes a log; only `rebuild` does, and it makes new files out of the journal.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import tempfile
from argparse import Namespace
from typing import Any

from .errors import InputError, Unavailable
from .records.audit import FileState, audit, rebuild
from .records.digest import Group, as_operand, export, group_trials, loop_model, table
from .records.lines import escape
from .records.read import Log, journal_beside, read_trials_tallied
from .records.trial import Trial
from .verbs import Outcome, Say

__all__ = ["run_results"]


def run_results(arguments: Namespace, say: Say) -> Outcome:
    """Runs the verb."""
    act = {"summary": _summary, "best": _best, "export": _export, "plot": _plot, "check": _check, "rebuild": _rebuild}
    return act[arguments.ACTION](arguments, say)


# ---- questions ----


def _summary(arguments: Namespace, say: Say) -> Outcome:
    trials, skipped = _trials(arguments, say)
    groups = [group.summary() for group in group_trials(trials)]
    result = {"results": arguments.RESULTS, "trials": len(trials), "skipped": skipped, "groups": groups}
    head = ["model", "gpu", "regime", "position", "loops", "trials", *("kept", "tried", "revert", "rejected", "crash")]
    rows = [
        [
            *(escape(group["model"]), escape(group["gpu"]), group["regime"], group["position"]),
            *(group["loops"], group["trials"], *group["tags"].values()),
            *(group["best_latency_us"], group["gain_pct"], escape(group["best_schedule_id"] or "-")),
        ]
        for group in groups
    ]
    text = table([*head, "best us", "gain %", "schedule"], rows) if rows else f"{arguments.RESULTS}: no trials"
    return Outcome(0, "OK", result, text)


def _best(arguments: Namespace, say: Say) -> Outcome:
    trials, skipped = _trials(arguments, say)
    found = [(group, best) for group in group_trials(trials) if (best := group.best) is not None]
    result: dict[str, Any] = {"results": arguments.RESULTS, "skipped": skipped}
    if not found:
        return Outcome(1, "EMPTY", {**result, "best": []}, f"{arguments.RESULTS}: no kept trial")
    if len(found) > 1 and arguments.output_file is not None:
        names = "; ".join(", ".join(f"{name} {value}" for name, value in group.head().items()) for group, _ in found)
        raise InputError(f"--output-file: expected one best trial (--model, --gpu, --regime, --loop), got {names}")
    given = _models_given(arguments)
    result["best"] = [_answer(arguments, group, best, given.get(best.loop)) for group, best in found]
    if len(found) == 1:
        result["schedule_config"] = found[0][1].to_dict()["schedule_config"]
    if arguments.output_file is not None:
        if not result["schedule_config"]:
            raise InputError(
                f"{arguments.RESULTS}: expected the schedule of {found[0][1].trial_id} in a journal; no such"
            )
        _write(arguments, json.dumps(result["schedule_config"], indent=2) + "\n")
    return Outcome(0, "OK", result, "\n".join(map(_answer_text, result["best"])))


def _models_given(arguments: Namespace) -> dict[str, str]:
    """What each loop was given, by its id: a trial only names its model, and a checkpoint's name is no path to it."""
    path = arguments.journal
    if path is None:
        with Log(arguments.RESULTS) as log:
            path = arguments.RESULTS if log.kind == "journal" else journal_beside(arguments.RESULTS)
    if not os.path.lexists(path):
        return {}
    with Log(path, kind="journal") as log:
        loops = [entry.facts for entry in log.entries() if entry.kind == "loop"]
    return {facts["loop"]: model for facts in loops if (model := loop_model(facts)) is not None}


def _answer(arguments: Namespace, group: Group, best: Trial, model: str | None) -> dict[str, Any]:
    return {
        **group.head(),
        **{name: getattr(best, name) for name in ("trial_id", "schedule_id", "latency_us", "pct_of_roofline")},
        "gain_pct": group.gain_pct(best),
        **{name: getattr(best, name) for name in ("description", "kernel_id", "time_utc")},
        "schedule_config": best.to_dict()["schedule_config"],
        "commands": _commands(arguments, best, model or best.model) if best.schedule_config else [],
    }


def _commands(arguments: Namespace, best: Trial, model: str) -> list[str]:
    """What to type to judge it again, under the conditions of the trial."""
    commands, path = [], arguments.output_file
    if path is None:
        path = "best.json"
        write = ["amk", "results", "best", arguments.RESULTS, "--loop", best.loop, "--output-file", path]
        if arguments.journal is not None:
            write += ["--journal", arguments.journal]
        commands.append(shlex.join(write))
    device = "cpu" if best.regime == "predicted" else "cuda"
    again = ["amk", "eval", as_operand(model), "--gpu", best.gpu, "--config", path, "--device", device]
    for option, name in (("--max-seq", "max_seq"), ("--position", "latency_position"), ("--seed", "seed")):
        if type(value := best.verdict.get(name)) is int:
            again += [option, str(value)]
    return [*commands, shlex.join(again)]


def _answer_text(answer: dict[str, Any]) -> str:
    gain = "" if answer["gain_pct"] is None else f", {answer['gain_pct']:.1f} % less than the default"
    share = "" if answer["pct_of_roofline"] is None else f", {answer['pct_of_roofline']:.1f} % of the roofline"
    lines = [
        f"{escape(answer['model'])} on {escape(answer['gpu'])}: schedule {escape(answer['schedule_id'])}",
        f"  latency   {answer['latency_us']:.4g} us, {answer['regime']}, at position {answer['position']}{share}{gain}",
        f"  trial     {answer['trial_id']}, {answer['time_utc']}: {escape(answer['description'])}",
    ]
    again = answer["commands"] or ["its schedule is in the journal, which is not here"]
    return "\n".join([*lines, *(f"  again     {escape(command)}" for command in again)])


def _export(arguments: Namespace, say: Say) -> Outcome:
    trials, skipped = _trials(arguments, say)
    result: dict[str, Any] = {"results": arguments.RESULTS, "skipped": skipped, "format": arguments.format}
    result |= {"count": len(trials)}
    if arguments.output_file is None:
        return Outcome(
            0, "OK", {**result, "trials": [trial.to_dict() for trial in trials]}, export(trials, arguments.format)[:-1]
        )
    _write(arguments, export(trials, arguments.format))
    result["output_file"] = arguments.output_file
    return Outcome(0, "OK", result, f"{arguments.output_file}: {len(trials)} trials")


def _plot(arguments: Namespace, say: Say) -> Outcome:
    if arguments.output_file is None:
        raise InputError("plot: expected --output-file, a name that ends in .png or .svg")
    _require_no_log(arguments)
    trials, skipped = _trials(arguments, say)
    try:
        from .report.plots import plot_trials
    except ImportError as error:
        raise Unavailable('plots need more packages: pip install "amk[plot]"') from error
    plot_trials(trials, arguments.output_file)
    result = {"results": arguments.RESULTS, "skipped": skipped, "count": len(trials)}
    result["output_file"] = arguments.output_file
    return Outcome(0, "OK", result, f"{arguments.output_file}: {len(trials)} trials")


# ---- damage ----


def _check(arguments: Namespace, _: Say) -> Outcome:
    found = audit(*_paths(arguments, create_corpus=False))
    broken = bool(found.problems)
    lines = [_file_text(name, state) for name in ("journal", "results", "corpus") if (state := getattr(found, name))]
    lines += [f"  interrupted {name}: started, and never finished" for name in found.interrupted]
    lines += [f"  PROBLEM {problem}" for problem in found.problems]
    if broken and found.journal.readable:
        lines.append("  `amk results rebuild` makes the results and the corpus again from what the journal holds")
    return Outcome(8 if broken else 0, "DAMAGED" if broken else "OK", found.to_dict(), "\n".join(lines))


def _file_text(name: str, state: FileState) -> str:
    text = (
        f"{name:<8} {state.path}: {state.records} records" if state.readable else f"{name:<8} {state.path}: not there"
    )
    if state.present and not state.readable:
        text = f"{name:<8} {state.path}: cannot be read"
    torn = len(state.torn_copies) + bool(state.tally.torn_bytes)
    return text + (f"; {torn} unfinished appends were never acknowledged" if torn else "")


def _rebuild(arguments: Namespace, _: Say) -> Outcome:
    done = rebuild(*_paths(arguments, create_corpus=True))
    lines = []
    for name, file in done.items():
        kept = f"; what was there is kept as {file['old_file_kept_as']}" if file["old_file_kept_as"] else ""
        lines.append(f"{name:<8} {file['path']}: {file['rows']} trials{kept}")
    return Outcome(0, "OK", done, "\n".join(lines))


# ---- what several actions do ----


def _trials(arguments: Namespace, say: Say) -> tuple[list[Trial], dict[str, int]]:
    """The trials that the filters let through, and how much of the logs had to be skipped."""
    trials, tally = read_trials_tallied(arguments.RESULTS, arguments.journal)
    if tally.bad_lines or tally.duplicates or tally.unbacked:
        say(f"{arguments.RESULTS}: damaged or foreign lines were skipped; `amk results check` names them")
    for name in ("model", "gpu", "regime", "loop"):
        wanted = getattr(arguments, name)
        trials = [trial for trial in trials if wanted is None or getattr(trial, name) == wanted]
    return trials, vars(tally)


def _paths(arguments: Namespace, *, create_corpus: bool) -> tuple[str, str | None, str]:
    """(results, corpus, journal); the corpus is the one beside the results, unless named or, to be read, absent."""
    results, corpus = arguments.RESULTS, arguments.corpus
    if corpus is None:
        beside = os.path.join(os.path.dirname(results), "corpus.jsonl")
        corpus = beside if create_corpus or os.path.lexists(beside) else None
    return results, corpus, arguments.journal or journal_beside(results)


def _require_no_log(arguments: Namespace) -> None:
    logs = {os.path.realpath(path) for path in _paths(arguments, create_corpus=True) if path is not None}
    if os.path.realpath(arguments.output_file) in logs:
        raise InputError(
            f"--output-file: expected another file than the logs themselves, got {arguments.output_file!r}"
        )


def _write(arguments: Namespace, text: str) -> None:
    """The output file, whole or not at all; a log is never overwritten by its own export."""
    _require_no_log(arguments)
    path = arguments.output_file
    try:
        if os.path.lexists(path) and not os.path.isfile(path):
            raise InputError(f"--output-file: expected a regular file or a new name, got {path!r}")
        handle, temporary = tempfile.mkstemp(prefix=".amk-", dir=os.path.dirname(path) or ".")
        try:
            with open(handle, "w", encoding="utf-8", newline="") as file:
                mask = os.umask(0)
                os.umask(mask)
                os.fchmod(file.fileno(), 0o666 & ~mask)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        raise InputError(f"--output-file: expected a name that can be written, got {path!r}: {error}") from error
