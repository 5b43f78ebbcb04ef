"""Text -> token ids and back, for checkpoints that bring a tokenizer.json; chat messages through their own template.

In: a checkpoint directory. Out: ids of a text or of a conversation, and text from ids as they come, whole characters
only. Needs the extra `hf` (tokenizers, jinja2), imported by the function that needs it: token ids work without. A chat
template is a program that came with the weights: it runs in jinja2's sandbox and its output is bounded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InputError, Unavailable, show
from .safetensors import read_regular_file
from .strict_json import parse_strict_json

__all__ = ["TextStream", "Tokenizer", "check_messages", "render_chat"]

_MAX_TOKENIZER_BYTES = 256 << 20
_MAX_CONFIG_BYTES = 16 << 20
_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_RENDERED_CHARS = 64 << 20

_REPLACEMENT = "\ufffd"  # what a decoder says for bytes that are no character, or none yet
_CONTEXT_TOKENS = 6
_MAX_BYTES = 4  # of one character in UTF-8
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Message = Mapping[str, str]


class Tokenizer:
    """An open tokenizer.json, with the chat template that lies beside it, if one does."""

    def __init__(self, backend: Any, template: str | None, specials: dict[str, str], where: str) -> None:
        """Use `Tokenizer.open`."""
        self._backend, self._template, self._specials, self._where = backend, template, specials, where

    @classmethod
    def open(cls, directory: str | os.PathLike[str] | None) -> Tokenizer:
        """InputError when there is no usable tokenizer.json, Unavailable when the extra is not installed."""
        if directory is None:
            raise InputError("this model has no tokenizer: give token ids instead of text")
        path = Path(directory) / "tokenizer.json"
        if not os.path.lexists(path):
            raise InputError(f"{str(path)!r}: expected a tokenizer, got no such file: give token ids instead of text")
        tokenizers = _import("tokenizers")
        data = read_regular_file(path, _MAX_TOKENIZER_BYTES)
        backend = _guard(lambda: tokenizers.Tokenizer.from_buffer(data), f"{path}: expected a tokenizer")
        backend.no_truncation()  # what was convenient for training must not shorten a prompt
        backend.no_padding()
        config = _read_config(path.with_name("tokenizer_config.json"))
        template = _read_template(path.with_name("chat_template.jinja"), config)
        return cls(backend, template, _special_tokens(config), str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with the special tokens that tokenizer.json puts around it."""
        return self._encode(text, True)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant answers."""
        if self._template is None:
            raise InputError(f"{self._where}: expected a chat template beside it, got none: give a plain prompt")
        text = render_chat(self._template, messages, self._specials, self._where)
        return self._encode(text, False)  # the template writes special tokens itself

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens; bytes that are no character become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """What tells the text of the tokens that follow a prompt."""
        return TextStream(self.decode, prompt)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        def encode() -> list[int]:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"prompt: expected Unicode text, got a lone surrogate at {error.start}") from error
        return _guard(encode, f"{self._where}: expected to tokenize the prompt")


class TextStream:
    """Ids in, one by one; out, the text that became certain with each: never a piece of a character.

    Each id is decoded after the last ones before it, because decoders treat the first token of a text differently.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int]) -> None:
        self._decode = decode
        # The window is context, then `_pending` ids not told completely. Of its `_text`, `_told` is what was told, and
        # `_silent` ids came since.
        self._window, self._told, silent = _context(decode, list(context))
        self._text = decode(self._window)
        whole = not self._text.endswith(_REPLACEMENT)
        self._pending, self._silent = (0, 0) if whole else (len(self._window), silent)

    def push(self, token: int) -> str:
        """The text that this token completes; what is still incomplete at the end is never told."""
        text = self._decode([*self._window, token])
        if text == self._text and not self._decode([token]):
            return ""  # a special token: nothing to wait for, and no context either
        self._window.append(token)
        self._text = text
        self._pending += 1
        self._silent += 1
        whole = text.rstrip(_REPLACEMENT)
        if whole == text:
            waiting = 0  # ids at the end that a later one may change
        elif self._silent < _MAX_BYTES or (len(whole) > len(self._told) and whole.startswith(self._told)):
            waiting = self._pending
        else:  # a character has at most 4 bytes: what its first 3 cannot have kept waiting is no character
            waiting = _MAX_BYTES - 1
            whole = self._decode(self._window[:-waiting])
        end = len(self._window) - waiting
        context = self._window[len(self._window) - self._pending : end]
        # Where bytes that looked whole were not, what was told of them stands.
        piece = whole[len(self._told) :] if whole.startswith(self._told) else self._decode(context)
        self._told += piece
        self._silent = 0 if piece else min(self._silent, waiting)
        if context:  # no later id can change it
            self._window, self._pending, self._told = context + self._window[end:], waiting, self._decode(context)
            self._text = self._decode(self._window)
        return piece


