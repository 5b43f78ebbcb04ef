"""The picture of a record: speed of both sides against the best copy of the same bytes, row by row.

In: a sealed, valid record. Out: the bytes of a PNG or SVG, the same for the same record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..report.canvas import Theme, render
from .check import SIDES

__all__ = ["draw_record"]


def draw_record(record: Mapping[str, Any], suffix: str) -> bytes:
    if not record["valid"]:
        raise InputError(f"plot: {record['task']}: the result is not valid, and has no time to draw")
    rows = [row for row in record["rows"] if row["kind"] == "production"]

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()
        for number, (side, colour) in enumerate(zip(SIDES, (theme.tried, theme.kept), strict=True)):
            at = [i - 0.2 + 0.4 * number for i in range(len(rows))]
            axes.barh(at, [100 * row["cold"][side]["share_of_copy"] for row in rows], 0.38, color=colour, label=side)
            for y, row in zip(at, rows, strict=True):
                us = f"{row['cold'][side]['median_us']:.2f} us"
                axes.annotate(us, (0, y), (3, 0), textcoords="offset points", va="center", fontsize=6, color="white")
        axes.axvline(100, color=theme.failed, linewidth=1.2, label="best copy, same run")
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
        axes.invert_yaxis()
        axes.set(xlabel="% of the copy's speed, cold L2")
        axes.set_title(f"{record['task']} on {record['device']['name']}", loc="left")
        axes.grid(axis="x")
        axes.legend(fontsize=7, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))

    return render(draw, suffix, (7.5, 1.2 + 0.34 * len(rows)))
