"""The keys of one JSON object of a config.json, taken one by one; what nobody takes is refused by name.

In: a parsed object and where it stands. Out: values whose type and domain are checked, `InputError` for one that is
malformed, `UnsupportedModel` for one that AMK does not model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import InputError, UnsupportedModel

__all__ = ["Keys", "short"]

_MISSING = object()


class Keys:
    """The keys of one JSON object, taken one by one with their type and domain checked; what is left is unknown."""

    def __init__(self, table: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self._left = dict(table)
        self._where = where
        self._prefix = prefix

    def take(self, key: str, default: Any = None) -> Any:
        """The raw value; null counts as absent."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def has(self, key: str) -> bool:
        return self._left.get(key) is not None

    def or_null(self, key: str, default: int | None) -> int | None:
        """The default to use for `key`: none at all where the file says null in so many words."""
        return None if key in self._left else default

    def integer(self, key: str, low: int, high: int, default: Any = _MISSING) -> Any:
        value = self.take(key, default)
        if value is default and default is not _MISSING:
            return value
        if type(value) is not int or not low <= value <= high:
            raise self.bad(key, f"an integer in {low}..{high}", value)
        return value

    def number(self, key: str, low: float, default: Any = _MISSING, *, exclusive: bool = False) -> float:
        value = self.take(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value < low or (exclusive and value == low):
            raise self.bad(key, f"a finite number {'above' if exclusive else 'of at least'} {low:g}", value)
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._left.pop(key, default)
        if value is None:  # Transformers tests truth
            return False
        if type(value) is not bool:
            raise self.bad(key, "true or false", value)
        return value

    def string(self, key: str) -> str | None:
        value = self.take(key)
        if value is not None and type(value) is not str:
            raise self.bad(key, "a string", value)
        return value

    def finish(self) -> None:
        """Refuses the first key that nobody took, unless it is null or false."""
        for key, value in self._left.items():
            if value is not None and value is not False:
                raise self.unsupported(key, "a key that AMK models, or one known to change nothing", value)

    def unsupported(self, key: str, expected: str, got: Any) -> UnsupportedModel:
        name = self._prefix + key
        return UnsupportedModel(f"{self._where}: {name}: expected {expected}, got {short(got)}", name)

    def bad(self, key: str, expected: str, got: Any) -> InputError:
        found = "nothing: the key is missing" if got is _MISSING else short(got)
        return InputError(f"{self._where}: {self._prefix}{key}: expected {expected}, got {found}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
