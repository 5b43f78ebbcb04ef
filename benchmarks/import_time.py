#!/usr/bin/env python3
"""What `import amk` adds to `import numpy`, in fresh processes. Target: under 0.15 s.

    python benchmarks/import_time.py [--repeat 21]

Prints one JSON object: medians of the time inside the interpreter of numpy alone, of numpy then amk, and of numpy, amk
and everything that `amk eval` loads. Runs of the three alternate, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

CASES = {
    "numpy": "import numpy",
    "numpy_amk": "import numpy; import amk",
    "numpy_amk_all": "import numpy; import amk; [getattr(amk, name) for name in amk.__all__]; import amk.exam",
}


def seconds(statement: str) -> float:
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=21)
    repeat = parser.parse_args().repeat
    runs: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(repeat + 1):  # the first round writes bytecode and fills the page cache
        for name, statement in CASES.items():
            runs[name].append(seconds(statement))
    median = {name: statistics.median(times[1:]) for name, times in runs.items()}
    added = statistics.median(b - a for a, b in zip(runs["numpy"][1:], runs["numpy_amk"][1:], strict=True))
    added_all = statistics.median(b - a for a, b in zip(runs["numpy"][1:], runs["numpy_amk_all"][1:], strict=True))
    result = {
        "benchmark": "import_time",
        "unit": "s",
        "repeat": repeat,
        "python": sys.version.split()[0],
        **{name: round(value, 4) for name, value in median.items()},
        "amk_adds": round(added, 4),
        "everything_adds": round(added_all, 4),
        "target": 0.15,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
