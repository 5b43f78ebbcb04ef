"""The picture of a bench: time per token by context, AMK beside its peers, over the floor.

In: rows of `run_bench`. Out: the bytes of a PNG or SVG, the same for the same rows. A panel holds one model and one
kind of latency, and its axis says which: a prediction never stands beside a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .report.canvas import Theme, render
from .report.facts import latency_label, printable

__all__ = ["draw_bench"]

PANEL_INCHES = (5.2, 3.4)
COLUMNS = 2


def draw_bench(
    rows: Sequence[Mapping[str, Any]], peers: Sequence[Mapping[str, Any]], gpu: str, suffix: str, batch: int = 1
) -> bytes:
    """With a batch, bars are steps of so many tokens."""
    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in (*rows, *peers):
        if row["latency_us"] is not None:
            panels.setdefault((row["model"], row["latency_kind"]), []).append(row)
    n_columns = min(COLUMNS, max(len(panels), 1))
    n_rows = -(-max(len(panels), 1) // n_columns)

    def draw(figure: Any, theme: Theme) -> None:
        grid = figure.add_gridspec(n_rows, n_columns)
        for number, ((model, kind), members) in enumerate(panels.items()):
            axes = figure.add_subplot(grid[divmod(number, n_columns)])
            axes.set_title(f"{printable(model, 40)} on {printable(gpu, 24)}", loc="left")
            _panel(axes, members, kind, theme)
            if batch > 1:
                axes.set_ylabel(axes.get_ylabel().replace("per token", f"per step of {batch} tokens"))
        if not panels:
            axes = figure.add_subplot(grid[0, 0])
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no row has a latency", ha="center", transform=axes.transAxes, color=theme.faint)

    return render(draw, suffix, (PANEL_INCHES[0] * n_columns, PANEL_INCHES[1] * n_rows))


def _panel(axes: Any, members: Sequence[Mapping[str, Any]], kind: str, theme: Theme) -> None:
    contexts = sorted({row["context"] for row in members})
    series = list(dict.fromkeys(row["what"] for row in members))
    width = 0.8 / len(series)
    colours = {"amk": theme.kept}
    for index, what in enumerate(series):
        chosen = [row for row in members if row["what"] == what]
        x = [contexts.index(row["context"]) - 0.4 + width * (index + 0.5) for row in chosen]
        us = [row["latency_us"] for row in chosen]
        colour = colours.get(what, (theme.tried, theme.revert)[index % 2])
        axes.bar(x, us, 0.92 * width, color=colour, label="AMK" if what == "amk" else what, zorder=2)
        if all(row.get("latency_p10_us") is not None for row in chosen):
            spread = [[row["latency_us"] - row["latency_p10_us"] for row in chosen],
                      [row["latency_p90_us"] - row["latency_us"] for row in chosen]]  # fmt: skip
            axes.errorbar(x, us, spread, fmt="none", ecolor=theme.ink, elinewidth=0.9, capsize=2, zorder=3)
        for at, row in zip(x, chosen, strict=True):
            axes.annotate(f"{row['pct_of_floor']:.3g} %", (at, row["latency_us"]), (0, 3), ha="center", fontsize=7,
                          textcoords="offset points", color=theme.faint)  # fmt: skip
    for number, context in enumerate(contexts):
        floor_us = next((row["floor_us"] for row in members if row["context"] == context and row.get("floor_us")), None)
        if floor_us is not None:
            axes.hlines(floor_us, number - 0.45, number + 0.45, color=theme.failed, linewidth=1.4, zorder=4,
                        label="floor" if number == 0 else None)  # fmt: skip
    axes.set_xticks(range(len(contexts)), [f"{context:,}" for context in contexts])
    axes.set(xlabel="context (bars: % of the floor)", ylabel=latency_label(kind))
    axes.margins(y=0.14)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=7, ncols=4, frameon=False, columnspacing=1.0,
                handlelength=1.2, handletextpad=0.4)  # fmt: skip
