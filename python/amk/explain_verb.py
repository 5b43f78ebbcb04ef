"""`amk explain`: where the predicted time of a model, a program or an image goes. Needs no GPU.

In: parsed arguments and `say`. Out: an `Outcome` with the `Explanation` as plain data and as text.
"""

from __future__ import annotations

from argparse import Namespace

from .core_verbs import open_input
from .errors import Rejected
from .explanation import explain
from .verb import Outcome, Say

__all__ = ["explain_verb"]


def explain_verb(arguments: Namespace, say: Say) -> Outcome:
    """Runs the verb. A program that does not validate has no cost: it is Rejected."""
    kind, program, image = open_input(arguments, say)
    report = program.validate()
    if not report.ok:
        raise Rejected(f"{arguments.INPUT}: not valid, so it has no cost: {report.rejections[0]}", report)
    found = explain(program, arguments.position)
    result = {
        "input": arguments.INPUT,
        "kind": kind,
        "latency_kind": "predicted",
        "image_hash": (image or program.pack()).hash,
        **found.to_dict(),
    }
    return Outcome(0, "OK", result, f"{arguments.INPUT}: {found.to_text()}")
