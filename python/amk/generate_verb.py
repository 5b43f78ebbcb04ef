"""`amk generate`: tokens to stdout as they come, how fast to stderr.

In: parsed arguments, `say` for the person waiting, `arguments.emit` for the pieces of the result. Out: an `Outcome`
with everything that was generated, also when it was interrupted.
"""

from __future__ import annotations

import time
from argparse import Namespace
from contextlib import suppress
from typing import Any

from .errors import InputError, show
from .generate import GeneratedToken, Generation, generate
from .verbs import Outcome, Say, pick_gpu, read_json

__all__ = ["run_generate"]


def run_generate(arguments: Namespace, say: Say) -> Outcome:
    """Runs the verb. A reader that went away ends the generation, and is no error."""
    started = time.perf_counter()
    generation = generate(
        arguments.MODEL,
        _prompt(arguments),
        gpu=pick_gpu(arguments.gpu, say),
        config=None if arguments.config is None else read_json(arguments.config, "config"),
        device=arguments.device,
        max_new_tokens=arguments.max_new_tokens,
        max_seq=arguments.max_seq,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        quantize=arguments.quantize,
        group=arguments.group,
        prompt_block=arguments.prompt_block,
        logprobs=getattr(arguments, "json", True),  # only the record shows them
        progress=say,
    )
    loaded = time.perf_counter()
    emit = getattr(arguments, "emit", lambda text: None)
    tokens: list[GeneratedToken] = []
    times: list[float] = []
    status, code = "OK", 0
    with generation, suppress(BrokenPipeError):
        try:
            for token in generation:
                tokens.append(token)
                times.append(time.perf_counter())
                emit(token.text if generation.has_text else f"{' ' * (token.index > 0)}{token.token}")
        except KeyboardInterrupt:
            status, code = "INTERRUPTED", 130
        emit("\n")
    timings = _timings(times, started, loaded)
    say(_summary(generation, timings))
    result = {
        "model": arguments.MODEL,
        "quantize": generation.quantize,
        "prompt_tokens": list(generation.prompt_tokens),
        "prompt_block": generation.prompt_block,
        "tokens": [token.token for token in tokens],
        "text": "".join(token.text for token in tokens) if generation.has_text else None,
        "logprobs": [token.logprob for token in tokens],
        "finish_reason": generation.finish_reason,
        "max_seq": generation.max_seq,
        "seed": arguments.seed,
        "timings": timings,
    }
    return Outcome(code, status, result)


def _prompt(arguments: Namespace) -> Any:
    given = {flag: getattr(arguments, flag) for flag in ("prompt", "ids", "chat")}
    named = [f"--{flag}" for flag, value in given.items() if value is not None]
    if len(named) > 1:
        raise InputError(f"expected one of --prompt, --ids and --chat, got {' and '.join(named)}")
    if arguments.system is not None and arguments.chat is None:
        raise InputError("--system: expected it together with --chat")
    if arguments.ids is not None:
        return _ids(arguments.ids)
    if arguments.chat is None:
        return arguments.prompt
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    return [*system, {"role": "user", "content": arguments.chat}]


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(f"--ids: expected token ids separated by commas, got {show(text)}") from error


def _timings(times: list[float], started: float, loaded: float) -> dict[str, Any]:
    """Seconds; the first token's include the prompt, the rate is that of the tokens after it."""
    return {
        "load_s": loaded - started,
        "first_token_s": times[0] - loaded if times else None,
        "tokens_per_s": (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
        "tokens": len(times),
    }


def _summary(generation: Generation, timings: dict[str, Any]) -> str:
    parts = [f"{timings['tokens']} tokens ({generation.finish_reason or 'cut short'})"]
    if timings["tokens_per_s"] is not None:
        parts.append(f"{timings['tokens_per_s']:.1f} tokens/s")
    if timings["first_token_s"] is not None:
        blocks = f" in blocks of {generation.prompt_block}" if generation.prompt_block > 1 else ""
        wait = f"{1e3 * timings['first_token_s']:.1f} ms"
        parts.append(f"first after {wait} for a prompt of {len(generation.prompt_tokens)}{blocks}")
    return ", ".join([*parts, f"loading took {timings['load_s']:.2f} s"])
