"""`amk bench kernel NAME`: one kernel task from its rows to its files.

In: the arguments of `amk bench` whose first word is `kernel`, and `say`. Out: an `Outcome`. Options that belong to
models are refused, not ignored. Files are written only of a record that was sealed; an invalid one is written as such
to standard output alone, and leaves what was there. Records of one run, one for each baseline, do not share that fate.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence

from ..errors import InputError, show
from ..output import WholeFiles, require_suffix
from ..verb import Outcome, Say
from .external import IN_REPO
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

    specs = arguments.baseline or [IN_REPO]
    if suffix is not None and len(specs) > 1:
        raise InputError(f"bench kernel --plot: expected one baseline, got {show(specs)}")
    files, source, sources = {}, None, ""
    if arguments.output is not None:
        files = _files(arguments.output, specs)
        if specs != [IN_REPO]:
            source = os.path.join(arguments.output, "baseline_source.md")
            if os.path.isfile(source):
                with open(source, encoding="utf-8") as file:
                    sources = file.read()
    paths = [path for table in files.values() for path in table.values()]
    paths += [path for path in (source, arguments.plot) if path is not None]
    contents: dict[str, bytes] = {}
    with WholeFiles(*paths) as whole:
        records = run_kernel_bench(
            task.name,
            stage=stage,
            baselines=specs,
            device=arguments.device,
            seed=arguments.seed,
            journal=arguments.journal,
            progress=say,
        )
        for spec, record in zip(specs, records, strict=True):
            if not record["valid"]:
                continue
            if spec in files:
                contents[files[spec]["jsonl"]] = json_lines(record).encode()
                contents[files[spec]["md"]] = markdown(record).encode()
                if source is not None and spec != IN_REPO:
                    sources = baseline_source(record, sources)
                    contents[source] = sources.encode()
            if suffix is not None:
                from .plot import draw_record

                contents[arguments.plot] = draw_record(record, suffix)
        for path in paths:
            if path in contents:
                whole.write(path, contents[path])
            else:
                whole.leave(path)  # of an invalid record: as it was
    valid = all(record["valid"] for record in records)
    result = {**SCHEMA, **(shortened(records[0]) if len(records) == 1 else {
        "task": task.name, "valid": valid, "records": [shortened(record) for record in records]
    }), "files": [path for path in paths if path in contents]}  # fmt: skip
    text = "\n\n".join(table(record) for record in records)
    return Outcome(0 if valid else 1, "PASSED" if valid else "FAILED", result, text)


def _files(folder: str, specs: Sequence[str]) -> dict[str, dict[str, str]]:
    """baseline -> its files by ending."""
    stems = {spec: "results" if spec == IN_REPO else f"results_{_word(spec)}" for spec in specs}
    if len(set(stems.values())) < len(stems):
        raise InputError(f"bench kernel --output: expected baselines whose files differ, got {show(specs)}")
    return {spec: {what: os.path.join(folder, f"{stem}.{what}") for what in ("jsonl", "md")}
            for spec, stem in stems.items()}  # fmt: skip


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
