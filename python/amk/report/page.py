"""One page that holds a whole log: tables, plots, provenance, and the commands that redo it.

In: a `History`, and what this installation is. Out: HTML in one piece: no script, nothing fetched from anywhere, the
same bytes for the same log. Every text of a record is hostile until shown otherwise: it is escaped by the template, its
invisible characters are written out, and the page's own policy forbids scripts and requests should both fail.
The template is package data; jinja2 and matplotlib are the extra `report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..errors import InputError, Unavailable
from ..records.digest import Group, group_trials, loop_model
from .facts import MEASURED, knobs_of, printable, redo_loop, redo_trial
from .plots import knob_svg, progress_svg

if TYPE_CHECKING:
    from ..records import Trial
    from .history import History

__all__ = ["render_page"]

TEMPLATE = "page.html.jinja"
NEW_RESULTS = "redone.tsv"  # what a loop is redone into, so that no log is appended to by accident
_PROVENANCE = {
    "device_name": "GPU",
    "driver": "driver",
    "host_cpu": "host",
    "library_version": "AMK",
    "abi_version": "ABI",
    "weights_digest": "weights",
}


def render_page(log: History, about: Mapping[str, str]) -> str:
    """`about`: version and build of the installation that makes the page."""
    if not log.trials:
        raise InputError(f"{log.path}: expected at least one readable trial, got none")
    template = _template()
    groups = [_group(number, group, log) for number, group in enumerate(group_trials(log.trials))]
    times = sorted(trial.time_utc for trial in log.trials)
    return template.render(
        path=log.path,
        about=about,
        trials=len(log.trials),
        first=times[0],
        last=times[-1],
        damaged=log.damaged,
        doubted=sum(trial.trial_id in log.doubts for trial in log.trials),
        groups=groups,
    )


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise Unavailable('a report needs the package jinja2: pip install "amk[report]"') from error
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else printable(value)

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize
    )
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text)


def _group(number: int, group: Group, log: History) -> dict[str, Any]:
    from markupsafe import Markup

    best = group.best
    gain = None if best is None or best.experiment == 0 else group.gain_pct(best)
    knobs = [(knob, knob_svg(group, knob, f"plot{number}k{index}")) for index, knob in enumerate(knobs_of(group))]
    loops = {loop["loop"]: loop for loop in log.loops if isinstance(loop.get("loop"), str)}
    given = {loop: loop_model(facts) for loop, facts in loops.items()}
    return {
        "model": group.model,
        "gpu": group.gpu,
        "measured": group.regime == MEASURED,
        "position": group.position,
        "max_seq": group.max_seq,
        "tags": group.summary()["tags"],
        "incorrect": sum(trial.correctness == "FAIL" for trial in group.trials),
        "best": None if best is None else _row(best, log),
        "gain": "" if gain is None else f"{gain:.1f}",
        "progress": Markup(progress_svg(group, f"plot{number}")),  # noqa: S704  our own plot
        "knobs": [Markup(svg) for _, svg in knobs if svg is not None],  # noqa: S704
        "kept": [
            _row(trial, log) | {
                "redo": redo_trial(trial, given.get(trial.loop)),
                "comparison": {name: _fact(value) for name, value in trial.comparison.items()},
            }
            for trial in group.trials if trial.tag == "kept"
        ],
        "loops": [_loop(loop, loops.get(loop), group) for loop in dict.fromkeys(trial.loop for trial in group.trials)],
        "rows": [_row(trial, log) for trial in group.trials],
        "provenance": _provenance(group),
    }  # fmt: skip


def _loop(loop: str, facts: Mapping[str, Any] | None, group: Group) -> dict[str, Any]:
    return {
        "loop": loop,
        "trials": sum(trial.loop == loop for trial in group.trials),
        "redo": None if facts is None else redo_loop(facts, NEW_RESULTS),
    }


def _row(trial: Trial, log: History) -> dict[str, Any]:
    verdict = trial.verdict
    spread = [_number(verdict.get(name)) for name in ("latency_p10_us", "latency_p90_us")]
    return {
        "id": trial.trial_id,
        "loop": trial.loop,
        "experiment": trial.experiment,
        "tag": trial.tag,
        "correctness": trial.correctness,
        "latency": _number(trial.latency_us),
        "spread": " - ".join(spread) if all(spread) else "",
        "share": "" if trial.pct_of_roofline is None else f"{trial.pct_of_roofline:.1f}",
        "schedule": trial.schedule_id,
        "description": trial.description,
        "time": trial.time_utc,
        "seconds": f"{trial.duration_s:.2f}",
        "doubt": log.doubts.get(trial.trial_id),
    }


def _provenance(group: Group) -> list[tuple[str, list[str]]]:
    """Each fact with its distinct values, in order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for trial in group.trials:
        said = dict(trial.verdict.get("provenance") or {}) if isinstance(trial.verdict, Mapping) else {}
        facts = {label: said.get(name) for name, label in _PROVENANCE.items()}
        facts |= {
            "library build": trial.kernel_id,
            "cache rows": trial.verdict.get("max_seq"),
            "position": trial.verdict.get("latency_position"),
            "seed": trial.verdict.get("seed"),
            "read GB/s": said.get("read_gb_per_s"),
            "clocks": _clocks(said.get("clocks")),
        }
        for label, value in facts.items():
            if value not in (None, "", [], {}):
                found.setdefault(label, {})[_fact(value)] = None
    return [(label, _some(list(values))) for label, values in found.items()]


def _clocks(taken: Any) -> str | None:
    """The SM clock before and after each timing, and what held it back."""
    if not isinstance(taken, list | tuple) or not all(isinstance(one, Mapping) for one in taken):
        return None
    clocks = [str(one.get("sm_clock_mhz")) for one in taken if one.get("sm_clock_mhz") is not None]
    reasons = sorted({str(reason) for one in taken for reason in one.get("throttle_reasons") or ()})
    said = ["-".join(clocks) + " MHz" if clocks else "", f"({', '.join(reasons)})" if reasons else ""]
    return " ".join(filter(None, said))


def _some(values: list[str], limit: int = 6) -> list[str]:
    return values if len(values) <= limit else [*values[:limit], f"and {len(values) - limit} more"]


def _fact(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return str(value)


def _number(value: Any) -> str:
    if type(value) not in (int, float):
        return ""
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
