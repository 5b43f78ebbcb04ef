"""`amk generate` as its user sees it: tokens as they come on stdout, talk on stderr, and every way to leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import amk

TOY = ("toy", "--device", "cpu", "--gpu", "h200")

# A base installation, and one whose machine waits for a line on stdin before each step.
BASE = """
import sys
for name in ("tokenizers", "jinja2", "torch", "transformers", "safetensors"):
    sys.modules[name] = None
from amk.cli import main
sys.exit(main(sys.argv[1:]))
"""
STEP_BY_STEP = """
import sys
from amk import vm
from amk.cli import main
def slowly(self):
    print("step", file=sys.stderr, flush=True)
    sys.stdin.readline()
vm.ReferenceVM._prepare, vm.ReferenceVM._is_prepared = slowly, False
sys.exit(main(sys.argv[1:]))
"""


def process(*arguments: object, code: str = BASE, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", code, "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


class Slow:
    """A process that makes one token each time it is told to."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-c", STEP_BY_STEP, "generate", *TOY, "--quiet", *arguments]
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)

    def go(self) -> None:
        assert self.child.stderr.readline() == b"step\n"
        self.child.stdin.write(b"\n")

    def read(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:  # a process that kept its output back would never get here
            piece = self.child.stdout.read(nbytes - len(data))
            assert piece, self.child.stderr.read()
            data += piece
        return data

    def leave(self) -> tuple[bytes, bytes, int]:
        out, err = self.child.communicate(timeout=60)
        return out, err, self.child.returncode


def toy_words(count: int) -> list[bytes]:
    tokens = amk.generate("toy", gpu="h200", max_new_tokens=count, stop_at_eos=False)
    return [str(token.token).encode() for token in tokens]


def test_the_base_installation_generates_ids() -> None:
    done = process("toy", "--device", "cpu", "--max-new-tokens", 12)
    assert done.returncode == 0 and done.stdout == b" ".join(toy_words(12)) + b"\n"
    for word in (b"12 tokens (length)", b"tokens/s", b"first after", b"no --gpu given"):
        assert word in done.stderr
    done = process(*TOY, "--ids", "7,3", "--temperature", "1.5", "--top-k", 9, "--top-p", 0.9, "--seed", 4, "--quiet")
    sampled = amk.generate("toy", [7, 3], gpu="h200", temperature=1.5, top_k=9, top_p=0.9, seed=4)
    assert done.stdout.split() == [str(token.token).encode() for token in sampled] and done.stderr == b""


def test_json_is_one_object_at_the_end() -> None:
    done = process(*TOY, "--ids", "1,2", "--max-new-tokens", 5, "--max-seq", 32, "--json", "--quiet")
    data = json.loads(done.stdout)
    assert (data["schema"], data["status"], data["exit_code"]) == ("amk.generate", "OK", 0) and done.stderr == b""
    expected = list(amk.generate("toy", [1, 2], gpu="h200", max_new_tokens=5, max_seq=32))
    assert data["tokens"] == [token.token for token in expected] and data["text"] is None
    assert data["logprobs"] == pytest.approx([token.logprob for token in expected])
    assert data["prompt_tokens"] == [1, 2] and data["finish_reason"] == "length" and data["max_seq"] == 32
    assert data["timings"]["tokens"] == 5 and data["timings"]["tokens_per_s"] > 0


def test_tokens_come_one_by_one() -> None:
    words = toy_words(3)
    slow = Slow("--max-new-tokens", "3")
    for index, word in enumerate(words):
        slow.go()
        expected = b" " * (index > 0) + word
        assert slow.read(len(expected)) == expected
    assert slow.leave() == (b"\n", b"", 0)


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupt_keeps_what_there_is(as_json: bool) -> None:
    words = toy_words(2)
    slow = Slow(*["--json"] * as_json)
    slow.go(), slow.go()
    assert slow.child.stderr.readline() == b"step\n"  # the third, which it will not finish
    if not as_json:
        assert slow.read(len(b" ".join(words))) == b" ".join(words)
    slow.child.send_signal(signal.SIGINT)
    out, err, code = slow.leave()
    assert code == 130 and err == b""
    if as_json:
        data = json.loads(out)
        assert data["status"] == "INTERRUPTED" and data["finish_reason"] is None
        assert data["tokens"] == [int(word) for word in words]
    else:
        assert out == b"\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    slow = Slow()
    slow.go()
    slow.read(1)
    slow.child.stdout.close()
    slow.child.stdout = None
    slow.go()
    _, err, code = slow.leave()
    assert (err, code) == (b"", 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error() -> None:
    command = [sys.executable, "-m", "amk", "generate", *TOY, "--quiet"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 4 and b"Traceback" not in done.stderr and b"No space" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("toy", "--prompt", "hello"), 2, b"no tokenizer"),
        (("toy", "--chat", "hello"), 2, b"no tokenizer"),
        (("toy", "--ids", "1", "--prompt", "x"), 2, b"--prompt and --ids"),
        (("toy", "--system", "x"), 2, b"--chat"),
        (("toy", "--ids", "1,,2"), 2, b"--ids"),
        (("toy", "--ids", ""), 2, b"--ids"),
        (("toy", "--ids", "1,256"), 2, b"0..255"),
        (("toy", "--ids", "1,2,3", "--max-seq", "3"), 2, b"prompt"),
        (("toy", "--temperature", "nan"), 2, b"temperature"),
        (("toy", "--temperature", "warm"), 2, b"usage"),
        (("toy", "--top-p", "0"), 2, b"top_p"),
        (("toy", "--top-k", "-1"), 2, b"top_k"),
        (("toy", "--max-new-tokens", "0"), 2, b"max_new_tokens"),
        (("toy", "--device", "cuda"), 4, b"CUDA"),
        (("toy", "--device", "cuda:3"), 4, b"cuda:3"),
        (("toy", "--device", "cuda:x"), 2, b"'cuda:N', got 'cuda:x'"),
        (("no-such-model",), 2, b"no-such-model"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_ends_in_one_sentence(
    arguments: tuple[str, ...], code: int, word: bytes, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from amk import cli

    try:
        got = cli.main(["generate", *arguments, *([] if word == b"usage" else ["--gpu", "h200"])])
    except SystemExit as stop:
        got = stop.code
    captured = capfdbinary.readouterr()
    assert got == code and captured.out == b"" and word in captured.err and b"Traceback" not in captured.err


# ---- text ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("tokenizers", "jinja2", "torch", "transformers"):
        pytest.importorskip(package)
    from small_tokenizer import build_text_checkpoint

    folder = tmp_path_factory.mktemp("model")
    build_text_checkpoint(folder)
    return folder


WHOLE = "import sys\nfrom amk.cli import main\nsys.exit(main(sys.argv[1:]))"


def test_text_and_chat(checkpoint: Path) -> None:
    few = ("--max-new-tokens", 16, "--gpu", "h200", "--quiet")
    done = process(checkpoint, "--prompt", "the quick", *few, code=WHOLE)
    expected = "".join(token.text for token in amk.generate(checkpoint, "the quick", gpu="h200", max_new_tokens=16))
    assert done.returncode == 0 and done.stdout.decode() == expected + "\n" and done.stderr == b"" and expected
    done = process(checkpoint, "--chat", "hello", "--system", "be brief", *few, "--json", code=WHOLE)
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    generation = amk.generate(checkpoint, chat, gpu="h200", max_new_tokens=16)
    data = json.loads(done.stdout)
    assert data["prompt_tokens"] == list(generation.prompt_tokens)
    assert data["text"] == "".join(token.text for token in generation)


def test_a_terminal_without_unicode_gets_question_marks(checkpoint: Path) -> None:
    tokens = list(amk.generate(checkpoint, "the", gpu="h200", max_new_tokens=40, temperature=3.0, seed=1))
    text = "".join(token.text for token in tokens)
    assert not text.isascii()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    flags = ("--max-new-tokens", 40, "--temperature", 3, "--seed", 1, "--gpu", "h200", "--quiet")
    done = process(checkpoint, "--prompt", "the", *flags, code=WHOLE, env=environment)
    assert done.returncode == 0 and done.stdout.decode("ascii") == text.encode("ascii", "replace").decode() + "\n"


def test_without_the_extra_text_is_refused_and_ids_work(checkpoint: Path) -> None:
    done = process(checkpoint, "--prompt", "hello", "--gpu", "h200")
    assert done.returncode == 4 and b'pip install "amk[hf]"' in done.stderr and done.stdout == b""
    done = process(checkpoint, "--ids", "5,6", "--gpu", "h200", "--max-new-tokens", 4)
    assert done.returncode == 0 and len(done.stdout.split()) == 4 and b"without text" in done.stderr
