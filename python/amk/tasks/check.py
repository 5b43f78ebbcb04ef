"""One row, all its sides, on a device: right on fresh inputs each time, on the stream given, and nothing else touched.

In: a device, a task's row, its oracle. Out: the largest errors and the kernels that ran, or a `Refused`; of several
baselines, one that is refused falls out alone. The oracle's values are made from the inputs as they lie in memory,
after rounding and broadcasting.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._lib import enum_names
from ..errors import InternalError, Rejected
from .device import Call, TaskDevice, Tensor
from .judge import Refused, judge_outputs, require_telling, same_bytes
from .operands import POISON, Block, FreshInputs, Place, values_of
from .workloads import Row

__all__ = [
    "CHECK_TRIALS",
    "SIDES",
    "SOLUTION",
    "Contest",
    "Pristine",
    "Trial",
    "call_at",
    "check_row",
    "check_trial",
    "make_trial",
    "make_trials",
]

SOLUTION = "solution"
SIDES = ("baseline", SOLUTION)  # of the repository; an external baseline is a side by its spec
# Found after samples were taken: what the others were timed on was not what it should have been.
_SPOILING = ("input-changed", "out-of-bounds")
_BEAT_S = 0.5
_BYTES_PER_VALUE = 40  # that making a trial takes at its height
_MOST_AT_ONCE = 8
_MOST_BYTES_AT_ONCE = 4 << 30  # of trials that are made together; a larger one alone, in the memory of the one before
# Fresh inputs at the same addresses: an ordinary call (a kernel is loaded when it is first launched, which may wait for
# the device), the stream held, a captured one.
CHECK_TRIALS = 3


class Contest:
    """The sides of a row that still take part, and why the others do not."""

    def __init__(self, sides: Sequence[str] = SIDES) -> None:
        self.sides = list(sides)
        self.refused: dict[str, dict[str, str]] = {}  # of baselines

    @contextmanager
    def judged(self, side: str, when: str = "") -> Iterator[None]:
        """A refusal inside is said with the side's name in front. One of several baselines then falls out; any other
        refusal is the row's."""
        try:
            yield
        except Rejected as error:
            reason = error.reason if isinstance(error, Refused) else "failed"
            refusal = Refused(reason, f"{side}{when}: {error}")
            if side != SOLUTION:
                self.refused[side] = refusal.to_dict()
                self.sides.remove(side)
            spoils = bool(when) and reason in _SPOILING
            if side == SOLUTION or spoils or self.sides == [SOLUTION]:
                raise refusal from error


@dataclass(frozen=True)
class Trial:
    """The bytes before a launch, and what the outputs must be after it."""

    image: NDArray[np.uint8]
    expected: Mapping[str, NDArray[np.float64]]
    holds_data: bool = False  # an output does, before the launch: it is changed in place


def make_trial(block: Block, oracle: Any, number: int) -> Trial:
    """Fresh inputs, the same for the same number."""
    row = block.row
    made = oracle.make_inputs(row, FreshInputs.of(row.seed, number))
    for name, values in made.items():
        spec = row.inputs.get(name) or row.outputs.get(name)
        if spec is None or np.shape(values) != spec.shape:
            raise InternalError(f"row {row.name}: the oracle made {name!r} of shape {list(np.shape(values))}")
    missing = [name for name in row.inputs if name not in made]
    if missing:
        raise InternalError(f"row {row.name}: the oracle made no {', '.join(missing)}")
    image = block.fill(made)
    holds_data = any(name in row.outputs for name in made)
    if row.rejects is not None:
        return Trial(image, {}, holds_data)
    inputs = {name: _as_they_lie(block.places[name], image, made.pop(name)) for name in tuple(made)}
    expected = {name: np.asarray(value, np.float64) for name, value in oracle.reference(row, inputs).items()}
    if set(expected) != set(row.outputs):
        raise InternalError(
            f"row {row.name}: the oracle's outputs are {sorted(expected)}, expected {list(row.outputs)}"
        )
    require_telling(block, image, expected)
    return Trial(image, expected, holds_data)


