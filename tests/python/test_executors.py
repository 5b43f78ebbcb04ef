"""Where jobs run: in this process, in disposable ones, on Ray. A job that goes wrong is an error; the next one runs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import amk
from amk.errors import InputError, OutOfMemory, Rejected, Unavailable, WorkerDied
from amk.search import executor as executors
from amk.search.executor import InlineExecutor, Job, open_executor
from amk.search.pool import ProcessExecutor


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOP_JOBS_DIR", str(tmp_path))


@pytest.fixture
def pool() -> Any:
    made = ProcessExecutor(2)
    yield made
    made.close()


def job(name: str, timeout_s: float = 30.0, **arguments: Any) -> Job:
    return Job(f"loop_jobs:{name}", arguments, timeout_s)


def tile(n: int, timeout_s: float = 30.0) -> Job:
    return job("troubled", timeout_s, schedule_config={"tiling": {"gemv": {"N_tile": n}}})


def ask(executor: Any, work: Job, say: Any = lambda text: None) -> Any:
    return executor.wait(executor.submit(work, say))


def gone(pid: int) -> bool:
    end = time.monotonic() + 3
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.02)
    return not os.path.exists(f"/proc/{pid}")


def test_a_job_comes_back_as_it_was_sent(pool: Any) -> None:
    said: list[str] = []
    value = {"n": [1, 2.5, None, True], "text": "é\t\n", "big": "x" * 200_000}
    assert ask(pool, job("echo", value=value), said.append) == {"value": value}
    assert said == ["echoing"]
    tickets = [pool.submit(job("echo", i=i), lambda text: None) for i in range(7)]
    assert [pool.wait(ticket) for ticket in reversed(tickets)] == [{"i": i} for i in reversed(range(7))]


def test_each_job_has_a_process_of_its_own_from_one_zygote(pool: Any) -> None:
    ask(pool, job("echo"))
    (zygote,) = pool.pids()
    with pytest.raises(WorkerDied, match="SIGSEGV"):
        ask(pool, tile(8))
    assert ask(pool, job("echo", i=1)) == {"i": 1} and zygote in pool.pids(), "a crash takes nothing with it"


@pytest.mark.parametrize(
    ("n", "why"),
    [(32, r"SIGKILL.*last words"), (64, "exit status 1.*a bug in the worker"), (16, "in time and was killed")],
)
def test_what_becomes_of_a_job_that_goes_wrong(pool: Any, n: int, why: str) -> None:
    with pytest.raises(WorkerDied, match=why):
        ask(pool, tile(n, 1.0 if n == 16 else 30.0))
    assert ask(pool, job("echo", i=1)) == {"i": 1}


def test_an_error_of_ours_keeps_its_type(pool: Any) -> None:
    for executor in (pool, InlineExecutor()):
        with pytest.raises(Rejected, match="V99"):
            ask(executor, job("refuse"))


def test_a_deadline_is_a_jobs_own(pool: Any) -> None:
    hung = pool.submit(tile(16, 1.0), lambda text: None)
    quick = [pool.submit(job("echo", i=i), lambda text: None) for i in range(3)]
    assert [pool.wait(ticket)["i"] for ticket in quick] == [0, 1, 2], "the other worker goes on"
    with pytest.raises(WorkerDied):
        pool.wait(hung)


def test_a_zygote_that_is_killed_is_replaced(pool: Any, tmp_path: Path) -> None:
    ask(pool, job("echo"))
    os.kill(pool.pids()[0], signal.SIGKILL)
    time.sleep(0.2)
    assert ask(pool, job("echo", i=1)) == {"i": 1}, "it was idle: nothing is lost"
    waiting = pool.submit(job("waits", 60.0), lambda text: None)
    end = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.02)
    worker = int((tmp_path / "pid").read_text() or 0)
    os.kill(int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1]), signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        pool.wait(waiting)
    assert gone(worker), "a worker ends with its zygote"


def test_nothing_outlives_its_executor(tmp_path: Path) -> None:
    pool = ProcessExecutor(1)
    pool.submit(job("waits", 600.0), lambda text: None)
    end = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.02)
    pids = [*pool.pids(), int((tmp_path / "pid").read_text())]
    pool.close()
    assert all(gone(pid) for pid in pids)


def test_inline_turns_bugs_into_crashes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, kind in ((ZeroDivisionError("bug"), WorkerDied), (MemoryError(), OutOfMemory)):

        def fail(*_: Any, error: BaseException = error) -> Any:
            raise error

        monkeypatch.setattr(executors, "call_entry", fail)
        with pytest.raises(kind):
            ask(InlineExecutor(), job("echo"))


def test_misuse() -> None:
    for engine, workers, gpus in (
        ("threads", 1, False),
        ("process", 0, False),
        ("process", 2, True),
        ("inline", 2, False),
    ):
        with pytest.raises(InputError):
            open_executor(engine, workers, gpus=gpus)


# --- Ray ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_runs_jobs_and_survives_the_loss_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of two local workers: jobs that fault and hang, a worker killed mid-trial, and a loop."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    try:
        executor = open_executor("ray", 2, gpus=False)
        tickets = [executor.submit(job("echo", i=i), lambda text: None) for i in range(6)]
        assert [executor.wait(ticket) for ticket in tickets] == [{"i": i} for i in range(6)]
        with pytest.raises(WorkerDied, match="SIGSEGV"):
            ask(executor, tile(8))
        with pytest.raises(WorkerDied, match="in time"):
            ask(executor, tile(16, 1.0))
        with pytest.raises(Rejected, match="V99"):
            ask(executor, job("refuse"))
        mid_trial = executor.submit(job("waits", 60.0), lambda text: None)
        other = executor.submit(job("echo", i=9), lambda text: None)
        assert executor.wait(other) == {"i": 9}
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.02)
        worker = int((tmp_path / "pid").read_text())
        zygote = parent_of(worker)
        os.kill(parent_of(zygote), signal.SIGKILL)  # Ray's own process
        with pytest.raises(WorkerDied, match="Ray worker"):
            executor.wait(mid_trial)
        assert gone(worker), "the trial ends with its Ray worker"
        assert sorted(ask(executor, job("echo", i=i))["i"] for i in range(4)) == [0, 1, 2, 3], "Ray started it again"
        executor.close()
        with pytest.raises(Unavailable, match="the cluster has 0"):
            open_executor("ray", 1, gpus=True)
        result = amk.loop("toy", "h200", 6, "cpu", engine="ray", workers=2, results_path=tmp_path / "ray.tsv",
                          corpus_path=None)  # fmt: skip
        local = amk.loop("toy", "h200", 6, "cpu", engine="process", workers=2, results_path=tmp_path / "local.tsv",
                         corpus_path=None)  # fmt: skip
        assert [(t.schedule_id, t.tag, t.latency_us) for t in result.trials] == [
            (t.schedule_id, t.tag, t.latency_us) for t in local.trials
        ]
    finally:
        ray.shutdown()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
