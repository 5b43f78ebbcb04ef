"""The one record of a judgement: what was asked, whether it is right, and only then how fast.

In: the findings of `evaluate`. Out: a frozen `Verdict`, also readable as `v["field"]` and as a plain dict.
The rules of honesty are enforced where the record is made, so that no caller can write a better one: an invalid
schedule has a reason and neither a correctness claim nor a latency; a latency exists only if the result is correct,
never lies below the floor, and always says whether it was measured or predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import InternalError

__all__ = ["LATENCY_KINDS", "Verdict"]

LATENCY_KINDS = ("measured-gpu", "predicted")
_SHOWN = {"image_hash": "image", "host_cpu": "host", "device_name": "gpu", "driver": "driver"}  # of the provenance


@dataclass(frozen=True)
class Verdict:
    """Errors are over full logits: `max_abs_err` in logit units; `rel_err` and `err_limit` are parts of the largest
    logit of the worst step, and the machine is right when rel_err <= err_limit at every step."""

    model: str
    gpu: str
    device: str
    schedule_id: str
    schedule_config: Mapping[str, Any]  # exactly what was executed
    valid: bool
    rejected_reason: str | None = None
    correct: bool | None = None  # None: nothing was claimed, because nothing ran
    max_abs_err: float | None = None
    rel_err: float | None = None
    err_limit: float | None = None
    top1_agreement: float | None = None  # share of steps whose largest logit is the reference's
    batch: int = 1  # consecutive tokens of one sequence that a step decodes
    latency_us: float | None = None  # of a step
    latency_per_token_us: float | None = None  # that over its tokens
    latency_p10_us: float | None = None  # of a measurement: a tenth of the steps was as fast
    latency_p90_us: float | None = None  # and a tenth as slow
    latency_kind: str | None = None
    latency_position: int | None = None  # rows before a step's tokens that latency_us and bound_us are for
    bound_us: float | None = None  # streamed bytes of a step / bandwidth: the floor
    pct_of_roofline: float | None = None  # 100 * bound_us / latency_us
    tasks: int | None = None
    n_buffers: int | None = None
    n_counters: int | None = None
    weight_mb: float | None = None  # 1e6 bytes
    quantize: str | None = None  # "int8-g128": the model that is judged is the one quantised so
    quantize_loss: Mapping[str, Any] = field(default_factory=dict)  # its reference against the plain model's
    max_seq: int | None = None
    positions: tuple[int, ...] = ()  # of the probes' first tokens, each over a populated cache
    decode_steps: int = 0  # of the decode from an empty cache
    seed: int = 0
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def require(holds: bool, rule: str) -> None:
            if not holds:
                raise InternalError(f"verdict of {self.model!r} on {self.gpu!r}: {rule}")

        require(self.valid == (self.rejected_reason is None), "a reason goes with an invalid schedule only")
        require(self.valid or self.correct is None, "an invalid schedule makes no correctness claim")
        require(not self.valid or self.correct is not None, "a valid schedule is judged correct or not")
        if self.correct:
            error, limit = self.rel_err, self.err_limit
            require(error is not None and limit is not None and error <= limit, "correct means error <= limit")
        require((self.latency_us is None) == (self.latency_kind is None), "a latency and its kind go together")
        require((self.latency_us is None) == (self.pct_of_roofline is None), "a latency and its share go together")
        if self.latency_us is not None:
            require(self.correct is True, "only a correct result has a latency")
            require(math.isfinite(self.latency_us) and self.latency_us > 0, "a latency is finite and positive")
            require(self.latency_kind in LATENCY_KINDS, f"a latency is one of {', '.join(LATENCY_KINDS)}")
            require(self.bound_us is not None and self.latency_us >= self.bound_us, "no latency lies below the floor")
        require(type(self.batch) is int and self.batch >= 1, "a step has tokens")
        per_token = self.latency_per_token_us  # a record of before there were batches has none
        of_a_step = None not in (self.latency_us, per_token) and math.isclose(per_token * self.batch, self.latency_us)  # type: ignore[arg-type, operator]
        require(per_token is None or of_a_step, "the latency of a token is that of its step over the step's tokens")
        require(self.quantize is not None or not self.quantize_loss, "only a quantised model loses by it")
        self._require_spread(require)

    def _require_spread(self, require: Callable[[bool, str], None]) -> None:
        p10, p90 = self.latency_p10_us, self.latency_p90_us
        if self.latency_kind == "measured-gpu":
            require(self.device.startswith("cuda"), "a measurement is made on a GPU")
            ordered = None not in (p10, p90) and p10 <= self.latency_us <= p90  # type: ignore[operator]
            require(ordered, "a measurement has a spread, around its median")
        else:
            require(p10 is None and p90 is None, "only a measurement has a spread")
            require(self.latency_us is None or self.device == "cpu", "no prediction stands in for a measurement")

    @property
    def status(self) -> str:
        """One word for machines: PASSED, INCORRECT_NUMERICAL or REJECTED."""
        if not self.valid:
            return "REJECTED"
        return "PASSED" if self.correct else "INCORRECT_NUMERICAL"

    def __getitem__(self, name: str) -> Any:
        if name not in {f.name for f in fields(self)}:
            raise KeyError(name)
        return getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: JSON can hold every one of them (an infinite error becomes null)."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def to_text(self) -> str:
        """For people: the answer first, then every number with its unit and its kind."""
        head = f"{self.model} on {self.gpu}, schedule {self.schedule_id or '(none)'}"
        notes = [f"  note      {note}" for note in self.notes]
        if not self.valid:
            return "\n".join([f"{head}: REJECTED", f"  reason    {self.rejected_reason}", *notes])
        positions = ", ".join(map(str, self.positions))
        probes = "probes" if self.batch == 1 else f"probes of {self.batch} tokens"
        lines = [
            f"{head}: {'CORRECT' if self.correct else 'NOT CORRECT'}",
            f"  error     {_number(self.rel_err)} of the largest logit (limit {_number(self.err_limit)}), "
            f"max abs {_number(self.max_abs_err)}, top-1 agreement {_number(self.top1_agreement, 100.0)} %",
            f"  checked   {len(self.positions)} {probes} over a populated cache (positions {positions}) and a decode "
            f"of {self.decode_steps} tokens, on {self.device}",
        ]
        if self.quantize_loss:
            lines.append(self._loss_line())
        if self.latency_us is None:
            lines.append("  latency   none" + ("" if self.correct else ": only a correct result is given one"))
        else:
            kind = "predicted (cost model)"
            if self.latency_kind != "predicted":
                spread = f"p10 {_number(self.latency_p10_us)}, p90 {_number(self.latency_p90_us)}"
                kind = f"{self.latency_kind} ({spread})"
            each = ""
            if self.batch > 1:
                each = f" a step of {self.batch} tokens, {_number(self.latency_per_token_us)} us a token"
            at = f"at position {self.latency_position}"
            lines.append(f"  latency   {_number(self.latency_us)} us{each}, {kind}, {at}")
        if self.bound_us is not None:
            share = "" if self.pct_of_roofline is None else f", {self.pct_of_roofline:.1f} % of the latency"
            rates = self.provenance.get("read_gb_per_s")
            which = f"the {max(rates):.0f} GB/s read in this run" if rates else "published bandwidth"
            lines.append(f"  floor     {_number(self.bound_us)} us (streamed bytes / {which}){share}")
        lines.append(
            f"  program   {self.tasks} tasks, {self.n_buffers} buffers, {self.n_counters} counters, "
            f"{_number(self.weight_mb)} MB of weights, cache of {self.max_seq} rows"
        )
        lines += [f"  {label:<9} {self.provenance[key]}" for key, label in _SHOWN.items() if self.provenance.get(key)]
        return "\n".join(lines + notes)

    def _loss_line(self) -> str:
        loss = self.quantize_loss
        return (
            f"  quantised {self.quantize}: against the plain model over {loss['steps']} steps, logits off by "
            f"{_number(loss['rel_err_mean'])} of the largest (at most {_number(loss['rel_err_max'])}), KL "
            f"{_number(loss['kl_mean'])} nats (at most {_number(loss['kl_max'])}), top-1 agreement "
            f"{_number(loss['top1_agreement'], 100.0)} %"
        )


def _number(value: float | None, scale: float = 1.0) -> str:
    return "unknown" if value is None else f"{scale * value:.4g}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
