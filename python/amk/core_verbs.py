"""The verbs that need no module of their own, and what several verbs do.

In: parsed arguments and `say`, which talks to the person waiting. Out: an `Outcome`. A verb never prints or exits.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from .errors import BuildMismatch, DeviceError, InputError, Rejected
from .machine import DEFAULT_GPU, default_gpu
from .verb import Outcome, Say

if TYPE_CHECKING:
    from .config import ScheduleConfig
    from .program import Image, Program

__all__ = [
    "compile_verb",
    "doctor_verb",
    "eval_verb",
    "open_input",
    "pick_gpu",
    "propose_verb",
    "read_json",
    "targets_verb",
    "validate_verb",
    "vars_of",
]

MAX_CONFIG_BYTES = 64 << 20
MAX_PROGRAM_BYTES = 1 << 30

# ---- verbs ----


def doctor_verb(_: Namespace, __: Say) -> Outcome:
    from .doctor import describe, diagnose

    found = diagnose()
    broken = bool(found["problems"])
    return Outcome(4 if broken else 0, "ERROR" if broken else "OK", found, describe(found))


def targets_verb(_: Namespace, __: Say) -> Outcome:
    from .targets import TARGETS

    lines = ["name      SMs  cc    GB/s   HBM GB  L2 MB  source"]
    for target in TARGETS.values():
        capability = f"{target.cc_major}.{target.cc_minor}"
        lines.append(
            f"{target.name:<9} {target.sm_count:>3}  {capability:<5} {target.hbm_gb_per_s:>5.0f}  "
            f"{target.hbm_bytes / 1e9:>6.0f}  {target.l2_bytes / 2**20:>5.0f}  {target.source}"
        )
    return Outcome(0, "OK", {"targets": [target.to_dict() for target in TARGETS.values()]}, "\n".join(lines))


def propose_verb(arguments: Namespace, say: Say) -> Outcome:
    from .propose import propose

    incumbent = None if arguments.incumbent is None else read_json(arguments.incumbent, "incumbent")
    proposal = propose(arguments.MODEL, pick_gpu(arguments.gpu, say), incumbent=incumbent)
    text = json.dumps(proposal["schedule_config"], indent=2)
    # On the command line "schema" names the record, so the schedule's own schema goes by another key.
    result = {("config_schema" if key == "schema" else key): value for key, value in proposal.items()}
    return Outcome(0, "OK", result, text)


def validate_verb(arguments: Namespace, say: Say) -> Outcome:
    what = arguments.INPUT
    result: dict[str, Any] = {"input": what, "kind": kind_of_input(what)}
    try:
        result["kind"], program, image = open_input(arguments, say)
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


def eval_verb(arguments: Namespace, say: Say) -> Outcome:
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
        quantize=arguments.quantize,
        group=arguments.group,
        progress=say,
    )
    accepted = verdict.valid and verdict.correct
    return Outcome(0 if accepted else 1, verdict.status, verdict.to_dict(), verdict.to_text())


def compile_verb(arguments: Namespace, say: Say) -> Outcome:
    from .output import OutputFiles

    with OutputFiles(arguments.output) as files:  # refuses before any work is done
        program, image, schedule, gpu, scheme = _lower(arguments, say)
        position = program.launch["max_seq"] // 2
        cost = program.cost(position)
        data = image.bytes
        report = {
            "model": arguments.MODEL,
            "quantize": scheme,
            "gpu": gpu,
            "batch": program.batch,
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
        files.write_report(json.dumps({"schema": "amk.image-report", "schema_version": 1, **report}, indent=2) + "\n")
    result = {**report, "image": files.image_path, "report": files.report_path}
    text = f"{files.image_path}: {len(data)} bytes, {_size_text(result)}\n"
    text += f"{files.report_path}: image {image.hash}"
    return Outcome(0, "PASSED", result, text)


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


def kind_of_input(what: str) -> str | None:
    """ "model", or None for a file, which has to be read to be known."""
    from .embedded import EMBEDDED, SHAPES

    return "model" if what in EMBEDDED or what in SHAPES or os.path.isdir(what) else None


def open_input(arguments: Namespace, say: Say) -> tuple[str, Program, Image | None]:
    """What INPUT names: ("model" | "program" | "image", the program, its image where there is one)."""
    what = arguments.INPUT
    if kind_of_input(what) == "model":
        program, image, *_ = _lower(arguments, say)
        return "model", program, image
    return _open_program(_read(what, MAX_PROGRAM_BYTES, "program or image"), what)


def _lower(arguments: Namespace, say: Say) -> tuple[Program, Image, ScheduleConfig, str, str | None]:
    from .embedded import open_model
    from .evaluate import choose_max_seq, freeze_config, lower_and_pack
    from .targets import resolve_target

    model = arguments.MODEL if "MODEL" in arguments else arguments.INPUT
    source = open_model(model, arguments.quantize, arguments.group)
    target = resolve_target(pick_gpu(arguments.gpu, say))
    config = arguments.config  # a path, or the schedule itself, where a file that was read already holds it
    if isinstance(config, str):
        config = read_json(config, "config")
    schedule, notes = freeze_config(config, arguments.strict)
    for note in notes:
        say(note)
    max_seq, batch = choose_max_seq(source, arguments.max_seq), getattr(arguments, "batch", 1)  # explain has none
    program, image = lower_and_pack(source, schedule, target, max_seq, batch)
    return program, image, schedule, target.name, getattr(source, "scheme", None)


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
