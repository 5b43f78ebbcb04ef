"""The `amk` command: arguments in, one result on stdout, an exit code.

stdout carries the result and nothing else (text, piece by piece where a verb makes it so, or one JSON object with
--json); progress, logs and error sentences go to stderr. What a verb does lives in `verbs.py`; here are parsing,
printing and the meaning of exit codes. No input, however bad, may end in a traceback.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Any

from . import errors
from .verbs import EXIT_CODES, VERBS, Option, Outcome, Say, Verb, failure

__all__ = ["main", "parser_of", "record_of", "run_verb"]

SCHEMA_VERSION = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code (see EXIT_CODES); argparse itself exits with 2 on a usage error."""
    arguments = parser_of(VERBS).parse_args(sys.argv[1:] if argv is None else list(argv))
    verb: Verb | None = getattr(arguments, "verb", None)
    as_json, quiet = getattr(arguments, "json", False), getattr(arguments, "quiet", False)
    if verb is None:
        parser_of(VERBS).print_help(sys.stderr)
        return 2

    def say(text: str) -> None:
        if not quiet:
            print(f"amk: {text}", file=sys.stderr, flush=True)

    arguments.emit = (lambda text: None) if as_json else _emit
    arguments.on_terminal = not quiet and sys.stderr.isatty()
    with _stdout_kept_clean() if as_json else nullcontext():
        outcome, failed = run_verb(verb, arguments, say)
    if failed:
        print(f"amk {verb.name}: {outcome.text}", file=sys.stderr)
    return _print_result(verb, outcome, as_json, failed=failed)


def run_verb(verb: Verb, arguments: argparse.Namespace, say: Say) -> tuple[Outcome, bool]:
    """What a verb answers, and whether it could not: then the outcome is an error. Nothing is raised."""
    try:
        return verb.run(arguments, say), False
    except KeyboardInterrupt:
        return failure(130, "interrupted", "interrupted"), True
    except errors.AmkError as refusal:
        return failure(_code_of(refusal), refusal.code, str(refusal)), True
    except MemoryError as shortage:
        return failure(4, "out-of-memory", str(shortage) or "out of memory"), True
    except OSError as trouble:
        return failure(4, "environment", str(trouble)), True
    except Exception as bug:  # a bug in AMK: said in one line, with what a report needs
        text = f"{type(bug).__name__}: {bug} (a bug in AMK; please report it with `amk doctor --json`)"
        return failure(70, "internal", text), True


def record_of(verb: Verb, outcome: Outcome, *, failed: bool) -> dict[str, Any]:
    """The one JSON object of --json."""
    schema = "amk.error" if failed else f"amk.{verb.name}"
    head = {"schema": schema, "schema_version": SCHEMA_VERSION, "status": outcome.status, "exit_code": outcome.code}
    return {**head, **outcome.result}


@contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Whatever else writes to stdout while the result is made (a compiler, a C library, a child) goes to stderr."""
    try:
        kept = os.dup(1)
    except OSError:  # stdout is closed: nothing to keep clean
        yield
        return
    try:
        try:
            os.dup2(2, 1)
        except OSError:  # so is stderr
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).fflush(None)  # what C code still buffers must not follow the result
        os.dup2(kept, 1)
        os.close(kept)


def _emit(text: str) -> None:
    """A piece of the result, at once. What the terminal cannot show is replaced, as nothing else is lost by it."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _print_result(verb: Verb, outcome: Outcome, as_json: bool, *, failed: bool) -> int:
    """A reader that went away (`amk targets | head -1`) is no error of ours: the verb's own code stands."""
    if as_json:
        text = json.dumps(record_of(verb, outcome, failed=failed), indent=2, allow_nan=False)
    else:
        text = "" if failed else outcome.text
    try:
        if text:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
    except OSError as trouble:  # a full disk behind a redirection: the result is lost, and that is an error
        print(f"amk {verb.name}: the result could not be written: {trouble}", file=sys.stderr)
        return outcome.code or 4
    return outcome.code


def _code_of(refusal: errors.AmkError) -> int:
    codes: tuple[tuple[type[errors.AmkError], int], ...] = (
        (errors.Rejected, 1),
        (errors.NonFinite, 1),
        (errors.InputError, 2),
        (errors.UnsupportedModel, 3),
        (errors.DeviceError, 4),
        (errors.BuildMismatch, 4),
        (errors.OutOfMemory, 4),
        (errors.StoreError, 8),
    )
    return next((code for kind, code in codes if isinstance(refusal, kind)), 70)


def parser_of(table: Sequence[Verb]) -> argparse.ArgumentParser:
    listing = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="amk",
        description="Compiles one LLM decode step into one persistent kernel, proves it, and judges it.",
        epilog=f"exit codes:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version")
    verbs = parser.add_subparsers(metavar="VERB")
    for verb in table:
        child = verbs.add_parser(verb.name, help=verb.help, description=verb.help, allow_abbrev=False)
        child.set_defaults(verb=verb)
        for option in verb.options:
            _add_option(child, option)
    return parser


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    keywords: dict[str, Any] = {"help": option.help}
    if option.kind == "flag":
        keywords["action"] = "store_true"
    else:
        types = {"int": int, "float": float, "str": str}
        keywords |= {"type": types[option.kind], "default": option.default, "metavar": option.metavar}
        if option.choices:
            keywords["choices"] = option.choices
        if option.flag.startswith("-"):
            keywords["required"] = option.required
            if option.many:
                keywords["action"] = "append"
        elif option.many:
            keywords["nargs"] = "+" if option.required else "*"
        elif not option.required:
            keywords["nargs"] = "?"
    parser.add_argument(option.flag, **keywords)


class _PrintVersion(argparse.Action):
    """Looked up only when asked for, because that reads the installation's metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .doctor import package_version

        print(f"amk {package_version()}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
