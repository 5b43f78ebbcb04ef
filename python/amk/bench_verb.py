"""`amk bench`: one table on stdout, the same rows as JSON, and a plot.

In: parsed arguments and `say`. Out: an `Outcome`. Where the files go is found out before anything is run, and what an
interrupted run had measured is kept.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from .bench import MEASURED, run_bench
from .errors import InputError, show
from .output import WholeFiles, require_suffix
from .verb import Outcome, Say
from .verbs import pick_gpu, read_json

__all__ = ["bench_table", "bench_verb"]

SCHEMA = {"schema": "amk.bench", "schema_version": 1}


def bench_verb(arguments: Namespace, say: Say) -> Outcome:
    if arguments.MODEL[0] == "kernel":
        from .tasks.verb import kernel_verb

        return kernel_verb(arguments, say)
    for name in ("stage", "baseline", "output", "list", "journal"):
        if getattr(arguments, name):
            raise InputError(f"bench: expected no --{name}, which is of `amk bench kernel`, got one")
    contexts = None if arguments.contexts is None else _contexts(arguments.contexts)
    peers = [] if arguments.peers is None else arguments.peers.split(",")
    suffix = None
    if arguments.output_file is not None:
        require_suffix(arguments.output_file, (".json",))
    if arguments.plot is not None:
        from .report.canvas import SUFFIXES, require_matplotlib

        suffix = require_suffix(arguments.plot, SUFFIXES)
        require_matplotlib()
    paths = [path for path in (arguments.output_file, arguments.plot) if path is not None]
    with WholeFiles(*paths) as files:
        result = run_bench(
            arguments.MODEL,
            pick_gpu(arguments.gpu, say),
            contexts,
            config=None if arguments.config is None else read_json(arguments.config, "config"),
            device=arguments.device,
            peers=peers,
            max_seq=arguments.max_seq,
            seed=arguments.seed,
            peer_limit_s=arguments.peer_limit,
            quantize=arguments.quantize,
            group=arguments.group,
            batch=arguments.batch,
            progress=say,
        )
        if arguments.output_file is not None:
            text = json.dumps({**SCHEMA, **result}, indent=1, allow_nan=False)
            files.write(arguments.output_file, text.encode() + b"\n")
        if suffix is not None:
            from .bench_plot import draw_bench

            files.write(
                arguments.plot, draw_bench(result["rows"], result["peers"], result["gpu"], suffix, result["batch"])
            )
    code = 130 if result["stopped"] else 0
    if not code and any(row["error"] for row in result["rows"]):
        code = 4
    elif not code and not all(row["correct"] for row in result["rows"]):
        code = 1
    status = {0: "PASSED", 1: "FAILED", 4: "ERROR", 130: "INTERRUPTED"}[code]
    return Outcome(code, status, result | {"files": paths}, bench_table(result))


def _contexts(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(f"contexts: expected integers separated by commas, got {show(text)}") from error


_HEADS = ("model", "context", "what", "us/token", "kind", "p10 - p90", "GB/s", "% of floor", "floor us", "correct",
          "SM MHz")  # fmt: skip
_RIGHT = {"context", "us/step", "us/token", "p10 - p90", "GB/s", "% of floor", "floor us"}


def _heads(batch: int) -> tuple[str, ...]:
    """With a batch, the time of a step stands before that of a token, and spread and floor are the step's."""
    at = _HEADS.index("us/token")
    return _HEADS if batch == 1 else (*_HEADS[:at], "us/step", *_HEADS[at:])


def bench_table(result: Mapping[str, Any]) -> str:
    """AMK's row of each context, then its peers'; what has no number says why below."""
    heads, batch = _heads(result["batch"]), result["batch"]
    cells, notes = [], []
    for row in result["rows"]:
        cells.append(_cells(row, _answer(row), batch))
        if row["latency_us"] is None:
            notes.append(f"{row['model']}, context {row['context']:,}: {_why(row)}")
        for peer in result["peers"]:
            if (peer["model"], peer["context"]) != (row["model"], row["context"]):
                continue
            if peer["skipped"] is None:
                cells.append(_cells(peer, "not judged"))
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [_line(heads, line, widths) for line in (heads, *cells)]
    lines += [
        f"  {note}" for note in dict.fromkeys([*_floors(result["rows"]), *result["notes"], *notes, *_skipped(result)])
    ]
    if result["stopped"]:
        lines.append("  interrupted: what is missing was not run")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], answer: str, batch: int = 1) -> tuple[str, ...]:
    spread = ""
    if row.get("latency_p10_us") is not None:
        spread = f"{_number(row['latency_p10_us'])} - {_number(row['latency_p90_us'])}"
    kind = {None: "none", MEASURED: "measured"}.get(row["latency_kind"], row["latency_kind"])
    clocks = "-".join(str(clock) for clock in row.get("sm_clock_mhz") or () if clock is not None)
    share = "" if row.get("pct_of_floor") is None else f"{row['pct_of_floor']:.1f}"
    times = [_number(row["latency_us"]), *([] if batch == 1 else [_number(row["latency_per_token_us"])])]
    return (row["model"], f"{row['context']:,}", "AMK" if row["what"] == "amk" else row["what"],
            *times, kind, spread, _number(row.get("gb_per_s")), share, _number(row.get("floor_us")), answer,
            clocks)  # fmt: skip


def _answer(row: Mapping[str, Any]) -> str:
    return {True: "yes", False: "NO", None: row["status"].lower()}[row["correct"]]


def _why(row: Mapping[str, Any]) -> str:
    if row["error"]:
        return row["error"]["message"]
    verdict = row["verdict"]
    return verdict["rejected_reason"] or "; ".join(verdict["notes"]) or "no latency"


def _floors(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the floors of each kind rest on."""
    out = []
    for source in ("read in this run", "published"):
        rates = [row["floor_gb_per_s"] for row in rows if row["floor_from"] == source]
        if rates:
            span = f"{min(rates):,.0f}" + (f" to {max(rates):,.0f}" if max(rates) > min(rates) else "")
            kind = "measured" if source == "read in this run" else "predicted"
            out.append(f"floor of what is {kind}: streamed bytes / {span} GB/s, {source}")
    return out


def _skipped(result: Mapping[str, Any]) -> list[str]:
    """Each reason once, with the rows that it holds for, where it is not all of them."""
    where: dict[tuple[str, str], list[str]] = {}
    for peer in result["peers"]:
        if peer["skipped"] is not None:
            at = f"{peer['model']} at {peer['context']:,}"
            where.setdefault((peer["what"], peer["skipped"]), []).append(at)
    everywhere = len(result["rows"])
    out = []
    for (what, why), at in where.items():
        which = "" if len(at) == everywhere else f" ({', '.join(at)})"
        out.append(f"{what} skipped{which}: {why}")
    return out


def _line(heads: Sequence[str], cells: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(heads, cells, widths, strict=True)
    return "  ".join(cell.rjust(width) if head in _RIGHT else cell.ljust(width) for head, cell, width in pairs).rstrip()


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
