"""Where verbs write: files that appear whole or not at all.

In: paths; for `amk compile`, a directory or a path ending in .amk. Out: the files, each written beside its final place,
flushed to disk and renamed into it. Whether the place can be written is found out on entry, before any work is done;
what a failed run leaves behind is what was there before.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from types import TracebackType
from typing import TYPE_CHECKING

from .errors import InputError, show

if TYPE_CHECKING:
    from typing import Self

__all__ = ["OutputFiles", "WholeFiles", "require_suffix"]


class WholeFiles:
    """Used in a `with` statement: the files are renamed into place, in order, when it ends without an exception."""

    def __init__(self, *paths: str) -> None:
        for path in paths:
            if not path or "\0" in path:
                raise InputError(f"output: expected the path of a file, got {path!r}")
        self._paths = paths
        self._pending: dict[str, str] = {}  # final path -> the temporary file beside it
        self._created: list[str] = []  # directories that were ours to make

    def __enter__(self) -> Self:
        folder = ""
        try:
            for path in self._paths:
                folder = os.path.dirname(path) or "."
                if not os.path.isdir(folder):
                    os.mkdir(folder)
                    self._created.append(folder)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for path in self._paths:
                    if path in self._pending:
                        os.replace(self._pending.pop(path), path)
        finally:
            self._discard()

    def write(self, path: str, data: bytes) -> None:
        """The whole content of one of the paths."""
        mask = os.umask(0)
        os.umask(mask)
        with open(self._pending[path], "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~mask)  # mkstemp is private; a result is as readable as any other file
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def leave(self, path: str) -> None:
        """One of the paths stays what it is, whatever becomes of the others."""
        os.unlink(self._pending.pop(path))

    def _discard(self) -> None:
        for temporary in self._pending.values():
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        self._pending.clear()
        for folder in reversed(self._created):
            with contextlib.suppress(OSError):  # it holds what was written
                os.rmdir(folder)
        self._created = []


class OutputFiles(WholeFiles):
    """An image and its report."""

    def __init__(self, output: str) -> None:
        if not output or "\0" in output:
            raise InputError(f"output: expected a directory or a file ending in .amk, got {output!r}")
        if output.endswith(".amk") and not os.path.isdir(output):
            self.image_path = output
            self.report_path = output.removesuffix(".amk") + ".report.json"
        else:
            self.image_path = os.path.join(output, "image.amk")
            self.report_path = os.path.join(output, "report.json")
        super().__init__(self.report_path, self.image_path)  # an image without its report would look finished

    def write_image(self, data: bytes) -> None:
        self.write(self.image_path, data)

    def write_report(self, text: str) -> None:
        self.write(self.report_path, text.encode())


def require_suffix(path: str, suffixes: tuple[str, ...]) -> str:
    """The suffix of an output path, which decides its format; InputError where it is none of them."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in suffixes:
        raise InputError(f"output: expected a file ending in {' or '.join(suffixes)}, got {show(path)}")
    return suffix
