"""The published JSON Schemas: the dataclasses' own, and for schedules what the library's check accepts."""

from __future__ import annotations

import importlib.resources
import json
import random
from collections import Counter
from dataclasses import fields

import pytest

import amk
from amk.errors import InternalError
from amk.records import Trial
from amk.schema import SCHEMA_NAMES, load_schema, make_schemas
from write_schemas import text_of

jsonschema = pytest.importorskip("jsonschema")

CASES = 10_000
H200 = amk.TARGETS["h200"]


def validator(name):
    return jsonschema.Draft202012Validator(load_schema(name))


@pytest.mark.parametrize("name", SCHEMA_NAMES)
def test_the_published_schema_is_the_dataclass(name):
    """`python tests/python/write_schemas.py` writes them anew."""
    published = importlib.resources.files("amk").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")
    assert published == text_of(make_schemas()[name])
    jsonschema.Draft202012Validator.check_schema(json.loads(published))
    record = {"ScheduleConfig": amk.ScheduleConfig, "Verdict": amk.Verdict, "Trial": Trial}[name]
    assert list(load_schema(name)["properties"]) == [field.name for field in fields(record)]


def test_an_unknown_schema():
    with pytest.raises(amk.InputError, match="ScheduleConfig"):
        load_schema("../config")


# --- schedules ----------------------------------------------------------------------------------------------------


def accepts(given):
    """What the library says: the types and names in Python, the domains in C++."""
    try:
        config, _ = amk.ScheduleConfig.from_dict(given, strict=True)
        config.check(H200)
    except amk.Rejected:
        return False
    return True


FUSIONS = ["rmsnorm+gemv", "gate+up", "gate+up+silu", "gemv+add", "qkv", "rope+kv_append"]
INTEGERS = [-(2**31) - 1, -(2**31), -8, -1, 0, 1, 7, 8, 15, 16, 17, 24, 32, 64, 96, 128, 255, 256, 257, 512, 1000, 1008,
            1023, 1024, 1025, 1040, 4096, 8184, 8192, 8193, 8200, 2**31 - 1, 2**31, 2**63, 2**70]  # fmt: skip
WRONG = [None, True, False, "", "8", "none", [], [8], {}, {"a": 1}, 0.5, -1e300]


def some_integer(rng):
    return rng.choice(INTEGERS) if rng.random() < 0.7 else rng.randrange(-40, 9000)


def some_map(rng):
    """Whether an explicit map fits one tiling is the lowering's affair: here every well-formed one counts."""
    keys = [str(rng.randrange(200)) for _ in range(rng.randrange(4))]
    if rng.random() < 0.2:
        keys.append(rng.choice(["-1", "01", "", "x", "1.0", " 1", "2147483647", "2147483648", "9999999999"]))
    values = [rng.choice([0, 1, 131, 2**31 - 1, 2**31, -1, -(2**31), -(2**31) - 1, True, None, "0", 0.5])
              if rng.random() < 0.1 else rng.randrange(132) for _ in keys]  # fmt: skip
    return dict(zip(keys, values, strict=True))


def some_fusions(rng):
    names = rng.sample(FUSIONS, rng.randrange(len(FUSIONS) + 1))
    if rng.random() < 0.15:
        names.insert(0, rng.choice([*FUSIONS, "", "QKV", 1, None, ["qkv"], {}]))
    return names


def multiple_of(step, count):
    return lambda rng: step * rng.randrange(count) if rng.random() < 0.6 else some_integer(rng)


def below(end):
    return lambda rng: rng.randrange(-1, end) if rng.random() < 0.85 else some_integer(rng)


def built(value):
    return lambda rng: value if rng.random() < 0.85 else some_integer(rng)


