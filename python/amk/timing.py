"""How steps are timed, so that the figure is that of decoding and of nothing else.

In: a model's configuration, the position asked for, a seed; then a machine with `time`. Out: microseconds of each step,
and the logits of some of them, which the parent chose beforehand and compares with the reference afterwards.
Each step has a token, or a block of them, and a position of its own; positions fall, so that the rows a step appends
are never history of a later one, and the cache is set afresh before each fall. A state is what the step before left, as
in a decode; only the steps whose logits are compared find one that the reference knows. Outputs and scratch hold NaN
when a step begins (`guard`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError, NonFinite
from .exam import Questions, draw, faults_of_choice
from .history import hide_rows, set_states, stored_history, stored_states

__all__ = ["Timing", "TimingMachine", "TimingPlan", "make_plan", "time_machine"]

WARM_UP_STEPS, TIMED_STEPS = 10, 100
WINDOW_ROWS = 32  # positions that the steps go through, around the one asked for
CHECKED_STEPS = 8


class TimingMachine(Protocol):
    """What timing needs of a machine."""

    @property
    def next_tokens(self) -> Sequence[int]: ...

    def set_kv(self, layer: int, k: NDArray[Any], v: NDArray[Any]) -> None: ...

    def set_state(self, layer: int, conv: NDArray[Any], memory: NDArray[Any]) -> None: ...

    def reset_state(self) -> None: ...

    def write(self, name: str, array: NDArray[Any]) -> None: ...

    def read(self, name: str) -> NDArray[Any]: ...

    def time(self, pos: int, n: int) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class TimingPlan:
    """Steps in order, warm-up first: `batch` tokens each, from its position on. `checked` are indices of timed steps
    whose logits are kept."""

    seed: int
    max_seq: int
    window: int
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    checked: tuple[int, ...]
    batch: int = 1

    def block(self, step: int) -> tuple[int, ...]:
        """The tokens of one step."""
        return self.tokens[step * self.batch : (step + 1) * self.batch]

    @property
    def as_questions(self) -> Questions:
        """The checked steps, as the reference is asked about them."""
        tokens = tuple(token for i in self.checked for token in self.block(i))
        positions = tuple(self.positions[i] + t for i in self.checked for t in range(self.batch))
        return Questions(self.seed, self.max_seq, tokens, positions, (), self.batch)

    @property
    def position(self) -> int:
        """The middle of the positions timed."""
        return sorted(self.positions)[len(self.positions) // 2]


@dataclass(frozen=True)
class Timing:
    us: NDArray[np.float64]  # of the timed steps, without the warm-up
    wall_s: float  # that these steps took by the host's clock
    checked_logits: NDArray[np.float32]  # [checked steps * batch, V]
    faults: tuple[str, ...]


def make_plan(config: Any, position: int, max_seq: int, seed: int, batch: int = 1) -> TimingPlan:
    """Around `position`, within the cache; the same for the same seed."""
    n, starts = WARM_UP_STEPS + TIMED_STEPS, max_seq - batch + 1
    window = min(WINDOW_ROWS, starts)
    high = min(max(position + window // 2, window - 1), starts - 1)
    blocks = [_block(config.vocab, seed, i, batch) for i in range(n)]
    checked: list[int] = []
    seen: set[int] = set()
    for attempt in range(100 * CHECKED_STEPS):  # a tiny vocabulary may not have enough
        i = WARM_UP_STEPS + draw(seed, "checked step", attempt, TIMED_STEPS)
        if seen.isdisjoint(blocks[i]):
            checked.append(i)
            seen.update(blocks[i])
        if len(checked) == CHECKED_STEPS:
            break
    positions = tuple(high - i % window for i in range(n))
    tokens = tuple(token for block in blocks for token in block)
    return TimingPlan(seed, max_seq, window, tokens, positions, tuple(sorted(checked)), batch)


def _block(vocab: int, seed: int, step: int, batch: int) -> list[int]:
    """The tokens of one step, all different where the vocabulary has so many."""
    tokens: list[int] = []
    for t in range(batch):
        token = draw(seed, "timed token", step * batch + t, vocab)
        while token in tokens and len(tokens) < vocab:
            token = (token + 1) % vocab
        tokens.append(token)
    return tokens


def time_machine(machine: TimingMachine, config: Any, plan: TimingPlan, alive: Callable[[], None]) -> Timing:
    """Runs every step of the plan. A step that fails ends it, and its fault is told."""
    high = max(plan.positions)
    history, states = stored_history(config, high + 1, plan.seed), stored_states(config, plan.seed)
    us: list[float] = []
    wall_s = 0.0
    checked = np.full((len(plan.checked) * plan.batch, config.vocab), math.nan, np.float32)
    faults: list[str] = []
    for i, pos in enumerate(plan.positions):
        if i % plan.window == 0:
            for layer, (k, v) in history.items():
                if i == 0:
                    rows = [hide_rows(table, high, plan.max_seq, config.dtype) for table in (k, v)]
                    machine.set_kv(layer, *rows)
                else:
                    machine.set_kv(layer, k, v)
        if i == 0 or i in plan.checked:
            set_states(machine, states)
        alive()
        try:
            machine.write("token", np.array(plan.block(i), np.int32))
            start = time.perf_counter()
            took_us = float(machine.time(pos, 1)[0])
            if i >= WARM_UP_STEPS:
                wall_s += time.perf_counter() - start
                us.append(took_us)
            if i in plan.checked:
                first = plan.checked.index(i) * plan.batch
                logits = checked[first : first + plan.batch]
                logits[:] = machine.read("logits").reshape(logits.shape)
                faults += faults_of_choice(machine.next_tokens, logits, f"timed step {i}:")
        except (DeviceError, NonFinite) as fault:
            faults.append(f"timed step {i} at position {pos}: {fault}")
            break
    return Timing(np.array(us), wall_s, checked, tuple(faults))
