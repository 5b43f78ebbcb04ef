"""The choice of a token against a definition written in exact decimals, and its draws against Philox written out."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from amk.errors import InputError, NonFinite
from amk.sampling import Sampling, choose, kept_tokens, uniform

MARGIN = Decimal("1e-11")  # closer than this, rounding may decide and the definition has nothing to say


def philox_word(seed: int, block: int) -> int:
    """Word 0 of Philox4x64-10, from figure 3 and table 2 of Salmon et al., SC 2011."""
    mask = (1 << 64) - 1
    x, key = [block, 0, 0, 0], [seed, 0]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [second >> 64 ^ x[1] ^ key[0], second & mask, first >> 64 ^ x[3] ^ key[1], first & mask]
        key = [key[0] + 0x9E3779B97F4A7C15 & mask, key[1] + 0xBB67AE8584CAA73B & mask]
    return x[0]


def kept_by_definition(logits: list[float], sampling: Sampling) -> tuple[list[int], list[Decimal]]:
    """Surviving ids, ascending, with their weights."""
    with localcontext() as context:
        context.prec = 30
        temperature = Decimal(sampling.temperature)
        weight = [(Decimal(x) / temperature).exp() for x in logits]
        ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
        ranked = ranked[: sampling.top_k or len(ranked)]
        total, mass = sum(weight[i] for i in ranked), Decimal(0)
        if sampling.top_p < 1:
            for count, i in enumerate(ranked, 1):
                mass += weight[i] / total
                if abs(mass - Decimal(sampling.top_p)) <= MARGIN:
                    reject()
                if mass >= Decimal(sampling.top_p):
                    ranked = ranked[:count]
                    break
        return sorted(ranked), [weight[i] for i in sorted(ranked)]


def chosen_by_definition(logits: list[float], sampling: Sampling, index: int) -> int:
    kept, weights = kept_by_definition(logits, sampling)
    with localcontext() as context:
        context.prec = 30
        point = Decimal(philox_word(sampling.seed, index) >> 11) / (1 << 53)
        mass = Decimal(0)
        for token, weight in zip(kept, weights, strict=True):
            mass += weight / sum(weights)
            if abs(mass - point) <= MARGIN:
                reject()
            if point < mass:
                return token
    raise AssertionError("the whole mass is above every point")


SEEDS = st.integers(0, 2**64 - 1)
LOGITS = st.lists(
    st.one_of(st.floats(-20, 20, width=32), st.integers(-2, 2).map(float)),  # few values: ties
    min_size=1,
    max_size=40,
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, 45),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0, exclude_min=True)),
    seed=SEEDS,
)


def array(logits: list[float]) -> np.ndarray:
    return np.array(logits, np.float32)


@given(LOGITS, SAMPLINGS, st.integers(0, 2**40))
@settings(max_examples=200, deadline=None)
def test_equals_the_definition(logits: list[float], sampling: Sampling, index: int) -> None:
    kept, _ = kept_by_definition(logits, sampling)
    assert kept_tokens(array(logits), sampling).tolist() == kept
    token, logprob = choose(array(logits), sampling, index)
    assert token == chosen_by_definition(logits, sampling, index)
    assert logprob == pytest.approx(logits[token] - math.log(sum(math.exp(x) for x in logits)), abs=1e-9)


@given(LOGITS, SAMPLINGS, st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_invariants(logits: list[float], sampling: Sampling, index: int) -> None:
    values = array(logits)
    kept = kept_tokens(values, sampling)
    token, logprob = choose(values, sampling, index)
    assert token in kept and logprob <= 1e-12 and (token, logprob) == choose(values, sampling, index)
    assert np.all(np.diff(kept) > 0) and int(np.argmax(values)) in kept
    assert len(kept) <= (sampling.top_k or len(logits))
    outside = np.delete(values, kept)
    assert outside.size == 0 or outside.max() <= values[kept].min()
    # a cut that keeps everything, or a shift of all logits (exact here), changes nothing
    plain = Sampling(sampling.temperature, 0, 1.0, sampling.seed)
    assert choose(values, Sampling(sampling.temperature, len(logits), 1.0, sampling.seed), index) == choose(
        values, plain, index
    )
    assert choose(np.array(logits) + 0.0, sampling, index)[0] == token
    assert choose(values, Sampling(sampling.temperature, 1, 1.0, sampling.seed), index)[0] == int(np.argmax(values))


@given(SEEDS, st.integers(0, 2**63))
def test_the_draw_is_philox(seed: int, index: int) -> None:
    assert uniform(seed, index) == (philox_word(seed, index) >> 11) / 2**53


def test_philox_known_answer() -> None:
    """kat_vectors of the authors' Random123: philox4x64 10, all zero."""
    assert philox_word(0, 0) == 0x16554D9ECA36314C
    assert uniform(0, 0) == (0x16554D9ECA36314C >> 11) / 2**53


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = array([1.0, 3.0, 3.0, -2.0])
    for index in range(5):
        assert choose(logits, Sampling(seed=index), index)[0] == 1
        assert choose(logits, Sampling(1.0, top_k=1, seed=index), index)[0] == 1
        assert choose(logits, Sampling(1.0, top_p=0.3, seed=index), index)[0] == 1
    assert kept_tokens(logits, Sampling()).tolist() == [1]
    assert kept_tokens(array([0.0, 0.0, 0.0, 0.0]), Sampling(1.0, top_k=3, top_p=0.5)).tolist() == [0, 1]
    assert choose(array([5.0]), Sampling(1.0, 3, 0.5, 9), 4) == (0, 0.0)


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(1.3, top_k=5), Sampling(1.0, top_k=7, top_p=0.85)])
def test_frequencies(sampling: Sampling) -> None:
    """8,000 draws of a fixed seed against the probabilities of the definition: chi square below its 99.9 % point."""
    logits = [2.0, 1.5, 1.5, 1.0, 0.0, -0.5, -1.0, -3.0]
    kept, weights = kept_by_definition(logits, sampling)
    draws = 8_000
    counts = dict.fromkeys(range(len(logits)), 0)
    for index in range(draws):
        counts[choose(array(logits), Sampling(sampling.temperature, sampling.top_k, sampling.top_p, 42), index)[0]] += 1
    expected = {token: draws * float(weight / sum(weights)) for token, weight in zip(kept, weights, strict=True)}
    assert all(counts[token] == 0 for token in counts if token not in expected)
    chi_square = sum((counts[token] - due) ** 2 / due for token, due in expected.items())
    degrees = len(kept) - 1
    assert degrees >= 3
    # Wilson and Hilferty, 1931: chi square / degrees is near the cube of a normal variable; 3.09 is its 99.9 % point
    spread = 2 / (9 * degrees)
    assert chi_square < degrees * (1 - spread + 3.09 * math.sqrt(spread)) ** 3


