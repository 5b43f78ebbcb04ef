#!/usr/bin/env python3
"""What the host adds to each generated token: a plain decode loop against the kernel time of the same steps.

    python benchmarks/host_cost.py MODEL [--device cuda] [--tokens 256] [--repeat 5] [--output FILE]

MODEL is a checkpoint directory or an embedded model. Needs the wheel and a GPU; without one it says so, gives what the
loop itself costs (a machine that answers at once in the GPU's place), and ends with exit code 4.

Loops, greedy, from one prompt of one token, in turns: `generate` is amk.generate's iterator without log probabilities,
opened before the clock starts, `generate_logprobs` with them (all logits cross to the host), `step` is machine.step and
an argmax, `decode` is machine.decode, `vm_decode` is the C call amk_vm_decode with nothing around it, `vm_calls` are
amk_vm_write, amk_vm_run and amk_vm_read, and `vm_run` is amk_vm_run alone. Kernel time is amk_vm_time of the same
tokens at the same positions: CUDA events around what a step enqueues up to the kernel's end. The host's cost of a token
is the median over rounds of (wall time of a loop - kernel time of its steps) / tokens. An idle device records the first
event at once, so the call that launches the kernel lies between the two and counts as kernel time: `launch_call_us` is
how long it takes the host (amk_vm_launch on the machine's own stream). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import amk
from amk import _lib
from amk._lib import ffi, lib
from amk.evaluate import host_cpu, lower_and_pack
from amk.machine import default_gpu, open_machine, pick_device

MARK_US = 5.0
WARM_UP = 16


class AtOnce:
    """A machine that computes nothing: what is left is the loop's own cost."""

    def __init__(self, vocab: int, max_seq: int) -> None:
        self.max_seq, self.logits = max_seq, np.zeros(vocab, np.float32)

    def step(self, token: int, pos: int) -> np.ndarray:
        return self.logits

    def decode(self, token: int, pos: int) -> int:
        return 0


def generate(model: str, machine: Any, tokens: int, *, logprobs: bool) -> Callable[[], list[int]]:
    """The loop, ready to run: opening the model's files is no cost of a token."""
    loop = amk.generate(model, [1], machine=machine, max_new_tokens=tokens, stop_at_eos=False, logprobs=logprobs)
    return lambda: [token.token for token in loop]


def step_loop(machine: Any, tokens: int) -> list[int]:
    token, found = 1, []
    for pos in range(tokens):
        token = int(machine.step(token, pos).argmax())
        found.append(token)
    return found


def decode_loop(machine: Any, tokens: int) -> list[int]:
    token, found = 1, []
    for pos in range(tokens):
        token = machine.decode(token, pos)
        found.append(token)
    return found


def vm_decode_loop(machine: Any, tokens: int) -> list[int]:
    handle, token, found, decode = machine._handle, ffi.new("int32_t *", 1), [], lib.amk_vm_decode
    for pos in range(tokens):
        if status := decode(handle, token[0], pos, token):
            _lib.check(status)
        found.append(token[0])
    return found


def vm_calls_loop(machine: Any, tokens: int) -> list[int]:
    handle, token, found = machine._handle, ffi.new("int32_t *", 1), []
    write, run, read = lib.amk_vm_write, lib.amk_vm_run, lib.amk_vm_read
    for pos in range(tokens):
        _lib.check(write(handle, b"token", 0, token, 4))
        _lib.check(run(handle, pos))
        _lib.check(read(handle, b"next_token", 0, token, 4))
        found.append(token[0])
    return found


def vm_run_loop(machine: Any, tokens: int) -> list[int]:
    handle, run = machine._handle, lib.amk_vm_run
    for pos in range(tokens):
        _lib.check(run(handle, pos))
    return []


def launch_call_us(machine: Any, tokens: int) -> float:
    """Of the host, in amk_vm_launch; the steps are finished outside of the clock."""
    handle, launch, finish, times = machine._handle, lib.amk_vm_launch, lib.amk_vm_finish, []
    for pos in range(tokens):
        start = time.perf_counter()
        status = launch(handle, pos, ffi.NULL)
        times.append(1e6 * (time.perf_counter() - start))
        _lib.check(status)
        _lib.check(finish(handle))
    return statistics.median(times)


