"""The verb table as tools: input schemas, typed arguments, command lines, pages.

In: verbs, and what an agent sent. Out: for each `Tool` of a verb its JSON Schema, the arguments checked one by one, and
the command line that means the same. An argument of the wrong type, an unknown or a missing one is an InputError that
names it; what a value means is the verb's own affair.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, show
from ..schema import load_schema
from ..verb import Option, Tool, Verb
from .job_folder import write_json

__all__ = ["DEFAULT_LIMIT", "MAX_WAIT_S", "VerbTool", "page_of", "tools_of"]

DEFAULT_LIMIT = 50
MAX_LIMIT = 1000
MAX_WAIT_S = 50.0  # clients give up on a call after about a minute

_TYPES = {"str": "string", "int": "integer", "float": "number", "flag": "boolean"}
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list, tuple),
    "object": (Mapping,),
}  # fmt: skip
_ALWAYS = ("--json", "--quiet")


@dataclass(frozen=True)
class VerbTool:
    verb: Verb
    tool: Tool

    @property
    def options(self) -> list[Option]:
        """The verb's options that an agent may set."""
        left_out = {*_ALWAYS, *self.tool.fixed, *self.tool.hidden}
        return [option for option in self.verb.options if option.flag not in left_out]

    def input_schema(self) -> dict[str, Any]:
        properties = {option.name: self._property(option) for option in self.options}
        for name, (kind, default, least, most, text) in self._extras().items():
            limits = {"minimum": least, "maximum": most, "default": default}
            properties[name] = {"type": kind, **limits, "description": text}
        return {
            "type": "object",
            "properties": properties,
            "required": [option.name for option in self.options if self._is_required(option)],
            "additionalProperties": False,
        }

    def read(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """The arguments by name, checked; null means absent."""
        given = {name: value for name, value in (given or {}).items() if value is not None}
        known = {option.name: option for option in self.options}
        extras = self._extras()
        for name in given:
            if name not in known and name not in extras:
                allowed = ", ".join([*known, *extras]) or "no argument"
                raise InputError(f"{self.tool.name}: expected {allowed}; got the unknown argument {show(name)}")
        for option in self.options:
            if option.name in given:
                self._check(option.name, given[option.name], self._property(option))
            elif self._is_required(option):
                raise InputError(f"{self.tool.name}: expected the argument {option.name!r} ({option.help}), got none")
        for name, (kind, default, least, most, _) in extras.items():
            value = given.setdefault(name, default)
            self._check(name, value, {"type": kind})
            if not least <= value <= most:
                raise InputError(f"{self.tool.name}: {name}: expected a number in {least}..{most}, got {show(value)}")
        return given

    def argv(self, given: Mapping[str, Any], folder: str) -> list[str]:
        """The command line of `amk` that means the same; content that the verb reads from a file goes to `folder`."""
        flags, positionals = [self.verb.name, "--json"], []
        for option in self.verb.options:
            value = self.tool.fixed.get(option.flag, given.get(option.name) if option in self.options else None)
            if value is None or value is False:
                continue
            if option.holds:
                path = os.path.join(folder, f"{option.name}.json")
                write_json(path, value)
                value = path
            if not option.flag.startswith("-"):
                positionals += value if option.many else [value]
            elif option.kind == "flag":
                flags.append(option.flag)
            else:
                flags += [f"{option.flag}={one}" for one in (value if option.many else [value])]
        return [*flags, "--", *positionals] if positionals else flags

    def _is_required(self, option: Option) -> bool:
        return option.required or option.flag in self.tool.required

    def _property(self, option: Option) -> dict[str, Any]:
        if option.holds:
            schema = {key: value for key, value in load_schema(option.holds).items() if key not in ("$schema", "$id")}
            return {**schema, "description": f"{option.help.partition(' as a JSON file')[0]}: {option.holds}"}
        found: dict[str, Any] = {"type": _TYPES[option.kind], "description": option.help}
        choices = self.tool.choices.get(option.flag, option.choices)
        if choices:
            found["enum"] = list(choices)
        if option.many:
            items = {name: found[name] for name in ("type", "enum") if name in found}
            return {"type": "array", "items": items, "minItems": 1, "description": option.help}
        default = False if option.kind == "flag" else option.default
        return found if default is None else {**found, "default": default}

    def _extras(self) -> dict[str, tuple[str, float, float, float, str]]:
        """What the server itself understands: type, default, least and largest value, help."""
        extras: dict[str, tuple[str, float, float, float, str]] = {}
        if self.tool.wait_s is not None:
            text = "seconds to wait for the answer; after them the call returns a job to ask later"
            extras["wait_s"] = ("number", self.tool.wait_s, 0, MAX_WAIT_S, text)
        if self.tool.paged:
            extras["offset"] = ("integer", 0, 0, 1 << 31, "entries of the long lists to leave out")
            extras["limit"] = ("integer", DEFAULT_LIMIT, 1, MAX_LIMIT, "entries of the long lists to give")
        return extras

    def _check(self, name: str, value: Any, schema: Mapping[str, Any]) -> None:
        kind = schema["type"]
        fits = isinstance(value, _KINDS[kind]) and (isinstance(value, bool) == (kind == "boolean"))
        if kind == "array" and fits:
            if len(value) < schema.get("minItems", 0):
                raise InputError(f"{self.tool.name}: {name}: expected at least {schema['minItems']}, got none")
            for index, item in enumerate(value):
                self._check(f"{name}[{index}]", item, schema["items"])
        fits = fits and value == value and ("enum" not in schema or value in schema["enum"])
        if not fits:
            article = "an" if kind[0] in "aio" else "a"
            expected = f"one of {', '.join(schema['enum'])}" if "enum" in schema else f"{article} {kind}"
            raise InputError(f"{self.tool.name}: {name}: expected {expected}, got {show(value)}")
        if isinstance(value, str) and not _is_text(value):
            raise InputError(
                f"{self.tool.name}: {name}: expected text without NUL or lone surrogates, got {show(value)}"
            )


def tools_of(table: Sequence[Verb]) -> dict[str, VerbTool]:
    """Every tool of the table by its name."""
    return {tool.name: VerbTool(verb, tool) for verb in table for tool in verb.tools}


def page_of(record: Mapping[str, Any], offset: int, limit: int) -> dict[str, Any]:
    """The record with each of its lists that does not fit cut to one page; `page` says what was cut."""
    long = {name: len(value) for name, value in record.items() if isinstance(value, list) and len(value) > limit}
    if not long and not offset:
        return dict(record)
    long = long or {name: len(value) for name, value in record.items() if isinstance(value, list)}
    cut = {name: record[name][offset : offset + limit] for name in long}
    following = offset + limit
    page = {"offset": offset, "limit": limit, "total": long}
    page["next_offset"] = following if following < max(long.values(), default=0) else None
    return {**record, **cut, "page": page}


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value
