"""`amk bench kernel NAME`: one kernel task from its rows to its files.

In: the arguments of `amk bench` whose first word is `kernel`, and `say`. Out: an `Outcome`. Options that belong to
models are refused, not ignored. Files are written only of a record that was sealed; an invalid one is written as such
to standard output alone, and leaves what was there.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from ..errors import InputError, show
from ..output import WholeFiles, require_suffix
from ..verb import Outcome, Say
from .harness_library import library_path
from .workloads import STAGES, load_task, task_names
from .write import SCHEMA, baseline_source, json_lines, markdown, shortened, table

__all__ = ["kernel_verb"]

# Options of `amk bench` that have no meaning here, and what they are when not given.
_OF_MODELS = {"contexts": None, "gpu": None, "config": None, "peers": None, "peer_limit": 300.0, "max_seq": None,
              "output_file": None}  # fmt: skip


def kernel_verb(arguments: Namespace, say: Say) -> Outcome:
    for name, default in _OF_MODELS.items():
        if getattr(arguments, name) != default:
            raise InputError(f"bench kernel: expected no --{name.replace('_', '-')}, which is of models, got one")
    names = arguments.MODEL[1:]
    if arguments.list:
        if names:
            raise InputError(f"bench kernel --list: expected no name, got {show(names)}")
        return _list()
    if len(names) != 1:
        raise InputError(f"bench kernel: expected one task, got {show(names)}; known: {', '.join(task_names())}")
    stage = "full" if arguments.stage is None else arguments.stage
    task = load_task(names[0])
    suffix = None
    if arguments.plot is not None:
        from ..report.canvas import SUFFIXES, require_matplotlib

        suffix = require_suffix(arguments.plot, SUFFIXES)
        require_matplotlib()
    from .run import run_kernel_bench

    files: dict[str, str] = {}
    sources = ""
    if arguments.output is not None:
        stem = "results" if arguments.baseline is None else f"results_{_word(arguments.baseline)}"
        files = {what: os.path.join(arguments.output, f"{stem}.{what}") for what in ("jsonl", "md")}
        if arguments.baseline is not None:
            files["source"] = os.path.join(arguments.output, "baseline_source.md")
            if os.path.isfile(files["source"]):
                with open(files["source"], encoding="utf-8") as file:
                    sources = file.read()
    record: dict[str, Any] = {}
    paths = [*files.values(), *([arguments.plot] if suffix is not None else [])]
    try:
        with WholeFiles(*paths) as whole:
            record = run_kernel_bench(
                task.name,
                stage=stage,
                baseline=arguments.baseline,
                device=arguments.device,
                seed=arguments.seed,
                progress=say,
            )
            if not record["valid"]:
                raise _NotValid
            texts = {"jsonl": json_lines, "md": markdown, "source": lambda it: baseline_source(it, sources)}
            for what, path in files.items():
                whole.write(path, texts[what](record).encode())
            if suffix is not None:
                from .plot import draw_record

                whole.write(arguments.plot, draw_record(record, suffix))
    except _NotValid:
        paths = []
    code, status = (0, "PASSED") if record["valid"] else (1, "FAILED")
    return Outcome(code, status, {**SCHEMA, **shortened(record), "files": paths}, table(record))


class _NotValid(Exception):
    """Leaves the files as they were."""


def _word(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)


def _list() -> Outcome:
    found = []
    for name in task_names():
        task = load_task(name)
        kinds = [row.kind for row in task.rows]
        found.append({"name": name, "title": task.title, "targets": list(task.targets), "stages": list(STAGES),
                      "production_rows": kinds.count("production"),
                      "regression_rows": kinds.count("regression")})  # fmt: skip
    built = os.path.exists(library_path())
    lines = [
        f"{task['name']:<20} {task['production_rows']:>3} production and {task['regression_rows']:>3} regression rows: "
        f"{task['title']}"
        for task in found
    ]
    if not built:
        lines.append(f"  {library_path()} is not there: this build has no CUDA, and nothing can be run")
    return Outcome(0, "OK", {"tasks": found, "library": library_path() if built else None}, "\n".join(lines))
