"""Text in and out of a generation, with a byte-level tokenizer trained here; transformers judges the chat templates."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import amk  # noqa: E402
from amk.errors import InputError, Unavailable  # noqa: E402
from amk.tokenizer import TextStream, Tokenizer, render_chat  # noqa: E402
from families import build_checkpoint  # noqa: E402
from small_tokenizer import TEMPLATE, VOCAB, build_text_checkpoint, crossing, llama2_style, train  # noqa: E402

CHAT = [{"role": "system", "content": " be brief "}, {"role": "user", "content": "hello wörld 🦊"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_text_checkpoint(folder)
    return folder


class Saying:
    """A machine that continues with the ids of a text, whatever it is told."""

    max_seq = 200

    def __init__(self, start: int, ids: list[int]) -> None:
        self.ids = dict(enumerate([*ids, 2], start))

    def step(self, token: int, pos: int) -> np.ndarray:
        logits = np.zeros(VOCAB, np.float32)
        logits[self.ids.get(pos, 2)] = 5.0
        return logits


def test_a_text_prompt_and_its_continuation(checkpoint: Path) -> None:
    raw = train()
    prompt = "the quick brown fox"
    ids = raw.encode(prompt).ids
    assert ids[0] == 1 and len(ids) > 4
    with amk.generate(checkpoint, prompt, gpu="h200", max_new_tokens=20, stop_at_eos=False) as generation:
        assert list(generation.prompt_tokens) == ids and generation.has_text
        tokens = list(generation)
    by_ids = amk.generate(checkpoint, ids, gpu="h200", max_new_tokens=20, stop_at_eos=False)
    assert by_ids.has_text and list(by_ids) == tokens
    whole = raw.decode([token.token for token in tokens], skip_special_tokens=True)
    assert whole.startswith("".join(token.text for token in tokens).rstrip("\ufffd"))


def test_only_whole_characters_come_out(checkpoint: Path) -> None:
    said = " wörld 🦊🦊, 漢字 and e\u0301!"
    ids = train().encode(said, add_special_tokens=False).ids
    prompt = amk.generate(checkpoint, "hello", machine=Saying(0, [])).prompt_tokens
    machine = Saying(len(prompt) - 1, ids)
    generation = amk.generate(checkpoint, "hello", machine=machine, max_new_tokens=100)
    pieces = [token.text for token in generation]
    assert "".join(pieces) == said and generation.finish_reason == "eos" and pieces[-1] == ""
    assert all("\ufffd" not in piece for piece in pieces) and pieces.count("") > 8
    assert any(piece == "🦊" for piece in pieces)
    cut = amk.generate(checkpoint, "hello", machine=machine, max_new_tokens=len(ids[: pieces.index("🦊")]))
    assert "\ufffd" not in "".join(token.text for token in cut)


@pytest.mark.parametrize("make", [train, crossing, llama2_style])
@given(st.text(st.one_of(st.sampled_from("he lo!ö漢🦊\u0301"), st.characters(codec="utf-8")), max_size=30), st.data())
@settings(max_examples=150, deadline=None)
def test_streaming_says_what_decoding_says(make: Any, text: str, data: Any) -> None:
    raw = RAW[make]
    ids = raw.encode(text, add_special_tokens=False).ids
    split = data.draw(st.integers(0, len(ids)))

    def decode(some: Any) -> str:
        return raw.decode(list(some), skip_special_tokens=True)

    if "\ufffd" in decode(ids):  # only what the tokenizer itself cannot say
        return
    stream = TextStream(decode, ids[:split])
    # The prompt may end within a character, which the first tokens then complete.
    texts = [decode(ids[:end]).rstrip("\ufffd") for end in range(max(0, split - 3), split + 1)]
    before = max((text for text in texts if "\ufffd" not in text), key=len)
    assert before + "".join(map(stream.push, ids[split:])) == decode(ids)


RAW = {make: make() for make in (train, crossing, llama2_style)}


@pytest.mark.parametrize("make", [train, crossing])
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_ids_give_all_that_is_whole(make: Any, data: Any) -> None:
    raw = RAW[make]
    bytes_of_a_fox = raw.encode("🦊a🦊🦊", add_special_tokens=False).ids
    ids = data.draw(st.lists(st.sampled_from([*bytes_of_a_fox, *range(raw.get_vocab_size())]), max_size=40))
    stream = TextStream(lambda some: raw.decode(list(some), skip_special_tokens=True), [])
    told = "".join(map(stream.push, ids))
    assert re.sub("\ufffd", "", told) == re.sub("\ufffd", "", raw.decode(ids, skip_special_tokens=True))
    assert len(stream._window) <= 20  # each token is decoded with a few others, never with the whole text


def test_special_tokens_do_not_eat_the_space_after_them() -> None:
    raw = RAW[llama2_style]
    hello, world, eos = (raw.token_to_id(word) for word in ("▁hello", "▁world", "</s>"))
    stream = TextStream(lambda ids: raw.decode(list(ids), skip_special_tokens=True), [hello])
    assert [stream.push(token) for token in (eos, world, eos, eos, hello)] == ["", " world", "", "", " hello"]


# ---- chat ----------------------------------------------------------------------------------------------------------


def peer_chat(checkpoint: Path, template: str, messages: list[dict[str, str]]) -> str:
    from transformers import PreTrainedTokenizerFast

    peer = PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint / "tokenizer.json"), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return peer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


OTHER_TEMPLATES = [
    TEMPLATE,
    "{% generation %}{{ messages[0].content | tojson }}{% endgeneration %}{{ eos_token }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "{{ strftime_now('%Y') }}{% if tools is none %}no tools{% endif %}{{ sep_token is defined }}",
    "{%- set ns = namespace(n=0) -%}\n{% for m in messages %}{% set ns.n = ns.n + 1 %}\n{% endfor %}\n{{ ns.n }}",
]


@pytest.mark.parametrize("template", OTHER_TEMPLATES)
def test_templates_render_as_in_transformers(template: str, checkpoint: Path) -> None:
    ours = render_chat(template, CHAT, {"bos_token": "<s>", "eos_token": "</s>"}, "here")
    assert ours == peer_chat(checkpoint, template, CHAT) and ours


def test_chat_messages_are_a_prompt(checkpoint: Path, tmp_path: Path) -> None:
    text = peer_chat(checkpoint, TEMPLATE, CHAT)
    expected = train().encode(text, add_special_tokens=False).ids
    assert expected[:2] == [1, 3]  # the template's <s> and <|im_start|>, each one token, and no second <s>
    generation = amk.generate(checkpoint, CHAT, machine=Saying(0, []))
    assert list(generation.prompt_tokens) == expected


def test_where_templates_are_found(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    user = [{"role": "user", "content": "hello"}]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    default = {"name": "default", "template": "D"}
    places: list[tuple[Any, str | None]] = [([{"name": "tool_use", "template": "T"}, default], "D"), ("K", "K")]
    raw = train()
    for template, expected in places:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        assert Tokenizer.open(tmp_path).encode_chat(user) == raw.encode(expected, add_special_tokens=False).ids
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Tokenizer.open(tmp_path).encode_chat(user) == raw.encode("J", add_special_tokens=False).ids
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="chat template"):
        Tokenizer.open(tmp_path).encode_chat(user)


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{% for m in messages %}{{ raise_exception('no\\nsuch role') }}{% endfor %}",
    "{% if %}",
    "{{ 1 / 0 }}",
    "{{ messages[9].content + 1 }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]


@pytest.mark.parametrize("template", HOSTILE)
def test_a_hostile_template_is_an_input_error(template: str) -> None:
    with pytest.raises(InputError, match="here: chat template") as caught:
        render_chat(template, CHAT, {}, "here")
    assert "\n" not in str(caught.value)


# ---- files and the extra -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b'{"version": "1.0", "model": {"type": "Magic"}}', b"[]"])
def test_a_broken_tokenizer_is_said_so_and_ids_still_work(content: bytes, checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    good = path.read_bytes()
    try:
        path.write_bytes(content)
        with pytest.raises(InputError, match="tokenizer.json"):
            amk.generate(checkpoint, "hello", machine=Saying(0, []))
        said: list[str] = []
        generation = amk.generate(checkpoint, [5], machine=Saying(0, [7]), progress=said.append)
        assert [token.token for token in generation] == [7, 2] and not generation.has_text
        assert "without text" in said[0] and "tokenizer.json" in said[0]
    finally:
        path.write_bytes(good)


def test_no_tokenizer_file(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokenizer.json.*token ids"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize("package", ["tokenizers", "jinja2"])
def test_a_missing_extra_is_named(package: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    prompt = "hello" if package == "tokenizers" else CHAT
    with pytest.raises(Unavailable, match=re.escape('pip install "amk[hf]"')) as caught:
        amk.generate(checkpoint, prompt, machine=Saying(0, []))
    assert package in str(caught.value) and "\n" not in str(caught.value)
    generation = amk.generate(checkpoint, [5], machine=Saying(0, [7]))
    assert [token.token for token in generation] == [7, 2] and generation.has_text == (package == "jinja2")


def test_prompts_that_are_no_text_or_no_tokens_of_the_model(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        amk.generate(checkpoint, "a\udcff", machine=Saying(0, []))
    build_checkpoint(tmp_path, "llama3", vocab_size=64)  # smaller than the tokenizer
    (tmp_path / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match=r"prompt\[\d+\].*0..63"):
        amk.generate(tmp_path, "hello", machine=Saying(0, []))
