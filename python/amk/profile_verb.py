"""`amk profile`: the timeline of one decode step as a Chrome trace, and its summary.

In: parsed arguments and `say`. Out: an `Outcome`, and the files asked for, each whole or not at all; where they go is
found out before anything is run.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from .errors import InputError, show
from .output import WholeFiles, require_suffix
from .profile import run_profile
from .timeline import MEASURED
from .trace import SUFFIXES, trace_bytes
from .verb import Outcome, Say
from .verbs import pick_gpu, read_json

__all__ = ["profile_table", "profile_verb"]

SCHEMA = {"schema": "amk.profile", "schema_version": 1}
SHOWN_WAITS = 8


def profile_verb(arguments: Namespace, say: Say) -> Outcome:
    trace, output = arguments.trace, arguments.output_file
    if trace is not None and not trace.endswith(SUFFIXES):
        raise InputError(f"trace: expected a file ending in {' or '.join(SUFFIXES)}, got {show(trace)}")
    if output is not None:
        require_suffix(output, (".json",))
    if trace is not None and trace == output:
        raise InputError(f"output: expected another file than the trace, got {show(output)}")
    paths = [path for path in (trace, output) if path is not None]
    with WholeFiles(*paths) as files:
        found = run_profile(
            arguments.MODEL,
            pick_gpu(arguments.gpu, say),
            None if arguments.config is None else read_json(arguments.config, "config"),
            arguments.device,
            strict=arguments.strict,
            context=arguments.context,
            max_seq=arguments.max_seq,
            steps=arguments.steps,
            seed=arguments.seed,
            progress=say,
        )
        if trace is not None:
            files.write(trace, trace_bytes(found.timeline, found.program, compress=trace.endswith(".gz")))
        if output is not None:
            text = json.dumps({**SCHEMA, **found.to_dict()}, allow_nan=False)
            files.write(output, text.encode() + b"\n")
    result = {**found.summary, "files": paths}
    return Outcome(0, "OK", result, profile_table(result))


def profile_table(result: Mapping[str, Any]) -> str:
    """For people: the step, what it cost to look, then ops and waits."""
    floor, time = result["floor"], result["sm_time"]
    measured = result["latency_kind"] == MEASURED
    how = f"measured on {result['device_name']}" if measured else "predicted (cost model)"
    lines = [
        f"{result['model']} on {result['gpu']}, context {result['context']:,}: {result['step_us']:,.2f} us {how}, "
        f"{floor['pct']:.1f} % of the floor",
        f"  rate        {result['gb_per_s']:,.0f} GB/s; the floor is {floor['us']:,.2f} us at {floor['gb_per_s']:,.0f} "
        f"GB/s ({floor['from']})",
        f"  SMs         {result['sms']}: working {time['working']:.1%}, waiting {time['waiting']:.1%}, idle "
        f"{time['idle']:.1%}; outside of the tasks {result['outside_us']:.2f} us",
    ]
    if measured:
        overhead, clock = result["overhead"], result["clock"]
        lines += [
            f"  timeline    the step of median duration of {result['steps']}; {overhead['off_us']:,.2f} us without it, "
            f"{overhead['on_us']:,.2f} with it ({overhead['share']:+.1%})",
            f"  clocks      tasks of an SM overlapped by at most {clock['overlap_closed_us']:.2f} us (closed); signals "
            f"were seen at most {clock['ready_before_producer_us']:.2f} us before they were sent",
        ]
    lines.append("  op                   tasks  working us  waiting us          MB   share")
    lines += [
        f"    {entry['op']:<18} {entry['tasks']:>5} {entry['working_us']:>11.1f} {entry['waiting_us']:>11.1f} "
        f"{entry['streamed_bytes'] / 1e6:>11.2f}  {entry['share']:>6.1%}"
        for entry in result["by_op"]
    ]
    lines.append("  waits for")
    lines += [
        f"    {entry['producer']:<28} {entry['share']:>6.1%}  {entry['waits']} waits, {entry['mean_us']:.2f} us on "
        f"average, {entry['longest_us']:.2f} at most"
        for entry in result["waits"][:SHOWN_WAITS]
    ]
    lines += [f"  {note}" for note in result["notes"]]
    lines += [f"  wrote {path}" for path in result["files"]]
    return "\n".join(lines)
