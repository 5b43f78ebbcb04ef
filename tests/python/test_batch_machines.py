"""Machines that decode a batch, alone and sharing weights and caches, against machines of one token a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amk
from amk.errors import AmkError, InputError, UnsupportedModel

MODELS = ["toy", "toy-2L", "toy-gqa", "toy-qwen3"]


def image_of(model: str, batch: int, max_seq: int = 64, gpu: str = "h200") -> Any:
    source = amk.open_model(model)
    return amk.lower(source.config, amk.ScheduleConfig.default(), gpu, max_seq, batch).pack(source.config, max_seq)


@pytest.mark.parametrize("model", MODELS)
def test_a_step_of_many_is_many_steps_of_one(model: str) -> None:
    weights, tokens = amk.open_model(model).weights(), [3, 141, 59, 26, 5, 35, 89, 79, 32, 38, 46, 27]
    with amk.ReferenceVM(image_of(model, 1), weights) as one, amk.ReferenceVM(image_of(model, 4), weights) as many:
        assert (one.batch, many.batch) == (1, 4)
        for start in (0, 4, 8):
            block = tokens[start : start + 4]
            expected = np.stack([one.step(token, start + t) for t, token in enumerate(block)])
            got = many.step_batch(block, start)
            assert got.shape == expected.shape and got.dtype == np.float32
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
            assert many.next_tokens == got.argmax(axis=-1).tolist()
            choices = many.decode_batch(np.array(block), start)
            assert choices.dtype == np.int32 and choices.tolist() == many.next_tokens
            for t in range(4):
                assert np.array_equal(many.logits_of(t), got[t])
        for ours, theirs in zip(one.get_kv(0, 12), many.get_kv(0, 12), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_no_token_sees_a_later_one_and_tokens_can_be_taken_back() -> None:
    with amk.ReferenceVM(image_of("toy", 4), amk.open_model("toy").weights()) as machine:
        right = machine.step_batch([3, 141, 59, 26], 0)
        other = machine.step_batch([3, 141, 7, 9], 0)
        assert np.array_equal(right[:2], other[:2]) and not np.array_equal(right[2:], other[2:])
        follow = machine.step_batch([59, 26, 5, 35], 2)  # drafts 7 and 9 are taken back
        machine.step_batch([3, 141, 59, 26], 0)
        assert np.array_equal(follow[2:], machine.step_batch([5, 35, 1, 1], 4)[:2])


def test_a_machine_says_which_calls_are_its_own() -> None:
    weights = amk.open_model("toy").weights()
    with amk.ReferenceVM(image_of("toy", 4), weights) as machine:
        for call in (lambda: machine.step(1, 0), lambda: machine.decode(1, 0), lambda: machine.next_token):
            with pytest.raises(InputError, match=r"one token a step, got one of 4.*step_batch"):
                call()
        with pytest.raises(InputError, match="position"):
            machine.step_batch([1, 2, 3, 4], 61)
        assert machine.step_batch([1, 2, 3, 4], 60).shape == (4, 256)
        for token in (-1, 256):
            with pytest.raises(InputError, match=f"token {token}"):
                machine.decode_batch([1, 2, token, 3], 0)
        for index in (-1, 4, 1.0, True):
            with pytest.raises(InputError, match="logits_of"):
                machine.logits_of(index)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="closed"):
        machine.step_batch([1, 2, 3, 4], 0)
    with amk.ReferenceVM(image_of("toy", 1), weights) as machine:
        assert np.array_equal(machine.step_batch([7], 0)[0], machine.step(7, 0))
        assert machine.decode_batch([7], 0).tolist() == [machine.decode(7, 0)] == machine.next_tokens


@pytest.fixture(scope="module")
def four() -> Any:
    with amk.ReferenceVM(image_of("toy", 4), amk.open_model("toy").weights()) as machine:
        yield machine


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)


@settings(max_examples=80, deadline=None)
@given(ANYTHING | st.lists(ANYTHING, max_size=6), ANYTHING)
def test_bad_tokens_end_in_one_typed_error(four: Any, tokens: Any, pos: Any) -> None:
    for call in (four.step_batch, four.decode_batch):
        try:
            call(tokens, pos)
        except AmkError as error:
            assert isinstance(error, InputError) and len(str(error).splitlines()) == 1
        else:
            assert len(tokens) == 4 and all(0 <= token < 256 for token in tokens) and 0 <= pos <= 60


# --- machines that share ----------------------------------------------------------------------------------------------


def test_machines_that_share_have_one_cache_and_one_copy_of_the_weights() -> None:
    weights = amk.open_model("toy").weights()
    one = amk.ReferenceVM(image_of("toy", 1), weights)
    many = one.beside(image_of("toy", 4))
    with amk.ReferenceVM(image_of("toy", 1), weights) as alone:
        expected = [alone.step(token, pos) for pos, token in enumerate([3, 141, 59, 26, 5])][-1]
    many.step_batch([3, 141, 59, 26], 0)
    np.testing.assert_allclose(one.step(5, 4), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert all(np.array_equal(a, b) for a, b in zip(one.get_kv(0), many.get_kv(0), strict=True))
    one.close()  # in any order
    assert many.get_kv(0, 5)[0].any() and many.step_batch([1, 2, 3, 4], 5).shape == (4, 256)
    many.close()


def test_what_cannot_be_shared_is_named() -> None:
    weights = amk.open_model("toy").weights()
    one = amk.ReferenceVM(image_of("toy", 1), weights)
    for image, match in (
        (image_of("toy", 4, max_seq=32), r"kv\.0\.[kv] has .* bytes there"),
        (image_of("toy-2L", 4), "share: "),
        (image_of("toy-qwen3", 4), "share: "),
    ):
        with pytest.raises(InputError, match=match):
            one.beside(image)
    with pytest.raises(InputError, match="share: expected a ReferenceVM"):
        amk.ReferenceVM(image_of("toy", 4), {}, share=7)  # type: ignore[arg-type]
    state = amk.open_model("toy-gdn")
    image = amk.lower(state.config, amk.ScheduleConfig.default(), "h200", 64).pack()
    with amk.ReferenceVM(image, state.weights()) as hybrid, pytest.raises(UnsupportedModel, match="state"):
        hybrid.beside(image)
    one.close()
    with pytest.raises(InputError, match="closed"):
        one.beside(image_of("toy", 4))
