"""`amk report`: one page of a whole log.

In: parsed arguments. Out: an `Outcome`, and the page, which appears whole or not at all. Whether it can be written is
found out before anything is read.
"""

from __future__ import annotations

from argparse import Namespace

from .output import WholeFiles, require_suffix
from .verb import Outcome, Say

__all__ = ["report_verb"]


def report_verb(arguments: Namespace, say: Say) -> Outcome:
    from . import _lib
    from .doctor import package_version
    from .report.canvas import require_matplotlib
    from .report.history import read_history
    from .report.page import render_page

    output = arguments.output
    require_suffix(output, (".html",))
    require_matplotlib("report")
    with WholeFiles(output) as files:
        build = str(_lib.build_info().get("build_id", ""))
        history = read_history(arguments.RESULTS, build)
        say(f"{len(history.trials)} trials of {arguments.RESULTS}")
        page = render_page(history, {"version": package_version(), "build": build[:12]}).encode("utf-8", "replace")
        files.write(output, page)
    result = {
        "page": output,
        "page_bytes": len(page),
        "trials": len(history.trials),
        "damaged": list(history.damaged),
        "unverified": len(history.doubts),
    }
    lines = [f"{output}: {len(history.trials)} trials, {len(page):,} bytes"]
    lines += [f"  damaged     {what}" for what in history.damaged]
    if history.doubts:
        lines.append(f"  unverified  {len(history.doubts)} of {len(history.trials)} trials, each with its reason")
    return Outcome(0, "OK", result, "\n".join(lines))
