"""One append-only file: appended whole or not at all, by any number of processes.

In: complete lines. Out: lines on the disk when `append` returns, or StoreError and the file as it was before. The lock
is on a side file that is never renamed, so it stays one lock when the log itself is rebuilt and replaced. The log is
opened for each append: nothing is inherited by a child, and a replaced file is noticed. After an fsync that failed
nothing is appended again, because the kernel may have dropped what it could not write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Iterable, Iterator

from ..errors import InputError, StoreError
from .calls import FileCalls

__all__ = ["LOCK_TIMEOUT_S", "MIN_FREE_BYTES", "AppendLog"]

MIN_FREE_BYTES = 16 << 20
LOCK_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 16
_READ_BYTES = 1 << 22
_LONGEST_WAIT_S = 0.005  # between two attempts at the lock
_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class AppendLog:
    """`locked()` holds the lock; `append` and `size` want it held."""

    def __init__(self, path: str, header: bytes, calls: FileCalls, *, single_writer: bool = False) -> None:
        self.path = path
        self.failed: str | None = None  # why nothing is appended any more
        self._header = header
        self._calls = calls
        self._single_writer = single_writer
        self._lock_path = path + ".lock"
        self._folder = os.path.dirname(path) or "."

    # ---- the lock ----

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The exclusive lock of this file. StoreError when another process holds it for longer than LOCK_TIMEOUT_S."""
        if self._single_writer:
            yield
            return
        handle = self._acquire()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._calls.flock(handle, fcntl.LOCK_UN)  # a child forked meanwhile has the handle too, and may live on
            self._close(handle)

    def _acquire(self) -> int:
        """An open, locked handle of the side file that the path names now."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        wait_s = 0.0002
        while True:
            with self._told("lock"):
                handle = self._open(self._lock_path, os.O_RDWR | os.O_CREAT)
                try:
                    if self._take(handle) and self._is(self._lock_path, handle):
                        return handle
                except BaseException:
                    self._close(handle)
                    raise
                self._close(handle)
            if time.monotonic() > deadline:
                raise StoreError(f"{self.path}: locked by another process for more than {LOCK_TIMEOUT_S:.0f} s")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _take(self, handle: int) -> bool:
        try:
            self._calls.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_FLOCK:
                raise StoreError(
                    f"{self.path}: this file system has no working flock ({error.strerror}); expected one that has, or "
                    "a store opened with single_writer=True"
                ) from error
            raise
        return True

    def prove_lock(self) -> None:
        """With the lock held: StoreError if the file system lets a second handle have it too."""
        if self._single_writer:
            return
        with self._told("lock"):
            handle = self._open(self._lock_path, os.O_RDWR)
            try:
                if self._take(handle):
                    raise StoreError(
                        f"{self.path}: this file system gives one lock to two holders; expected a working flock, or a "
                        "store opened with single_writer=True"
                    )
            finally:
                self._close(handle)

    # ---- appending ----

    def prepare(self) -> None:
        """With the lock held: the file exists with its header, ends in a whole line, and its name is on the disk."""
        self.require_sound()
        with self._told("open"):
            handle = self._open_log()
            try:
                self._recover(handle)
            finally:
                self._close(handle)
            self._sync_folder()  # whoever made the file may have died before this

    def append(self, line: bytes) -> None:
        """With the lock held: whole lines are on the disk on return. StoreError: they are not, or the log failed."""
        self.require_sound()
        with self._told("append to"):
            handle = self._open_log()
            try:
                size = self._recover(handle)
                self._write_whole(handle, line, size)
                self._sync(handle)
            finally:
                self._close(handle)

    def _write_whole(self, handle: int, line: bytes, size: int) -> None:
        try:
            written = self._calls.write(handle, line)
        except OSError:
            self._take_back(handle, size)
            raise
        if written != len(line):
            self._take_back(handle, size)
            raise OSError(errno.ENOSPC, f"short write: {written} of {len(line)} bytes")

    def _take_back(self, handle: int, size: int) -> None:
        """What a failed write left is cut off; where even that fails, it is a torn tail for the next append."""
        with contextlib.suppress(OSError):
            self._calls.ftruncate(handle, size)

    def _sync(self, handle: int) -> None:
        try:
            self._calls.fdatasync(handle)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failed = f"the disk did not confirm a write: {error.strerror or error}"
        raise StoreError(f"{self.path}: {self.failed}; nothing more is appended") from error

    def require_sound(self) -> None:
        """StoreError once an fsync has failed."""
        if self.failed is not None:
            raise StoreError(f"{self.path}: {self.failed}; nothing more is appended")

    # ---- opening, creating, recovering ----

    def _open_log(self) -> int:
        """A handle of the log, made first if need be; StoreError or InputError if what is there is no such log."""
        flags = os.O_RDWR | os.O_APPEND | os.O_NONBLOCK  # a FIFO must not block the open
        try:
            handle = self._open(self.path, flags)
        except FileNotFoundError:
            self._create()
            handle = self._open(self.path, flags)
        try:
            status = self._calls.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{self.path}: expected a regular file, got something else")
            found = self._pread(handle, min(len(self._header), status.st_size), 0)
            if found != self._header:
                what = "an empty file" if not found else f"{found[:40]!r}"
                raise InputError(f"{self.path}: expected a file that begins with {self._header[:40]!r}..., got {what}")
        except BaseException:
            self._close(handle)
            raise
        return handle

    def _create(self) -> None:
        """The header under another name, on the disk, then linked into place: of several makers, one wins whole."""
        with self._written_aside([self._header]) as temporary, contextlib.suppress(FileExistsError):
            self._calls.link(temporary, self.path)
        self._sync_folder()

    @contextlib.contextmanager
    def _written_aside(self, lines: Iterable[bytes]) -> Iterator[str]:
        """A file beside the log with these lines, on the disk; gone in the end, unless it was renamed."""
        name = f".{os.path.basename(self.path)}.{os.getpid()}.{os.urandom(6).hex()}.tmp"
        temporary = os.path.join(self._folder, name)
        handle = self._open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            try:
                for line in lines:
                    if self._calls.write(handle, line) != len(line):
                        raise OSError(errno.ENOSPC, "short write of a new file")
                self._calls.fsync(handle)
            finally:
                self._close(handle)
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                self._calls.unlink(temporary)

    def _sync_folder(self) -> None:
        handle = self._open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._calls.fsync(handle)
        except OSError as error:
            self._fail(error)
        finally:
            self._close(handle)

    def _recover(self, handle: int) -> int:
        """The size of the log up to its last whole line; a torn tail is copied aside and cut off."""
        size = self._calls.fstat(handle).st_size
        if self._pread(handle, 1, size - 1) == b"\n":
            return size
        whole = self._end_of_lines(handle, size)
        self._save_tail(handle, whole, size)
        self._calls.ftruncate(handle, whole)
        return whole

    def _end_of_lines(self, handle: int, size: int) -> int:
        """The offset after the last LF; the header has one."""
        end = size
        while end > len(self._header):
            start = max(end - _CHUNK_BYTES, 0)
            found = self._pread(handle, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return len(self._header)

    def _save_tail(self, handle: int, start: int, end: int) -> None:
        """The bytes from `start` to `end` as PATH.torn.N, with the first N that is free."""
        number, copy = 1, -1
        while copy < 0:
            path = f"{self.path}.torn.{number}"
            try:
                copy = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                number += 1
        try:
            while start < end:
                chunk = self._pread(handle, min(_CHUNK_BYTES, end - start), start)
                if self._calls.write(copy, chunk) != len(chunk):
                    raise OSError(errno.ENOSPC, f"short copy of the torn tail to {path}")
                start += len(chunk)
            self._calls.fsync(copy)
        except BaseException:
            with contextlib.suppress(OSError):
                self._calls.unlink(path)
            raise
        finally:
            self._close(copy)

    # ---- replacing ----

    def replace(self, lines: Iterable[bytes], *, keep_old: bool) -> str | None:
        """With the lock held: the log is the header and these lines, or what it was. Returns where that is kept."""
        self.require_sound()
        kept = None
        with self._told("replace"):
            if os.path.lexists(self.path) and not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise InputError(f"{self.path}: expected a regular file or none, got something else")
            with self._written_aside(itertools.chain([self._header], lines)) as temporary:
                number = 1
                while keep_old and kept is None:
                    with contextlib.suppress(FileExistsError):
                        self._calls.link(self.path, f"{self.path}.old.{number}")
                        kept = f"{self.path}.old.{number}"
                    number += 1
                self._calls.rename(temporary, self.path)
            self._sync_folder()
        return kept

    # ---- questions ----

    def check_writable(self) -> None:
        """StoreError unless the file can be opened for append and 16 MiB are free beside it."""
        self.require_sound()
        with self._told("append to"):
            self._close(self._open_log())
            found = self._calls.statvfs(self._folder)
            free = found.f_bavail * found.f_frsize
        if free < MIN_FREE_BYTES:
            raise StoreError(f"{self.path}: expected {MIN_FREE_BYTES >> 20} MiB of free space, got {free >> 10} KiB")

    def read_from(self, start: int, inode: int) -> tuple[bytes, int, int]:
        """(at most 4 MiB from `start`, size, inode); from 0 where the file is not that of `inode`, or is shorter."""
        with self._told("read"):
            handle = self._open_log()
            try:
                found = self._calls.fstat(handle)
                if found.st_ino != inode or found.st_size < start:
                    start = 0
                data = self._pread(handle, min(found.st_size - start, _READ_BYTES), start)
            finally:
                self._close(handle)
        return data, found.st_size, found.st_ino

    # ---- calls ----

    def _open(self, path: str, flags: int) -> int:
        return self._calls.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def _pread(self, handle: int, count: int, start: int) -> bytes:
        """All of it: a short answer taken for the whole would make a torn tail out of good lines."""
        parts: list[bytes] = []
        while count > 0:
            parts.append(self._calls.pread(handle, min(count, _CHUNK_BYTES), start))
            if not parts[-1]:
                raise OSError(errno.EIO, "the file ended before its end")
            count -= len(parts[-1])
            start += len(parts[-1])
        return b"".join(parts)

    def _close(self, handle: int) -> None:
        """What matters was synced before; an error here says nothing more."""
        with contextlib.suppress(OSError):
            self._calls.close(handle)

    def _is(self, path: str, handle: int) -> bool:
        """Is the open file the one that the path names now?"""
        try:
            named = self._calls.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        opened = self._calls.fstat(handle)
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)

    @contextlib.contextmanager
    def _told(self, deed: str) -> Iterator[None]:
        """An OSError as StoreError, with the path; a symbolic link in the way is named."""
        try:
            yield
        except OSError as error:
            why = "expected no symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
            raise StoreError(f"{self.path}: could not {deed} it: {why}") from error
