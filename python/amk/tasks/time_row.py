"""One row timed: its sides and the best copy of the same bytes, interleaved, on inputs that are fresh in each trial.

In: a device, a row that passed its check, settings, a seed. Out: microseconds per launch of every sample, cold and
warm, and what the timing rests on; or a `Refused`. Cold: launches rotate over sets of buffers that together are several
times the L2. Warm: every launch has the same buffers. Launches are captured back to back in one graph, which is
replayed until a sample is long enough. After the samples of a trial the very graph that was timed is launched once more
onto poison, and what it leaves is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import OutOfMemory
from .check import Contest, Pristine, Trial, call_at, check_trial, make_trials
from .device import Call, TaskDevice, Tensor
from .judge import Refused
from .operands import Block
from .workloads import Row, Settings, TensorSpec

__all__ = ["COPY", "MODES", "SMALL_COPY_US", "bytes_moved", "require_possible", "time_row"]

MODES = ("cold", "warm")
COPY = "copy"
FIRST_TRIAL = 100  # numbers of inputs, apart from those of the check
_SCREEN_SAMPLES = 5  # per way of copying, before the best is chosen
_MIN_NODES, _MAX_NODES = 8, 1024  # launches in one graph
_SPARE = 1.03  # that a sample is made longer than it must be, so that few are too short
_ATTEMPTS = 3  # at a graph of the right size: a launch alone takes longer than one of many
_MAX_SETS = 8192
_MEMORY_SHARE = 0.7
# Of the speed of the best copy: more than that is no honest time. A copy that is latency alone says less.
_MAX_SHARE_OF_COPY, _MAX_SHARE_OF_SMALL_COPY = 1.5, 3.0
SMALL_COPY_US = 4.0

Beat = Callable[[], None]


def bytes_moved(row: Row, oracle: Any) -> int:
    """What a launch must read and write at least: each operand once, an in-place one twice, or what the oracle says."""
    if hasattr(oracle, "bytes_moved"):
        return int(oracle.bytes_moved(row))
    return sum(spec.touched * spec.itemsize for spec in (*row.inputs.values(), *row.outputs.values()))


class _Contestant:
    """One graph in one mode, and how often it is replayed in a sample."""

    def __init__(self, device: TaskDevice, entry: Any, calls: Sequence[Call], least_us: float) -> None:
        probe = device.graph(entry, calls, 1)
        self.single = self.graph = probe
        try:
            self._grow(device, entry, calls, least_us)
        except BaseException:
            self.close()
            raise

    def _grow(self, device: TaskDevice, entry: Any, calls: Sequence[Call], least_us: float) -> None:
        """The graph and its replays, so that a sample lasts `least_us` and hardly longer."""
        self.single.time(1)
        once_us, rounds = self.single.time(1) / len(calls), 1
        for _ in range(_ATTEMPTS):
            once_us = max(once_us, 1e-3)
            least = _MIN_NODES if once_us < least_us / 4 else 1
            nodes = min(max(math.ceil(_SPARE * least_us / once_us), least), _MAX_NODES)
            if (wanted := math.ceil(nodes / len(calls))) != rounds:
                if self.graph is not self.single:
                    self.graph.close()
                self.graph = self.single
                self.graph = device.graph(entry, calls, wanted) if wanted > 1 else self.single
                rounds = wanted
            self.launches_of_graph = rounds * len(calls)
            self.replays = max(1, math.ceil(_SPARE * least_us / (self.launches_of_graph * once_us)))
            once_us, us = self.sample()
            if us >= least_us:
                return
        while self.sample()[1] < least_us and self.replays < 1 << 20:
            self.replays *= 2

    @property
    def launches(self) -> int:
        return self.launches_of_graph * self.replays

    def sample(self) -> tuple[float, float]:
        """(microseconds per launch, of the whole sample)."""
        us = self.graph.time(self.replays)
        return us / self.launches, us

    def close(self) -> None:
        self.graph.close()
        if self.single is not self.graph:
            self.single.close()


class _Buffers:
    """Sets of operands of a row, and of the copy."""

    def __init__(self, device: TaskDevice, block: Block, moved: int, l2_bytes: int, room: int, multiple: int) -> None:
        self._device, self.block = device, block
        self.copy_bytes = max(16, -(-moved // 32) * 16)
        n_sets = max(2, math.ceil(multiple * l2_bytes / moved) + 1)
        copy_step = -(-2 * self.copy_bytes // 256) * 256
        needed = n_sets * (block.nbytes + copy_step) + Pristine.bytes_of(block)
        if needed > _MEMORY_SHARE * room or n_sets > _MAX_SETS:
            raise OutOfMemory(
                f"row {block.row.name}: cold launches rotate over {n_sets} sets of operands of {needed} bytes in all; "
                f"expected at most {_MAX_SETS} sets and {_MEMORY_SHARE:.0%} of {room} bytes"
            )
        self._bases: list[int] = []
        self._pristine = Pristine(device, block)
        try:
            for nbytes in (n_sets * block.nbytes, n_sets * copy_step):
                self._bases.append(device.allocate(nbytes))
            device.fill(self._bases[1], 0x5A, n_sets * copy_step)
        except BaseException:
            self.close()
            raise
        self.addresses = [self._bases[0] + i * block.nbytes for i in range(n_sets)]
        self._copies = [self._bases[1] + i * copy_step for i in range(n_sets)]

    def calls(self) -> list[Call]:
        return [call_at(self.block, address) for address in self.addresses]

    def copy_calls(self) -> list[Call]:
        spec = TensorSpec((self.copy_bytes,), "u8", (1,))
        return [Call((Tensor(at, spec),), (), (Tensor(at + self.copy_bytes, spec),)) for at in self._copies]

    def load(self, trial: Trial) -> None:
        self._pristine.load(trial)
        self.lay_down(self.addresses[0], trial)
        for address in self.addresses[1:]:
            self._device.move(address, self.addresses[0], self.block.nbytes)

    def lay_down(self, address: int, trial: Trial) -> None:
        """The bytes of the trial that was loaded, in one set."""
        self._pristine.lay_down(address, trial)

    def close(self) -> None:
        for base in self._bases:
            self._device.free(base)
        self._bases = []
        self._pristine.close()


def time_row(
    device: TaskDevice,
    task: str,
    row: Row,
    oracle: Any,
    settings: Settings,
    seed: int,
    beat: Beat = lambda: None,
    contest: Contest | None = None,
) -> dict[str, Any]:
    """Both sides of the repository, or all of a contest."""
    contest = contest or Contest()
    facts = device.facts()
    block = Block(row, oracle.OPERANDS)
    moved = bytes_moved(row, oracle)
    trials = make_trials(block, oracle, range(FIRST_TRIAL, FIRST_TRIAL + settings.trials), beat)
    buffers = _Buffers(device, block, moved, facts["l2_bytes"], facts["memory_bytes"], settings.l2_multiple)
    contestants: dict[str, dict[str, _Contestant]] = {}
    try:
        made = [next(trials)]
        buffers.load(made[0])
        ways = {}
        for mode in MODES:
            contestants[mode] = {}
            n_sets = len(buffers.addresses) if mode == "cold" else 1
            calls = buffers.calls()[:n_sets]
            for side in tuple(contest.sides):
                with contest.judged(side):
                    entry = device.entry(task, side)
                    contestants[mode][side] = _Contestant(device, entry, calls, settings.min_sample_us)
                beat()
            copy, ways[mode] = _best_copy(device, buffers.copy_calls()[:n_sets], settings, beat)
            contestants[mode][COPY] = copy
        found = _trials(device, buffers, contestants, contest, _all_of(made, trials), settings, seed, beat)
        timed = (*contest.sides, COPY)
        return {
            **found,
            "bytes_moved": moved,
            "copy_bytes_moved": 2 * buffers.copy_bytes,
            "copy_ways": ways,
            "sets": len(buffers.addresses),
            "launches": {mode: {name: contestants[mode][name].launches for name in timed} for mode in MODES},
            "kernels": {side: contestants["cold"][side].graph.kernels() for side in contest.sides},
        }
    finally:
        for table in contestants.values():
            for contestant in table.values():
                contestant.close()
        buffers.close()


def _all_of(made: list[Trial], more: Iterator[Trial]) -> Iterator[Trial]:
    """As itertools.chain, which would hold the first until the end."""
    while made:
        yield made.pop(0)
    yield from more


def _trials(
    device: TaskDevice,
    buffers: _Buffers,
    contestants: dict[str, dict[str, _Contestant]],
    contest: Contest,
    trials: Iterator[Trial],
    settings: Settings,
    seed: int,
    beat: Beat,
) -> dict[str, Any]:
    row = buffers.block.row
    order = np.random.default_rng([seed, row.seed])
    samples: dict[str, dict[str, list[float]]] = {mode: {name: [] for name in contestants[mode]} for mode in MODES}
    checks = []
    number = 0  # not of enumerate, which would hold a trial while the next is made
    for trial in trials:
        buffers.load(trial)
        beat()
        for mode in MODES:
            table = {name: contestants[mode][name] for name in (*contest.sides, COPY)}
            for _ in range(settings.warmup_rounds):
                for contestant in table.values():
                    contestant.graph.time(1)
            for _ in range(settings.iterations):
                for name in order.permutation(sorted(table)):
                    samples[mode][name].append(table[name].sample()[0])
                beat()
            chosen = int(order.integers(len(buffers.addresses))) if mode == "cold" else 0
            for side in tuple(contest.sides):
                with contest.judged(side, f", after timing, {mode}"):
                    errors = _check_timed(device, buffers, table[side], trial, chosen)
                    checks.append({"trial": number, "mode": mode, "side": side, "errors": errors})
                beat()
        number += 1
        del trial  # the next is made in its memory
    timed = (*contest.sides, COPY)
    return {
        "samples_us": {mode: {name: samples[mode][name] for name in timed} for mode in MODES},
        "checks_after": [check for check in checks if check["side"] in timed],
    }


def _check_timed(
    device: TaskDevice, buffers: _Buffers, contestant: _Contestant, trial: Trial, chosen: int
) -> dict[str, float]:
    """The graph that was timed, once more, onto poison in one of its sets. Where an operand changes in place, the same
    calls captured once over: several launches on one set would not give what one does."""
    block, address = buffers.block, buffers.addresses[chosen]
    buffers.lay_down(address, trial)
    graph = contestant.single if trial.holds_data else contestant.graph
    graph.time(1)
    graph.publish()
    return check_trial(device, block, address, trial)


def _best_copy(
    device: TaskDevice, calls: Sequence[Call], settings: Settings, beat: Beat
) -> tuple[_Contestant, dict[str, float]]:
    """The fastest way of copying, and what each way took."""
    best: _Contestant | None = None
    best_us, taken = math.inf, {}
    for name, entry in device.copies():
        contestant = _Contestant(device, entry, calls, settings.min_sample_us)
        us = float(np.median([contestant.sample()[0] for _ in range(_SCREEN_SAMPLES)]))
        taken[name] = us
        beat()
        if us < best_us:
            best, contestant, best_us = contestant, best, us  # type: ignore[assignment]
        if contestant is not None:
            contestant.close()
    if best is None:
        raise Refused("missing-cubin", "the library holds no copy to measure the ceiling with")
    return best, taken


def require_possible(name: str, moved: int, us: float, copy_moved: int, copy_us: float) -> float:
    """The share of the copy's speed, 1.0 being as fast; Refused where no memory is that fast."""
    share = (moved / us) / (copy_moved / copy_us)
    if share > (_MAX_SHARE_OF_COPY if copy_us >= SMALL_COPY_US else _MAX_SHARE_OF_SMALL_COPY):
        raise Refused("too-fast", f"{name}: {share:.2f} times the speed of the best copy of the same bytes in this run")
    return share
