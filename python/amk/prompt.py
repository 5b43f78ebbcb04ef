"""A prompt into a machine's cache, a block of consecutive tokens in each pass over the weights.

In: a machine that decodes a batch, on the cache that generation goes on from; the tokens of a prompt. Out: how many of
them are in the cache, and what the model says after the last of those. The last block is filled up with a token of no
meaning: no token sees a later one, and whoever decodes at the positions behind the prompt replaces their rows first.
This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .errors import InputError, Rejected, UnsupportedModel, show

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Fed", "PromptMachine", "choose_block", "feed_blocks", "open_blocks"]


class PromptMachine(Protocol):
    """What feeding a prompt needs of a machine that decodes a batch."""

    @property
    def batch(self) -> int: ...

    @property
    def max_seq(self) -> int: ...

    def decode_batch(self, tokens: Sequence[int], pos: int) -> Sequence[int]: ...

    def logits_of(self, index: int) -> np.ndarray: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Fed:
    """`count` tokens of a prompt are in the cache; after the last of them, token `place` of the last block, the machine
    chooses `choice`."""

    count: int = 0
    place: int = 0
    choice: int = -1


def feed_blocks(machine: PromptMachine, tokens: Sequence[int]) -> Fed:
    """As many tokens as blocks hold: all, but for a single last one, which costs a step either way, and for those at
    the end of the cache where no whole block fits."""
    fed, count, size = Fed(), len(tokens), machine.batch
    while count - fed.count > 1 and fed.count + size <= machine.max_seq:
        block = list(tokens[fed.count : fed.count + size])
        place = len(block) - 1
        block += [block[-1]] * (size - len(block))
        choices = machine.decode_batch(block, fed.count)
        fed = Fed(fed.count + place + 1, place, int(choices[place]))
    return fed


def choose_block(asked: Any, config: Any, count: int) -> int:
    """Tokens a pass for a prompt of so many: as asked (None: the most, where the prompt is longer than that and the
    model is decoded in batches)."""
    from . import _lib

    most = _lib.limit("MAX_BATCH")
    if asked is None:
        return 1 if config.has_state or count <= most else most
    if type(asked) is not int or not 1 <= asked <= most:
        raise InputError(f"prompt_block: expected None or an integer in 1..{most}, got {show(asked)}")
    if asked > 1 and config.has_state:
        raise InputError(
            f"prompt_block: expected None or 1 for a model with linear layers, whose state takes one token after the "
            f"other, got {asked}"
        )
    return asked if count > 1 else 1


def open_blocks(make: Callable[[], Any], size: int, is_asked: bool, say: Callable[[str], None]) -> Any:
    """The machine that `make` makes; None where this schedule has none (one with an explicit map of tasks, say) and
    nobody asked for blocks, and why is said."""
    try:
        return make()
    except (Rejected, UnsupportedModel, InputError) as refusal:
        if is_asked:
            raise
        say(f"the prompt goes one token at a time, because blocks of {size} were refused: {refusal}")
        return None
