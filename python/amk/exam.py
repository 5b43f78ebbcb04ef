"""The examination that a machine must pass: what is asked, what the reference answers, and how answers are graded.

In: a model's configuration, a seed, and two sides that answer independently: a machine with `step(token, pos)` and the
float64 oracle. Out: a `Grade`. Questions are (a) single steps at several positions over a populated cache, whose rows
both sides are given, as they are given the states of linear layers, and (b) a short decode from an empty cache and zero
states, where the machine reads back what it wrote itself. A machine that decodes blocks takes so many consecutive
tokens a step, and is asked about each of them.
The machine finds NaN in every cache row that it may not read. A grade never depends on the clock, on how the machine
was lowered, or on anything that the machine says about itself.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError, NonFinite
from .history import clear_states, set_states, stored_history, stored_nan, stored_states
from .oracle import Oracle, error_limit, logit_error, synthetic_kv, synthetic_state
from .oracle_cache import OracleCache

__all__ = [
    "Answers",
    "Grade",
    "Machine",
    "Questions",
    "ask_machine",
    "ask_oracle",
    "draw",
    "failed",
    "faults_of_choice",
    "grade",
    "make_questions",
    "noise_of",
    "worst_of",
]

DECODE_STEPS = 8
# A machine's error against the rms error of NOISE_DRAWS noisy references (`noise_of`), measured: 1,152 steps of the six
# families of tests/python/families.py at their high gain (init 0.15), f16 and bf16, gave 0.60 in the median, 1.09 at
# 99 %, 1.30 at 99.9 % and 1.48 at most; a decade of probability costs about 0.2.
NOISE_DRAWS = 8
NOISE_FACTOR = 2.0
# With linear layers the error of a step has a longer tail (see DELTA_NET_GAIN), also between draws: of 5,280 steps of
# qwen3next in families.py, f32, f16 and bf16, it was 0.6 of the noise in the median, 1.5 at 99 % and 2.6 at most.
LINEAR_NOISE_DRAWS = 16
LINEAR_NOISE_FACTOR = 3.0
# A model so unstable that rounding alone takes it further than this cannot be judged in its dtype, and is not let pass.
MOST_OF_ANALYTIC = 6.0
PROGRESS_SECONDS = 2.0

Progress = Callable[[str], None]


class Machine(Protocol):
    """What the examination needs of a machine; both kinds of `amk` machines offer it."""

    @property
    def next_token(self) -> int: ...

    @property
    def next_tokens(self) -> Sequence[int]: ...

    def step(self, token: int, pos: int) -> NDArray[np.float32]: ...

    def step_batch(self, tokens: Sequence[int], pos: int) -> NDArray[np.float32]: ...

    def set_kv(self, layer: int, k: NDArray[Any], v: NDArray[Any]) -> None: ...

    def set_state(self, layer: int, conv: NDArray[Any], memory: NDArray[Any]) -> None: ...

    def reset_state(self) -> None: ...


@dataclass(frozen=True)
class Questions:
    """Probes in descending position, so that the row a probe appends is never history of a later one. Every `batch`
    tokens are one step, at consecutive positions."""

    seed: int
    max_seq: int
    probe_tokens: tuple[int, ...]
    probe_positions: tuple[int, ...]
    decode_tokens: tuple[int, ...]
    batch: int = 1

    @property
    def probe_starts(self) -> tuple[int, ...]:
        """The position of the first token of each probe."""
        return self.probe_positions[:: self.batch]

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """(token, position) of every token, probes first."""
        probes = zip(self.probe_tokens, self.probe_positions, strict=True)
        return (*probes, *((token, pos) for pos, token in enumerate(self.decode_tokens)))


@dataclass(frozen=True)
class Answers:
    """Logits after every token, in the order of `Questions.steps`: [n, V]."""

    logits: NDArray[Any]
    faults: tuple[str, ...] = ()  # ways in which the machine contradicts itself


@dataclass(frozen=True)
class Grade:
    correct: bool
    max_abs_err: float
    rel_err: float  # of the worst step, as a part of its largest reference logit
    err_limit: float  # at that step
    top1_agreement: float
    notes: tuple[str, ...]
    remarks: tuple[str, ...] = ()  # what a reader should know and that is no fault


def make_questions(config: Any, token: int, kv_block: int, max_seq: int, seed: int, batch: int = 1) -> Questions:
    """Positions: both ends, the first ones, around the edge of a KV block, the middle, and one that the seed draws.
    With a batch, of the first token: the last start leaves room for the others, and one step spans the edge."""
    last = max_seq - batch
    if batch == 1:
        wanted = {0, 1, 17, kv_block - 1, kv_block, max_seq // 2, last, draw(seed, "position", 0, max_seq)}
    else:
        wanted = {0, 1, kv_block - batch // 2, max_seq // 2, last, draw(seed, "position", 0, last + 1)}
    starts = sorted((pos for pos in wanted if 0 <= pos <= last), reverse=True)
    n_probe, n_decode = batch * len(starts), batch * _decode_blocks(max_seq, batch)
    tokens, i = [token], 0
    while len(tokens) < n_probe + n_decode:
        drawn = draw(seed, "token", i, config.vocab)
        if drawn not in tokens or len(set(tokens)) == config.vocab:
            tokens.append(drawn)
        i += 1
    # The caller's token starts the decode and is the first probe (the last position) as well.
    return Questions(
        seed=seed,
        max_seq=max_seq,
        probe_tokens=tuple(tokens[:n_probe]),
        probe_positions=tuple(start + t for start in starts for t in range(batch)),
        decode_tokens=(token, *tokens[n_probe : n_probe + n_decode - 1]),
        batch=batch,
    )


def _decode_blocks(max_seq: int, batch: int) -> int:
    """Steps of the decode from an empty cache: at least two, so that one reads what another wrote."""
    return min(max(2, DECODE_STEPS // batch), max_seq // batch)


def ask_machine(machine: Machine, config: Any, questions: Questions, progress: Progress) -> Answers:
    """Runs every step. Rows at and past the position of a probe hold NaN, and so does the whole cache of the decode. A
    probe finds the states that the reference is given, whatever the one before it left."""
    batch, tokens = questions.batch, questions.steps
    logits = np.empty((len(tokens), config.vocab), dtype=np.float32)
    faults: list[str] = []
    rows = questions.max_seq
    history, states = stored_history(config, rows, questions.seed), stored_states(config, questions.seed)
    n_probes, last_said = len(questions.probe_positions), 0.0
    for i in range(0, len(tokens), batch):
        block, pos = [token for token, _ in tokens[i : i + batch]], tokens[i][1]
        if i == 0 or time.monotonic() - last_said > PROGRESS_SECONDS:
            progress(f"machine: step {i // batch + 1} of {len(tokens) // batch}")
            last_said = time.monotonic()
        first_hidden = pos if i < n_probes else 0
        if i <= n_probes:  # before each probe, and once before the decode
            for layer, (k, v) in history.items():
                k[:, first_hidden:rows] = v[:, first_hidden:rows] = stored_nan(config.dtype)
                machine.set_kv(layer, np.ascontiguousarray(k[:, :rows]), np.ascontiguousarray(v[:, :rows]))
            rows = first_hidden + batch  # all above hold NaN already; these are about to be appended to
            if i < n_probes:
                set_states(machine, states)
            else:
                clear_states(machine, states, config.dtype)
        try:
            logits[i : i + batch] = machine.step(block[0], pos) if batch == 1 else machine.step_batch(block, pos)
        except (DeviceError, NonFinite) as fault:  # no answer: it cannot be a right one
            logits[i : i + batch] = math.nan
            faults.append(f"at position {pos}: {fault}")
            if isinstance(fault, DeviceError):
                logits[i:] = math.nan
                break
            continue
        chosen = [machine.next_token] if batch == 1 else machine.next_tokens
        faults += faults_of_choice(chosen, logits[i : i + batch], f"at position {pos}")
    return Answers(logits, tuple(faults))


def faults_of_choice(chosen: Sequence[int], logits: NDArray[np.float32], where: str) -> list[str]:
    """Where the tokens that a machine chose contradict the logits that it gave: [n, V]."""
    faults = []
    for t, (said, values) in enumerate(zip(chosen, logits, strict=True)):
        best = int(np.argmax(values))
        if said != best and np.isfinite(values).all():
            name = "next_token" if len(logits) == 1 else f"next_token[{t}]"
            faults.append(f"{where} {name} is {said}, but the largest logit is that of {best}")
    return faults


def ask_oracle(
    config: Any,
    raw: Callable[[str], NDArray[Any]],
    weight_digest: str,
    questions: Questions,
    cache: OracleCache,
    progress: Progress,
) -> Answers:
    """The reference logits. `raw` gives tensors as the checkpoint stores them; it is not called on a cache hit."""
    positions, tokens = questions.probe_positions, questions.probe_tokens
    oracle, seed, vocab = Oracle(config, raw), questions.seed, config.vocab

    def probe() -> NDArray[np.float64]:
        progress(f"reference: {len(positions)} probes in float64")
        return oracle.probe(tokens, positions, *_sources(config, max(positions), seed), chain=questions.batch)

    def decode() -> NDArray[np.float64]:
        progress(f"reference: a decode of {len(questions.decode_tokens)} tokens in float64")
        return oracle.prefill(questions.decode_tokens)

    probe_key = cache.key(config, weight_digest, tokens, positions, seed, f"probe {questions.batch}")
    decode_key = cache.key(config, weight_digest, questions.decode_tokens, [], 0, "prefill")
    probes = cache.fetch(probe_key, (len(tokens), vocab), probe)
    if not questions.decode_tokens:
        return Answers(probes)
    return Answers(np.concatenate([probes, cache.fetch(decode_key, (len(questions.decode_tokens), vocab), decode)]))


def noise_of(
    config: Any, raw: Callable[[str], NDArray[Any]], questions: Questions, reference: Answers, progress: Progress
) -> NDArray[np.float64]:
    """Of each step, the rms `logit_error` that rounding noise leaves in the reference: what a right machine's error is
    like for these very weights, where `error_limit` knows only the model's shape. No machine's answer enters it."""
    draws = LINEAR_NOISE_DRAWS if config.has_state else NOISE_DRAWS
    progress(f"reference: {draws} noisy copies, as an error is beyond what the model's shape explains")
    generator = np.random.Generator(np.random.Philox(key=np.uint64(questions.seed)))
    noisy = Oracle(config, raw, noise=generator)
    tokens, positions, vocab = questions.probe_tokens, questions.probe_positions, config.vocab
    sources = _sources(config, max(positions, default=0), questions.seed)
    parts = []
    if positions:
        probes = noisy.probe(tokens * draws, positions * draws, *sources, chain=questions.batch)
        parts.append(probes.reshape(draws, -1, vocab))
    if questions.decode_tokens:
        parts.append(noisy.prefill(questions.decode_tokens, copies=draws).reshape(draws, -1, vocab))
    copies = np.concatenate(parts, axis=1)
    errors = [[logit_error(said[i], reference.logits[i]) for i in range(copies.shape[1])] for said in copies]
    return np.sqrt(np.mean(np.square(errors), axis=0))


def _sources(config: Any, rows: int, seed: int) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """What the reference takes for the cache rows and the state of a layer."""
    return (lambda layer: synthetic_kv(config, rows, seed, layer), lambda layer: synthetic_state(config, seed, layer))


def grade(
    config: Any,
    questions: Questions,
    machine: Answers,
    reference: Answers,
    noise: Callable[[], NDArray[np.float64]] | None = None,
) -> Grade:
    """Every step must lie within its limit, and the questions must be able to tell a wrong answer from a right one.

    The limit is `error_limit`. Weights of an unusual gain can carry a right machine beyond it, in a 16-bit dtype or
    through linear layers in any; where one is, and not by far, `noise` (`noise_of` of these questions, asked only then)
    says what rounding does to this model, and the limit of a step is NOISE_FACTOR times that if it is more
    (LINEAR_NOISE_FACTOR with linear layers).
    """
    got, ref = machine.logits.astype(np.float64), reference.logits
    analytic = np.array([error_limit(config.dtype, config, position=pos) for _, pos in questions.steps])
    errors = [logit_error(got[i], ref[i]) for i in range(len(ref))]
    limits, remarks = analytic.tolist(), ()
    is_unsteady = config.dtype != "f32" or config.has_state
    if noise is not None and is_unsteady and 1.0 < np.max(errors / analytic) <= MOST_OF_ANALYTIC:
        factor = LINEAR_NOISE_FACTOR if config.has_state else NOISE_FACTOR
        limits = np.clip(factor * noise(), analytic, MOST_OF_ANALYTIC * analytic).tolist()
        wider = max(limit / most for limit, most in zip(limits, analytic.tolist(), strict=True))
        remarks = (f"limits are those of rounding noise in these weights, up to {wider:.2g} times those of the shape",)
    worst = int(np.argmax([error / limit for error, limit in zip(errors, limits, strict=True)]))
    notes = list(machine.faults)
    for i, (token, pos) in enumerate(questions.steps):
        if not errors[i] <= limits[i]:  # a comparison that NaN cannot pass
            kind = "probe" if i < len(questions.probe_positions) else "decode"
            notes.append(f"{kind} at position {pos}, token {token}: error {errors[i]:.3g} exceeds {limits[i]:.3g}")
    notes += _controls(questions, got, ref, limits)
    finite = bool(np.isfinite(got).all() and np.isfinite(ref).all())
    return Grade(
        correct=not notes,
        max_abs_err=float(np.abs(got - ref).max()) if finite else math.inf,
        rel_err=errors[worst],
        err_limit=limits[worst],
        top1_agreement=float(np.mean(got.argmax(axis=-1) == ref.argmax(axis=-1))),
        notes=tuple(notes),
        remarks=remarks,
    )


def failed(why: str) -> Grade:
    """Of a machine that gave no answers."""
    return Grade(False, math.inf, math.inf, 0.0, 0.0, (why,))


def worst_of(grades: Mapping[str, Grade]) -> Grade:
    """One grade for several examinations: right only if all are, with the numbers of the one nearest its limit."""
    if len(grades) == 1:
        return next(iter(grades.values()))
    worst = max(grades.values(), key=lambda mark: (not mark.correct, mark.rel_err / (mark.err_limit or 1.0)))
    return Grade(
        correct=all(mark.correct for mark in grades.values()),
        max_abs_err=max(mark.max_abs_err for mark in grades.values()),
        rel_err=worst.rel_err,
        err_limit=worst.err_limit,
        top1_agreement=min(mark.top1_agreement for mark in grades.values()),
        notes=tuple(f"{name}: {note}" for name, mark in grades.items() for note in mark.notes),
        remarks=tuple(f"{name}: {remark}" for name, mark in grades.items() for remark in mark.remarks),
    )


def _controls(
    questions: Questions, got: NDArray[np.float64], ref: NDArray[np.float64], limits: Sequence[float]
) -> list[str]:
    """Answers that must fail: all zeros, and the right answer to another question. If one passes, so could anything."""
    notes = []
    n_probes = len(questions.probe_positions)
    groups = (range(n_probes), range(n_probes, len(ref)))  # a probe at 0 and the decode's first step may agree
    for group in groups:
        for i in group:
            if not logit_error(np.zeros_like(ref[i]), ref[i]) > limits[i]:
                notes.append(f"vacuous: logits of zero would pass at position {questions.steps[i][1]}")
            for j in group[: group.index(i)]:
                at = f"positions {questions.steps[j][1]} and {questions.steps[i][1]}"
                if not logit_error(ref[j], ref[i]) > limits[i]:
                    notes.append(f"vacuous: the reference logits of {at} are too close to tell apart")
                elif np.array_equal(got[i], got[j]):
                    notes.append(f"stale: the machine gave the same logits at {at}")
    return notes


def draw(seed: int, what: str, index: int, bound: int) -> int:
    """A number below `bound`, the same on every platform and numpy version."""
    text = f"amk exam {seed} {what} {index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little") % bound
