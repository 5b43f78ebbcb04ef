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
from .verb import EXIT_CODES, Option, Outcome, Say, Tool, Verb, failure

__all__ = [
    "EXIT_CODES",
    "VERBS",
    "Option",
    "Outcome",
    "Say",
    "Tool",
    "Verb",
    "failure",
    "pick_gpu",
    "read_json",
    "vars_of",
]


def _generate(arguments: Namespace, say: Say) -> Outcome:
    from .generate_verb import run_generate

    return run_generate(arguments, say)


def _bench(arguments: Namespace, say: Say) -> Outcome:
    from .bench_verb import bench_verb

    return bench_verb(arguments, say)


def _profile(arguments: Namespace, say: Say) -> Outcome:
    from .profile_verb import profile_verb

    return profile_verb(arguments, say)


def _report(arguments: Namespace, say: Say) -> Outcome:
    from .report_verb import report_verb

    return report_verb(arguments, say)


def _explain(arguments: Namespace, say: Say) -> Outcome:
    from .explain_verb import explain_verb

    return explain_verb(arguments, say)


def _results(arguments: Namespace, say: Say) -> Outcome:
    from .results_verb import run_results

    return run_results(arguments, say)


def _jobs(arguments: Namespace, say: Say) -> Outcome:
    from .agent.jobs_verb import jobs_verb

    return jobs_verb(arguments, say)


def _mcp(arguments: Namespace, say: Say) -> Outcome:
    from .agent.server import mcp_verb

    return mcp_verb(arguments, say)


def _loop(arguments: Namespace, say: Say) -> Outcome:
    from .loop_verb import run_loop_verb

    return run_loop_verb(arguments, say)


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
                "many": option.many,
                "help": option.help,
            }
            for option in verb.options
        ]
        verbs.append(
            {"name": verb.name, "help": verb.help, "options": options, "tools": [tool.name for tool in verb.tools]}
        )
    codes = {str(code): meaning for code, meaning in EXIT_CODES.items()}
    lines = [f"amk {verb.name:<9} {verb.help}" for verb in VERBS]
    lines += ["", "`amk VERB --help` lists the options of one verb; exit codes:"]
    lines += [f"  {code:<4} {meaning}" for code, meaning in codes.items()]
    return Outcome(0, "OK", {"verbs": verbs, "exit_codes": codes}, "\n".join(lines))


_JSON = Option("--json", "print one JSON object instead of text", "flag")
_QUIET = Option("--quiet", "no progress on stderr", "flag")
_GPU = Option("--gpu", f"target name (default: the live device, else {DEFAULT_GPU})")
_CONFIG = Option(
    "--config", "schedule as a JSON file, or - for stdin (default: the default schedule)", holds="ScheduleConfig"
)
_STRICT = Option("--strict", "reject unknown keys of the schedule instead of dropping them with a note", "flag")
_MAX_SEQ = Option("--max-seq", "rows of the cache (default: the model's positions, at most 1024)", "int")
_MODELS = (
    "toy, toy-2L, toy-gqa, toy-qwen3, toy-gdn, a shape at full size (0.6B, 1B, 8B), or a Hugging Face checkpoint "
    "directory"
)
_MODEL = Option("MODEL", _MODELS, required=True)
_INPUT = Option("INPUT", "program.json, image.amk, - for stdin, or a model", required=True)
_QUANTIZE = (
    Option("--quantize", "matrices as integers: int8 (default: as the model stores them)", choices=("int8",)),
    Option("--group", "elements of a row that share a scale: 64 or 128 (default: 128); with --quantize", "int"),
)
_LOWERING = (_GPU, _CONFIG, _STRICT, _MAX_SEQ, *_QUANTIZE)
_BATCH = Option("--batch", "consecutive tokens of one sequence that a step decodes: 1 to 16", "int", default=1)
_DEVICE = Option("--device", "where it runs: auto, cpu, cuda or cuda:N", default="auto")
_COMMON = (_JSON, _QUIET)
WAIT_S = 15.0  # a tool that takes longer becomes a job

_STAGES = ("quick", "representative", "full")  # of bench kernel
_ACTIONS = ("summary", "best", "export", "plot", "check", "rebuild")  # of results

