"""Best-so-far and a scatter by knob, for every model, GPU, context and kind of latency in a log.

In: trials. Out: a PNG or SVG file, or <svg> elements for a page. A measurement and a prediction never share an axis.
A point is a trial that was correct and has a latency; what failed is a tick at the bottom edge.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..output import WholeFiles, require_suffix
from ..records.digest import Group, group_trials
from .canvas import PRINT, SUFFIXES, Theme, inline_svg, render
from .facts import Knob, best_so_far, knobs_of, latency_label, title_of

if TYPE_CHECKING:
    from ..records import Trial

__all__ = ["knob_svg", "plot_trials", "progress_svg"]

MAX_GROUPS = 8  # of one picture; a page has no such limit
KNOB_COLUMNS = 2
RASTER_POINTS = 2000  # from here on, the points inside an SVG are one picture
LOG_FROM_RATIO = 20.0  # slowest over fastest
MARKERS = {"kept": "D", "tried": "o", "revert": "v"}
FAILURES = {"rejected": "|", "crash": "x", "failed": "^"}

DrawAxes = Callable[[Any, Theme], None]


def plot_trials(trials: Iterable[Trial], output: str | os.PathLike[str]) -> None:
    """Draws all of them into one file, whose suffix (.png or .svg) is its format. Same trials, same bytes."""
    path = os.fsdecode(output)
    suffix = require_suffix(path, SUFFIXES)
    groups = group_trials(trials)
    if not groups:
        raise InputError("plot: expected at least one trial, got none")
    with WholeFiles(path) as files:  # refuses before any work is done
        files.write(path, _picture(groups, suffix))


def progress_svg(group: Group, name: str) -> str:
    return inline_svg(
        lambda figure, theme: _draw_progress(figure.add_subplot(), group, theme),
        (8.8, 3.2), name, f"latency of each trial of {title_of(group)}, and the best so far",
    )  # fmt: skip


def knob_svg(group: Group, knob: Knob, name: str) -> str | None:
    """None where no trial with a latency tells the knob's values apart."""
    if not _points(group, knob):
        return None
    return inline_svg(
        lambda figure, theme: _draw_knob(figure.add_subplot(), group, knob, theme),
        (4.6, _knob_inches(knob)), name, f"latency by {knob.path}",
    )  # fmt: skip


def _picture(groups: list[Group], suffix: str) -> bytes:
    shown, left_out = groups[:MAX_GROUPS], groups[MAX_GROUPS:]
    rows: list[tuple[float, list[DrawAxes]]] = []  # (inches, what to draw from left to right)
    for group in shown:
        rows.append((3.2, [_bind(_draw_progress, group)]))
        knobs = [knob for knob in knobs_of(group) if _points(group, knob)]
        for start in range(0, len(knobs), KNOB_COLUMNS):
            beside = knobs[start : start + KNOB_COLUMNS]
            rows.append((max(map(_knob_inches, beside)), [_bind(_draw_knob, group, knob) for knob in beside]))

    def draw(figure: Any, theme: Theme) -> None:
        grid = figure.add_gridspec(len(rows), KNOB_COLUMNS, height_ratios=[inches for inches, _ in rows])
        for number, (_, drawn) in enumerate(rows):
            for column, draw_axes in enumerate(drawn):
                draw_axes(figure.add_subplot(grid[number, :] if len(drawn) == 1 else grid[number, column]), theme)
        if left_out:
            names = ", ".join(title_of(group) for group in left_out[:3]) + (", ..." if len(left_out) > 3 else "")
            figure.supxlabel(f"not drawn: {len(left_out)} more, as {names}", color=theme.failed, fontsize=8)

    return render(draw, suffix, (10.5, sum(inches for inches, _ in rows)))


def _bind(function: Callable[..., None], *facts: Any) -> DrawAxes:
    return lambda axes, theme: function(axes, *facts, theme)


