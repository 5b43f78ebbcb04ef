"""Small checkpoints for the GPU tests: every family in f32 and bf16, and one with a long cache.

`python tests/python/gpu_checkpoints.py DIRECTORY` writes them where transformers is; a GPU machine without it is given
the directory as AMK_TEST_CHECKPOINTS.
"""

from __future__ import annotations

import sys
from pathlib import Path

FAMILY_NAMES = ("llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm")
LONG = "llama3-long-f32"
LONG_ROWS = 8192
NAMES = (*(f"{family}-{dtype}" for family in FAMILY_NAMES for dtype in ("f32", "bf16")), LONG)


def build(directory: Path) -> None:
    import torch

    from families import FAMILIES, build_checkpoint

    assert set(FAMILY_NAMES) == set(FAMILIES)
    for name in NAMES:
        family, dtype = name.split("-")[0], name.split("-")[-1]
        gain = FAMILIES[family][2]["hidden_size"] ** -0.5  # keeps a rounding error its size
        keys = {"max_position_embeddings": LONG_ROWS} if name == LONG else {}
        if dtype == "bf16":
            keys |= {"dtype": torch.bfloat16, "initializer_range": gain}
        build_checkpoint(directory / name, family, seed=5, **keys)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