def _context(decode: Callable[[Sequence[int]], str], ids: list[int]) -> tuple[list[int], str, int]:
    """The last ids of a prompt, from where a character begins; their whole text; how many ids came after it."""
    for start in range(max(0, len(ids) - _CONTEXT_TOKENS), max(-1, len(ids) - _CONTEXT_TOKENS - _MAX_BYTES), -1):
        window = ids[start:]
        # The incomplete end is cut off as text or, where it spoils the bytes before it, as ids.
        ends = range(len(window), max(-1, len(window) - _MAX_BYTES), -1)
        texts = [decode(window[:end]).rstrip(_REPLACEMENT) for end in ends]
        best = max((text for text in texts if _REPLACEMENT not in text), key=len, default="")
        if best or start == 0:
            return window, best, max((cut for cut, text in enumerate(texts) if text == best), default=0)
    return [], "", 0


def check_messages(messages: Any) -> list[Message]:
    """A conversation: a list of {"role": text, "content": text}."""
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise InputError(f"messages: expected a list of messages, got {show(messages)}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise InputError(f"messages[{index}]: expected the keys role and content, got {show(message)}")
        for key, value in message.items():
            if not isinstance(value, str):
                raise InputError(f"messages[{index}].{key}: expected text, got {show(value)}")
    return [dict(message) for message in messages]


def render_chat(template: str, messages: Sequence[Message], specials: Mapping[str, str], where: str) -> str:
    """The text of a conversation as `transformers` writes it: same environment, same names, the answer's turn open."""
    sandbox, jinja2 = _import("jinja2.sandbox"), _import("jinja2")
    nodes, extension = _import("jinja2.nodes"), _import("jinja2.ext")

    class Generation(extension.Extension):
        """`{% generation %}` marks what a trainer learns from; what it encloses is written as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(form)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    def render() -> str:
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, extension.loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        names = {"messages": check_messages(messages), "tools": None, "documents": None, "add_generation_prompt": True}
        pieces, length = [], 0
        for piece in environment.from_string(template).generate(**{**specials, **names}):
            length += len(piece)
            if length > _MAX_RENDERED_CHARS:
                raise jinja2.TemplateError(f"more than {_MAX_RENDERED_CHARS} characters")
            pieces.append(piece)
        return "".join(pieces)

    return _guard(render, f"{where}: chat template: expected text")


def _guard(work: Callable[[], Any], expected: str) -> Any:
    """Runs code that obeys somebody else's file: whatever it raises means that the file is at fault."""
    try:
        return work()
    except (InputError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a Rust extension is no Exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{expected}, got: {reason[:300]}") from error


def _import(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise Unavailable(
            f'text needs the package {package}: pip install "amk[hf]" (token ids work without)'
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}
    config = parse_strict_json(read_regular_file(path, _MAX_CONFIG_BYTES), str(path))
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected an object, got {show(config)}")
    return config


def _read_template(path: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, or the key of tokenizer_config.json: a text, or a list whose "default" counts."""
    if os.path.lexists(path):
        try:
            return read_regular_file(path, _MAX_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x}") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not (isinstance(template, str) and len(template) <= _MAX_TEMPLATE_BYTES):
        raise InputError(f"{path.with_name('tokenizer_config.json')}: chat_template: expected text")
    return template


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The names that templates use; a token is a text, or an object with one as its content."""
    found: dict[str, str] = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found
