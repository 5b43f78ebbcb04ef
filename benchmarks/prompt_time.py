#!/usr/bin/env python3
"""Time to the first token of a prompt, in blocks of consecutive tokens against one token at a time.

    python benchmarks/prompt_time.py MODEL [--device cuda] [--prompt 1024] [--blocks 16,1] [--repeat 20] [--output FILE]

MODEL is a checkpoint directory, an embedded model or a shape (0.6B, 1B, 8B). One machine holds the weights and the
cache; a machine for each block size shares both. A time is that of the first `next` of `amk.generate`, greedy, without
log probabilities, from a cache whose rows are those of the run before: the whole prompt and the first choice, nothing
of loading or lowering, whose times stand beside it. The sizes take turns. Every size must choose the first token, and
the `--check` tokens after it, that one token at a time chooses; where one does not, and the two largest logits there
are further apart than rounding may bring them, the exit code is 1. Prints one JSON object: median, p10 and p90 of each
size in microseconds, and the step of one token behind the prompt as a yardstick.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np

import amk
from amk.evaluate import host_cpu, lower_and_pack
from amk.machine import default_gpu, open_machine, pick_device
from amk.oracle import error_limit

WARM_UP = 2


def prompt_of(count: int, vocab: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab, count)]


def spread(times: list[float]) -> dict[str, float]:
    p10, median, p90 = (round(1e6 * float(value), 1) for value in np.percentile(times, (10, 50, 90)))
    return {"median_us": median, "p10_us": p10, "p90_us": p90}


def first_token(model: str, prompt: list[int], machine: Any, blocks: Any) -> tuple[int, float]:
    generation = amk.generate(
        model, prompt, machine=machine, prompt_machine=blocks, max_new_tokens=1, stop_at_eos=False, logprobs=False
    )
    start = time.perf_counter()
    token = next(generation).token
    return token, time.perf_counter() - start


def continuation(model: str, prompt: list[int], machine: Any, blocks: Any, count: int) -> list[int]:
    options = {"machine": machine, "prompt_machine": blocks, "max_new_tokens": count}
    return [token.token for token in amk.generate(model, prompt, stop_at_eos=False, logprobs=False, **options)]


def gap_after(machine: Any, tokens: list[int]) -> float:
    """Of the two largest logits after these tokens, as a part of the largest."""
    for pos, token in enumerate(tokens):
        logits = machine.step(token, pos)
    second, first = np.sort(logits)[-2:]
    return float((first - second) / np.abs(logits).max())


def measure(arguments: argparse.Namespace, device: str, sizes: list[int]) -> dict[str, Any]:
    model, count = arguments.model, arguments.prompt
    source = amk.open_model(model, arguments.quantize)
    target = amk.resolve_target(default_gpu() if arguments.gpu is None else arguments.gpu)
    prompt = prompt_of(count, source.config.vocab, arguments.seed)
    max_seq = count + max(max(sizes), arguments.check) + 1
    images, lowering_s = {}, {}
    for size in sorted({1, *sizes}):
        start = time.perf_counter()
        _, images[size] = lower_and_pack(source, amk.ScheduleConfig.default(), target, max_seq, size)
        lowering_s[size] = round(time.perf_counter() - start, 3)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    steps: list[float] = []
    with open_machine(device, images[1], source.weights(hashed=False)) as machine:
        beside = {size: None if size == 1 else machine.beside(images[size]) for size in sizes}
        expected = continuation(model, prompt, machine, None, 1 + arguments.check)
        differ = {}
        for size in sizes:
            found = continuation(model, prompt, machine, beside[size], 1 + arguments.check)
            if found != expected:
                at = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
                gap = gap_after(machine, [*prompt, *expected[:at]])
                limit = 2 * error_limit(source.config.dtype, source.config, position=count + at)
                differ[size] = {"token": at, "relative_gap": gap, "limit": limit, "is_tie": gap <= limit}
        for round_ in range(WARM_UP + arguments.repeat):
            print(f"round {round_ + 1} of {WARM_UP + arguments.repeat}", file=sys.stderr)
            for size in sizes:
                _, took_s = first_token(model, prompt, machine, beside[size])
                if round_ >= WARM_UP:
                    times[size].append(took_s)
            start = time.perf_counter()
            machine.decode(expected[0], count)
            if round_ >= WARM_UP:
                steps.append(time.perf_counter() - start)
        for blocks in filter(None, beside.values()):
            blocks.close()
    return {
        "time_to_first_token": {str(size): spread(times[size]) for size in sizes},
        "step_of_one_token": spread(steps),
        "tokens_per_s_of_the_prompt": {str(size): round(count / float(np.median(times[size])), 1) for size in sizes},
        "lowering_s": {str(size): lowering_s[size] for size in sizes},
        "checked_tokens": 1 + arguments.check,
        "differs_from_one_at_a_time": {str(size): where for size, where in differ.items()},
        "image_hashes": {str(size): images[size].hash for size in sizes},
        "gpu": target.name,
        "device_name": host_cpu() if device == "cpu" else amk.resolve_target("local").name,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint directory, an embedded model or a shape")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gpu", help="target of the schedule (default: the live device, else h200)")
    parser.add_argument("--quantize", choices=("int8",))
    parser.add_argument("--prompt", type=int, default=1024, help="its tokens, random")
    parser.add_argument("--blocks", default="16,1", help="block sizes, separated by commas")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--check", type=int, default=16, help="tokens after the first that have to agree")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="a file for the JSON object as well")
    arguments = parser.parse_args()
    sizes = [int(word) for word in arguments.blocks.split(",")]
    result: dict[str, Any] = {
        "benchmark": "prompt_time",
        "model": arguments.model,
        "quantize": arguments.quantize,
        "prompt_tokens": arguments.prompt,
        "repeat": arguments.repeat,
        "host_cpu": host_cpu(),
        "library_build_id": amk.build_info().get("build_id", ""),
    }
    code = 0
    try:
        device, _ = pick_device(arguments.device)
        result |= {"device": device, **measure(arguments, device, sizes)}
        code = 0 if all(where["is_tie"] for where in result["differs_from_one_at_a_time"].values()) else 1
    except amk.Unavailable as reason:
        print(f"prompt_time: nothing was measured: {reason}", file=sys.stderr)
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
