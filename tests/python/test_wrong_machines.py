"""Machines that are wrong in one way each: the judge must call every one of them incorrect, in f32 and in bf16.

They are put where `evaluate` looks for the reference machine; what they compute differs, what they claim does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import amk
from amk import vm
from amk.errors import NonFinite
from amk.oracle import round_to, to_float64


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


Weights = dict[str, np.ndarray]


def edit(change: Callable[[Weights, str], None]) -> type:
    """A reference machine whose weights are not those of the model."""

    class Edited(vm.ReferenceVM):
        def __init__(self, image: Any, weights: Any, **options: Any) -> None:
            table = {name: array.copy() for name, array in weights.items()}
            change(table, "f32" if table["embed"].dtype == np.float32 else "bf16")
            super().__init__(image, table, **options)

    return Edited


def scale(array: np.ndarray, factor: float, dtype: str) -> None:
    array[...] = round_to(to_float64(array, dtype) * factor, dtype)


def swap_gate_up(w: Weights, _: str) -> None:
    half = len(w["layers.0.w_gate_up"]) // 2
    w["layers.0.w_gate_up"][:] = np.roll(w["layers.0.w_gate_up"], half, axis=0)


def double_score_scale(w: Weights, dtype: str) -> None:
    if "layers.0.q_norm" in w:
        scale(w["layers.0.q_norm"], 2.0, dtype)
    else:
        scale(w["layers.0.wqkv"][: w["layers.0.wo"].shape[1]], 2.0, dtype)


def zero_wo(w: Weights, _: str) -> None:
    w["layers.1.wo"][:] = 0


def double_final_norm(w: Weights, dtype: str) -> None:
    scale(w["final_norm"], 2.0, dtype)


def skip_attn_norm(w: Weights, dtype: str) -> None:
    w["layers.0.attn_norm"][:] = round_to(np.ones(len(w["layers.0.attn_norm"])), dtype)


def same_layer_twice(w: Weights, _: str) -> None:
    for name in [name for name in w if name.startswith("layers.1.")]:
        w[name] = w[name.replace("layers.1.", "layers.0.")]


def swap_k_and_v(w: Weights, _: str) -> None:
    rows = (len(w["layers.0.wqkv"]) - w["layers.0.wo"].shape[1]) // 2
    tail = w["layers.0.wqkv"][-2 * rows :]
    tail[:] = np.roll(tail, rows, axis=0)


def other_theta(w: Weights, _: str) -> None:
    w["rope_inv_freq"][1:] *= np.float32(1.5)


def swap_two_heads(w: Weights, _: str) -> None:
    columns = w["layers.0.wo"]
    columns[:] = np.roll(columns, columns.shape[1] // 2, axis=1)


def one_dead_output_row(w: Weights, _: str) -> None:
    w["lm_head" if "lm_head" in w else "embed"][11] = 0


class PositionMinusOne(vm.ReferenceVM):
    def step(self, token: int, pos: int) -> np.ndarray:
        return super().step(token, max(pos - 1, 0))


class TokenPlusOne(vm.ReferenceVM):
    def step(self, token: int, pos: int) -> np.ndarray:
        return super().step((token + 1) % 250, pos)


class Zeros(vm.ReferenceVM):
    def step(self, token: int, pos: int) -> np.ndarray:
        return 0 * super().step(token, pos)


class NotANumber(vm.ReferenceVM):
    def step(self, token: int, pos: int) -> np.ndarray:
        return super().step(token, pos) * np.float32(math.nan if pos == 17 else 1)


class Refuses(vm.ReferenceVM):
    def step(self, token: int, pos: int) -> np.ndarray:
        if pos == 17:
            raise NonFinite("logits: NaN at index 0")
        return super().step(token, pos)


class Stale(vm.ReferenceVM):
    """Runs only the first time, then hands out what it has."""

    kept: np.ndarray | None = None

    def step(self, token: int, pos: int) -> np.ndarray:
        if self.kept is None:
            self.kept = super().step(token, pos)
        return self.kept


class LosesAppendedRows(vm.ReferenceVM):
    """Right about every single step, but what it wrote to the cache is gone by the next one."""

    def step(self, token: int, pos: int) -> np.ndarray:
        logits = super().step(token, pos)
        for layer in range(2):
            k, v = self.get_kv(layer, pos + 1)
            k[:, pos] = v[:, pos] = 0
            self.set_kv(layer, k, v)
        return logits


class OneRowTwice(vm.ReferenceVM):
    """Reads row 1 of the history where it should read row 0."""

    def set_kv(self, layer: int, k: np.ndarray, v: np.ndarray) -> None:
        if k.shape[1] > 20:
            k[:, 0], v[:, 0] = k[:, 1], v[:, 1]
        super().set_kv(layer, k, v)


class OtherGreedyToken(vm.ReferenceVM):
    @property
    def next_token(self) -> int:
        return super().next_token ^ 1


WRONG_MACHINES: dict[str, type] = {
    "gate and up swapped": edit(swap_gate_up),
    "score scale doubled": edit(double_score_scale),
    "one wo zeroed": edit(zero_wo),
    "logits doubled": edit(double_final_norm),
    "a norm weight skipped": edit(skip_attn_norm),
    "layer 1 uses layer 0": edit(same_layer_twice),
    "k and v swapped": edit(swap_k_and_v),
    "other rotary frequencies": edit(other_theta),
    "heads permuted": edit(swap_two_heads),
    "one output row lost": edit(one_dead_output_row),
    "position shifted": PositionMinusOne,
    "token shifted": TokenPlusOne,
    "zeros": Zeros,
    "one NaN": NotANumber,
    "refuses one step": Refuses,
    "stale": Stale,
    "cache not kept": LosesAppendedRows,
    "one row read twice": OneRowTwice,
    "argmax wrong": OtherGreedyToken,
}


@pytest.mark.parametrize("model", ["toy-2L", "toy-gqa", "toy-qwen3"])
@pytest.mark.parametrize("name", WRONG_MACHINES)
def test_a_wrong_machine_is_caught(name: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "ReferenceVM", WRONG_MACHINES[name])
    verdict = amk.evaluate(model, "h200")
    assert verdict.valid and verdict.correct is False and verdict.status == "INCORRECT_NUMERICAL"
    assert verdict.latency_us is None and verdict.latency_kind is None and verdict.bound_us is None
    assert "NOT CORRECT" in verdict.to_text()
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_one_percent_error_is_caught_in_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "ReferenceVM", edit(lambda w, dtype: scale(w["layers.1.w_down"], 1.01, dtype)))
    assert amk.evaluate("toy-2L", "h200").correct is False


@pytest.fixture(scope="module")
def unstable(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """16-bit weights of such a gain that the right machine leaves the limit of the model's shape in one step."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from families import build_checkpoint

    folder = tmp_path_factory.mktemp("unstable")
    build_checkpoint(folder, "mistral", seed=2, dtype=torch.float16)
    return folder


def test_a_right_machine_is_judged_by_the_rounding_noise_of_its_weights(unstable: Any) -> None:
    verdict = amk.evaluate(unstable, "h200", device="cpu", seed=1)
    assert verdict.correct and any("rounding noise" in note for note in verdict.notes), verdict.notes
    assert verdict.rel_err < verdict.err_limit


@pytest.mark.parametrize("name", WRONG_MACHINES)
def test_and_a_wrong_one_is_still_caught(name: str, unstable: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "ReferenceVM", WRONG_MACHINES[name])
    verdict = amk.evaluate(unstable, "h200", device="cpu", seed=1)
    assert verdict.valid and verdict.correct is False and verdict.latency_us is None