def _as_they_lie(place: Place, image: NDArray[np.uint8], made: NDArray[Any]) -> NDArray[Any]:
    """The values of an operand after rounding; where they fit, in the array that they were made in."""
    fits = (
        isinstance(made, np.ndarray) and made.dtype == np.float32 and made.flags.c_contiguous and made.flags.writeable
    )
    return values_of(place.view(image), place.spec.dtype, made if fits else None)


def make_trials(block: Block, oracle: Any, numbers: Sequence[int], beat: Callable[[], None]) -> Iterator[Trial]:
    """One after another, made when it is asked for: nothing else runs on this computer while the one before is timed.
    As many are made together as there are cores and memory for; a large one alone, and in the memory of the one before,
    which the caller has let go by then: memory that was never touched would cost more than all that is done with it."""
    n_values = sum(math.prod(spec.shape) for spec in (*block.row.inputs.values(), *block.row.outputs.values()))
    fitting = min(_free_bytes() // 2, _MOST_BYTES_AT_ONCE) // (_BYTES_PER_VALUE * n_values)
    at_once = max(1, min(os.cpu_count() or 1, len(numbers), _MOST_AT_ONCE, fitting))
    for first in range(0, len(numbers), at_once):
        together = numbers[first : first + at_once]
        if len(together) == 1:
            beat()
            yield make_trial(block, oracle, together[0])
            continue
        made = _make_together(block, oracle, together, beat)
        while made:
            yield made.pop(0)


def _make_together(block: Block, oracle: Any, numbers: Sequence[int], beat: Callable[[], None]) -> list[Trial]:
    with ThreadPoolExecutor(len(numbers)) as pool:
        waiting = [pool.submit(make_trial, block, oracle, number) for number in numbers]
        for one in waiting:
            while not one.done():
                wait([one], timeout=_BEAT_S)
                beat()
        return [one.result() for one in waiting]


def _free_bytes() -> int:
    """Memory that this process may still take: of the computer, and of its container where there is one."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no cgroup, or "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0)


class Pristine:
    """A trial's inputs on the device, so that they are brought before every launch without the bus. An entry that
    spoils them here has its inputs found changed. Poison is not brought from here, where an entry could put results."""

    def __init__(self, device: TaskDevice, block: Block) -> None:
        self._device, self._block = device, block
        self._address = device.allocate(self.bytes_of(block))

    @staticmethod
    def bytes_of(block: Block) -> int:
        return max(block.out_begin, 1)

    def load(self, trial: Trial) -> None:
        if self._block.out_begin:
            self._device.upload(self._address, trial.image[: self._block.out_begin])

    def lay_down(self, address: int, trial: Trial) -> None:
        """The bytes of the trial that was loaded, at `address`."""
        begin, end = self._block.out_begin, self._block.out_end
        if begin:
            self._device.move(address, self._address, begin)
        if trial.holds_data:
            self._device.upload(address + begin, trial.image[begin:end])
        else:
            self._device.fill(address + begin, POISON, end - begin)

    def close(self) -> None:
        self._device.free(self._address)


def call_at(block: Block, address: int) -> Call:
    def tensors(places: Sequence[Any]) -> tuple[Tensor | None, ...]:
        return tuple(None if place is None else Tensor(address + place.offset, place.spec) for place in places)

    return Call(tensors(block.inputs), block.scalars, tensors(block.outputs))


def check_row(
    device: TaskDevice,
    task: str,
    row: Row,
    oracle: Any,
    beat: Callable[[], None] = lambda: None,
    contest: Contest | None = None,
) -> dict[str, Any]:
    """Both sides of the repository, or all of a contest."""
    contest = contest or Contest()
    block = Block(row, oracle.OPERANDS)
    address = device.allocate(block.nbytes)
    try:
        if row.rejects is not None:
            trial = make_trial(block, oracle, 0)
            _check_rejection(device, task, block, address, trial, contest)
            return {"errors": {}, "kernels": {}, "trials": 1}
        with closing(Pristine(device, block)) as pristine:
            return _check_trials(device, task, block, oracle, address, pristine, beat, contest)
    finally:
        device.free(address)


def _check_trials(
    device: TaskDevice,
    task: str,
    block: Block,
    oracle: Any,
    address: int,
    pristine: Pristine,
    beat: Callable[[], None],
    contest: Contest,
) -> dict[str, Any]:
    call = call_at(block, address)
    errors: dict[str, dict[str, float]] = {side: {} for side in contest.sides}
    kernels: dict[str, list[dict[str, Any]]] = {}
    earlier: Callable[[], Mapping[str, NDArray[np.float64]]] | None = None
    number = 0  # not of enumerate, which would hold a trial while the next is made
    for trial in make_trials(block, oracle, range(CHECK_TRIALS), beat):
        for side in tuple(contest.sides):
            with contest.judged(side):
                entry = device.entry(task, side)
                if number < CHECK_TRIALS - 1:
                    pristine.load(trial)  # for each side anew: what one does to it is not found in another's launch
                    pristine.lay_down(address, trial)
                if number == 0:
                    _require_status(device.run(entry, call), 0)
                elif number == 1:
                    _run_held(device, entry, call, block, address, trial)
                else:
                    kernels[side] = _run_captured(device, entry, call, address, pristine, trial)
                found = check_trial(device, block, address, trial, earlier)
                beat()
                errors[side] = {name: max(found[name], errors[side].get(name, 0.0)) for name in found}
        earlier = partial(_expected, block, oracle, number)
        number += 1
        del trial
    return {
        "errors": {side: errors[side] for side in contest.sides},
        "kernels": {side: kernels[side] for side in contest.sides},
        "trials": CHECK_TRIALS,
    }


def _expected(block: Block, oracle: Any, number: int) -> Mapping[str, NDArray[np.float64]]:
    """Made again when it is asked for: it is larger than all operands together."""
    return make_trial(block, oracle, number).expected


def check_trial(
    device: TaskDevice,
    block: Block,
    address: int,
    trial: Trial,
    earlier: Callable[[], Mapping[str, NDArray[np.float64]]] | None = None,
) -> dict[str, float]:
    """What lies at `address` after a launch that found the trial's bytes there: (largest errors)."""
    begin, end = block.out_begin, block.out_end
    if begin and not same_bytes(device.download(address, begin), trial.image[:begin]):
        raise Refused("input-changed", "the inputs, or what lies between them, are not what they were")
    after = device.download(address + begin, end - begin)
    return judge_outputs(block, trial.image[begin:end], after, trial.expected, earlier)


def _run_held(device: TaskDevice, entry: Any, call: Call, block: Block, address: int, trial: Trial) -> None:
    begin, end = block.out_begin, block.out_end
    status, was_held, seen = device.run_held(entry, call, address + begin, end - begin)
    _require_status(status, 0)
    if not was_held:
        raise Refused("synchronises", "it waited for the stream that it was given; an entry only enqueues")
    if not same_bytes(seen, trial.image[begin:end]):
        raise Refused("wrong-stream", "outputs changed while the stream that it was given was held back")


def _run_captured(
    device: TaskDevice, entry: Any, call: Call, address: int, pristine: Pristine, trial: Trial
) -> list[dict[str, Any]]:
    """The inputs come after the capture: what ran during it, a warm-up or a fraud, neither counts nor spoils them."""
    graph = device.graph(entry, [call], 1)
    try:
        pristine.load(trial)
        pristine.lay_down(address, trial)
        graph.time(1)
        graph.publish()
        return graph.kernels()
    finally:
        graph.close()


def _check_rejection(device: TaskDevice, task: str, block: Block, address: int, trial: Trial, contest: Contest) -> None:
    call = call_at(block, address)
    for side in tuple(contest.sides):
        with contest.judged(side):
            device.upload(address, trial.image)
            _require_status(device.run(device.entry(task, side), call), _status_named(str(block.row.rejects)))
            if not same_bytes(device.download(address, block.nbytes), trial.image):
                raise Refused("out-of-bounds", "it refused the row, and wrote to memory all the same")


def _status_named(name: str) -> int:
    return next(number for number, found in enum_names("amk_status", "AMK_ERR_").items() if found == name)


def _require_status(status: int, wanted: int) -> None:
    if status != wanted:
        raise Refused("status", f"it returned {status}, expected {wanted}")
