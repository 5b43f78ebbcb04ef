"""The verbs of AMK, one table: name, options and the function behind each.

In: parsed arguments and `say`, which talks to the person waiting. Out: an `Outcome`: exit code, status word, plain
dict, readable text; pieces on the way go to `arguments.emit`. A verb never prints or exits: there are other front ends.
"""

from __future__ import annotations

from argparse import Namespace

from .core_verbs import (
    compile_verb,
    doctor_verb,
    eval_verb,
    pick_gpu,
    propose_verb,
    read_json,
    targets_verb,
    validate_verb,
    vars_of,
)
from .machine import DEFAULT_GPU
from .verb import EXIT_CODES, Option, Outcome, Say, Verb, failure

__all__ = [
    "EXIT_CODES",
    "VERBS",
    "Option",
    "Outcome",
    "Say",
    "Verb",
    "failure",
    "pick_gpu",
    "read_json",
    "vars_of",
]


def _generate(arguments: Namespace, say: Say) -> Outcome:
    from .generate_verb import run_generate

    return run_generate(arguments, say)


def _loop(arguments: Namespace, say: Say) -> Outcome:
    from .loop_verb import run_loop_verb

    return run_loop_verb(arguments, say)


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
    Verb("doctor", "say what this installation is and whether it is sound", _COMMON, doctor_verb),
    Verb("targets", "list the GPUs known as data, with the source of their figures", _COMMON, targets_verb),
    Verb(
        "propose",
        "print a schedule to try next: the default, or the incumbent with one knob changed",
        (_MODEL, _GPU, Option("--incumbent", "schedule as a JSON file, or - for stdin"), *_COMMON),
        propose_verb,
    ),
    Verb(
        "validate",
        "prove a program file, an image, or the lowering of a model free of deadlocks and races",
        (Option("INPUT", "program.json, image.amk, - for stdin, or a model", required=True), *_LOWERING, *_COMMON),
        validate_verb,
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
        eval_verb,
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
        compile_verb,
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
        "loop",
        "search for a faster schedule: propose, judge, keep or revert; every trial is recorded",
        (
            *(_MODEL, _GPU, _DEVICE),
            Option("--budget", "trials", "int", default=8),
            Option("--seed", "draws the proposals and the questions", "int", default=0),
            Option("--results", "table of trials to append to; its journal lies beside it", default="results.tsv"),
            Option("--corpus", "kept points of all loops, which order the proposals", default="corpus.jsonl"),
            Option("--explore", "share of the trials that explore", "float", default=0.35),
            Option("--resume", "continue the last loop of this model, gpu, seed and options", "flag"),
            Option("--cold", "ignore the corpus", "flag"),
            Option("--sampler", "who proposes", default="builtin", choices=("builtin", "optuna")),
            Option("--engine", "where trials run", default="process", choices=("process", "ray", "inline")),
            Option("--workers", "trials at once; on GPUs, one each, with --engine ray", "int", default=1),
            _MAX_SEQ,
            Option("--position", "context that latencies are for (default: half of --max-seq)", "int"),
            Option("--timeout", "seconds after which a trial is ended", "float"),
            Option("--verbose", "say each step of each trial", "flag"),
            *_COMMON,
        ),
        _loop,
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
