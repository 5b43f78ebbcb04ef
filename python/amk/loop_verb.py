"""`amk loop`: the search from the command line, watched by a person or by nobody.

In: parsed arguments, `say` for the person waiting. Out: an `Outcome` with what was found. Each trial is a line on
stderr; on a terminal, with the extra `cli`, a bar with the best so far. The first Ctrl-C ends the loop and finishes its
record, a second one ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from .loop import LoopInterrupted, loop
from .verb import Outcome, Say

if TYPE_CHECKING:
    from .records import Trial

__all__ = ["run_loop_verb", "trial_line"]


def run_loop_verb(arguments: Namespace, say: Say) -> Outcome:
    """Runs the verb; an interrupted loop has a result too."""
    from .core_verbs import pick_gpu

    gpu = pick_gpu(arguments.gpu, say)
    with _watched(arguments, say) as (on_trial, progress), _one_interrupt():
        try:
            result = loop(
                arguments.MODEL,
                gpu,
                arguments.budget,
                arguments.device,
                seed=arguments.seed,
                results_path=arguments.results,
                corpus_path=arguments.corpus,
                explore_fraction=arguments.explore,
                on_trial=on_trial,
                verbose=arguments.verbose,
                resume=arguments.resume,
                cold=arguments.cold,
                sampler=arguments.sampler,
                engine=arguments.engine,
                workers=arguments.workers,
                max_seq=arguments.max_seq,
                position=arguments.position,
                timeout_s=arguments.timeout,
                progress=progress,
            )
        except LoopInterrupted as interrupt:
            result = interrupt.result
            return Outcome(130, "INTERRUPTED", result.to_dict(), result.to_text())
    if result.stopped is not None and "device was lost" in result.stopped:
        return Outcome(4, "ERROR", result.to_dict(), result.to_text())
    if result.best is None:
        return Outcome(1, "REJECTED", result.to_dict(), result.to_text())
    return Outcome(0, "OK", result.to_dict(), result.to_text())


def trial_line(trial: Trial, budget: int) -> str:
    """One trial, in one line."""
    latency = trial.correctness if trial.latency_us is None else f"{trial.latency_us:.4g} us {trial.regime}"
    return f"trial {trial.experiment + 1}/{budget} {trial.tag:<8} {latency}, {trial.schedule_id}: {trial.description}"


# ---- who watches ----

_Watchers = tuple[Callable[[Any], None], Callable[[str], None]]


@contextlib.contextmanager
def _watched(arguments: Namespace, say: Say) -> Iterator[_Watchers]:
    """(on_trial, progress): a bar where somebody looks at one, else lines."""
    if getattr(arguments, "on_terminal", False) and os.environ.get("TERM") not in (None, "", "dumb"):
        try:
            import rich.progress as _  # noqa: F401
        except ImportError:
            pass
        else:
            with _bar(arguments) as watchers:
                yield watchers
            return
    yield (lambda trial: say(trial_line(trial, arguments.budget))), say


@contextlib.contextmanager
def _bar(arguments: Namespace) -> Iterator[_Watchers]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")) or None, highlight=False)
    columns = (
        *(TextColumn("amk loop"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        *(TextColumn("{task.fields[best]}", markup=False), TextColumn("{task.fields[doing]}", markup=False)),
    )
    best: list[Trial] = []
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("loop", total=arguments.budget, best="no best yet", doing="")

        def on_trial(trial: Trial) -> None:
            if trial.tag == "kept":
                best[:] = [trial]
            text = f"best {best[0].latency_us:.4g} us {best[0].regime}" if best else "no best yet"
            progress.update(task, completed=trial.experiment + 1, best=text, doing="")
            console.print(trial_line(trial, arguments.budget), markup=False, soft_wrap=True)

        def on_step(text: str) -> None:
            if arguments.verbose:
                progress.update(task, doing=text[:60])
            else:
                console.print(text, markup=False, soft_wrap=True)

        yield on_trial, on_step


@contextlib.contextmanager
def _one_interrupt() -> Iterator[None]:
    """The first Ctrl-C is an exception, the next one the default: the end of the process."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
