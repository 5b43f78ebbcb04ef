"""The strict JSON reader against a slow one that checks every object as it comes, on text that is nearly right."""

from __future__ import annotations

import gc
import json
import random
from typing import Any

import pytest

from amk.errors import InputError
from amk.strict_json import MAX_DEPTH, no_collection, parse_strict_json


def slow(data: bytes, max_values: int) -> Any:
    """The value, or ValueError. Nesting and values are counted one character after the other."""
    depth = deepest = values = 0
    in_string = skip = False
    for char in data.decode():
        if skip:
            skip = False
        elif in_string:
            skip, in_string = char == "\\", char != '"'
        elif char == '"':
            in_string = True
        else:
            depth += (char in "{[") - (char in "}]")
            values += char in "{[,"
            deepest = max(deepest, depth)
    if deepest > MAX_DEPTH or values > max_values:
        raise ValueError("too much")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in found}) != len(found):
            raise ValueError("twice")
        return dict(found)

    def constant(text: str) -> Any:
        raise ValueError(text)

    def number(text: str) -> float:
        if abs(float(text)) == float("inf"):
            raise ValueError(text)
        return float(text)

    value = json.loads(data.decode(), object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(8 if depth else 5)
    if kind >= 5:
        count = rng.randrange(4)
        if kind == 5:
            return [random_value(rng, depth - 1) for _ in range(count)]
        return {random_text(rng): random_value(rng, depth - 1) for _ in range(count)}
    return [None, True, rng.randrange(-9, 99), rng.random(), random_text(rng)][kind]


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice('ab{}[],:"\\é\U0001f600\n ') for _ in range(rng.randrange(5)))


def test_it_agrees_with_the_slow_one() -> None:
    rng = random.Random(7)
    accepted = refused = twice = 0
    for _ in range(8_000):
        text = json.dumps(random_value(rng, 3), ensure_ascii=rng.random() < 0.5)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(
                ['"', "\\", "{", "}", "[", "]", ",", ":", "", '""', '\\"', "\\\\", "NaN", '"a":1,']
            )
            text += "" if rng.random() < 0.3 else json.dumps(random_value(rng, 1))[: rng.randrange(9)]
        if rng.random() < 0.1:
            text = text.replace("{", '{"a":1,"a":2,', 1)
        data = text.encode()
        try:
            want = slow(data, 30)
        except (ValueError, UnicodeEncodeError) as error:
            refused += 1
            twice += str(error) == "twice"
            with pytest.raises(InputError):
                parse_strict_json(data, "x", max_values=30)
        else:
            accepted += 1
            got = parse_strict_json(data, "x", max_values=30)
            assert got == want and repr(got) == repr(want), text
    assert accepted > 1500 and refused > 1500 and twice > 40


@pytest.mark.parametrize("text", ['{"a":{"b":1,"b":2}}', '[{"":1,"":1}]', r'{"a":1,"\u0061":2}', '{"x:y":1,"x:y":1}'])
def test_a_key_that_is_there_twice_is_named(text: str) -> None:
    with pytest.raises(InputError, match="every key once, got '(b||a|x:y)' twice"):
        parse_strict_json(text.encode(), "x")


@pytest.mark.parametrize("text", ['{"a:b":"{[,"}', r'{"\"":"\\","\\\\":[":"]}', '["", "", ":"]', '{"":"","a":""}'])
def test_punctuation_in_strings_counts_for_nothing(text: str) -> None:
    assert parse_strict_json(text.encode(), "x", max_values=4) == json.loads(text)


def test_nesting_is_refused_before_the_parser_sees_it() -> None:
    for text in ("[" * 70, '{"a":' * 70, r'["\\",' + "[" * 70, '["a","b"' + ",[" * 70):
        with pytest.raises(InputError, match="at most 64 deep"):
            parse_strict_json(text.encode(), "x")
    assert parse_strict_json(b"[" * 64 + b"]" * 64, "x") is not None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        for text in (b"[1]", b"[", b'{"a":1,"a":1}'):
            try:
                parse_strict_json(text, "x")
            except InputError:
                pass
            assert gc.isenabled() == enabled
        with no_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
