"""What a machine is given before a step that is examined or timed: cache rows and states, in the form that it stores.

In: a model's configuration, a seed. Out: per layer what the float64 oracle is given too, rounded to the storage dtype;
rows of keys in the order in which AMK keeps a head (`head_runs`). A step moves the state on, so whoever runs one twice
puts the state back before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .model_config import head_runs
from .oracle import round_to, synthetic_kv, synthetic_state

__all__ = [
    "HasState",
    "clear_states",
    "hide_rows",
    "history_numbers",
    "set_states",
    "stored_history",
    "stored_nan",
    "stored_states",
]

Pair = tuple[NDArray[Any], NDArray[Any]]


class HasState(Protocol):
    """A machine whose layers may have a state; it is asked only where they do."""

    def set_state(self, layer: int, conv: NDArray[Any], memory: NDArray[Any]) -> None: ...

    def reset_state(self) -> None: ...


def stored_history(config: Any, rows: int, seed: int) -> dict[int, Pair]:
    """Of each attention layer: k, v [G, rows, D] in storage dtype, the rows that the reference is given too."""
    order = [i for first, count in head_runs(config) for i in range(first, first + count)]
    found = {}
    for layer in range(config.layers):
        if not config.is_linear(layer):
            k, v = synthetic_kv(config, rows, seed, layer)
            found[layer] = round_to(np.ascontiguousarray(k[..., order]), config.dtype), round_to(v, config.dtype)
    return found


def stored_states(config: Any, seed: int) -> dict[int, Pair]:
    """Of each linear layer: the convolution's inputs [C, W - 1] in storage dtype and S [Hv, D, D] in f32."""
    found = {}
    for layer in filter(config.is_linear, range(config.layers)):
        past, memory = synthetic_state(config, seed, layer)
        found[layer] = round_to(past, config.dtype), memory
    return found


def set_states(machine: HasState, states: Mapping[int, Pair]) -> None:
    """The machine's next step starts from these states."""
    for layer, (past, memory) in states.items():
        machine.set_state(layer, past, memory)


def clear_states(machine: HasState, states: Mapping[int, Pair], dtype: str) -> None:
    """The machine's next step is the first of a sequence; a machine that does not clear its states finds NaN there."""
    if not states:
        return
    for layer, (past, memory) in states.items():
        machine.set_state(layer, np.full_like(past, stored_nan(dtype)), np.full_like(memory, math.nan))
    machine.reset_state()


def hide_rows(rows: NDArray[Any], first: int, capacity: int, dtype: str) -> NDArray[Any]:
    """The rows below `first`, and NaN in the rest of the cache, which no step may read before it wrote it."""
    groups, _, width = rows.shape
    out = np.full((groups, capacity, width), stored_nan(dtype), rows.dtype)
    out[:, :first] = rows[:, :first]
    return out


def stored_nan(dtype: str) -> Any:
    return np.uint16(0x7FC0) if dtype == "bf16" else math.nan


def history_numbers(config: Any, rows: int) -> int:
    """How many random numbers a history of so many rows and one set of states take: what its time depends on."""
    linear = sum(config.is_linear(layer) for layer in range(config.layers))
    cached = 2 * (config.layers - linear) * config.n_kv_heads * config.head_dim * rows
    state = config.linear_value_heads * config.linear_head_dim**2 + config.linear_channels * config.conv_width
    return cached + linear * state
