"""model + prompt -> tokens, one by one: the decode loop, on any machine that can `step`.

In: a model, a prompt (text, token ids or chat messages), how to choose. Out: an iterator of `GeneratedToken` that says
at the end why it ended. A long prompt goes into the cache in blocks, on a second machine that shares it. Whatever is
wrong with the arguments is said by the call itself, before the model is lowered; the tokens are made as they are asked
for. The machine decides nothing here but the logits.
This module imports nothing heavy, so that `import amk` stays cheap.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import AmkError, InputError, show
from .evaluate import DEFAULT_MAX_SEQ, choose_max_seq, freeze_config, lower_and_pack
from .machine import Machine, choose_device, default_gpu, open_machine
from .prompt import Fed, PromptMachine, choose_block, feed_blocks, open_blocks

if TYPE_CHECKING:
    from .checkpoint import WeightSource
    from .sampling import Sampling
    from .targets import GpuTarget
    from .tokenizer import TextStream, Tokenizer

__all__ = ["GeneratedToken", "Generation", "generate"]

_MAX_CONFIG_BYTES = 16 << 20

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]] | None


class GeneratedToken(NamedTuple):
    """One chosen token. `text` is what became certain with it: empty in the middle of a character, for the token that
    ends the generation, and for a model without a tokenizer. `logprob` is the model's own, before any cut; None where
    it was not asked for."""

    token: int
    text: str
    index: int
    logprob: float | None


class Generation(Iterator[GeneratedToken]):
    """The tokens of one answer. `finish_reason` is None while there may be more, then "eos", "stop" (one of
    `stop_tokens`), "length" (max_new_tokens) or "capacity" (the cache is full). The token that ended it is included."""

    def __init__(
        self,
        machine: Machine,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_new_tokens: int,
        endings: Mapping[int, str],
        blocks: PromptMachine | None = None,
        has_state: bool = False,
        text: TextStream | None = None,
        logprobs: bool = True,
        quantize: str | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Use `generate`."""
        self.prompt_tokens = tuple(prompt)
        self.max_seq: int = machine.max_seq
        self.prompt_block = 1 if blocks is None else blocks.batch  # tokens of the prompt in a pass over the weights
        self.has_text = text is not None
        self.quantize = quantize  # "int8-g128"; None: the plain model, or a machine of the caller's
        self.finish_reason: str | None = None
        self._on_close = on_close
        chooser = _chooser(machine, sampling, logprobs)
        first = None if blocks is None else _first_choice(blocks, sampling, logprobs)
        self._tokens = self._decode(machine, blocks, first, chooser, max_new_tokens, endings, has_state, text)

    def __next__(self) -> GeneratedToken:
        try:
            return next(self._tokens)
        except BaseException:  # the end, or a failed step: either way no token will follow
            self.close()
            raise

    def close(self) -> None:
        """Gives back the machine, if `generate` opened it. Tokens not asked for yet are not made."""
        self._tokens.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode(
        self,
        machine: Machine,
        blocks: PromptMachine | None,
        first: Callable[[Fed], Choice] | None,
        chooser: Chooser | None,
        max_new_tokens: int,
        endings: Mapping[int, str],
        has_state: bool,
        text: TextStream | None,
    ) -> Iterator[GeneratedToken]:
        if has_state:  # whatever the machine did before
            machine.reset_state()
        pos = len(self.prompt_tokens) - 1
        fed = Fed() if blocks is None else feed_blocks(blocks, self.prompt_tokens)
        own = getattr(machine, "decode", None)
        feed = own or machine.step  # nobody looks at the logits of a prompt
        for before in range(fed.count, pos):
            feed(self.prompt_tokens[before], before)
        token, logprob = self.prompt_tokens[-1], None
        count = min(max_new_tokens, self.max_seq - 1 - pos)  # no token follows the one for the last row of the cache
        reason = "length" if count == max_new_tokens else "capacity"
        for index in range(count):
            if index == 0 and first is not None and fed.count > pos:  # a block held the last of the prompt
                token, logprob = first(fed)
            elif chooser is None:
                token = own(token, pos)
            else:
                token, logprob = chooser(token, pos, index)
            pos += 1
            if token in endings:
                self.finish_reason = endings[token]
                yield GeneratedToken(token, "", index, logprob)
                return
            if index + 1 == count:
                self.finish_reason = reason
            yield GeneratedToken(token, "" if text is None else text.push(token), index, logprob)


Choice = tuple[int, "float | None"]
Chooser = Callable[[int, int, int], Choice]


def _chooser(machine: Machine, sampling: Sampling, logprobs: bool) -> Chooser | None:
    """(token, pos, index) -> the next token and its log probability; None where the machine's own `decode` will do. The
    logits cross to the host only where somebody needs them: not for a greedy choice without a log probability."""
    from .sampling import choose, choose_token

    step = machine.step
    if logprobs:
        return lambda token, pos, index: choose(step(token, pos), sampling, index)
    if not hasattr(machine, "decode") or sampling.temperature > 0:
        return lambda token, pos, index: (choose_token(step(token, pos), sampling, index), None)
    return None


