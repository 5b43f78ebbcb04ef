"""Jobs: they outlive whoever started them, end when told to, and never claim what did not happen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stand_in_verbs
from amk import cli
from amk.agent import jobs
from amk.agent.job_folder import ABANDONED, CANCEL, END, JOB, PROCESS, STDERR, STDOUT, jobs_root, write_json
from amk.agent.jobs import ENDED, STATES, JobStore
from amk.agent.processes import identify, kill_group
from amk.errors import InputError, UnknownJob


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("AMK_HOME", str(tmp_path))
    return JobStore(command=stand_in_verbs.COMMAND)


def start(store, how, steps=2):
    return store.start("stand_in_start", lambda folder: ["stand-in", "--json", f"--steps={steps}", how])


def wait_until(holds, seconds=20.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started_elsewhere(store, how, steps=2):
    """A job whose server is gone: this process is not the parent and learns no exit status."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_jobs, stand_in_verbs; from amk.agent.jobs import *;"
        "print(test_jobs.start(JobStore(command=stand_in_verbs.COMMAND), sys.argv[2], int(sys.argv[3])).job)"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, here, how, str(steps)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- a job's life -----------------------------------------------------------------------------------------------


def test_a_job_runs_to_its_end(store):
    job = start(store, "steps", 4)
    assert job.state in ("starting", "running") and store.result(job.job) is None and job.exit_code is None
    assert job.argv[0] == "stand-in" and job.tool == "stand_in_start" and job.folder.startswith(store.root)
    ended = store.wait(job.job, 30)
    assert (ended.state, ended.exit_code, ended.status, ended.error) == ("finished", 0, "OK", None)
    assert store.result(job.job)["steps"] == [0, 1, 2, 3] and store.result(job.job)["cwd"] == os.getcwd()
    assert ended.progress == tuple(f"amk: step {n}" for n in (1, 2, 3, 4)) and ended.elapsed_s >= 0.2
    assert set(ENDED) < set(STATES) and json.loads(json.dumps(ended.to_dict()))["state"] == "finished"
    assert JobStore().find(job.job) == ended == store.find(job.job)


def test_its_stdin_is_closed_and_its_noise_is_no_result(store):
    quiet, noisy = start(store, "stdin"), start(store, "noise")
    assert store.wait(quiet.job, 30).state == "finished" and store.result(quiet.job)["stdin"] == ""
    ended = store.wait(noisy.job, 30)
    assert ended.state == "finished" and store.result(noisy.job)["schema"] == "amk.stand-in"
    printed = Path(ended.folder, STDOUT).read_text()
    assert "NOISE" not in printed and json.loads(printed) == store.result(noisy.job)
    assert Path(ended.folder, STDERR).read_text().count("NOISE") == 4


def test_a_job_outlives_its_server(store):
    job = started_elsewhere(store, "steps", 20)
    assert store.find(job).state in ("starting", "running")
    ended = store.wait(job, 30)
    assert ended.state == "finished" and len(store.result(job)["steps"]) == 20


def test_a_crash_is_a_crash_whoever_looks(store):
    ended = store.wait(start(store, "die").job, 30)
    assert ended.state == "crashed" and ended.error == (
        "it was killed by SIGKILL without a result; its last words: amk: about to die"
    )
    assert store.result(ended.job) is None
    wait_until(lambda: not is_alive(int(ended.progress[0].split()[-1])))  # nor does what it started go on
    orphan = store.wait(started_elsewhere(store, "die"), 30)
    assert orphan.state == "crashed" and "vanished without a result" in orphan.error


def test_a_result_that_the_exit_status_contradicts_is_none(store):
    ended = store.wait(start(store, "lie").job, 30)
    assert ended.state == "crashed" and "exited with code 3, after a result that says exit code 0" in ended.error


def test_half_a_result_is_none(store):
    job = store.wait(start(store, "steps").job, 30)
    whole = Path(job.folder, STDOUT).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 2):
        os.remove(os.path.join(job.folder, END)) if os.path.exists(os.path.join(job.folder, END)) else None
        Path(job.folder, STDOUT).write_bytes(whole[:length])
        assert store.find(job.job).state == "crashed" and store.result(job.job) is None
    os.remove(os.path.join(job.folder, END))
    Path(job.folder, STDOUT).write_bytes(b"hello from an interpreter\n" + whole + b"and goodbye\n{")
    assert store.find(job.job).state == "finished" and store.result(job.job)["steps"] == [0, 1]


