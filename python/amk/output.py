"""Where `amk compile` writes: an image and a report that appear whole or not at all.

In: a directory, or a path ending in .amk. Out: the files, each written beside its final place, flushed to disk and
renamed into it. Whether the place can be written is found out on entry, before any work is done; what a failed run
leaves behind is what was there before.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from types import TracebackType

from .errors import InputError

__all__ = ["OutputFiles"]


class OutputFiles:
    """Used in a `with` statement: the files are renamed into place when it ends without an exception."""

    def __init__(self, output: str) -> None:
        if not output or "\0" in output:
            raise InputError(f"output: expected a directory or a file ending in .amk, got {output!r}")
        if output.endswith(".amk") and not os.path.isdir(output):
            self.image_path = output
            self.report_path = output.removesuffix(".amk") + ".report.json"
        else:
            self.image_path = os.path.join(output, "image.amk")
            self.report_path = os.path.join(output, "report.json")
        self._pending: dict[str, str] = {}  # final path -> the temporary file beside it
        self._created: str | None = None  # the directory, if it was ours to make

    def __enter__(self) -> OutputFiles:
        folder = os.path.dirname(self.image_path) or "."
        try:
            if not os.path.isdir(folder):
                os.mkdir(folder)
                self._created = folder
            for path in (self.image_path, self.report_path):
                if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                    raise InputError(f"output: expected {path!r} to be a regular file or absent, got something else")
                handle, temporary = tempfile.mkstemp(prefix=".amk-", dir=folder)
                os.close(handle)
                self._pending[path] = temporary
        except OSError as error:
            self._discard()
            raise InputError(f"output: expected a writable directory, got {folder!r}: {error.strerror}") from error
        except BaseException:
            self._discard()
            raise
        return self

    def write_image(self, data: bytes) -> None:
        self._write(self.image_path, data)

    def write_report(self, text: str) -> None:
        self._write(self.report_path, text.encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                # The report first: an image without its report would look finished.
                for path in (self.report_path, self.image_path):
                    os.replace(self._pending.pop(path), path)
                self._created = None
        finally:
            self._discard()

    def _write(self, path: str, data: bytes) -> None:
        mask = os.umask(0)
        os.umask(mask)
        with open(self._pending[path], "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~mask)  # mkstemp is private; a result is as readable as any other file
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _discard(self) -> None:
        for temporary in self._pending.values():
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        self._pending.clear()
        if self._created is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self._created)