KNOBS = {
    ("tiling", "gemv", "N_tile"): multiple_of(8, 1030),
    ("tiling", "attention", "kv_block"): lambda rng: (
        multiple_of(16, 66)(rng) if rng.random() < 0.8 else (1 << 24) + rng.choice([-16, 0, 16])
    ),
    ("fusion_grouping",): some_fusions,
    ("sm_assignment",): lambda rng: some_map(rng) if rng.random() < 0.5 else rng.choice(
        ["round_robin", "load_balance", "explicit", "Round_Robin"]),
    ("pipelining_depth",): below(67),
    ("page_allocation",): lambda rng: rng.choice(["none", "linear", "graph_color", "linear ", "NONE"]),
    ("threads_per_block",): built(256),
    ("smem_bytes_per_block",): lambda rng: rng.choice([0, 0, 1, 200_000, 1 << 20, (1 << 20) + 1, -1]),
    ("kernel_knobs", "cols_per_warp"): built(0),
    ("kernel_knobs", "cpasync"): below(3),
    ("kernel_knobs", "cpa_stages"): below(11),
    ("kernel_knobs", "cpa_cols"): built(0),
}  # fmt: skip


def some_config(rng):
    """A config of a few knobs; sometimes with a value of the wrong type, an unknown key or a wrong branch."""
    config = {}
    for path in rng.sample(list(KNOBS), rng.randrange(0, 5)):
        table = config
        for name in path[:-1]:
            table = table.setdefault(name, {})
        table[path[-1]] = KNOBS[path](rng) if rng.random() < 0.95 else rng.choice(WRONG)
    if rng.random() < 0.05:
        branches = [config, *(value for value in config.values() if isinstance(value, dict))]
        rng.choice(branches)[rng.choice(["magic", "n_tile", "Tiling", ""])] = 1
    if rng.random() < 0.03:
        config[rng.choice(["tiling", "kernel_knobs"])] = rng.choice(WRONG)
    return config


def has_whole_fraction(value):
    """8.0 is an integer to JSON Schema, and not to AMK: the one thing of a schedule that the schema cannot say. Its
    description names it, and the generator never makes one."""
    if isinstance(value, dict):
        return any(map(has_whole_fraction, value.values()))
    return isinstance(value, float) and value.is_integer() and abs(value) < 1e200


def test_schema_and_library_agree_on_schedules():
    schema, rng, seen = validator("ScheduleConfig"), random.Random(20), Counter()
    for _ in range(CASES):
        config = json.loads(json.dumps(some_config(rng)))
        assert not has_whole_fraction(config)
        says, judged = schema.is_valid(config), accepts(config)
        assert says == judged, config
        seen[judged] += 1
    assert min(seen.values()) > CASES // 5 and sum(seen.values()) == CASES, seen


@pytest.mark.parametrize("path", KNOBS, ids=".".join)
def test_they_agree_at_every_edge(path):
    schema = validator("ScheduleConfig")
    values = [*INTEGERS, *WRONG, *({"0": n} for n in INTEGERS), "linear", "round_robin", FUSIONS, FUSIONS[:1] * 2]
    for value in values:
        config = value
        for name in reversed(path):
            config = {name: config}
        assert schema.is_valid(config) == accepts(config), config


def test_what_is_no_object_is_refused_by_both():
    schema = validator("ScheduleConfig")
    assert not any(schema.is_valid(value) or accepts(value) for value in (None, [], "x", 1, True))
    assert "8.0" in load_schema("ScheduleConfig")["description"]


def test_an_explicit_map_is_judged_when_the_program_is_made():
    """Named in the description: schema and check accept any well-formed map, the lowering only one that fits."""
    assert "explicit sm_assignment" in load_schema("ScheduleConfig")["description"]
    config = {"sm_assignment": {"0": 0}}
    assert validator("ScheduleConfig").is_valid(config) and accepts(config)
    with pytest.raises(amk.Rejected):
        amk.lower(amk.open_model("toy").config, amk.ScheduleConfig.from_dict(config)[0], H200, 64)


# --- verdicts and trials --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return [
            amk.evaluate("toy", "h200", device="cpu").to_dict(),
            amk.evaluate("toy", "h200", {"tiling": {"gemv": {"N_tile": 17}}}).to_dict(),
        ]


