"""Greedy decoding by the float64 oracle: the tokens that a machine's generation must equal one by one.

In: a model, a prompt. Out: token ids, and how near to a tie the nearest choice was. numpy alone, no machine.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from amk.oracle import Oracle


def greedy_tokens(source: Any, prompt: list[int], count: int) -> tuple[list[int], float]:
    """(count tokens after the prompt, the smallest lead of a chosen logit as a part of the largest logit there)."""
    config = source.config
    oracle = Oracle(config, cache(source.raw))
    history: list[tuple[Any, Any]] = []  # per layer: K, V [rows, G, D]
    logits = oracle.prefill(prompt, rows=history)[-1]
    tokens: list[int] = []
    smallest_lead = np.inf
    while True:
        second, best = np.sort(logits)[-2:]
        smallest_lead = min(smallest_lead, (best - second) / np.abs(logits).max())
        tokens.append(int(np.argmax(logits)))
        if len(tokens) == count:
            return tokens, float(smallest_lead)
        position = len(prompt) + len(tokens) - 1
        new: list[tuple[Any, Any]] = []
        past = [(k.transpose(1, 0, 2), v.transpose(1, 0, 2)) for k, v in history]
        logits = oracle.probe(tokens[-1:], [position], past.__getitem__, rows=new)[0]
        history = [
            (np.concatenate([k, more_k]), np.concatenate([v, more_v]))
            for (k, v), (more_k, more_v) in zip(history, new, strict=True)
        ]
