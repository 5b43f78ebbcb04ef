"""Small checkpoints for the GPU tests: every family in f32 and bf16, and what each f32 one must generate.

`python tests/python/gpu_checkpoints.py DIRECTORY` writes them where transformers is; a GPU machine without it is given
the directory as AMK_TEST_CHECKPOINTS. expected.json holds the oracle's greedy tokens after the prompt, by family.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FAMILY_NAMES = ("llama2", "llama3", "mistral", "qwen2", "qwen3", "qwen3next", "smollm")
MAX_SEQ = 8192
NAMES = tuple(f"{family}-{dtype}" for family in FAMILY_NAMES for dtype in ("f32", "bf16"))
EXPECTED = "expected.json"
NEW_TOKENS = 256
PROMPT_TOKENS = 3


def build(directory: Path) -> None:
    import torch

    from families import FAMILIES, build_checkpoint

    assert set(FAMILY_NAMES) == set(FAMILIES)
    for name in NAMES:
        family, dtype = name.split("-")
        gain = FAMILIES[family][2]["hidden_size"] ** -0.5  # keeps a rounding error its size
        keys = {} if dtype == "f32" else {"dtype": torch.bfloat16, "initializer_range": gain}
        build_checkpoint(directory / name, family, seed=5, max_position_embeddings=MAX_SEQ, **keys)
    expected = {family: expect(directory / f"{family}-f32") for family in FAMILY_NAMES}
    (directory / EXPECTED).write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


def expect(checkpoint: Path) -> dict:
    """A prompt and the oracle's 256 tokens after it, none of which is chosen so narrowly that a machine within its
    error limit could choose another."""
    import amk
    from amk.exam import MOST_OF_ANALYTIC
    from amk.oracle import error_limit
    from greedy_oracle import greedy_tokens

    source = amk.open_model(checkpoint)
    needed = 2 * error_limit("f32", source.config, position=PROMPT_TOKENS + NEW_TOKENS)
    if source.config.has_state:  # whose machines may be further off than that
        needed *= MOST_OF_ANALYTIC
    for seed in range(64):
        prompt = [(37 * seed + 59 * i + 3) % source.config.vocab for i in range(PROMPT_TOKENS)]
        tokens, lead = greedy_tokens(source, prompt, NEW_TOKENS)
        if lead > needed:
            return {"prompt": prompt, "tokens": tokens, "smallest_lead": lead, "distinct": len(set(tokens))}
    raise AssertionError(f"{checkpoint}: a choice was too narrow after each of 64 prompts")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