def test_a_command_line_that_is_wrong_ends_with_its_code(store):
    ended = store.wait(store.start("x", lambda folder: ["stand-in", "--json", "no such thing"]).job, 30)
    assert ended.state == "crashed" and "exited with code 2" in ended.error


# --- cancelling -------------------------------------------------------------------------------------------------


def test_cancel_lets_it_finish_its_record(store):
    job = start(store, "steps", 2000)
    wait_until(lambda: len(store.find(job.job).progress) > 2)
    ended = store.cancel(job.job, 20)
    assert (ended.state, ended.exit_code, ended.status) == ("cancelled", 130, "INTERRUPTED")
    assert len(store.result(job.job)["steps"]) >= 2
    assert store.cancel(job.job, 0) == ended  # once more changes nothing


def test_cancel_kills_the_stubborn_and_what_it_started(store):
    job = start(store, "stubborn")
    wait_until(lambda: any("child" in line for line in store.find(job.job).progress))
    wait_until(lambda: "step 3" in store.find(job.job).progress[-1])
    running = store.find(job.job)
    other = int(next(line for line in running.progress if "child" in line).split()[-1])
    assert is_alive(other) and os.getpgid(other) == running.pid
    ended = store.cancel(job.job, 0.3)
    assert ended.state == "cancelled" and "was cancelled and left no result" in ended.error
    wait_until(lambda: not is_alive(other))
    assert store.result(job.job) is None


def test_cancel_before_it_works_and_after_it_ended(store):
    job = start(store, "steps", 2000)
    assert store.cancel(job.job, 20).state == "cancelled"
    done = store.wait(start(store, "steps").job, 30)
    assert store.cancel(done.job, 0).state == "finished"


def test_a_grace_that_nobody_watches_still_ends(store):
    job = start(store, "stubborn")
    wait_until(lambda: any("step 3" in line for line in store.find(job.job).progress))
    write_json(os.path.join(job.folder, CANCEL), {"requested": time.time() - 60, "grace_s": 1.0})
    wait_until(lambda: store.find(job.job).has_ended)
    assert store.find(job.job).state == "cancelled"


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bystander():
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("lie, state", [
    ({"start_ticks": 12345}, "crashed"), ({"boot_id": "another"}, "crashed"), ({"host": "far-away"}, "elsewhere"),
])  # fmt: skip
def test_a_reused_pid_is_recognised(store, bystander, lie, state):
    job = started_elsewhere(store, "steps")
    folder = store.wait(job, 30).folder
    os.remove(os.path.join(folder, END))
    Path(folder, STDOUT).write_text("")
    # Its number is another process's now, which is alive and leads a group of its own.
    write_json(os.path.join(folder, PROCESS), identify(bystander.pid).to_dict() | lie)
    found = store.find(job)
    assert found.state == state and found.error
    if state == "elsewhere":
        with pytest.raises(InputError, match="another machine"):
            store.cancel(job, 0.1)
    else:
        assert store.cancel(job, 0.1).state == state
    assert kill_group(jobs.Identity.from_dict(identify(bystander.pid).to_dict() | lie), job) == 0
    assert bystander.poll() is None


def test_identities():
    me = identify(os.getpid())
    assert me.is_alive and not me.is_elsewhere and jobs.Identity.from_dict(me.to_dict()) == me
    assert me.send(0) and identify(2**22 + 1) is None
    for bad in (None, [], {}, {**me.to_dict(), "pid": "1"}, {**me.to_dict(), "pid": 0}, {**me.to_dict(), "more": 1}):
        assert jobs.Identity.from_dict(bad) is None
    with subprocess.Popen(["true"]) as child:
        zombie = identify(child.pid)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert zombie is None or not zombie.is_alive  # dead, not yet reaped
    assert zombie is None or not zombie.send(signal.SIGTERM)


