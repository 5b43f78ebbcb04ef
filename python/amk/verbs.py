"""The verbs of AMK, one table: name, options and the function behind each.

In: parsed arguments and `say`, which talks to the person waiting. Out: an `Outcome`: exit code, status word, plain
dict, readable text; pieces on the way go to `arguments.emit`. A verb never prints or exits: there are other front ends.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import BuildMismatch, DeviceError, InputError, Rejected
from .machine import DEFAULT_GPU, default_gpu

if TYPE_CHECKING:
    from .config import ScheduleConfig
    from .program import Image, Program

__all__ = ["EXIT_CODES", "VERBS", "Option", "Outcome", "Verb", "failure"]

EXIT_CODES = {
    0: "done, and accepted",
    1: "judged, and the answer is no: rejected or incorrect",
    2: "usage: an argument or a file given is missing or malformed",
    3: "a model or feature that AMK does not support",
    4: "the environment: no GPU, driver, memory or usable library",
    8: "the result store is locked, cannot be written, or is damaged",
    70: "an internal error of AMK",
    130: "interrupted",
}

MAX_CONFIG_BYTES = 64 << 20
MAX_PROGRAM_BYTES = 1 << 30

Say = Callable[[str], None]


@dataclass(frozen=True)
class Option:
    flag: str  # "--gpu", or "MODEL" for a positional
    help: str
    kind: str = "str"  # "str" | "int" | "float" | "flag"
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()

    @property
    def metavar(self) -> str | None:
        return None if self.choices and self.flag.startswith("-") else self.flag.lstrip("-").upper().replace("-", "_")


@dataclass(frozen=True)
class Outcome:
    code: int
    status: str
    result: dict[str, Any] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Verb:
    name: str
    help: str
    options: tuple[Option, ...]
    run: Callable[[Namespace, Say], Outcome]


def failure(code: int, kind: str, message: str) -> Outcome:
    """What a verb that could not answer amounts to."""
    status = {1: "REJECTED", 130: "INTERRUPTED"}.get(code, "ERROR")
    return Outcome(code, status, {"error": {"code": kind, "message": message}}, message)


# ---- verbs ----


def _doctor(_: Namespace, __: Say) -> Outcome:
    from .doctor import describe, diagnose

    found = diagnose()
    broken = bool(found["problems"])
    return Outcome(4 if broken else 0, "ERROR" if broken else "OK", found, describe(found))


def _targets(_: Namespace, __: Say) -> Outcome:
    from .targets import TARGETS

    lines = ["name      SMs  cc    GB/s   HBM GB  L2 MB  source"]
    for target in TARGETS.values():
        capability = f"{target.cc_major}.{target.cc_minor}"
        lines.append(
            f"{target.name:<9} {target.sm_count:>3}  {capability:<5} {target.hbm_gb_per_s:>5.0f}  "
            f"{target.hbm_bytes / 1e9:>6.0f}  {target.l2_bytes / 2**20:>5.0f}  {target.source}"
        )
    return Outcome(0, "OK", {"targets": [target.to_dict() for target in TARGETS.values()]}, "\n".join(lines))


def _propose(arguments: Namespace, say: Say) -> Outcome:
    from .propose import propose

    incumbent = None if arguments.incumbent is None else read_json(arguments.incumbent, "incumbent")
    proposal = propose(arguments.MODEL, pick_gpu(arguments.gpu, say), incumbent=incumbent)
    text = json.dumps(proposal["schedule_config"], indent=2)
    # On the command line "schema" names the record, so the schedule's own schema goes by another key.
    result = {("config_schema" if key == "schema" else key): value for key, value in proposal.items()}
    return Outcome(0, "OK", result, text)


def _validate(arguments: Namespace, say: Say) -> Outcome:
    from .embedded import EMBEDDED

    what = arguments.INPUT
    result: dict[str, Any] = {"input": what}
    image: Image | None = None
    try:
        if what in EMBEDDED or os.path.isdir(what):
            result["kind"] = "model"
            program, image, *_ = _lower(arguments, say)
        else:
            data = _read(what, MAX_PROGRAM_BYTES, "program or image")
            result["kind"], program, image = _open_program(data, what)
        report = program.validate()
        rejections = [vars_of(rejection) for rejection in report.rejections]
        if report.ok and image is None:
            image = program.pack()
    except (Rejected, BuildMismatch) as refusal:  # a schedule, or an image that is not what it claims to be
        rejections = [{"code": "", "task": -1, "buffer": -1, "counter": -1, "text": str(refusal)}]
        return _judgement({**result, "ok": False, "rejections": rejections})
    result |= {"ok": report.ok, "rejections": rejections, "image_hash": image.hash if image else None}
    return _judgement(result | _sizes(program))


def _judgement(result: dict[str, Any]) -> Outcome:
    if result["ok"]:
        text = f"{result['input']}: VALID ({_size_text(result)}, image {result['image_hash']})"
        return Outcome(0, "PASSED", result, text)
    lines = [f"{result['input']}: REJECTED, {len(result['rejections'])} reported"]
    for found in result["rejections"]:
        ids = [f"{name} {found[name]}" for name in ("task", "buffer", "counter") if found[name] >= 0]
        lines.append("  ".join(["", *filter(None, [found["code"], ", ".join(ids), found["text"]])]))
    return Outcome(1, "REJECTED", result, "\n".join(lines))


def _eval(arguments: Namespace, say: Say) -> Outcome:
    from .evaluate import evaluate

    verdict = evaluate(
        arguments.MODEL,
        pick_gpu(arguments.gpu, say),
        None if arguments.config is None else read_json(arguments.config, "config"),
        arguments.device,
        token=arguments.token,
        batch=arguments.batch,
        strict=arguments.strict,
        max_seq=arguments.max_seq,
        position=arguments.position,
        seed=arguments.seed,
        progress=say,
    )
    accepted = verdict.valid and verdict.correct
    return Outcome(0 if accepted else 1, verdict.status, verdict.to_dict(), verdict.to_text())


def _compile(arguments: Namespace, say: Say) -> Outcome:
    from .output import OutputFiles

    with OutputFiles(arguments.output) as files:  # refuses before any work is done
        program, image, schedule, gpu = _lower(arguments, say)
        position = program.launch["max_seq"] // 2
        cost = program.cost(position)
        data = image.bytes
        report = {
            "model": arguments.MODEL,
            "gpu": gpu,
            "image_hash": image.hash,
            "image_bytes": len(data),
            **_sizes(program),
            "schedule_config": schedule.to_dict(),
            "schedule_id": schedule.schedule_id,
            "launch": program.launch,
            "rejections": [],
            "cost": {"kind": "predicted", "position": position, **vars_of(cost)},
        }
        files.write_image(data)
        files.write_report(json.dumps({"schema": "amk.report", "schema_version": 1, **report}, indent=2) + "\n")
    result = {**report, "image": files.image_path, "report": files.report_path}
    text = f"{files.image_path}: {len(data)} bytes, {_size_text(result)}\n"
    text += f"{files.report_path}: image {image.hash}"
    return Outcome(0, "PASSED", result, text)


def _generate(arguments: Namespace, say: Say) -> Outcome:
    from .generate_verb import run_generate

    return run_generate(arguments, say)


def _results(arguments: Namespace, say: Say) -> Outcome:
    from .results_verb import run_results

    return run_results(arguments, say)


def _help(_: Namespace, __: Say) -> Outcome:
    verbs = []
    for verb in VERBS:
        options = [
            {
                "name": option.flag,
                "type": "bool" if option.kind == "flag" else option.kind,
                "required": option.required,
                "default": False if option.kind == "flag" else option.default,
                "choices": list(option.choices),
                "help": option.help,
            }
            for option in verb.options
        ]
        verbs.append({"name": verb.name, "help": verb.help, "options": options})
    codes = {str(code): meaning for code, meaning in EXIT_CODES.items()}
    lines = [f"amk {verb.name:<9} {verb.help}" for verb in VERBS]
    lines += ["", "`amk VERB --help` lists the options of one verb; exit codes:"]
    lines += [f"  {code:<4} {meaning}" for code, meaning in codes.items()]
    return Outcome(0, "OK", {"verbs": verbs, "exit_codes": codes}, "\n".join(lines))


# ---- what several verbs do ----


def pick_gpu(name: str | None, say: Say) -> str:
    """The target asked for; else the live device; else the default, said so."""
    if name is not None:
        return name
    from .targets import resolve_target

    try:
        live = resolve_target("local").name
    except DeviceError:
        say(f"no --gpu given and no live device: using {DEFAULT_GPU}")
        return DEFAULT_GPU
    chosen = default_gpu()
    say(f"no --gpu given: using {chosen}, the live {live}")
    return chosen


def read_json(path: str, what: str) -> Any:
    """A JSON file, or stdin for "-"."""
    from .strict_json import parse_strict_json

    return parse_strict_json(_read(path, MAX_CONFIG_BYTES, what), "stdin" if path == "-" else path)


def vars_of(record: Any) -> dict[str, Any]:
    """The fields of a dataclass instance as plain data."""
    from dataclasses import asdict

    return asdict(record)


def _lower(arguments: Namespace, say: Say) -> tuple[Program, Image, ScheduleConfig, str]:
    from .embedded import open_model
    from .evaluate import choose_max_seq, freeze_config, lower_and_pack
    from .targets import resolve_target

    model = arguments.MODEL if "MODEL" in arguments else arguments.INPUT
    source = open_model(model)
    target = resolve_target(pick_gpu(arguments.gpu, say))
    config = None if arguments.config is None else read_json(arguments.config, "config")
    schedule, notes = freeze_config(config, arguments.strict)
    for note in notes:
        say(note)
    program, image = lower_and_pack(source, schedule, target, choose_max_seq(source, arguments.max_seq))
    return program, image, schedule, target.name


def _read(path: str, max_bytes: int, what: str) -> bytes:
    from .safetensors import read_regular_file

    if path != "-":
        return read_regular_file(path, max_bytes)
    data = sys.stdin.buffer.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(f"stdin: expected a {what} of at most {max_bytes} bytes, got more")
    return data


def _open_program(data: bytes, where: str) -> tuple[str, Program, Image | None]:
    """A program in JSON starts with a brace; anything else must be an image."""
    from .program import Image, Program

    if data.lstrip()[:1] == b"{":
        try:
            return "program", Program.from_json(data.decode()), None
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: expected UTF-8 text, got byte {data[error.start]:#04x}") from error
    image = Image.from_bytes(data)
    return "image", image.program(), image


def _sizes(program: Program) -> dict[str, int]:
    return {"tasks": program.n_tasks, "n_buffers": program.n_buffers, "n_counters": program.n_counters}


def _size_text(sizes: dict[str, Any]) -> str:
    return f"{sizes['tasks']} tasks, {sizes['n_buffers']} buffers, {sizes['n_counters']} counters"


_JSON = Option("--json", "print one JSON object instead of text", "flag")
_QUIET = Option("--quiet", "no progress on stderr", "flag")
_GPU = Option("--gpu", f"target name (default: the live device, else {DEFAULT_GPU})")
_CONFIG = Option("--config", "schedule as a JSON file, or - for stdin (default: the default schedule)")
_STRICT = Option("--strict", "reject unknown keys of the schedule instead of dropping them with a note", "flag")
_MAX_SEQ = Option("--max-seq", "rows of the cache (default: the model's positions, at most 1024)", "int")
_MODEL = Option("MODEL", "toy, toy-2L, toy-gqa, toy-qwen3, or a Hugging Face checkpoint directory", required=True)
_LOWERING = (_GPU, _CONFIG, _STRICT, _MAX_SEQ)
_DEVICE = Option("--device", "where it runs", default="auto", choices=("auto", "cpu", "cuda"))
_COMMON = (_JSON, _QUIET)
_ACTIONS = ("summary", "best", "export", "plot", "check", "rebuild")

VERBS: tuple[Verb, ...] = (
    Verb("doctor", "say what this installation is and whether it is sound", _COMMON, _doctor),
    Verb("targets", "list the GPUs known as data, with the source of their figures", _COMMON, _targets),
    Verb(
        "propose",
        "print a schedule to try next: the default, or the incumbent with one knob changed",
        (_MODEL, _GPU, Option("--incumbent", "schedule as a JSON file, or - for stdin"), *_COMMON),
        _propose,
    ),
    Verb(
        "validate",
        "prove a program file, an image, or the lowering of a model free of deadlocks and races",
        (Option("INPUT", "program.json, image.amk, - for stdin, or a model", required=True), *_LOWERING, *_COMMON),
        _validate,
    ),
    Verb(
        "eval",
        "judge one schedule: correct against a float64 reference, then its latency against the floor",
        (
            _MODEL,
            *_LOWERING,
            _DEVICE,
            Option("--token", "the token that starts the decode", "int", default=7),
            Option("--batch", "sequences decoded at once: 1", "int", default=1),
            Option("--position", "context that the latency is for (default: half of --max-seq)", "int"),
            Option("--seed", "draws the questions", "int", default=0),
            *_COMMON,
        ),
        _eval,
    ),
    Verb(
        "compile",
        "write the image of a model under a schedule, and a report",
        (
            _MODEL,
            *_LOWERING,
            Option("--output", "a directory (image.amk and report.json), or a file ending in .amk", required=True),
            *_COMMON,
        ),
        _compile,
    ),
    Verb(
        "generate",
        "continue a prompt (default: the model's first token), printing tokens as they come",
        (
            *(_MODEL, _DEVICE, _GPU, _CONFIG),
            Option("--prompt", "a text to continue; needs a tokenizer"),
            Option("--ids", "token ids to continue, separated by commas"),
            Option("--chat", "what the user says, through the model's chat template"),
            Option("--system", "the system message before --chat"),
            Option("--max-new-tokens", "tokens to generate at most", "int", default=64),
            Option("--temperature", "0 is the greedy choice", "float", default=0.0),
            Option("--top-k", "draw from this many best tokens; 0 is all", "int", default=0),
            Option("--top-p", "draw from the fewest best tokens with this share of probability", "float", default=1.0),
            Option("--seed", "draws the tokens", "int", default=0),
            Option("--max-seq", "rows of the cache, prompt included (default: 1024, or what the request needs)", "int"),
            *_COMMON,
        ),
        _generate,
    ),
    Verb(
        "results",
        "ask the logs of a search: what was tried, what was best, what is damaged; or repair them",
        (
            Option("ACTION", f"one of {', '.join(_ACTIONS)}", required=True, choices=_ACTIONS),
            Option("RESULTS", "results file", default="results.tsv"),
            Option("--journal", "its journal (default: the file beside it that ends in .journal.jsonl)"),
            Option("--corpus", "corpus for check and rebuild (default: corpus.jsonl beside the results)"),
            Option("--model", "only trials of this model"),
            Option("--gpu", "only trials for this GPU"),
            Option("--regime", "only trials with latencies of this kind", choices=("predicted", "measured-gpu")),
            Option("--loop", "only trials of this loop"),
            Option("--format", "of export", default="csv", choices=("csv", "jsonl", "md")),
            Option("--output-file", "write there: the export, the plot (.png or .svg), or the schedule of the best"),
            *_COMMON,
        ),
        _results,
    ),
    Verb("help", "list verbs, options and exit codes", _COMMON, _help),
)
