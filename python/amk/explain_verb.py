"""`amk explain`: where the time of a model, a program or an image goes: predicted, or of a measured timeline.

In: parsed arguments and `say`. Out: an `Outcome` with the `Explanation` as plain data and as text. A prediction needs
no GPU; a timeline is a file that `amk profile` wrote, and says itself which program it is of.
"""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from .core_verbs import open_input
from .errors import Rejected
from .explanation import explain
from .verb import Outcome, Say

if TYPE_CHECKING:
    from .timeline import Timeline

__all__ = ["explain_verb"]


def explain_verb(arguments: Namespace, say: Say) -> Outcome:
    """Runs the verb. A program that does not validate has no cost: it is Rejected."""
    timeline = None if arguments.timeline is None else _open_timeline(arguments, say)
    kind, program, image = open_input(arguments, say)
    report = program.validate()
    if not report.ok:
        raise Rejected(f"{arguments.INPUT}: not valid, so it has no cost: {report.rejections[0]}", report)
    image_hash = (image or program.pack()).hash
    if timeline is not None:
        from .timeline import require_program

        timeline = require_program(timeline, program, image_hash)
    found = explain(program, arguments.position, timeline)
    result = {"input": arguments.INPUT, "kind": kind, "image_hash": image_hash, **found.to_dict()}
    if timeline is not None:
        result["timeline"] = {"file": arguments.timeline, "overlap_closed_us": timeline.overlap_us, **timeline.meta}
    return Outcome(0, "OK", result, f"{arguments.INPUT}: {found.to_text()}")


def _open_timeline(arguments: Namespace, say: Say) -> Timeline:
    """The file's timeline. What it says of the program stands in for the options that were not given."""
    from .safetensors import read_regular_file
    from .trace import MAX_BYTES, read_timeline

    path = arguments.timeline
    timeline = read_timeline(read_regular_file(path, MAX_BYTES), path)
    taken: list[str] = []

    def take(name: str, kind: type, value: Any) -> None:
        if getattr(arguments, name) is None and type(value) is kind:
            setattr(arguments, name, value)
            taken.append(f"--{name.replace('_', '-')}")

    take("gpu", str, timeline.meta.get("gpu"))
    take("max_seq", int, timeline.meta.get("max_seq"))
    take("config", dict, timeline.meta.get("schedule_config"))
    if taken:
        say(f"{', '.join(taken)} as the timeline says: {json.dumps(timeline.meta.get('model'))} on {arguments.gpu}")
    return timeline
