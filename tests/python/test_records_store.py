"""The writer of the logs: whatever fails, wherever it is killed, what it acknowledged is there and nothing else is."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from amk.errors import InputError, InternalError, StoreError
from amk.records import RecordStore, append_log, read_corpus, read_trials
from amk.records.append_log import AppendLog
from amk.records.calls import FileCalls
from amk.records.lines import MAX_LINE_BYTES, TSV_HEADER, row_line
from whole_store import LOOP, check_whole, failed_trial, make_trial, open_store, paths, start

OTHER = "ba9876543210"


# ---- what it promises when nothing fails ----


def test_a_loop_is_recorded_and_read_back(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.check_writable()
        store.begin_loop(LOOP, {"model": "toy", "seed": 3})
        trials = [make_trial(0), failed_trial(1), make_trial(2, tag="revert"), make_trial(0, OTHER)]
        for trial in trials:
            start(store, trial)
            store.end(trial)
        start(store, make_trial(3))
        start(store, make_trial(3))
        assert store.loops() == [{"kind": "loop", "loop": LOOP, "model": "toy", "seed": 3}]
        assert store.trials() == trials and store.trials(OTHER) == trials[3:]
        (left,) = store.interrupted()
        assert left["trial_id"] == f"{LOOP}-000003" and left["starts"] == 2
        assert left["schedule_config"] == make_trial(3).schedule_config
        store.end(failed_trial(3))
        assert store.interrupted() == []
    assert check_whole(tmp_path, [*trials, failed_trial(3)])
    assert [trial.trial_id for trial in read_corpus(tmp_path / "corpus.jsonl")] == [
        trials[0].trial_id,
        trials[3].trial_id,
    ]


@pytest.mark.parametrize("read_bytes", [1 << 22, 1500])
def test_end_is_idempotent_also_across_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int
) -> None:
    monkeypatch.setattr(append_log, "_READ_BYTES", read_bytes)  # a journal longer than what is read at once
    with open_store(tmp_path) as first, open_store(tmp_path) as second:
        first.end(make_trial(0))
        before = [path.read_bytes() for path in paths(tmp_path)]
        second.end(make_trial(0, description="another story"))
        first.end(make_trial(0))
        assert before == [path.read_bytes() for path in paths(tmp_path)]
        second.end(make_trial(1))
        first.end(make_trial(1))
    check_whole(tmp_path, [make_trial(0), make_trial(1)])


def test_a_store_without_corpus_and_with_a_journal_elsewhere(tmp_path: Path) -> None:
    with RecordStore(tmp_path / "r.tsv", journal_path=tmp_path / "j.jsonl") as store:
        store.end(make_trial(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j.jsonl", "j.jsonl.lock", "r.tsv", "r.tsv.lock"]
    (row,) = read_trials(tmp_path / "r.tsv")  # without its journal, a row is all there is
    assert row.schedule_config == {} and row.latency_us == 10.0 and row.verdict["provenance"]["image_hash"] == "ff" * 8
    with pytest.raises(InputError, match="of their own"):
        RecordStore(tmp_path / "r.tsv", tmp_path / "r.tsv")
    with pytest.raises(InternalError, match="closed"):
        store.end(make_trial(1))


def test_a_row_that_the_journal_does_not_hold_is_not_shown(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.end(make_trial(0))
    with paths(tmp_path)[0].open("ab") as file:
        file.write(row_line(make_trial(1, latency_us=0.001)))
    assert read_trials(tmp_path / "results.tsv") == [make_trial(0)]


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        before = [path.read_bytes() for path in paths(tmp_path)]
        for trial in (make_trial(description="x" * MAX_LINE_BYTES), make_trial(description="\0" * 20_000)):
            with pytest.raises(InputError, match="at most"):
                store.end(trial)
        with pytest.raises(InputError, match="at most"):
            store.begin_loop(LOOP, {"facts": "x" * MAX_LINE_BYTES})
        with pytest.raises(InputError, match="plain"):
            store.begin_loop(LOOP, {"facts": object()})
        with pytest.raises(InputError, match="kind"):
            store.begin_loop(LOOP, {"kind": "end"})
        for bad in (
            ("x", LOOP, 0, "s", {}),
            (f"{LOOP}-000000", LOOP, "0", "s", {}),
            (f"{LOOP}-000000", LOOP, 0, 1, {}),
        ):
            with pytest.raises(InputError):
                store.start(*bad)
        with pytest.raises(InternalError):
            store.end({"trial_id": "x"})  # type: ignore[arg-type]
        assert before == [path.read_bytes() for path in paths(tmp_path)]
        half = {str(index): index for index in range(3500)}  # a verdict holds the schedule too: written once, it fits
        store.end(make_trial(0, schedule_config=half, verdict={"schedule_config": half, "note": 1}))
        assert store.trials()[0].verdict == {"schedule_config": half, "note": 1}


# ---- torn tails ----


@pytest.mark.parametrize("tail_bytes", [10, 400, 5000])
def test_end_stays_idempotent_over_a_torn_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail_bytes: int
) -> None:
    monkeypatch.setattr(append_log, "_READ_BYTES", 2000)
    with open_store(tmp_path) as store:
        store.end(make_trial(0))
        for experiment in (1, 2):
            with (tmp_path / "results.journal.jsonl").open("ab") as file:
                file.write(b"x" * tail_bytes)  # another process died while it wrote
            store.end(make_trial(experiment))
        with (tmp_path / "results.journal.jsonl").open("ab") as file:
            file.write(b"x" * tail_bytes + b"\n")
        for experiment in (2, 1, 0, 3, 3):
            store.end(make_trial(experiment))
        assert len(list(tmp_path.glob("*.torn.*"))) == 2
        lines = (tmp_path / "results.journal.jsonl").read_bytes().splitlines()
        assert sum(line.startswith(b'{"kind":"end"') for line in lines) == 4
    check_whole(tmp_path, [make_trial(experiment) for experiment in range(4)])


def test_torn_copies_are_numbered(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    for number in (1, 2, 3):
        with (tmp_path / "results.tsv").open("ab") as file:
            file.write(b"torn %d" % number)
        open_store(tmp_path).close()
        assert (tmp_path / f"results.tsv.torn.{number}").read_bytes() == b"torn %d" % number
    check_whole(tmp_path, [])


def test_a_tail_of_megabytes_without_a_line_end(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.end(make_trial(0))
        with (tmp_path / "results.journal.jsonl").open("ab") as file:
            file.write(bytes(3_000_000))
        store.end(make_trial(1))  # another process wrote meanwhile, and died
    assert (tmp_path / "results.journal.jsonl.torn.1").read_bytes() == bytes(3_000_000)
    check_whole(tmp_path, [make_trial(0), make_trial(1)])


# ---- crashes between two logs ----


def test_what_a_crash_kept_from_the_other_logs_is_appended_on_open(tmp_path: Path) -> None:
    trials = [make_trial(0), failed_trial(1), make_trial(2, tag="tried"), make_trial(3)]
    with open_store(tmp_path) as store:
        for trial in trials:
            store.end(trial)
    results, corpus, _ = paths(tmp_path)
    lines = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join([lines[0], lines[2]]))
    corpus.unlink()
    check_whole(tmp_path, trials)
    results.unlink()
    check_whole(tmp_path, trials)


def test_a_row_that_rotted_is_written_again(tmp_path: Path) -> None:
    trials = [make_trial(0), make_trial(1), failed_trial(2)]
    with open_store(tmp_path) as store:
        for trial in trials:
            store.end(trial)
    for path in paths(tmp_path)[:2]:
        data = bytearray(path.read_bytes())
        data[data.index(b"the default")] ^= 1
        path.write_bytes(data)
        open_store(tmp_path).close()
        lines = path.read_bytes().splitlines(keepends=True)
        assert b"the default" in lines[-1] and sum(b"uhe default" in line for line in lines) == 1
        open_store(tmp_path).close()
        assert path.read_bytes().splitlines(keepends=True) == lines
    assert read_trials(tmp_path / "results.tsv") == trials and len(read_corpus(tmp_path / "corpus.jsonl")) == 2


def test_a_failed_row_is_made_good_by_the_next_call(tmp_path: Path) -> None:
    class FullResults(FileCalls):
        full = False

        def write(self, handle: int, data: bytes) -> int:  # type: ignore[override]
            if self.full and not data.startswith(b"{"):
                raise OSError(errno.ENOSPC, "no space")
            return os.write(handle, data)

    calls = FullResults()
    with open_store(tmp_path, calls=calls) as store:
        calls.full = True
        with pytest.raises(StoreError, match="no space"):
            store.end(make_trial(0))
        calls.full = False
        store.end(make_trial(1))
        assert read_trials(tmp_path / "results.tsv") == [make_trial(0), make_trial(1)]
    check_whole(tmp_path, [make_trial(0), make_trial(1)])


# ---- what the disk refuses ----


def test_after_a_failed_fsync_nothing_is_appended_again(tmp_path: Path) -> None:
    class Fsync(FileCalls):
        broken = False

        def fdatasync(self, handle: int) -> None:  # type: ignore[override]
            if self.broken:
                self.broken = False  # the kernel reports a lost page once, and then forgets
                raise OSError(errno.EIO, "I/O error")
            os.fdatasync(handle)

    calls = Fsync()
    with open_store(tmp_path, calls=calls) as store:
        store.end(make_trial(0))
        calls.broken = True
        with pytest.raises(StoreError, match="did not confirm"):
            store.end(make_trial(1))
        before = [path.read_bytes() for path in paths(tmp_path)]
        for again in (lambda: store.end(make_trial(1)), lambda: start(store, make_trial(2)), store.check_writable):
            with pytest.raises(StoreError, match="nothing more is appended"):
                again()
        assert before == [path.read_bytes() for path in paths(tmp_path)]
    check_whole(tmp_path, [make_trial(0)], maybe=[make_trial(1)])


def test_a_short_answer_of_pread_is_not_taken_for_a_torn_tail(tmp_path: Path) -> None:
    class Short(FileCalls):
        def pread(self, handle: int, count: int, start: int) -> bytes:  # type: ignore[override]
            return os.pread(handle, min(count, 7), start)

    with open_store(tmp_path) as store:
        store.end(make_trial(0))
    with (tmp_path / "results.tsv").open("ab") as file:
        file.write(b"torn " * 20)
    calls = Short()
    with open_store(tmp_path, calls=calls) as store:
        store.end(make_trial(1))
    check_whole(tmp_path, [make_trial(0), make_trial(1)])


# ---- where it may be written ----


def test_links_directories_and_foreign_files_are_refused(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.write_bytes(TSV_HEADER)
    for name in ("results.tsv", "corpus.jsonl", "results.journal.jsonl", "results.tsv.lock"):
        folder = tmp_path / f"link-{name}"
        folder.mkdir()
        (folder / name).symlink_to(real)
        with pytest.raises(StoreError, match="symbolic link"):
            open_store(folder)
    assert real.read_bytes() == TSV_HEADER
    for number, contents in enumerate(
        (b"", b"\0" * 100, b"a\tb\n", TSV_HEADER[:-1], TSV_HEADER.replace(b"\n", b"\r\n"))
    ):
        folder = tmp_path / f"foreign-{number}"
        folder.mkdir()
        (folder / "results.tsv").write_bytes(contents)
        with pytest.raises(InputError, match="begins with"):
            open_store(folder)
        assert (folder / "results.tsv").read_bytes() == contents
    os.mkfifo(tmp_path / "fifo")
    for bad in (tmp_path, tmp_path / "fifo", tmp_path / "absent" / "results.tsv", "", "a\0b", 3):
        with pytest.raises(InputError):
            RecordStore(bad)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_of_the_file_system(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            open_store(tmp_path)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EROFS])
def test_a_read_only_directory(tmp_path: Path, reason: int) -> None:
    class ReadOnly(FileCalls):
        on = True

        def open(self, path: str, flags: int, mode: int = 0o777) -> int:  # type: ignore[override]
            if self.on and flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
                raise OSError(reason, os.strerror(reason))
            return os.open(path, flags, mode)

    calls = ReadOnly()
    with pytest.raises(StoreError, match=os.strerror(reason)):
        open_store(tmp_path, calls=calls)
    calls.on = False
    with open_store(tmp_path, calls=calls) as store:
        calls.on = True
        with pytest.raises(StoreError, match=os.strerror(reason)):
            store.check_writable()
        with pytest.raises(StoreError, match=os.strerror(reason)):
            store.end(make_trial(0))


def test_free_space_is_asked_for(tmp_path: Path) -> None:
    class Small(FileCalls):
        free = 16 << 20

        def statvfs(self, path: str) -> Any:  # type: ignore[override]
            return os.statvfs_result((4096, 4096, 1 << 20, 1 << 20, self.free >> 12, 0, 0, 0, 0, 255))

    calls = Small()
    with open_store(tmp_path, calls=calls) as store:
        store.check_writable()
        calls.free -= 4096
        with pytest.raises(StoreError, match="16 MiB of free space"):
            store.check_writable()


@pytest.mark.parametrize("kind", ["absent", "granted to all"])
def test_a_file_system_without_flock_is_refused_unless_one_process_writes(tmp_path: Path, kind: str) -> None:
    class NoFlock(FileCalls):
        def flock(self, handle: int, operation: int) -> None:  # type: ignore[override]
            if kind == "absent":
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with pytest.raises(StoreError, match="single_writer=True"):
        open_store(tmp_path, calls=NoFlock())
    with open_store(tmp_path, calls=NoFlock(), single_writer=True) as store:
        store.end(make_trial(0))
    check_whole(tmp_path, [make_trial(0)])


# ---- many writers ----


def test_a_lock_that_is_held_is_waited_for_and_then_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        handle = os.open(tmp_path / "results.journal.jsonl.lock", os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX)
        threading.Timer(0.2, os.close, [handle]).start()
        store.end(make_trial(0))
        handle = os.open(tmp_path / "results.journal.jsonl.lock", os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX)
        monkeypatch.setattr(append_log, "LOCK_TIMEOUT_S", 0.05)
        with pytest.raises(StoreError, match="locked by another process"):
            store.end(make_trial(1))
        os.close(handle)
        store.end(make_trial(1))
    check_whole(tmp_path, [make_trial(0), make_trial(1)])


def test_a_lock_file_that_was_replaced_is_not_the_lock(tmp_path: Path) -> None:
    """The loser of a race for a lock file that is deleted meanwhile must not hold the deleted one."""

    class Replaced(FileCalls):
        done = False

        def flock(self, handle: int, operation: int) -> None:  # type: ignore[override]
            fcntl.flock(handle, operation)
            if not self.done:
                self.done = True
                lock = tmp_path / "x.lock"
                lock.unlink()
                lock.touch()

    log = AppendLog(str(tmp_path / "x"), b"head\n", Replaced())
    with log.locked():
        other = os.open(tmp_path / "x.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


WRITER = """
import sys
from amk.records import RecordStore
from some_trials import make_trial
folder, number, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with RecordStore(folder + "/results.tsv", folder + "/corpus.jsonl") as store:
    for experiment in range(count):
        store.end(make_trial(experiment, f"{number:012x}"))
