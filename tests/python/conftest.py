"""The default run is the same on every computer: it sees no GPU, even where there is one."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if "not gpu" in (config.getoption("markexpr", default="") or ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read by the driver when it is first asked