def _first_choice(blocks: PromptMachine, sampling: Sampling, logprobs: bool) -> Callable[[Fed], Choice]:
    """As `_chooser`, of the first token after a prompt that ended in a block."""
    from .sampling import choose, choose_token

    if logprobs:
        return lambda fed: choose(blocks.logits_of(fed.place), sampling, 0)
    if sampling.temperature > 0:
        return lambda fed: (choose_token(blocks.logits_of(fed.place), sampling, 0), None)
    return lambda fed: (fed.choice, None)


def generate(
    model: str | os.PathLike[str],
    prompt: Prompt = None,
    *,
    gpu: str | GpuTarget | None = None,
    config: Any = None,
    device: str = "auto",
    max_new_tokens: int = 64,
    max_seq: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_at_eos: bool = True,
    stop_tokens: Sequence[int] = (),
    quantize: str | None = None,
    group: int | None = None,
    logprobs: bool = True,
    prompt_block: int | None = None,
    machine: Machine | None = None,
    prompt_machine: PromptMachine | None = None,
    progress: Callable[[str], None] | None = None,
) -> Generation:
    """Continues a prompt: text, token ids, or chat messages; None is the model's first token (BOS).

    temperature 0 is greedy; otherwise temperature, top_k and top_p cut, in this order, and `seed` draws. `max_seq` is
    the capacity of the cache, prompt included (default: 1,024, more if the request needs it, within what the model was
    made for). `gpu` is the target of the schedule `config` (default: the live device, else h200). `quantize="int8"`
    quantises the matrices at load (`group`: 64 or 128 elements of a row share a scale). `logprobs=False` leaves out the
    log probabilities, which cost more than a step of a small model: each needs all logits on the host, while a greedy
    choice is the machine's own. `prompt_block` is how many tokens of the prompt go in one pass over the weights (1 to
    16; default: 16 for a longer prompt than that, 1 for a shorter one and for a model with linear layers). A `machine`
    that already holds the model is used from position 0, its states cleared, and stays open; gpu, config, device,
    quantize, group and prompt_block are then not used. It takes the prompt in blocks where a `prompt_machine` is given
    too, which decodes a batch and shares its cache (`machine.beside`).
    """
    from .embedded import open_model
    from .sampling import Sampling

    say = progress or (lambda text: None)
    sampling = Sampling(temperature, top_k, top_p, seed)
    if type(max_new_tokens) is not int or not 1 <= max_new_tokens < 1 << 31:
        raise InputError(f"max_new_tokens: expected an integer of at least 1, got {show(max_new_tokens)}")
    if type(logprobs) is not bool:
        raise InputError(f"logprobs: expected True or False, got {show(logprobs)}")
    if machine is None:
        device = choose_device(device)
    elif max_seq is not None:
        raise InputError(f"max_seq: expected None with a machine, which has its own, got {show(max_seq)}")
    _require_beside(prompt_machine, machine)
    source = open_model(model, quantize, group)
    vocab = source.config.vocab
    endings = dict.fromkeys(_token_ids("stop_tokens", stop_tokens, vocab), "stop")
    if stop_at_eos:
        endings |= dict.fromkeys(_eos_tokens(source), "eos")
    ids, tokenizer = _prompt_tokens(source, prompt, say)
    if machine is None:
        max_seq = _capacity(source, max_seq, len(ids) + max_new_tokens)
    limit = max_seq if machine is None else machine.max_seq
    if len(ids) + 1 > limit:
        raise InputError(f"prompt: expected at most {limit - 1} tokens, one less than max_seq, got {len(ids)}")
    size = choose_block(prompt_block, source.config, len(ids))
    on_close = None
    if machine is None:
        machine, prompt_machine, on_close = _load(
            source, gpu, config, device, limit, min(size, limit), prompt_block is not None, say
        )
    text = None if tokenizer is None else tokenizer.stream(ids)
    return Generation(
        machine,
        ids,
        sampling,
        max_new_tokens=max_new_tokens,
        endings=endings,
        blocks=prompt_machine,
        has_state=source.config.has_state,
        text=text,
        logprobs=logprobs,
        quantize=getattr(source, "scheme", None),
        on_close=on_close,
    )


def _require_beside(blocks: Any, machine: Any) -> None:
    if blocks is None:
        return
    if machine is None or getattr(blocks, "share", None) is not machine or blocks.max_seq != machine.max_seq:
        raise InputError("prompt_machine: expected a machine that shares the cache of `machine`, made by its `beside`")