"""


def test_processes_race_on_a_fresh_file(tmp_path: Path) -> None:
    """One header, every row, and the order of each writer."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number), "12"], env=environment)
        for number in range(6)
    ]
    assert [writer.wait() for writer in writers] == [0] * 6
    expected = [make_trial(experiment, f"{number:012x}") for number in range(6) for experiment in range(12)]
    found = check_whole(tmp_path, expected)
    for number in range(6):
        of_one = [trial.experiment for trial in found if trial.loop == f"{number:012x}"]
        assert of_one == list(range(12))
    assert not list(tmp_path.glob("*.torn.*")) and not list(tmp_path.glob(".*.tmp"))


def test_threads_share_a_store(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:

        def write(number: int) -> None:
            for experiment in range(10):
                store.end(make_trial(experiment, f"{number:012x}"))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    check_whole(tmp_path, [make_trial(e, f"{n:012x}") for n in range(4) for e in range(10)])


def test_a_forked_child_is_a_writer_of_its_own(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.end(make_trial(0))
        child = os.fork()
        if child == 0:
            try:
                store.end(make_trial(1))
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        store.end(make_trial(2))
        entries = store._entries()
    assert len({(entry.writer, entry.seq) for entry in entries}) == 3 and len({entry.writer for entry in entries}) == 2
    check_whole(tmp_path, [make_trial(0), make_trial(1), make_trial(2)])


def test_the_numbers_of_one_writer_grow_by_one(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for experiment in range(5):
            start(store, make_trial(experiment))
            store.end(make_trial(experiment))
        assert [entry.seq for entry in store._entries()] == list(range(10))
        assert len({entry.writer for entry in store._entries()}) == 1
