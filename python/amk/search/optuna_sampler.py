"""Optuna as a sampler: asked for a point, told how fast it was.

In: the space, a seed. Out: proposals, each a config that was not seen before: a point that Optuna asks for again is
answered with what is known of it, and another one is asked for. The default and the prior come first, as they do in the
built-in sampler. Needs the extra `optuna`.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from ..config import ScheduleConfig
from ..errors import Rejected, Unavailable
from .sampler import BuiltinSampler, Proposal, Space

if TYPE_CHECKING:
    from ..records import Trial

__all__ = ["OptunaSampler"]

MAX_ASKS = 100  # for one new point; then one is drawn


class OptunaSampler:
    def __init__(self, space: Space, n_explored: int, seed: int, prior: Sequence[ScheduleConfig] = ()) -> None:
        try:
            import optuna
        except ImportError as error:
            raise Unavailable('sampler optuna needs Optuna: pip install "amk[optuna]"') from error
        self._optuna, self._space = optuna, space
        self._first = BuiltinSampler(space, n_explored, seed, prior)
        self._n_first = 1 + len(self._first.prior)
        self._keys = {path: [_key(value) for value in values] for path, values in space.knobs.items()}
        self._distributions = {
            path: optuna.distributions.CategoricalDistribution(range(len(values)))
            for path, values in space.knobs.items()
        }
        said = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study is no news
        try:
            self._study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=seed))
        finally:
            optuna.logging.set_verbosity(said)
        self._asked: dict[str, Any] = {}
        self._known: dict[str, float | None] = {}

    def propose(self, index: int, incumbent: ScheduleConfig | None, seen: Container[str]) -> Proposal | None:
        if index < self._n_first:
            return self._first.propose(index, incumbent, seen)
        for _ in range(MAX_ASKS):
            asked = self._study.ask(self._distributions)
            config = self._config(asked.params)
            name = config.schedule_id
            if name not in seen and name not in self._asked:
                self._asked[name] = asked
                return Proposal(config, "sampler", "a point that Optuna chose")
            self._answer(asked, self._known.get(name))
        return self._first.propose(index, None, seen)  # without an incumbent: a random one

    def tell(self, trial: Trial) -> None:
        """Also of points that others proposed, so that they are learnt from too."""
        self._known[trial.schedule_id] = trial.latency_us
        asked = self._asked.pop(trial.schedule_id, None)
        if asked is not None:
            return self._answer(asked, trial.latency_us)
        params = self._params(trial.schedule_config)
        if params is not None and trial.latency_us is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                self._study.add_trial(
                    self._optuna.trial.create_trial(
                        params=params, distributions=self._distributions, value=trial.latency_us
                    )
                )

    def _answer(self, asked: Any, value: float | None) -> None:
        if value is None:
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, value)

    def _config(self, params: dict[str, int]) -> ScheduleConfig:
        index = 0
        for path, values in reversed(self._space.knobs.items()):
            index = index * len(values) + params[path]
        return self._space.point(index)

    def _params(self, table: Any) -> dict[str, int] | None:
        """The coordinates of a config, if the space has it."""
        try:
            table = ScheduleConfig.from_dict(table, strict=True)[0].to_dict()
        except Rejected:
            return None
        params = {}
        for path, keys in self._keys.items():
            value: Any = table
            for name in path.split("."):
                value = value[name]
            if _key(value) not in keys:
                return None
            params[path] = keys.index(_key(value))
        return params


def _key(value: Any) -> Any:
    return frozenset(value) if isinstance(value, list | tuple) else str(value)
