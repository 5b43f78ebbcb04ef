"""Everything that can fail, failing: each call to the operating system, each byte at which a file can be torn."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from amk.errors import StoreError
from amk.records import Trial
from amk.records.append_log import AppendLog
from amk.records.calls import FileCalls
from faulty_calls import FaultyCalls, Stopped
from whole_store import LOOP, check_whole, failed_trial, folders, make_trial, open_store, paths, start

# ---- torn tails ----


def test_a_file_torn_at_every_byte_goes_on() -> None:
    head, lines = b"head\n", [b"first line\n", b"\n", b"third\0line\n"]
    whole = head + b"".join(lines)
    with folders() as fresh:
        folder = next(fresh)
        for cut in range(len(head), len(whole) + 1):
            path, copy = folder / str(cut), folder / f"{cut}.torn.1"
            path.write_bytes(whole[:cut])
            end = whole.rfind(b"\n", 0, cut) + 1
            log = AppendLog(str(path), head, FileCalls())
            with log.locked():
                log.append(b"next\n")
            assert path.read_bytes() == whole[:end] + b"next\n"
            assert copy.exists() == (end < cut) and (end == cut or copy.read_bytes() == whole[end:cut])


@pytest.mark.parametrize(("index", "step"), [(0, 1), (1, 11), (2, 11)], ids=["results", "corpus", "journal"])
def test_a_store_torn_at_every_byte_recovers(index: int, step: int) -> None:
    small = {"verdict": {}, "schedule_config": {}, "shape": {}, "description": ""}
    with folders() as fresh:
        folder = next(fresh)
        with open_store(folder) as store:
            store.end(make_trial(0, **small))
            before = paths(folder)[index].read_bytes()
            store.end(make_trial(1, **small))
        after = [path.read_bytes() for path in paths(folder)]
        for cut in range(len(before), len(after[index]) + 1, step):
            path, copy = paths(folder)[index], paths(folder)[index].with_name(f"{paths(folder)[index].name}.torn.1")
            path.write_bytes(after[index][:cut])
            with open_store(folder) as store:
                if index < 2:  # the journal holds it: the row is there again
                    assert path.read_bytes() == after[index]
                elif cut < len(after[2]):
                    assert path.read_bytes() == before and len(store.trials()) == 1
            torn = after[index][len(before) : cut] if cut < len(after[index]) else b""
            assert copy.exists() == bool(torn) and (not torn or copy.read_bytes() == torn)
            copy.unlink(missing_ok=True)


# ---- the k-th call ----


ALL = [make_trial(0), failed_trial(1)]


def scenario(folder: Path, calls: FaultyCalls) -> tuple[list[Trial], BaseException | None]:
    """A fresh store, a loop, its trials. (What was acknowledged, what ended it)."""
    acknowledged: list[Trial] = []
    try:
        with open_store(folder, calls=calls) as store:
            store.begin_loop(LOOP, {})
            for trial in ALL:
                store.check_writable()
                start(store, trial)
                store.end(trial)
                acknowledged.append(trial)
    except (StoreError, Stopped) as error:
        return acknowledged, error
    return acknowledged, None


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EINTR, errno.EDQUOT, "short", "stop"])
def test_the_kth_call_fails_for_every_k(fault: int | str) -> None:
    """A clean StoreError or success, and the logs as they were promised to be, once they are opened again."""
    clean, failed = FaultyCalls(), set()
    with folders() as fresh:
        assert scenario(next(fresh), clean) == (ALL, None)
        for k in range(1, clean.count + 1):
            folder, calls = next(fresh), FaultyCalls(k, fault)
            acknowledged, error = scenario(folder, calls)
            assert error is None or isinstance(error, Stopped if fault == "stop" else StoreError)
            if error is not None:
                failed.add(calls.fired)
            check_whole(folder, acknowledged, maybe=ALL[: len(acknowledged) + 1])
    assert clean.count > 100 and failed >= {"write"}
    if isinstance(fault, int):
        assert failed >= {"open", "fstat", "pread", "write", "fdatasync", "link", "flock", "fsync", "statvfs"}
        assert "read" in failed or fault == errno.EINTR  # Python itself repeats that one


@pytest.mark.parametrize("fault", [errno.EIO, "stop"])
def test_the_kth_call_of_a_repair_fails_for_every_k(fault: int | str) -> None:
    """Opening after a crash: a torn journal, a torn row, no corpus."""
    torn = b'{"kind":"en'

    def wreck(folder: Path) -> None:
        with open_store(folder) as store:
            store.end(make_trial(0))
            store.end(make_trial(1))
        results, corpus, journal = paths(folder)
        results.write_bytes(results.read_bytes()[:-30])
        corpus.unlink()
        with journal.open("ab") as file:
            file.write(torn)

    with folders() as fresh:
        first, clean = next(fresh), FaultyCalls()
        wreck(first)
        open_store(first, calls=clean).close()
        for k in range(1, clean.count + 1):
            folder, calls = next(fresh), FaultyCalls(k, fault)
            wreck(folder)
            try:
                open_store(folder, calls=calls).close()
            except (StoreError, Stopped):
                assert calls.fired
            check_whole(folder, [make_trial(0), make_trial(1)])
            assert any(copy.read_bytes() == torn for copy in folder.glob("*.torn.*"))
