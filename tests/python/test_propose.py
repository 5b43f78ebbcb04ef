"""Every value that the search space offers does something, and what is proposed is legal and repeatable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amk
from amk.errors import InputError, Rejected
from amk.model_config import parse_config
from amk.propose import _next_in_gray_code, config_schema, with_knob

SPACE = amk.search_space("h200")
OFFERED = [(path, value) for path, values in SPACE.items() for value in values]
DEFAULT = amk.ScheduleConfig.default()

# Wide enough that every tile size cuts some product differently; weights are not needed to lower.
WIDE = parse_config(
    {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
    },
    "the wide model",
)


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def knob(path: str, value: Any) -> amk.ScheduleConfig:
    config, notes = amk.ScheduleConfig.from_dict(with_knob(DEFAULT.to_dict(), path, value), strict=True)
    assert not notes
    return config


RING = ("pipelining_depth", "cpa_stages")  # what the kernel reads of the launch, beside the grid


def tables_of(config: amk.ScheduleConfig, cache: dict[str, Any] = {}) -> dict[str, bytes]:  # noqa: B006
    """What runs: tasks, buffers, placement, and the launch facts that shape the ring; the others echo the config."""
    if config.schedule_id not in cache:
        program = amk.lower(WIDE, config, amk.TARGETS["h200"], 1024)
        assert program.validate().ok
        tables = program.tables()
        names = ("tasks", "buffers", "bindings", "pages")
        ring = bytes(f"{[program.launch[name] for name in RING]}", "ascii")
        cache[config.schedule_id] = {name: getattr(tables, name).tobytes() for name in names} | {"ring": ring}
    return cache[config.schedule_id]


@pytest.mark.parametrize(("path", "value"), OFFERED, ids=str)
def test_every_offered_value_changes_the_program(path: str, value: Any) -> None:
    mine = knob(path, value)
    others = [knob(path, other) for other in SPACE[path] if knob(path, other) != mine]
    assert others, "a knob with one value is no knob"
    if mine != DEFAULT:
        changed = [name for name, table in tables_of(mine).items() if table != tables_of(DEFAULT)[name]]
        expected = {
            "page_allocation": {"pages", "bindings"},
            "pipelining_depth": {"ring"},
            "kernel_knobs.cpa_stages": {"ring"},
        }.get(path, {"tasks"})
        assert expected & set(changed), f"{path} = {value} changed nothing that it is about: {changed}"
    assert all(tables_of(mine) != tables_of(other) for other in others), "two values make the same program"


@pytest.mark.parametrize(("path", "value"), OFFERED, ids=str)
def test_every_offered_value_is_still_correct(path: str, value: Any) -> None:
    for model in ("toy", "toy-qwen3", "toy-gdn"):
        verdict = amk.evaluate(model, "h200", knob(path, value))
        assert verdict.correct, (model, verdict.rejected_reason, verdict.notes)


@pytest.mark.parametrize(("path", "value"), OFFERED, ids=str)
def test_every_offered_value_reaches_the_image(path: str, value: Any) -> None:
    """What machines run differs in its tables, as they are read back from the bytes: an image holds no schedule."""
    mine = knob(path, value)
    images = [amk.lower(WIDE, config, amk.TARGETS["h200"], 1024).pack() for config in (DEFAULT, mine)]
    default, other = (amk.Image.from_bytes(image.bytes).program().tables() for image in images)
    same = {
        name: getattr(default, name).tobytes() == getattr(other, name).tobytes()
        for name in ("tasks", "buffers", "bindings", "pages")
    }
    same["ring"] = all(default.launch[name][0] == other.launch[name][0] for name in RING)
    assert all(same.values()) is (mine == DEFAULT), same
    assert (images[0].hash == images[1].hash) is (mine == DEFAULT)


@pytest.mark.parametrize("seed", range(6))
def test_knobs_turned_together_are_still_correct(seed: int) -> None:
    """Points far from the default, where knobs meet: the search goes there."""
    from amk.exam import draw
    from amk.search.sampler import Space

    space = Space(SPACE)
    config = space.point(draw(seed, "a point", 0, space.size))
    for model in ("toy-2L", "toy-gqa"):
        verdict = amk.evaluate(model, "h200", config, "cpu")
        assert verdict.correct, (config, verdict.rejected_reason, verdict.notes)


def test_the_space_lists_live_knobs_only() -> None:
    assert set(SPACE) == {
        "tiling.gemv.N_tile", "tiling.attention.kv_block", "fusion_grouping", "sm_assignment", "page_allocation",
        "pipelining_depth", "kernel_knobs.cpa_stages",
    }  # fmt: skip
    assert all(knob(path, values[0]) == DEFAULT for path, values in SPACE.items()), "the default comes first"
    assert not any("attention+combine" in names for names in SPACE["fusion_grouping"]), "nothing by itself"
    for target in amk.TARGETS:
        older = amk.TARGETS[target].cc_major < 9  # without the copy engine that fills a ring
        assert older is ("pipelining_depth" not in amk.search_space(target))
        for path, values in amk.search_space(target).items():
            assert len(values) >= 2
            for value in values:
                knob(path, value).check(amk.TARGETS[target])
    with pytest.raises(InputError):
        amk.search_space("h9000")


def test_the_first_proposal_is_the_default() -> None:
    proposal = amk.propose("toy", "h200")
    assert set(proposal) >= {
        "model", "gpu", "schedule_config", "schedule_id", "search_space", "schema", "edit_surface",
    }  # fmt: skip
    assert proposal["schedule_config"] == DEFAULT.to_dict() and proposal["schedule_id"] == DEFAULT.schedule_id
    assert proposal["search_space"] == SPACE and set(proposal["edit_surface"]["paths"]) == set(SPACE)
    assert proposal["changed"] is None
    assert json.loads(json.dumps(proposal)) == proposal


def leaves(table: dict[str, Any], at: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= leaves(value, f"{at}{key}.") if isinstance(value, dict) else {at + key: value}
    return out


def test_a_proposal_changes_one_knob_of_the_incumbent() -> None:
    incumbent: Any = amk.propose("toy", "h200")["schedule_config"]
    seen = {DEFAULT.schedule_id}
    for _ in range(40):
        proposal = amk.propose("toy", "h200", incumbent=incumbent)
        assert proposal == amk.propose("toy", "h200", incumbent=incumbent), "the same question, the same answer"
        before, after = leaves(incumbent), leaves(proposal["schedule_config"])
        differing = [path for path in before if before[path] != after[path]]
        assert differing == [proposal["changed"]["path"]]
        assert proposal["changed"]["value"] in SPACE[differing[0]]
        assert proposal["schedule_id"] not in seen, "the chain goes round in a circle"
        seen.add(proposal["schedule_id"])
        incumbent = proposal["schedule_config"]
    assert amk.evaluate("toy", "h200", incumbent).correct


def test_a_chain_of_proposals_visits_every_point_once() -> None:
    space = {"a": [1, 2, 3], "b": [["x"], [], ["x", "y"], ["y"]], "c": ["p", "q"], "d": [0]}
    point = {path: values[0] for path, values in space.items()}
    seen = {str(point)}
    for _ in range(3 * 4 * 2 - 1):
        path, value = _next_in_gray_code(point, space)
        assert value in space[path] and value != point[path]
        point = {**point, path: value}
        assert str(point) not in seen
        seen.add(str(point))
    path, value = _next_in_gray_code(point, space)  # nothing is left: back, not stuck
    assert str({**point, path: value}) in seen
    assert _next_in_gray_code({**point, "a": 7}, space) == ("a", 1)
    with pytest.raises(Rejected):
        _next_in_gray_code({"d": 0}, {"d": [0]})


def test_an_explicit_map_is_only_traded_for_a_policy() -> None:
    tasks = amk.lower(amk.open_model("toy").config, DEFAULT, amk.TARGETS["h200"], 256).tables().tasks
    sms = {str(task): int(sm) for task, sm in enumerate(tasks["sm"])}
    incumbent = DEFAULT.to_dict() | {"sm_assignment": sms}
    assert amk.propose("toy", "h200", incumbent=incumbent)["changed"]["path"] == "sm_assignment"


@pytest.mark.parametrize(
    "incumbent", [{"tiling": {"gemv": {"N_tile": 17}}}, {"magic": 1}, [], "best", 3, {"pipelining_depth": 65}], ids=str
)
def test_an_illegal_incumbent_is_rejected(incumbent: Any) -> None:
    with pytest.raises(Rejected):
        amk.propose("toy", "h200", incumbent=incumbent)


def test_misuse(tmp_path: Path) -> None:
    for model, gpu in (("no-such-model", "h200"), ("toy", "h9000"), (tmp_path, "h200"), (None, "h200"), ("toy", 4)):
        with pytest.raises(InputError):
            amk.propose(model, gpu)  # type: ignore[arg-type]


def test_the_schema_agrees_with_the_reader() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(config_schema())
    validator.check_schema(config_schema())
    good = [DEFAULT.to_dict(), {}, {"sm_assignment": {"0": 3}}, {"fusion_grouping": []}]
    good += [with_knob(DEFAULT.to_dict(), path, value) for path, value in OFFERED]
    bad: list[Any] = [
        {"tiling": {"gemv": {"N_tile": 17}}}, {"tiling": {"gemv": {"N_tile": "8"}}}, {"tiling": []}, {"magic": 1},
        {"fusion_grouping": ["magic"]}, {"fusion_grouping": ["qkv", "qkv"]}, {"sm_assignment": {"x": 1}},
        {"page_allocation": "deep"}, {"threads_per_block": "256"}, [], "deep",
    ]  # fmt: skip
    for config in good:
        assert validator.is_valid(config), config
        amk.ScheduleConfig.from_dict(config, strict=True)[0].check(amk.TARGETS["h200"])
    for config in bad:
        assert not validator.is_valid(config), config
        with pytest.raises(Rejected):
            schedule, _ = amk.ScheduleConfig.from_dict(config, strict=True)
            schedule.check(amk.TARGETS["h200"])


def test_with_knob_leaves_the_original_alone() -> None:
    config = DEFAULT.to_dict()
    changed = with_knob(config, "tiling.gemv.N_tile", 64)
    assert config == DEFAULT.to_dict()
    assert changed["tiling"] == config["tiling"] | {"gemv": {"N_tile": 64}}
    assert np.shape(changed["fusion_grouping"]) == np.shape(config["fusion_grouping"])
