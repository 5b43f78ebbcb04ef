"""Models, contexts and peers -> one table of times, each against the floor of the same run.

In: models as `evaluate` takes them, contexts, a device. Out: plain rows. Every number of AMK's comes from `evaluate`:
it exists only where the result is correct; it is measured on a GPU or predicted without one, and each row says which.
One program serves all contexts of a model: its cache holds the longest. Peers run after it, on the same device, and
only against a measurement. What is wrong with the request is said before any work is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _lib
from .bench_peers import PeerRun, pick_peers, run_peer
from .errors import AmkError, InputError, InternalError, show
from .evaluate import evaluate, freeze_config
from .machine import pick_device
from .verdict import LATENCY_KINDS

if TYPE_CHECKING:
    from .targets import GpuTarget
    from .verdict import Verdict

__all__ = ["CONTEXTS", "MEASURED", "run_bench"]

CONTEXTS = (1, 1024, 8192)  # as far as the model's positions reach
MEASURED = LATENCY_KINDS[0]
PEER_LIMIT_S = 300.0  # for one peer and model, compilation included

Say = Callable[[str], None]


def run_bench(
    models: Sequence[str | os.PathLike[str]],
    gpu: str | GpuTarget,
    contexts: Sequence[int] | None = None,
    *,
    config: Any = None,
    device: str = "auto",
    peers: Sequence[str] = (),
    max_seq: int | None = None,
    seed: int = 0,
    peer_limit_s: float = PEER_LIMIT_S,
    quantize: str | None = None,
    group: int | None = None,
    batch: int = 1,
    progress: Say | None = None,
) -> dict[str, Any]:
    """Rows in order of models and contexts, and what the peers did. Ctrl-C ends it early and keeps what there is.

    `contexts` are rows of context that a step attends to, its own included (default: 1, 1,024 and 8,192, each at most
    the model's positions); `max_seq` is the capacity of the cache (default: the longest context). With `quantize` AMK
    runs the quantised models, against the floor of their own bytes; peers run the plain ones. `batch` is how many
    consecutive tokens of one sequence a step decodes, of which the first attends to `context` rows; peers have none.
    """
    from .embedded import open_model
    from .targets import resolve_target

    say = progress or (lambda text: None)
    target = resolve_target(gpu)
    pick_device(device, target)
    chosen_peers = pick_peers(peers)
    schedule, notes = freeze_config(config)
    if not models:
        raise InputError("bench: expected at least one model, got none")
    if not isinstance(peer_limit_s, int | float) or not 0 < peer_limit_s <= 86400:
        raise InputError(f"peer_limit_s: expected seconds in 0..86400, got {show(peer_limit_s)}")
    if type(batch) is not int or not 1 <= batch <= _lib.limit("MAX_BATCH"):
        raise InputError(f"batch: expected an integer in 1..{_lib.limit('MAX_BATCH')}, got {show(batch)}")
    if batch > 1 and chosen_peers:
        raise InputError(f"peers: expected none with a batch, as they decode one token a step, got {show(list(peers))}")
    sources = [open_model(model, quantize, group) for model in models]
    plans = [_contexts(source, contexts, max_seq, batch) for source in sources]

    result: dict[str, Any] = {
        "gpu": target.name, "device_asked": device, "seed": seed, "schedule_id": schedule.schedule_id,
        "schedule_config": schedule.to_dict(), "quantize": getattr(sources[0], "scheme", None), "batch": batch,
        "notes": notes, "stopped": None, "rows": [], "peers": [],
    }  # fmt: skip
    try:
        for model, source, (asked, rows) in zip(models, sources, plans, strict=True):
            measured: dict[int, dict[str, Any]] = {}
            for context in asked:
                say(f"{source.name}: context {context:,}")
                row = _judge(
                    model, source.name, target, schedule, device, context, rows, seed, say, quantize, group, batch
                )
                result["rows"].append(row)
                if row["latency_kind"] == MEASURED:
                    measured[context] = row
            for peer in chosen_peers:
                say(f"{source.name}: {peer}, at most {peer_limit_s:g} s")
                run = _compare(peer, source.config, measured, peer_limit_s)
                result["peers"] += _peer_rows(run, source.name, asked, measured)
    except KeyboardInterrupt:
        if not result["rows"]:
            raise
        result["stopped"] = "interrupted"
    return result


def _contexts(source: Any, contexts: Sequence[int] | None, max_seq: int | None, batch: int) -> tuple[list[int], int]:
    """The contexts of one model, and the capacity of the cache."""
    later = batch - 1  # rows behind a context, of the tokens that follow its own
    limit = source.config.max_position - later
    if contexts is None:
        asked = list(dict.fromkeys(min(context, limit) for context in CONTEXTS))
        if max_seq is not None:
            asked = [context for context in asked if context + later <= max_seq]
    else:
        asked = list(contexts)
    if not asked:
        raise InputError("contexts: expected at least one, got none")
    for context in asked:
        if type(context) is not int or not 1 <= context <= limit:
            raise InputError(f"contexts: expected integers in 1..{limit} for {source.name}, got {show(context)}")
    if len(set(asked)) < len(asked):
        raise InputError(f"contexts: expected each once, got {show(asked)}")
    least, most = max(asked) + later, limit + later
    rows = least if max_seq is None else max_seq
    if type(rows) is not int or not least <= rows <= most:
        raise InputError(f"max_seq: expected an integer in {least}..{most} for {source.name}, got {show(max_seq)}")
    return asked, rows


def _judge(
    model: Any, name: str, target: GpuTarget, schedule: Any, device: str, context: int, rows: int, seed: int, say: Say,
    quantize: str | None, group: int | None, batch: int,
) -> dict[str, Any]:  # fmt: skip
    head = {"model": name, "context": context, "what": "amk"}
    try:
        verdict = evaluate(
            model, target, schedule, device, max_seq=rows, position=context - 1, seed=seed, quantize=quantize,
            group=group, batch=batch, progress=say,
        )  # fmt: skip
    except (InputError, InternalError):
        raise
    except AmkError as error:  # of one model on this machine: the others may still have an answer
        say(f"{name}: {error}")
        return {**head, **_EMPTY, "status": "ERROR", "error": {"code": error.code, "message": str(error)}}
    return {**head, **_row_of(verdict, target)}


_EMPTY: dict[str, Any] = dict.fromkeys(
    ("correct", "device", "latency_kind", "latency_us", "latency_per_token_us", "latency_p10_us", "latency_p90_us",
     "gb_per_s", "floor_us", "floor_gb_per_s", "floor_from", "pct_of_floor", "sm_clock_mhz", "error", "verdict")
)  # fmt: skip


def _row_of(verdict: Verdict, target: GpuTarget) -> dict[str, Any]:
    rates = verdict.provenance.get("read_gb_per_s") or ()
    rate = max(rates) if rates else target.hbm_gb_per_s
    share = verdict.pct_of_roofline
    priced = verdict.latency_us is not None
    clocks = [taken.get("sm_clock_mhz") for taken in verdict.provenance.get("clocks") or ()]
    return {
        **_EMPTY,
        "status": verdict.status,
        "correct": verdict.correct,
        "device": verdict.device,
        "latency_kind": verdict.latency_kind,
        "latency_us": verdict.latency_us,
        "latency_per_token_us": verdict.latency_per_token_us,
        "latency_p10_us": verdict.latency_p10_us,
        "latency_p90_us": verdict.latency_p90_us,
        "gb_per_s": share / 100.0 * rate if share is not None else None,
        "floor_us": verdict.bound_us if priced else None,
        "floor_gb_per_s": rate if priced else None,
        "floor_from": ("read in this run" if rates else "published") if priced else None,
        "pct_of_floor": share,
        "sm_clock_mhz": clocks or None,  # before and after the timing
        "verdict": verdict.to_dict(),
    }


def _compare(peer: str, config: Any, measured: Mapping[int, Mapping[str, Any]], limit_s: float) -> PeerRun:
    if not measured:
        return PeerRun(peer, skipped="nothing was measured on a GPU, and a prediction is compared with no measurement")
    device = next(iter(measured.values()))["device"]
    return run_peer(peer, config, list(measured), device, limit_s)


def _peer_rows(
    run: PeerRun, model: str, contexts: Sequence[int], measured: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One per context: the peer's time against the floor that AMK's own run of that context set."""
    out = []
    for context in contexts:
        row = {"model": model, "context": context, "what": run.peer, "latency_kind": None, "latency_us": None}
        found = run.rows.get(context)
        if found is None or context not in measured:
            why = run.skipped or "AMK has no measurement at this context"
            out.append({**row, "skipped": why})
            continue
        floor_us, rate = measured[context]["floor_us"], measured[context]["floor_gb_per_s"]
        out.append(
            {
                **row, "skipped": None, "latency_kind": MEASURED,
                **{name: found[name] for name in ("latency_us", "latency_p10_us", "latency_p90_us")},
                "floor_us": floor_us, "pct_of_floor": 100.0 * floor_us / found["latency_us"],
                "gb_per_s": rate * floor_us / found["latency_us"],
                "times_amk": found["latency_us"] / measured[context]["latency_us"],
                "about": dict(run.about), "attention": str(found.get("attention", ""))[:100],
            }
        )  # fmt: skip
    return out
