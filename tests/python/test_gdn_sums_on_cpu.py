"""The gated delta net's sums on the CPU: the bits of plain butterflies, however a warp owns its rows. And its gates."""

import ctypes
import math

import numpy as np
import pytest

from kernels_on_cpu import ROOT, compiled, needs_compiler

OWNERS = [(8, 1), (8, 2), (8, 4), *((16, sets) for sets in (1, 2, 4, 8)), *((32, sets) for sets in (1, 2, 4, 8))]
pytestmark = needs_compiler


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    return compiled(folder, ROOT / "tests/kernels_on_cpu/gdn_sums.cu", "gdn_sums")


@pytest.fixture(scope="module")
def differences(library):
    return library.gdn_sums_differences


def gate(library, name, *arguments):
    function = getattr(library, f"gdn_gate_{name}")
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * len(arguments)
    return function(*arguments)


@pytest.mark.parametrize("l2norm", (0, 1))
@pytest.mark.parametrize(("lanes", "sets"), OWNERS)
def test_sums_have_the_bits_of_plain_butterflies(differences, lanes, sets, l2norm):
    assert [differences(lanes, sets, l2norm, 0, seed) for seed in range(5)] == [0] * 5


@pytest.mark.parametrize(("lanes", "sets"), OWNERS)
def test_sums_in_another_order_would_be_found(differences, lanes, sets):
    assert sum(differences(lanes, sets, 1, 1, seed) for seed in range(5)) > 0


def test_gates_are_right_for_every_size_of_number(library):
    for x in np.float32([0, *np.geomspace(1e-6, 85, 400), *-np.geomspace(1e-6, 85, 400)]):
        b = float(x)
        softplus = max(b, 0) + math.log1p(math.exp(-abs(b)))
        assert gate(library, "beta", b) == pytest.approx(1 / (1 + math.exp(-b)), rel=4e-7)
        assert gate(library, "decay", -3.0, b, 0.0) == pytest.approx(math.exp(-math.exp(-3) * softplus), rel=2e-6)


def test_gates_at_the_ends(library):
    """A NaN stays one. Where sigmoid is below the normal numbers, beta is 0."""
    infinity = math.inf
    assert [gate(library, "beta", b) for b in (-infinity, -1000, -100, -88, 100, infinity)] == [0, 0, 0, 0, 1, 1]
    assert [gate(library, "decay", 0, a, 0) for a in (-infinity, -1000, 1000, infinity)] == [1, 1, 0, 0]
    for name, arguments in (("beta", (math.nan,)), ("decay", (0, math.nan, 0)), ("decay", (math.nan, 0, 0)),
                            ("decay", (0, infinity, -infinity))):  # fmt: skip
        assert math.isnan(gate(library, name, *arguments))