def _draw_progress(axes: Any, group: Group, theme: Theme) -> None:
    numbered = list(enumerate(group.trials))
    _draw_points(axes, [(number, t.latency_us, t.tag) for number, t in numbered if t.latency_us is not None], theme)
    lines = best_so_far(group)
    for line in lines:
        axes.step(*zip(*line, strict=True), where="post", color=theme.kept, linewidth=1.6, zorder=2,
                  label="best so far" if line is lines[0] else None)  # fmt: skip
    edge = axes.get_xaxis_transform()  # x as counted, y as a part of the axes
    for kind, marker in FAILURES.items():
        where = [number for number, trial in numbered if _failure(trial) == kind]
        if where:
            axes.scatter(where, [0.03] * len(where), transform=edge, marker=marker, s=26, linewidths=1.2,
                         color=theme.failed, zorder=3, clip_on=False,
                         label="not correct" if kind == "failed" else kind)  # fmt: skip
    axes.set_title(title_of(group), loc="left")
    axes.set(xlabel="trial", ylabel=latency_label(group.regime), xlim=(-0.5, len(numbered) - 0.5))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(axis="y")
    latencies = [trial.latency_us for trial in group.trials if trial.latency_us is not None]
    if not latencies:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no trial has a latency", transform=axes.transAxes, ha="center", color=theme.faint)
    elif max(latencies) > LOG_FROM_RATIO * min(latencies):
        axes.set_yscale("log")
    axes.margins(y=0.12)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8, ncols=6, frameon=False, borderpad=0.2,
                    columnspacing=1.2, handletextpad=0.3)  # fmt: skip


def _draw_knob(axes: Any, group: Group, knob: Knob, theme: Theme) -> None:
    _draw_points(axes, _points(group, knob), theme)
    axes.set_yticks(range(len(knob.labels)), knob.labels)
    axes.set_title(knob.path, loc="left")
    axes.set(xlabel=latency_label(group.regime), ylim=(len(knob.labels) - 0.4, -0.6))
    axes.grid(axis="x")
    latencies = [x for x, _, _ in _points(group, knob)]
    if max(latencies) > LOG_FROM_RATIO * min(latencies):
        axes.set_xscale("log")


def _draw_points(axes: Any, points: list[tuple[float, float, str]], theme: Theme) -> None:
    """The kept ones last, so that they lie on top. A picture cannot follow a page's colours: it has those of print."""
    is_picture = len(points) > RASTER_POINTS
    theme = PRINT if is_picture else theme
    for tag in ("tried", "revert", "kept"):
        chosen = [(x, y) for x, y, of in points if (of if of in MARKERS else "tried") == tag]
        if chosen:
            colour = getattr(theme, tag)
            axes.scatter(*zip(*chosen, strict=True), marker=MARKERS[tag], s=34 if tag == "kept" else 20, label=tag,
                         facecolors=colour if tag == "kept" else "none", edgecolors=colour, linewidths=1.1, zorder=3,
                         rasterized=is_picture)  # fmt: skip


def _points(group: Group, knob: Knob) -> list[tuple[float, float, str]]:
    """(latency, height, tag). Trials of one value are spread over its band, in an order that looks like none."""
    seen: dict[int, int] = {}
    out = []
    for trial, choice in zip(group.trials, knob.choices, strict=True):
        if choice is not None and trial.latency_us is not None:
            seen[choice] = seen.get(choice, -1) + 1
            spread = (seen[choice] * 0.6180339887 + 0.5) % 1.0 - 0.5  # multiples of the golden ratio
            out.append((trial.latency_us, choice + 0.5 * spread, trial.tag))
    return out


def _knob_inches(knob: Knob) -> float:
    return 1.15 + 0.24 * len(knob.labels)


def _failure(trial: Trial) -> str | None:
    if trial.tag in FAILURES:
        return trial.tag
    return "failed" if trial.correctness == "FAIL" else None