def test_a_job_that_never_started_never_works(store):
    job = started_elsewhere(store, "steps")
    folder = store.wait(job, 30).folder
    for name in (END, PROCESS, STDOUT):
        os.remove(os.path.join(folder, name))
    assert store.find(job).state == "starting"  # it may still sign in
    facts = json.loads(Path(folder, JOB).read_text())
    write_json(os.path.join(folder, JOB), facts | {"created": time.time() - 3600})
    found = store.find(job)
    assert (
        found.state == "crashed" and "never started" in found.error and os.path.exists(os.path.join(folder, ABANDONED))
    )
    late = subprocess.run([*stand_in_verbs.COMMAND, folder], capture_output=True, timeout=60)
    assert late.returncode == 130 and late.stdout == b"" and store.find(job).state == "crashed"
    write_json(os.path.join(folder, JOB), facts | {"host": "far-away"})
    for name in (END, PROCESS):
        os.remove(os.path.join(folder, name))
    assert store.find(job).state == "elsewhere"


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "xyz", "../../etc", "0" * 13, "ABCDEF012345", "0123456789ab\n", 7, None, [], "\0"])
def test_ids_that_are_none(store, bad):
    for call in (store.find, store.result, lambda job: store.wait(job, 0), lambda job: store.cancel(job, 0)):
        with pytest.raises(UnknownJob, match="12 hexadecimal digits"):
            call(bad)


def test_an_unknown_or_damaged_job(store):
    with pytest.raises(UnknownJob, match="no job 0123456789ab"):
        store.find("0123456789ab")
    assert store.all() == []
    job = store.wait(start(store, "steps").job, 30)
    for damage in (b"", b"[]", b"{", b"{}", b'{"job": 7, "tool": 1}'):
        Path(job.folder, JOB).write_bytes(damage)
        with pytest.raises(UnknownJob):
            store.find(job.job)
        assert store.all() == []


def test_old_jobs_go_and_there_are_never_too_many(store, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_KEPT", 2)
    made = [store.wait(start(store, "stdin").job, 30).job for _ in range(3)]
    kept = [job.job for job in store.all()]
    assert kept == made[:0:-1]
    monkeypatch.setattr(jobs, "MAX_RUNNING", 1)
    running = start(store, "steps", 2000)
    with pytest.raises(InputError, match="1 are running"):
        start(store, "steps")
    assert len(store.all()) == 2 and store.cancel(running.job, 20).state == "cancelled"


def test_a_child_that_cannot_be_started_leaves_nothing(store):
    broken = JobStore(command=["/no/such/program"])
    with pytest.raises(FileNotFoundError):
        start(broken, "steps")
    assert os.listdir(broken.root) == []


def test_where_jobs_are(monkeypatch):
    monkeypatch.setenv("AMK_HOME", "/a")
    assert jobs_root() == "/a/jobs"
    monkeypatch.delenv("AMK_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", "/b")
    assert jobs_root() == "/b/amk/jobs"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert jobs_root() == "/c/.local/state/amk/jobs"


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_the_verb(store, capsys):
    def run(*arguments):
        capsys.readouterr()
        code = cli.main(["jobs", *arguments, "--json"])
        out = json.loads(capsys.readouterr().out)
        assert out["exit_code"] == code
        return out

    job = start(store, "steps", 2000).job
    assert [entry["job"] for entry in run("status")["jobs"]] == [job] and run("status")["root"] == store.root
    assert run("status", job)["job"]["state"] in ("starting", "running")
    unfinished = run("result", job)
    assert unfinished["exit_code"] == 1 and unfinished["result"] is None
    wait_until(lambda: len(store.find(job).progress) > 4)
    assert run("cancel", job, "--grace", "20")["status"] == "CANCELLED"
    found = run("result", job, "--limit", "2", "--offset", "1")
    assert found["result"]["steps"] == [1, 2] and found["result"]["page"]["next_offset"] == 3
    assert run("result", job)["result"]["status"] == "INTERRUPTED"
    crashed = start(store, "die").job
    assert run("status", crashed, "--wait", "30")["status"] == "CRASHED" and run("result", crashed)["exit_code"] == 1
    wrong = [
        "result",
        "cancel xyz",
        "status 000000000000",
        "status --wait nan",
        "status --wait 1e9",
        "status --limit 0",
    ]
    for bad in [*wrong, "status --offset -1", f"cancel {job} --grace -1"]:
        assert run(*bad.split())["exit_code"] == 2, bad
    assert job in run_text("jobs", "status", capsys) and "INTERRUPTED" in run_text("jobs", "result", capsys, job)


def run_text(verb, action, capsys, *more):
    capsys.readouterr()
    cli.main([verb, action, *more])
    return capsys.readouterr().out
