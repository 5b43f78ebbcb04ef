"""The default run is the same on every computer: it sees no GPU, even where there is one."""

from __future__ import annotations

import os
import signal

import pytest

# A shell starts background jobs with SIGINT ignored, and children inherit that: the tests that interrupt one would then
# wait in vain, wherever a whole run happens to be a background job.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if "not gpu" in (config.getoption("markexpr", default="") or ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read by the driver when it is first asked
