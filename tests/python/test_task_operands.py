"""Operands in memory, what an output is judged by, the figures of samples, and machine code read from bytes."""

from __future__ import annotations

import pickle
import struct
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amk
import fake_task_devices
from amk.errors import BuildMismatch
from amk.oracle import round_to, to_float64
from amk.tasks import check
from amk.tasks.cubins import prove, read_cubins
from amk.tasks.judge import Refused, compare, judge_outputs
from amk.tasks.operands import POISON, FreshInputs, stored, values_of
from amk.tasks.oracles import residual_gate_add as oracle
from amk.tasks.stats import describe, means
from amk.tasks.time_row import time_row
from amk.tasks.workloads import Settings, Tolerance
from small_task import row
from test_tasks import block_of, parse, spec

# --- operands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_rounding_is_that_of_the_oracle(dtype: str) -> None:
    values = np.random.default_rng(3).standard_normal(4000).astype(np.float32) * np.float32(10.0) ** np.arange(-8, 8)[
        np.arange(4000) % 16
    ].astype(np.float32)
    values[:3] = (0.0, -0.0, np.inf)
    bits, want = stored(values, dtype), round_to(values, dtype)
    np.testing.assert_array_equal(bits.view(f"u{bits.itemsize}"), want.view(f"u{want.itemsize}"))
    np.testing.assert_array_equal(values_of(bits, dtype), to_float64(want, dtype).astype(np.float32))
    assert np.isnan(values_of(stored(np.array([np.nan], np.float32), dtype), dtype)).all()


def test_operands_lie_apart_between_guards_and_poison() -> None:
    block = block_of(y=spec(shape=[4, 3], stride=[5, 1]))
    assert block.outputs[1] is None and block.scalars == (0.5,)
    a = np.arange(15, dtype=np.float32).reshape(5, 3)
    image = block.fill({"a": a, "b": np.arange(7)})
    np.testing.assert_array_equal(block.places["a"].view(image), np.tile(a[0], (5, 1)))  # stride 0
    np.testing.assert_array_equal(block.places["b"].view(image), np.arange(7))
    ends = sorted((place.offset, place.offset + place.nbytes) for place in block.places.values())
    assert all(place.offset % 256 == 0 for place in block.places.values())
    assert ends[0][0] >= 256 and all(b[0] - a[1] >= 256 for a, b in zip(ends, ends[1:], strict=False))
    assert block.nbytes - ends[-1][1] >= 256
    assert (image[block.out_begin : block.out_end] == POISON).all()
    # What is downloaded from there on keeps the alignment of the outputs, which have a whole guard in it.
    assert block.out_begin % 256 == 0 and block.places["y"].offset - block.out_begin >= 256


@pytest.mark.parametrize("stride", [[3, 1], [5, 1], [1, 4]])
def test_only_what_belongs_to_an_output_may_change(stride: list[int]) -> None:
    block = block_of(y=spec(shape=[4, 3], stride=stride))
    before = block.fill({"a": np.ones((5, 3)), "b": np.arange(7)})
    after = before.copy()
    block.places["y"].view(after)[...] = 1.5
    begin, end = block.out_begin, block.out_end
    assert block.damage(before[begin:end], after[begin:end]) == 0
    mine = set(np.flatnonzero(after != before))
    for byte in range(begin, end):
        if byte not in mine:
            after[byte] ^= 1
            assert block.damage(before[begin:end], after[begin:end]) == 1, byte
            after[byte] ^= 1


