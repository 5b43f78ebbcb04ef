#!/usr/bin/env python3
"""Trials to the best schedule with the prior and without it, on the cost model.

    python benchmarks/prior.py [--budget 60] [--seeds 10] [--output FILE]

Eight shapes of known models on several GPUs. For each, the corpus holds what cold loops kept on the seven others (never
on the shape itself), and the same sampler and keep rule as `amk.loop` then search it cold and warm, from several seeds.
Nothing is executed: schedules are lowered, proved and priced, which is what a loop without a GPU compares.
By this cost model the default is within 1 % of the best on most shapes, so trials to the fastest would be 1 with and
without a prior. Two questions are asked instead. "order": trials until a schedule is within 1 % of the fastest found by
any search on the shape, and the simplest of those, which is where the keep rule leads. "blind": the default is taken
away from all searches, those behind the corpus too, and the trials until within 1 % of the fastest are counted.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import amk
from amk.errors import Rejected
from amk.model_config import parse_config
from amk.records import Trial
from amk.search.campaign import Campaign
from amk.search.keep import complexity, decide, predicted_gain
from amk.search.prior import order_prior, shape_of
from amk.search.sampler import BuiltinSampler, Space

MAX_SEQ, POSITION = 4096, 1024
# name: (hidden, ffn, heads, kv heads, head dim, layers, vocab), GPU
SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "SmolLM2-135M": ((576, 1536, 9, 3, 64, 30, 49152), "l40s"),
    "SmolLM2-360M": ((960, 2560, 15, 5, 64, 32, 49152), "a100"),
    "Qwen2.5-0.5B": ((896, 4864, 14, 2, 64, 24, 151936), "h100"),
    "Qwen3-0.6B": ((1024, 3072, 16, 8, 128, 28, 151936), "h200"),
    "Llama-3.2-1B": ((2048, 8192, 32, 8, 64, 16, 128256), "h200"),
    "SmolLM2-1.7B": ((2048, 8192, 32, 32, 64, 24, 49152), "h100"),
    "Llama-3.2-3B": ((3072, 8192, 24, 8, 128, 28, 128256), "b200"),
    "Llama-3.1-8B": ((4096, 14336, 32, 8, 128, 32, 128256), "h200"),
}


class Problem:
    """One shape on one GPU: prices schedules, each once."""

    def __init__(self, name: str) -> None:
        (hidden, ffn, heads, kv_heads, head_dim, layers, vocab), gpu = SHAPES[name]
        self.name, self.target = name, amk.TARGETS[gpu]
        self.config = parse_config(
            {
                "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads,
                "num_key_value_heads": kv_heads, "head_dim": head_dim, "num_hidden_layers": layers,
                "vocab_size": vocab, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
            },
            name,
        )  # fmt: skip
        self.shape = shape_of(self, self.target, MAX_SEQ)  # type: ignore[arg-type]
        self.prices: dict[str, float | None] = {}

    def price(self, schedule: amk.ScheduleConfig) -> float | None:
        """Predicted microseconds; None where the schedule is refused."""
        name = schedule.schedule_id
        if name not in self.prices:
            try:
                program = amk.lower(self.config, schedule, self.target, MAX_SEQ)
                program.validate()
                self.prices[name] = program.cost(POSITION).latency_us
            except Rejected:
                self.prices[name] = None
        return self.prices[name]


def search(problem: Problem, budget: int, seed: int, corpus: list[Trial], loop: str, blind: bool) -> list[Trial]:
    """What `amk.loop` does on the cost model, without the judge."""
    prior = order_prior(corpus, problem.shape, "predicted", problem.target)
    space = Space(amk.search_space(problem.target))
    sampler = BuiltinSampler(space, round((budget - 1) * 0.35), seed, prior)
    campaign = Campaign([amk.ScheduleConfig.default().schedule_id] if blind else [])
    trials: list[Trial] = []
    for experiment in range(budget):
        proposal = sampler.propose(experiment, campaign.incumbent_config, campaign.seen)
        if proposal is None:
            break
        campaign.begin(proposal.config.schedule_id)
        latency = problem.price(proposal.config)
        keep, slack = latency is not None, 0.0
        if latency is not None and campaign.incumbent is not None:
            sizes = complexity(proposal.config), complexity(campaign.incumbent_config)  # type: ignore[arg-type]
            decision = decide(predicted_gain(latency, campaign.incumbent.latency_us), *sizes, campaign.slack)
            keep, slack = decision.keep, decision.slack
        tag = "rejected" if latency is None else "kept" if keep else "revert"
        trials.append(
            Trial(
                trial_id=f"{loop}-{experiment:06d}", loop=loop, experiment=experiment, tag=tag, model=problem.name,
                gpu=problem.target.name, regime="predicted", correctness="REJECTED" if latency is None else "PASS",
                latency_us=latency, pct_of_roofline=None, schedule_id=proposal.config.schedule_id, kernel_id="",
                description=proposal.text, schedule_config=proposal.config.to_dict(), verdict={},
                comparison={"slack": slack}, shape=problem.shape, time_utc="2026-01-01T00:00:00Z", duration_s=0.0,
            )
        )  # fmt: skip
        campaign.end(trials[-1])
    return trials


def size_of(trial: Trial) -> int:
    return complexity(amk.ScheduleConfig.from_dict(trial.schedule_config)[0])


def question(name: str, problems: dict[str, Problem], budget: int, seeds: range) -> dict[str, Any]:
    """Cold and warm searches of every shape, and how many trials they took."""
    blind = name == "blind"
    cold = {
        shape: [search(problem, budget, seed, [], f"{i:06x}{seed:06x}", blind) for seed in seeds]
        for i, (shape, problem) in enumerate(problems.items())
    }
    rows: dict[str, Any] = {}
    for i, (shape, problem) in enumerate(problems.items()):
        corpus = [t for other in problems if other != shape for t in cold[other][0] if t.tag == "kept"]
        warm = [search(problem, budget, seed, corpus, f"{i + 256:06x}{seed:06x}", blind) for seed in seeds]
        every = [t for trials in (*cold[shape], *warm) for t in trials if t.latency_us is not None]
        fastest = min(t.latency_us for t in every)
        fast = {t.schedule_id: size_of(t) for t in every if t.latency_us <= 1.01 * fastest}
        goal = set(fast) if blind else {one for one, size in fast.items() if size == min(fast.values())}
        counts = {
            which: [
                next((t.experiment + 1 for t in trials if t.schedule_id in goal), budget + 1) for trials in searches
            ]
            for which, searches in (("cold", cold[shape]), ("warm", warm))
        }
        rows[shape] = {
            "gpu": problem.target.name,
            "fastest_us": round(fastest, 3),
            "goal_schedules": len(goal),
            **{f"trials_{which}": statistics.median(found) for which, found in counts.items()},
            **{f"reached_{which}": sum(n <= budget for n in found) for which, found in counts.items()},
            **{f"all_{which}": found for which, found in counts.items()},
        }
    means = {
        f"mean_trials_{which}": round(statistics.mean(n for row in rows.values() for n in row[f"all_{which}"]), 2)
        for which in ("cold", "warm")
    }
    fewer = sum(row["trials_warm"] < row["trials_cold"] for row in rows.values())
    more = sum(row["trials_warm"] > row["trials_cold"] for row in rows.values())
    return {**means, "shapes_with_fewer": fewer, "shapes_with_more": more, "shapes": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    problems = {name: Problem(name) for name in SHAPES}
    report = {
        "benchmark": "prior",
        "kind": "predicted (cost model)",
        "library_build_id": amk.build_info().get("build_id"),
        "budget": options.budget,
        "seeds": options.seeds,
        "max_seq": MAX_SEQ,
        "position": POSITION,
        "not_reached": "counts as budget + 1",
        **{name: question(name, problems, options.budget, range(options.seeds)) for name in ("order", "blind")},
        "seconds": round(time.perf_counter() - start, 1),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