def test_a_large_vocabulary_is_cut_as_a_small_one() -> None:
    """Beyond the first guess of the nucleus, and with ties across the cut."""
    rng = np.random.default_rng(5)
    logits = np.round(rng.standard_normal(5000), 2).astype(np.float32)
    for top_k, top_p in ((0, 0.05), (0, 0.9), (0, 0.9999), (3000, 0.99), (1500, 1.0), (1, 0.5)):
        order = np.lexsort((np.arange(logits.size), -logits))[: top_k or None]
        weights = np.exp(logits[order].astype(np.float64))
        share = np.cumsum(weights) / weights.sum()
        count = len(order) if top_p == 1.0 else int(np.argmax(share >= top_p)) + 1
        assert kept_tokens(logits, Sampling(1.0, top_k, top_p)).tolist() == sorted(order[:count].tolist())


def test_extremes() -> None:
    logits = array([3e38, -3e38, 2.9e38])
    assert choose(logits, Sampling(5e-324), 0)[0] == 0
    assert choose(logits, Sampling(1.0, seed=2**64 - 1), 2**40)[0] == 0
    assert kept_tokens(logits, Sampling(1e308, top_p=0.9999)).tolist() == [0, 1, 2]
    assert {choose(logits, Sampling(1.7e308), index)[0] for index in range(60)} == {0, 1, 2}
    assert choose(logits, Sampling(), 0)[1] == pytest.approx(0.0)
    assert choose(np.array([1.7e308, -1.7e308]), Sampling(1.0, top_p=0.5), 0) == (0, 0.0)
    for index in range(50):  # a token whose weight is 0 is never drawn, wherever it stands
        assert choose(array([-900.0, 0.0, -900.0]), Sampling(1.0), index)[0] == 1


def test_the_exponential_is_accurate() -> None:
    from amk.sampling import _exp

    x = -np.concatenate([np.linspace(0.0, 700.0, 20_001), np.geomspace(1e-300, 1.0, 2_000)])
    assert np.max(np.abs(_exp(x) / np.exp(x) - 1.0)) < 2e-15
    assert _exp(np.array([0.0, -745.0, -746.0, -math.inf])).tolist() == [1.0, 5e-324, 0.0, 0.0]


BAD = [
    *({"temperature": x} for x in (-0.1, math.nan, math.inf, True, "1", None, 10**400, [1.0])),
    *({"top_k": x} for x in (-1, 1.0, True, None, "5")),
    *({"top_p": x} for x in (0.0, -0.5, 1.0000001, math.nan, True, None, "0.5")),
    *({"seed": x} for x in (-1, 2**64, 0.0, True, None)),
]


@pytest.mark.parametrize("arguments", BAD, ids=str)
def test_bad_arguments_are_named(arguments: dict) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        Sampling(**arguments)


def test_good_arguments() -> None:
    assert Sampling(1, 0, 1).top_p == 1.0 and type(Sampling(1).temperature) is float
    assert Sampling(np.float32(0.5)).temperature == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad: float, temperature: float) -> None:
    with pytest.raises(NonFinite, match="token 2 "):
        choose(array([0.0, 1.0, bad, bad]), Sampling(temperature), 0)


@pytest.mark.parametrize("logits", [np.zeros((2, 2), np.float32), np.zeros(0, np.float32), np.zeros(3, np.int64), "x"])
def test_logits_of_another_kind(logits: object) -> None:
    with pytest.raises(InputError, match="logits"):
        choose(logits, Sampling(), 0)  # type: ignore[arg-type]