def kernel_us(machine: Any, fed: list[int]) -> float:
    """Of the steps that feed these tokens at positions 0, 1, ..."""
    total = 0.0
    for pos, token in enumerate(fed):
        machine.write("token", np.array([token], np.int32))
        total += float(machine.time(pos, 1)[0])
    return total


def loop_alone_us(model: str, tokens: int, repeat: int) -> dict[str, float]:
    """Microseconds per token of amk.generate over a machine that computes nothing."""
    source = amk.open_model(model)
    machine = AtOnce(source.config.vocab, tokens + 1)
    out = {}
    for name, logprobs in (("generate", False), ("generate_logprobs", True)):
        times = []
        for _ in range(repeat):
            run = generate(model, machine, tokens, logprobs=logprobs)
            start = time.perf_counter()
            run()
            times.append(1e6 * (time.perf_counter() - start) / tokens)
        out[name] = round(statistics.median(times), 3)
    return out


def measure(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    model, tokens = arguments.model, arguments.tokens
    source = amk.open_model(model)
    target = amk.resolve_target(default_gpu() if arguments.gpu is None else arguments.gpu)
    _, image = lower_and_pack(source, amk.ScheduleConfig.default(), target, tokens + 1)
    loops = {
        "generate": lambda machine: generate(model, machine, tokens, logprobs=False),
        "generate_logprobs": lambda machine: generate(model, machine, tokens, logprobs=True),
        "step": lambda machine: lambda: step_loop(machine, tokens),
        "decode": lambda machine: lambda: decode_loop(machine, tokens),
        "vm_decode": lambda machine: lambda: vm_decode_loop(machine, tokens),
        "vm_calls": lambda machine: lambda: vm_calls_loop(machine, tokens),
        "vm_run": lambda machine: lambda: vm_run_loop(machine, tokens),
    }
    walls: dict[str, list[float]] = {name: [] for name in loops}
    kernels: list[float] = []
    with open_machine(device, image, source.weights(hashed=False)) as machine:
        expected = decode_loop(machine, tokens)
        for _ in range(WARM_UP):
            machine.relaunch()
        for round_ in range(arguments.repeat):
            print(f"round {round_ + 1} of {arguments.repeat}", file=sys.stderr)
            kernels.append(kernel_us(machine, [1, *expected[:-1]]))
            for name, loop in loops.items():
                run = loop(machine)
                start = time.perf_counter()
                found = run()
                walls[name].append(1e6 * (time.perf_counter() - start))
                if name != "vm_run" and found != expected:
                    raise SystemExit(f"{name} generated other tokens than the first loop")
        launch_us = launch_call_us(machine, tokens)
    return {
        "kernel_us_per_token": round(statistics.median(kernels) / tokens, 3),
        "wall_us_per_token": {name: round(statistics.median(times) / tokens, 3) for name, times in walls.items()},
        "host_us_per_token": {
            name: round(statistics.median((t - k) / tokens for t, k in zip(times, kernels, strict=True)), 3)
            for name, times in walls.items()
        },
        "launch_call_us": round(launch_us, 3),
        "image_hash": image.hash,
        "gpu": target.name,
        "device_name": amk.resolve_target("local").name,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint directory, or an embedded model")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gpu", help="target of the schedule (default: the live device)")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--output", help="a file for the JSON object as well")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "host_cost",
        "model": arguments.model,
        "tokens": arguments.tokens,
        "mark_us": MARK_US,
        "host_cpu": host_cpu(),
        "library_build_id": amk.build_info().get("build_id", ""),
        "loop_alone_us_per_token": loop_alone_us(arguments.model, arguments.tokens, arguments.repeat),
    }
    code = 0
    try:
        device, _ = pick_device(arguments.device)
        if device == "cpu":
            raise amk.Unavailable("the reference machine on the cpu has no kernel time")
        result |= measure(arguments, device)
        result["meets_mark"] = result["host_us_per_token"]["generate"] <= MARK_US
    except amk.Unavailable as reason:
        print(f"host_cost: no GPU, so nothing was measured: {reason}", file=sys.stderr)
        result["skipped"] = str(reason)
        code = 4
    text = json.dumps(result)
    print(text)
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