VERBS: tuple[Verb, ...] = (
    Verb(
        "doctor",
        "say what this installation is and whether it is sound",
        _COMMON,
        doctor_verb,
        (
            Tool(
                "amk_doctor", "Versions, library, GPUs and environment of this installation, and what is wrong with it."
            ),
        ),
    ),
    Verb(
        "targets",
        "list the GPUs known as data, with the source of their figures",
        _COMMON,
        targets_verb,
        (
            Tool(
                "amk_targets", "The GPUs that can be compiled and predicted for, as data, with their figures' sources."
            ),
        ),
    ),
    Verb(
        "propose",
        "print a schedule to try next: the default, or the incumbent with one knob changed",
        (
            *(_MODEL, _GPU),
            Option("--incumbent", "schedule as a JSON file, or - for stdin", holds="ScheduleConfig"),
            *_COMMON,
        ),
        propose_verb,
        (
            Tool(
                "amk_propose",
                "A schedule to evaluate next, the search space (the only values to edit) and its JSON Schema. Without "
                "an incumbent: the default. With one: the incumbent with exactly one knob changed.",
            ),
        ),
    ),
    Verb(
        "validate",
        "prove a program file, an image, or the lowering of a model free of deadlocks and races",
        (_INPUT, *_LOWERING, _BATCH, *_COMMON),
        validate_verb,
        (
            Tool(
                "amk_validate",
                "Proves a program file, an image, or a model's lowering under a schedule free of deadlocks and races; "
                "status REJECTED lists what was refused and why. Runs nothing.",
                wait_s=WAIT_S,
            ),
        ),
    ),
    Verb(
        "explain",
        "say where the time goes, predicted or of a timeline: critical path, waits, bytes, the next bottleneck",
        (
            *(_INPUT, *_LOWERING),
            Option("--position", "context that the time is for (default: half of the cache, or the timeline's)", "int"),
            Option(
                "--timeline",
                "what `amk profile` wrote (--trace or --output-file): explain that measured step; options of the "
                "lowering that are not given are taken from it",
            ),
            *_COMMON,
        ),
        _explain,
        (
            Tool(
                "amk_explain",
                "Where the predicted time of a model, program file or image goes: critical path, time waiting per "
                "producer, bytes against the floor, share per opcode, and the next bottleneck in words. No GPU needed. "
                "With timeline (a file that amk_profile wrote): the same of a measured step.",
                wait_s=WAIT_S,
            ),
        ),
    ),
    Verb(
        "eval",
        "judge one schedule: correct against a float64 reference, then its latency against the floor",
        (
            _MODEL,
            *_LOWERING,
            _DEVICE,
            Option("--token", "the token that starts the decode", "int", default=7),
            _BATCH,
            Option("--position", "context that the latency is for (default: half of --max-seq)", "int"),
            Option("--seed", "draws the questions", "int", default=0),
            *_COMMON,
        ),
        eval_verb,
        (
            Tool(
                "amk_evaluate",
                "Judges one schedule: correct against a float64 reference, then its latency and percent of the floor. "
                "A wrong result has no latency; latency_kind says measured-gpu or predicted. Never raises for a bad "
                "schedule: status REJECTED names the reason. A job where it takes longer than wait_s.",
                read_only=False,
                wait_s=WAIT_S,
            ),
        ),
    ),
    Verb(
        "compile",
        "write the image of a model under a schedule, and a report",
        (
            _MODEL,
            *_LOWERING,
            _BATCH,
            Option("--output", "a directory (image.amk and report.json), or a file ending in .amk", required=True),
            *_COMMON,
        ),
        compile_verb,
    ),
    Verb(
        "generate",
        "continue a prompt (default: the model's first token), printing tokens as they come",
        (
            *(_MODEL, _DEVICE, _GPU, _CONFIG, *_QUANTIZE),
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
            Option("--prompt-block", "tokens of the prompt in a pass over the weights, 1 to 16 (default: 16)", "int"),
            *_COMMON,
        ),
        _generate,
    ),
    Verb(
        "bench",
        "time decode steps of models at several contexts against the floor, beside peers; only what is correct counts; "
        "or, as `bench kernel TASK`, one kernel task: baseline against solution under checks",
        (
            Option("MODEL", f"{_MODELS}; or the word kernel and the name of a task", required=True, many=True),
            Option("--contexts", "rows attended to, separated by commas (default: 1,1024,8192, as far as they fit)"),
            _GPU,
            Option("--device", "auto, cpu (predicts), cuda or cuda:N (measures)", default="auto"),
            _CONFIG,
            Option("--peers", "what to compare with: torch, or torch-eager and torch-compile by name"),
            Option("--peer-limit", "seconds for one peer and model, compilation included", "float", default=300.0),
            Option("--max-seq", "rows of the cache (default: the longest context)", "int"),
            _BATCH,
            Option("--seed", "draws the questions and the tokens", "int", default=0),
            *_QUANTIZE,
            Option("--output-file", "a .json file for the rows"),
            Option("--plot", "a .png or .svg file; needs matplotlib"),
            Option("--list", "with kernel: name the tasks", "flag"),
            Option("--stage", "with kernel: which rows (default: full, the only one that counts)", choices=_STAGES),
            Option(
                "--baseline",
                "with kernel: in-repo (the task's own, default), torch, torch.compile or module:function; several are "
                "timed in one run, with a record each",
                many=True,
            ),
            Option("--output", "with kernel: a directory for results.jsonl and results.md, of each baseline"),
            Option("--journal", "with kernel: a file that keeps what is measured; a run cut short goes on from it"),
            *_COMMON,
        ),
        _bench,
        (
            Tool(
                "amk_bench",
                "Models by contexts in one table: time per token, GB/s and share of the floor through the judge, "
                "beside PyTorch where peers name it. Measured where a live GPU is what gpu describes, else predicted, "
                "and each row says which. A job where it takes longer than wait_s.",
                read_only=False,
                wait_s=WAIT_S,
                paged=True,
            ),
        ),
    ),
    Verb(
        "profile",
        "one decode step task by task: a Chrome trace with a row per SM, and where its time went",
        (
            *(_MODEL, *_LOWERING),
            Option("--device", "auto, cpu (predicts), cuda or cuda:N (measures)", default="auto"),
            Option("--context", "rows attended to, its own included (default: half of the cache)", "int"),
            Option("--steps", "steps to record, of which the one of median duration is given", "int", default=20),
            Option("--seed", "draws the tokens and the cache", "int", default=0),
            Option("--trace", "a .json or .json.gz file for the trace (chrome://tracing, ui.perfetto.dev)"),
            Option("--output-file", "a .json file for the summary with the times of every task"),
            *_COMMON,
        ),
        _profile,
        (
            Tool(
                "amk_profile",
                "One decode step task by task: time waiting and working per op, the longest waits per producer, GB/s "
                "against the floor; a Chrome trace where trace names a file. latency_kind says measured-gpu or "
                "predicted. amk_explain takes the file as its timeline. A job where it takes longer than wait_s.",
                read_only=False,
                wait_s=WAIT_S,
                paged=True,
            ),
        ),
    ),
    Verb(
        "report",
        "write one self-contained HTML page of a log: trials, plots, provenance, and the commands that redo them",
        (
            Option("RESULTS", "results.tsv, or the journal beside it", required=True),
            Option("--output", "a .html file", required=True),
            *_COMMON,
        ),
        _report,
        (
            Tool(
                "amk_report",
                "Writes one self-contained HTML page of a loop's log to the file that output names: trials, plots, "
                "provenance, the commands that redo them. Says what of the log is damaged or unverified.",
                read_only=False,
                wait_s=WAIT_S,
            ),
        ),
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
        (
            Tool(
                "amk_loop_start",
                "Searches for a faster schedule unattended: propose, judge, keep or revert, each trial recorded in "
                "results.tsv before the next. Always a job: progress by amk_job_status, the best by amk_job_result.",
                read_only=False,
                idempotent=False,
                wait_s=0.0,
                hidden=("--verbose",),
                paged=True,
            ),
        ),
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
        (
            Tool(
                "amk_results",
                "What loops recorded: summary per model and GPU, best (with the commands that redo it), export (every "
                "trial, a page at a time), check (is anything damaged). Changes nothing.",
                hidden=("--format", "--output-file"),
                choices={"ACTION": ("summary", "best", "export", "check")},
                paged=True,
            ),
        ),
    ),
    Verb(
        "jobs",
        "say what became of the jobs that an agent started: status of all or one, result, cancel",
        (
            Option("ACTION", "status, result or cancel", choices=("status", "result", "cancel"), required=True),
            Option("JOB", "a job's 12 hexadecimal digits (status without it: all jobs, newest first)"),
            Option("--wait", "seconds to wait for the end of the job", "float", default=0.0),
            Option("--grace", "cancel: seconds from the interrupt to the kill", "float", default=10.0),
            Option("--offset", "entries of long lists to leave out", "int", default=0),
            Option("--limit", "entries of long lists to give", "int", default=50),
            *_COMMON,
        ),
        _jobs,
        (
            Tool(
                "amk_job_status",
                "State, age and last progress lines of a job; without a job, of all jobs, newest first.",
                fixed={"ACTION": "status"},
                hidden=("--grace",),
            ),
            Tool(
                "amk_job_result",
                "The result of a job that has ended, long lists a page at a time; exit_code 1 and result null where "
                "there is none (yet): the job says why.",
                fixed={"ACTION": "result"},
                hidden=("--grace",),
                required=("JOB",),
            ),
            Tool(
                "amk_job_cancel",
                "Interrupts a job, which may still finish its record, and kills it after the grace.",
                read_only=False,
                destructive=True,
                fixed={"ACTION": "cancel"},
                hidden=("--wait", "--offset", "--limit"),
                required=("JOB",),
            ),
        ),
    ),
    Verb("mcp", "serve the tools of AMK to an agent, as MCP over stdin and stdout (extra: agent)", (_QUIET,), _mcp),
    Verb("help", "list verbs, options and exit codes", _COMMON, _help),
)
