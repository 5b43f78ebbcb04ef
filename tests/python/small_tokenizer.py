"""Tokenizers made on the spot, and a checkpoint that has one. Test code only; needs tokenizers and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from families import build_checkpoint

VOCAB = 300
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CORPUS = ["the quick brown fox jumps over the lazy dog", "user assistant system", "hello world, hello kernel"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role not in ['system', 'user', 'assistant'] %}\n"
    "        {{ raise_exception('unknown role ' + message['role']) }}\n"
    "    {% endif %}\n"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train() -> Any:
    """Byte-level BPE: every text can be said, most characters beyond ASCII take several tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIALS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def crossing() -> Any:
    """Byte-level BPE whose tokens begin in one character and end in the next."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    f0, x9f, a6, x8a = split_bytes("🦊")
    merges = [(x9f, a6), (x8a, f0), (x8a + f0, x9f + a6), ("a", f0)]
    words = [*SPECIALS, *sorted(alphabet), *(left + right for left, right in merges)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def split_bytes(text: str) -> str:
    """One letter of the byte-level alphabet per byte."""
    return tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


def llama2_style() -> Any:
    """Pieces with U+2581 for a space, and a token per byte for everything else."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁hello", "▁world", "hello", "!"]
    vocab = [(word, -float(index)) for index, word in enumerate(words)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def build_text_checkpoint(folder: Path) -> None:
    """A random llama with `train()` and the template."""
    build_checkpoint(folder, "llama3", vocab_size=VOCAB, seed=2)
    tokenizer = train()
    tokenizer.enable_truncation(4)  # must not shorten a prompt
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
