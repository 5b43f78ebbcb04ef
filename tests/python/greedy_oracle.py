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
    history: list[tuple[Any, Any]] = []  # per layer: K, V [rows, G, D], or the states after each token
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
        past = [tuple(part.swapaxes(0, 1) for part in pair) for pair in history]
        state = [tuple(part[-1] for part in pair) for pair in history]
        logits = oracle.probe(tokens[-1:], [position], past.__getitem__, state.__getitem__, rows=new)[0]
        history = [
            more if config.is_linear(layer) else tuple(np.concatenate(parts) for parts in zip(pair, more, strict=True))
            for layer, (pair, more) in enumerate(zip(history, new, strict=True))
        ]
