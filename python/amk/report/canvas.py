"""Where plots are drawn: matplotlib, without a display, without a clock, without the user's own style.

In: a function that draws on a figure. Out: the bytes of a PNG or an SVG, the same for the same drawing. matplotlib is
the extra `plot`, imported when first asked for. Texts are drawn as they are: a dollar sign starts no formula.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import InternalError, Unavailable

__all__ = ["PAGE", "PRINT", "SUFFIXES", "Theme", "inline_svg", "render", "require_matplotlib"]

SUFFIXES = (".png", ".svg")
DPI = 120

Draw = Callable[[Any, "Theme"], None]


@dataclass(frozen=True)
class Theme:
    """Colours by what they stand for. Those of a page are found again in its SVG and replaced by its variables."""

    ink: str
    faint: str
    grid: str
    kept: str
    tried: str
    revert: str
    failed: str


PRINT = Theme("#1d2530", "#5b6675", "#dde2e8", "#0b6e4f", "#3b6fb6", "#9a7d1e", "#b3261e")
# Stand-ins that no palette contains; `inline_svg` puts var(--ink) and so on in their places.
PAGE = Theme("#010b01", "#010b02", "#010b03", "#010b04", "#010b05", "#010b06", "#010b07")

_RC = {
    "svg.hashsalt": "amk",
    "svg.fonttype": "none",  # text stays text: it can be read, searched and scaled
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def render(draw: Draw, suffix: str, size: tuple[float, float], theme: Theme = PRINT) -> bytes:
    """One figure of `size` inches, in the format that the suffix names."""
    if suffix not in SUFFIXES:
        raise InternalError(f"a plot is one of {', '.join(SUFFIXES)}, got {suffix!r}")
    with _matplotlib(theme) as new_figure:
        figure = new_figure(figsize=size, dpi=DPI, layout="constrained")
        draw(figure, theme)
        out = io.BytesIO()
        metadata = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
        figure.savefig(out, format=suffix[1:], metadata=metadata, transparent=theme is PAGE)
        return out.getvalue()


def inline_svg(draw: Draw, size: tuple[float, float], name: str, label: str) -> str:
    """An <svg> element for the middle of a page: it scales, has ids of its own, and takes its colours from the page.

    `name` must be a plain word, unique in the page; `label` is what a screen reader says.
    """
    from xml.sax.saxutils import quoteattr

    text = render(draw, ".svg", size, PAGE).decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.S)  # it would speak for the whole page
    text = re.sub(r'(\sid="|xlink:href="#|url\(#)', rf"\1{name}-", text)
    for role, stand_in in vars(PAGE).items():
        text = text.replace(stand_in, f"var(--{role})")
    head, _, rest = text.partition(">")
    width, height = (72.0 * side for side in size)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label={quoteattr(label)} id="{name}" viewBox="0 0 {width:g} {height:g}"'
    )
    return f"{head}>{rest}"


def require_matplotlib(extra: str = "plot") -> tuple[Any, type]:
    """The package and its Figure class; Unavailable names the extra to install."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable(f'a plot needs the package matplotlib: pip install "amk[{extra}]"') from error
    return matplotlib, Figure


@contextmanager
def _matplotlib(theme: Theme) -> Iterator[Any]:
    """The Figure class, while matplotlib is set up as above whatever its configuration files say."""
    matplotlib, figure_class = require_matplotlib()
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), theme.ink)
    colours |= dict.fromkeys(("xtick.color", "ytick.color"), theme.faint)
    colours |= dict.fromkeys(("axes.edgecolor", "grid.color"), theme.grid)
    colours |= {"legend.edgecolor": theme.grid, "legend.facecolor": "none" if theme is PAGE else "white"}
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # shown as a box, and said nowhere
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC | colours)
        yield figure_class