def _load(
    source: WeightSource,
    gpu: Any,
    config: Any,
    device: str,
    max_seq: int,
    block: int,
    is_asked: bool,
    say: Callable[[str], None],
) -> tuple[Machine, PromptMachine | None, Callable[[], None]]:
    """The machine, one for blocks of the prompt where they are more than one token, and what closes both."""
    from .targets import resolve_target

    target = resolve_target(default_gpu() if gpu is None else gpu)
    schedule, notes = freeze_config(config)
    for note in notes:
        say(note)
    say(f"lowering {source.name} for {target.name}, max_seq {max_seq}")
    _, image = lower_and_pack(source, schedule, target, max_seq)
    if block == 1:
        say(f"reading the weights of {source.name}")
        machine = _open(source, device, image)
        return machine, None, machine.close
    from concurrent.futures import ThreadPoolExecutor

    say(f"reading the weights of {source.name}, and lowering it for blocks of {block} tokens")
    with ThreadPoolExecutor(1) as pool:  # proving the larger program takes about as long as reading
        lowered = pool.submit(lower_and_pack, source, schedule, target, max_seq, block)
        machine = _open(source, device, image)
        try:
            blocks = open_blocks(lambda: machine.beside(lowered.result()[1]), block, is_asked, say)
        except BaseException:
            machine.close()
            raise
    if blocks is None:
        return machine, None, machine.close

    def close() -> None:
        blocks.close()
        machine.close()

    return machine, blocks, close


def _open(source: WeightSource, device: str, image: Any) -> Any:
    """The machine, with its weights where it computes: the first token waits for none."""
    machine: Any = open_machine(device, image, source.weights(hashed=False))  # no record names them
    try:
        if hasattr(machine, "prepare"):
            machine.prepare()
    except BaseException:
        machine.close()
        raise
    return machine


def _capacity(source: WeightSource, max_seq: int | None, wanted: int) -> int:
    """As asked, or in steps of the default so that requests of about one length share one program."""
    if max_seq is None and wanted > DEFAULT_MAX_SEQ:
        steps = -(-wanted // DEFAULT_MAX_SEQ)
        max_seq = min(steps * DEFAULT_MAX_SEQ, source.config.max_position)
    return choose_max_seq(source, max_seq)


def _prompt_tokens(source: WeightSource, prompt: Any, say: Callable[[str], None]) -> tuple[list[int], Tokenizer | None]:
    """The ids to feed, and the tokenizer: required for text, used where there is one for ids."""
    from .tokenizer import Tokenizer, check_messages

    if isinstance(prompt, str) or _is_chat(prompt):
        messages = None if isinstance(prompt, str) else check_messages(prompt)
        tokenizer = Tokenizer.open(_directory(source))
        found = tokenizer.encode(prompt) if messages is None else tokenizer.encode_chat(messages)
        if not found:
            raise InputError(f"prompt: expected at least one token, got none from {show(prompt)}")
        return _token_ids("prompt", found, source.config.vocab), tokenizer
    if prompt is None:
        prompt = [_first_token(source)]
    ids = _token_ids("prompt", prompt, source.config.vocab)
    if not ids:
        raise InputError("prompt: expected at least one token, got none")
    try:
        return ids, None if _directory(source) is None else Tokenizer.open(_directory(source))
    except AmkError as reason:  # ids in, ids out: text is an extra
        say(f"tokens without text: {reason}")
        return ids, None


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _first_token(source: WeightSource) -> int:
    bos = source.config.bos_token_id
    if bos is not None:
        return bos
    if _directory(source) is None:
        return 0
    raise InputError(f"prompt: expected one, because {source.name} names no bos_token_id to begin with, got none")


def _directory(source: WeightSource) -> os.PathLike[str] | None:
    return getattr(source, "path", None)


def _token_ids(name: str, tokens: Any, vocab: int) -> list[int]:
    import numpy as np

    if isinstance(tokens, np.ndarray) and tokens.ndim == 1:
        tokens = tokens.tolist()
    if not isinstance(tokens, Sequence) or isinstance(tokens, (str, bytes, bytearray)):
        raise InputError(f"{name}: expected token ids, got {show(tokens)}")
    for index, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < vocab:
            raise InputError(f"{name}[{index}]: expected a token id in 0..{vocab - 1}, got {show(token)}")
    return [int(token) for token in tokens]


def _eos_tokens(source: WeightSource) -> tuple[int, ...]:
    """Those of generation_config.json, where chat models name the end of a turn too, else those of config.json."""
    from .safetensors import read_regular_file
    from .strict_json import parse_strict_json

    directory = _directory(source)
    path = None if directory is None else os.path.join(directory, "generation_config.json")
    if path is None or not os.path.lexists(path):
        return source.config.eos_token_ids
    table = parse_strict_json(read_regular_file(path, _MAX_CONFIG_BYTES), path)
    value = table.get("eos_token_id") if isinstance(table, dict) else None
    if value is None:
        return source.config.eos_token_ids
    found = value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in found):
        raise InputError(f"{path}: eos_token_id: expected a token id or a list of them, got {show(value)}")
    return tuple(found)