def test_fresh_inputs_are_fresh_and_the_same_for_the_same_number() -> None:
    one, same, other = (FreshInputs.of(7, n).standard_normal((50,), np.float32) for n in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.intersect1d(one, other).size
    large = FreshInputs.of(7, 0).standard_normal((3, 2_000_003), np.float32)
    assert large.shape == (3, 2_000_003) and abs(large.std() - 1) < 0.01
    assert not np.array_equal(large[0], large[1])


def test_a_large_trial_is_made_when_the_one_before_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is what the next is made in: only one may be alive, in the check and in the timing."""
    alive: list[int] = []
    made: list[weakref.ref[check.Trial]] = []

    def spied(*arguments: Any) -> check.Trial:
        alive.append(sum(one() is not None for one in made))
        trial = make_trial(*arguments)
        made.append(weakref.ref(trial))
        return trial

    make_trial = check.make_trial
    monkeypatch.setattr(check, "make_trial", spied)
    monkeypatch.setattr(check, "_MOST_AT_ONCE", 1)
    (found,) = parse(row("one", "production", "bf16", [1, 12, 8]))
    device = fake_task_devices.Honest(0)
    check.check_row(device, "residual_gate_add", found, oracle)
    limits = Settings(warmup_rounds=1, iterations=1, trials=4, min_sample_us=1.0)
    time_row(device, "residual_gate_add", found, oracle, limits, 0)
    assert alive == [0] * (check.CHECK_TRIALS + 4)


# --- comparison -----------------------------------------------------------------------------------------------------


def judged(**changed: Any) -> dict[str, float]:
    block = block_of()
    expected = {"y": np.linspace(1, 2, 6).reshape(2, 3)}
    before = block.fill({"a": np.ones((5, 3)), "b": np.arange(7)})
    after = before.copy()
    view = block.places["y"].view(after)
    view[...] = changed.get("values", expected["y"])
    begin, end = block.out_begin, block.out_end
    return judge_outputs(block, before[begin:end], after[begin:end], expected, changed.get("earlier"))


def test_an_output_is_judged_element_by_element() -> None:
    good = np.linspace(1, 2, 6).reshape(2, 3)
    assert judged()["y"] < 1e-7
    assert judged(values=good + 0.9e-5)["y"] == pytest.approx(0.9e-5, rel=0.1)
    for values, reason in [
        (good + [[0, 0, 0], [0, 0, 1e-4]], "wrong-value"),
        (np.where(good == 2, np.inf, good), "non-finite"),
        (np.where(good == 2, -np.inf, good), "non-finite"),
        (np.full((2, 3), np.float32(np.nan)).view(np.float32), "non-finite"),
    ]:
        with pytest.raises(Refused) as caught:
            judged(values=values)
        assert caught.value.reason == reason
    with pytest.raises(Refused) as caught:
        judged(values=good + 1, earlier=lambda: {"y": good + 1})
    assert caught.value.reason == "cached-result"


def test_another_shape_is_no_result() -> None:
    with pytest.raises(Refused, match="expected shape"):
        compare("y", np.zeros((2, 3), np.float32), "f32", np.zeros((3, 2)), Tolerance(1, 1))
    with pytest.raises(Refused, match="the oracle itself"):
        compare("y", np.zeros(2, np.float32), "f32", np.array([0.0, np.nan]), Tolerance(1, 1))


def test_a_refusal_crosses_a_pickle() -> None:
    again = pickle.loads(pickle.dumps(Refused("stale-output", "why")))  # noqa: S301
    assert (again.reason, str(again)) == ("stale-output", "why")


# --- statistics -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=50))
def test_figures_are_ordered_and_within_the_samples(samples: list[float]) -> None:
    found = describe(samples)
    order = [found[name] for name in ("min_us", "p10_us", "median_us", "p90_us")]
    assert order == sorted(order) and found["samples"] == len(samples)
    assert min(samples) <= found["median_us"] <= max(samples) and found["std_us"] >= 0


def test_the_headline_has_equal_weights() -> None:
    found = means([4.0, 1.0])
    assert found["geometric_mean"] == pytest.approx(2.0) and found["arithmetic_mean"] == pytest.approx(2.5)


# --- machine code ---------------------------------------------------------------------------------------------------

KERNEL = {"name": "k", "binary_version": 90}
CUBINS = [{"arch": arch, "sha256": arch, "kernels": ["k"]} for arch in ("sm_90a", "sm_100a")]


def test_the_proof_names_what_ran_and_what_is_there() -> None:
    (found,) = prove([KERNEL, {"name": "(memset)", "binary_version": 0}], CUBINS, ["sm_90a", "sm_100a"])
    assert found == {"kernel": "k", "ran": "sm_90a", "ran_sha256": "sm_90a",
                     "cubins": {"sm_90a": "sm_90a", "sm_100a": "sm_100a"}}  # fmt: skip


@pytest.mark.parametrize(
    ("kernels", "cubins", "said"),
    [
        ([], CUBINS, "no kernel"),
        ([{"name": "(memcpy)", "binary_version": 0}], CUBINS, "no kernel"),
        ([KERNEL], CUBINS[:1], "no sm_100a cubin"),
        ([{**KERNEL, "name": "other"}], CUBINS, "no sm_90a, sm_100a cubin"),
        ([{**KERNEL, "binary_version": 80}], CUBINS, "version 80"),
    ],
)
def test_no_proof_is_a_sentence(kernels: Any, cubins: Any, said: str) -> None:
    found = prove(kernels, cubins, ["sm_90a", "sm_100a"])
    assert isinstance(found, str) and said in found


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_code_or_a_build_mismatch(data: bytes, with_magic: bool) -> None:
    with pytest.raises(BuildMismatch):
        read_cubins((b"\x7fELF\x02\x01" if with_magic else b"") + data[:57] + struct.pack("<H", 9), "x")


def test_a_library_without_cuda_code_holds_no_cubin() -> None:
    found = read_cubins(Path(amk._lib.LIBRARY_PATH).read_bytes(), "libamk")
    assert found == [] or {cubin.arch for cubin in found} == {"sm_90a", "sm_100a"}
