#!/usr/bin/env python3
"""Rows of a kernel task through its solution, one plain launch each, judged: what to put behind a sanitizer's tool.

    compute-sanitizer --tool racecheck python tests/gpu/launch_task_rows.py norm_scale_shift 1x19x3072_11D_bf16=529x3072

In: a task, names of its rows, each alone or as `NAME=ROWSxCOLUMNS`: with other S and C, for operands [1, S or 1, C];
without any, the regression rows that are not refused. An installed amk and a GPU; no torch. Out: a line per row, exit
status 1 where one is wrong. `amk bench kernel` holds streams and captures graphs, which take tools too long.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from amk.errors import AmkError, InputError, Rejected
from amk.tasks.check import SOLUTION, call_at, check_trial, make_trial
from amk.tasks.device import HarnessDevice
from amk.tasks.measure import load_oracle
from amk.tasks.operands import Block
from amk.tasks.workloads import Row, Task, load_task

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from resized_rows import resized  # noqa: E402


def rows_asked(task: Task, names: list[str]) -> list[Row]:
    named = {row.name: row for row in task.rows}
    if not names:
        return [row for row in task.rows if row.kind == "regression" and not row.rejects]
    found = []
    for asked in names:
        name, _, size = asked.partition("=")
        if name not in named:
            raise InputError(f"{task.name}: expected one of its rows, got {name!r}")
        found.append(with_size(named[name], size) if size else named[name])
    return found


def with_size(row: Row, size: str) -> Row:
    match = re.fullmatch("([1-9][0-9]*)x([1-9][0-9]*)", size)
    if not match:
        raise InputError(f"{row.name}: expected a size as 529x3072, got {size!r}")
    shapes = [spec.shape for spec in (*row.inputs.values(), *row.outputs.values())]
    if any(len(shape) != 3 or shape[0] != 1 for shape in shapes):
        raise InputError(f"{row.name}: expected operands [1, S or 1, C] for another size, got {shapes}")
    return resized(row, int(match[1]), int(match[2]))


def launch(device: HarnessDevice, task: Task, row: Row, oracle: Any) -> None:
    block = Block(row, oracle.OPERANDS)
    trial = make_trial(block, oracle, 0)
    address = device.allocate(block.nbytes)
    try:
        device.upload(address, trial.image)
        status = device.run(device.entry(task.name, SOLUTION), call_at(block, address))
        if status:
            raise Rejected(f"status {status}")
        check_trial(device, block, address, trial)
    finally:
        device.free(address)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("rows", nargs="*", metavar="ROW[=ROWSxCOLUMNS]")
    asked = parser.parse_args()
    failed = 0
    try:
        task = load_task(asked.task)
        rows, oracle = rows_asked(task, asked.rows), load_oracle(task)
        device = HarnessDevice(0)
        device.open()
        for row in rows:
            try:
                launch(device, task, row, oracle)
                print(f"ok {row.name}", flush=True)
            except Rejected as error:
                failed += 1
                print(f"FAIL {row.name}: {error}", flush=True)
        device.close()
    except AmkError as error:
        print(f"launch_task_rows: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