def test_verdicts(verdicts):
    schema = validator("Verdict")
    right, rejected = verdicts
    for verdict in verdicts:
        schema.validate(verdict)
        schema.validate({"schema": "amk.eval", "status": "x", **verdict})  # as the command line prints it
    lies = [
        rejected | {"correct": False}, rejected | {"rejected_reason": None}, rejected | {"latency_us": 1.0},
        right | {"valid": False}, right | {"correct": False}, right | {"correct": None}, right | {"latency_us": 0.0},
        right | {"latency_kind": "guessed"}, right | {"latency_kind": None}, right | {"pct_of_roofline": None},
        right | {"latency_kind": "measured-gpu"}, right | {"latency_p10_us": 1.0}, right | {"bound_us": None},
        right | {"notes": "none"}, right | {"positions": [1.5]}, right | {"model": 1}, right | {"tasks": "3"},
    ]  # fmt: skip
    for lie in lies:
        assert not schema.is_valid(lie), {k: v for k, v in lie.items() if v != right.get(k)}
        if not wrong_type(lie):  # types are the schema's own affair
            with pytest.raises(InternalError):
                amk.Verdict(**lie)
    for name in right:
        assert not schema.is_valid({key: value for key, value in right.items() if key != name}), name


def wrong_type(verdict):
    kinds = {"notes": list, "model": str, "tasks": (int, type(None))}
    return any(not isinstance(verdict[name], kind) for name, kind in kinds.items()) or verdict["positions"] == [1.5]


def trial_of(verdict, /, **changes):
    fine = {
        "trial_id": "0123456789ab-000003", "loop": "0123456789ab", "experiment": 3, "tag": "kept", "model": "toy",
        "gpu": "h200", "regime": "predicted", "correctness": "PASS", "latency_us": verdict["latency_us"],
        "pct_of_roofline": verdict["pct_of_roofline"], "schedule_id": verdict["schedule_id"], "kernel_id": "k",
        "description": "a sentence", "schedule_config": verdict["schedule_config"], "verdict": verdict,
        "comparison": {}, "shape": {"layers": 1}, "time_utc": "2026-01-02T03:04:05Z", "duration_s": 0.5,
    }  # fmt: skip
    return fine | changes


def test_trials(verdicts):
    """Over single changes of a right trial, the schema and the record agree."""
    schema, right = validator("Trial"), verdicts[0]
    schema.validate(Trial.from_dict(trial_of(right)).to_dict())
    changes = [
        {name: value}
        for name in trial_of(right)
        for value in (
            None,
            True,
            -1,
            0,
            3,
            1.5,
            "",
            "x",
            "kept",
            "crash",
            "rejected",
            "FAIL",
            "CRASH",
            "REJECTED",
            [],
            {},
        )
    ]
    changes += [{"tag": "crash", "correctness": "CRASH", "latency_us": None, "pct_of_roofline": None},
                {"tag": "rejected", "correctness": "REJECTED", "latency_us": None, "pct_of_roofline": None},
                {"tag": "revert", "correctness": "FAIL", "latency_us": None, "pct_of_roofline": None},
                {"tag": "tried", "latency_us": None, "pct_of_roofline": None}, {"more": 1},
                {"loop": "0123456789AB"}, {"time_utc": "2026-01-02 03:04:05"}, {"experiment": 2**31}]  # fmt: skip
    # What the schema's description says it leaves out: a trial_id made of loop and experiment.
    said = {"trial_id", "loop", "experiment"}
    agreed = 0
    for change in changes:
        trial = trial_of(right, **change)
        try:
            Trial.from_dict(trial)
            judged = True
        except amk.InputError:
            judged = False
        if schema.is_valid(trial) and not judged and set(change) & said:
            continue
        assert schema.is_valid(trial) == judged, change
        agreed += judged
    assert agreed >= 15
    for name in trial_of(right):
        assert not schema.is_valid({key: value for key, value in trial_of(right).items() if key != name}), name
    assert "trial_id" in load_schema("Trial")["description"]
