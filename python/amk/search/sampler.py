"""Who proposes: the built-in sampler, and what every sampler is.

In: how many configs were proposed before, the incumbent, the ids already seen. Out: a `Proposal`, or None when the
space holds nothing new. The built-in one is a pure function of these, of the seed and of the prior, so that the same
keep decisions give the same proposals, also after a loop was killed and resumed. Order: the default; then the explored
share, of which the prior gives the first half; then one-knob changes of the incumbent, those that lead to what was good
elsewhere first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..config import ScheduleConfig
from ..exam import draw
from ..propose import with_knob

if TYPE_CHECKING:
    from ..records import Trial

__all__ = ["BuiltinSampler", "Proposal", "Sampler", "Space"]


@dataclass(frozen=True)
class Proposal:
    """A config to try. `origin`: default, prior, random, mutation, sampler, retry or incumbent."""

    config: ScheduleConfig
    origin: str
    text: str  # what it is, for the description of its trial


class Sampler(Protocol):
    def propose(self, index: int, incumbent: ScheduleConfig | None, seen: Container[str]) -> Proposal | None: ...

    def tell(self, trial: Trial) -> None:
        """Learns from a finished trial; also called, in order, for those of a resumed log."""


class Space:
    """The points that `search_space` offers, numbered: the first path varies fastest."""

    def __init__(self, knobs: Mapping[str, Sequence[Any]]) -> None:
        self.knobs = {path: tuple(values) for path, values in knobs.items()}
        self.size = math.prod(len(values) for values in self.knobs.values())
        self._default = ScheduleConfig.default().to_dict()

    def point(self, index: int) -> ScheduleConfig:
        """The config of one number in 0..size-1."""
        table = copy.deepcopy(self._default)
        for path, values in self.knobs.items():
            index, digit = divmod(index, len(values))
            *parents, last = path.split(".")
            _at(table, parents)[last] = values[digit]
        return ScheduleConfig.from_dict(table, strict=True)[0]

    def neighbours(self, config: ScheduleConfig) -> Iterator[tuple[str, Any, ScheduleConfig]]:
        """(path, value, config) of each point that differs from `config` in one knob."""
        table = config.to_dict()
        for path, values in self.knobs.items():
            for value in values:
                moved = with_value(table, path, value)
                if moved != config:
                    yield path, value, moved


def with_value(table: Mapping[str, Any], path: str, value: Any) -> ScheduleConfig:
    return ScheduleConfig.from_dict(with_knob(table, path, value), strict=True)[0]


class BuiltinSampler:
    def __init__(self, space: Space, n_explored: int, seed: int, prior: Sequence[ScheduleConfig] = ()) -> None:
        self._space, self._n_explored, self._seed = space, n_explored, seed
        self._known = tuple(prior)
        fresh = [config for config in self._known if config != ScheduleConfig.default()]
        self.prior = fresh[: -(-n_explored // 2)]  # proposed as they are
        self._moves_of = ""  # the incumbent whose moves are at hand
        self._moves: list[tuple[str, Proposal]] = []

    def propose(self, index: int, incumbent: ScheduleConfig | None, seen: Container[str]) -> Proposal | None:
        """The proposal after `index` others."""
        default = ScheduleConfig.default()
        if default.schedule_id not in seen:
            return Proposal(default, "default", "the default")
        if index <= len(self.prior):
            for config in self.prior:
                if config.schedule_id not in seen:
                    return Proposal(config, "prior", "the best of a similar model and GPU")
        if index > self._n_explored and incumbent is not None:
            moved = self._mutate(incumbent, seen)
            if moved is not None:
                return moved
        return self._random(index, seen)

    def tell(self, trial: Trial) -> None:
        """Nothing to learn: the incumbent says it all."""

    def _mutate(self, incumbent: ScheduleConfig, seen: Container[str]) -> Proposal | None:
        if self._moves_of != incumbent.schedule_id:
            self._moves_of, self._moves = incumbent.schedule_id, self._ordered_moves(incumbent)
        for name, proposal in self._moves:
            if name not in seen:
                return proposal
        return None

    def _ordered_moves(self, incumbent: ScheduleConfig) -> list[tuple[str, Proposal]]:
        """Every one-knob change with its id: those towards the prior's configs first, then the rest as drawn."""
        table = incumbent.to_dict()
        wanted: dict[str, int] = {}
        for config in self._known:
            for path in self._space.knobs:
                wanted.setdefault(
                    with_value(table, path, _at(config.to_dict(), path.split("."))).schedule_id, len(wanted)
                )
        moves = []
        for path, value, config in self._space.neighbours(incumbent):
            name = config.schedule_id
            rank = draw(self._seed, f"from {incumbent.schedule_id} to {name}", 0, 1 << 64)
            moves.append((wanted.get(name, len(wanted)), rank, path, value, config))
        moves.sort(key=lambda move: move[:2])
        return [
            (config.schedule_id, Proposal(config, "mutation", f"{path} = {value_text(value)}"))
            for _, _, path, value, config in moves
        ]

    def _random(self, index: int, seen: Container[str]) -> Proposal | None:
        """A point that was not seen yet: drawn, and from there on the next one that is new."""
        start = draw(self._seed, "explore", index, self._space.size)
        for step in range(self._space.size):
            config = self._space.point((start + step) % self._space.size)
            if config.schedule_id not in seen:
                return Proposal(config, "random", "a random point")
        return None


def value_text(value: Any) -> str:
    """A knob's value, short."""
    if isinstance(value, list | tuple):
        return "+".join(f"[{name}]" for name in value) or "none"
    return str(value)


def _at(table: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = table
    for name in path:
        value = value[name]
    return value
