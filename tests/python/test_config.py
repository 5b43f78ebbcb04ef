"""ScheduleConfig: types are refused by name, nothing is repaired, and what is written is read back the same."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amk
from amk import config as config_module

H200 = amk.TARGETS["h200"]
DEFAULT = amk.ScheduleConfig.default()


def test_default_is_the_librarys_and_passes_its_check():
    assert amk.ScheduleConfig() == DEFAULT == amk.ScheduleConfig.from_dict({})[0]
    DEFAULT.check(H200)
    assert set(DEFAULT.to_dict()) == {field.name for field in fields(amk.ScheduleConfig)}


def test_round_trip_through_json():
    given = {
        "tiling": {"gemv": {"N_tile": 16}},
        "fusion_grouping": ["gemv+add", "qkv"],
        "sm_assignment": {"10": 1, "2": 0},
        "page_allocation": "graph_color",
    }
    config, notes = amk.ScheduleConfig.from_dict(given)
    assert notes == []
    assert config.tiling["gemv"]["N_tile"] == 16
    assert config.tiling["attention"] == DEFAULT.tiling["attention"]
    assert config.sm_assignment == {2: 0, 10: 1}
    again, _ = amk.ScheduleConfig.from_dict(json.loads(json.dumps(config.to_dict())), strict=True)
    assert again == config and again.schedule_id == config.schedule_id and hash(again) == hash(config)
    assert json.dumps(again.to_dict()) == json.dumps(config.to_dict())
    assert pickle.loads(pickle.dumps(config)) == config


def test_id_depends_on_meaning_only():
    one, _ = amk.ScheduleConfig.from_dict({"fusion_grouping": ["qkv", "gemv+add"], "surprise": 1})
    two, _ = amk.ScheduleConfig.from_dict({"fusion_grouping": ["gemv+add", "qkv"]})
    assert one.schedule_id == two.schedule_id != DEFAULT.schedule_id
    assert len(one.schedule_id) == 16 and int(one.schedule_id, 16) >= 0
    by_text, _ = amk.ScheduleConfig.from_dict({"sm_assignment": {"0": 1}})
    by_number, _ = amk.ScheduleConfig.from_dict({"sm_assignment": {0: 1}})
    assert by_text == by_number and by_text.schedule_id == by_number.schedule_id


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"turbo": 1}, "turbo"),
        ({"tiling": {"gemm": {}}}, "tiling.gemm"),
        ({"tiling": {"gemv": {"M_tile": 1}}}, "tiling.gemv.M_tile"),
        ({"kernel_knobs": {"": 0}}, "kernel_knobs."),
        ({7: 1}, "7"),
    ],
)
def test_unknown_key_is_named_or_refused(given, name):
    config, notes = amk.ScheduleConfig.from_dict(given)
    assert config == DEFAULT
    assert len(notes) == 1 and name in notes[0]
    with pytest.raises(amk.Rejected, match="unknown key"):
        amk.ScheduleConfig.from_dict(given, strict=True)


INTEGER_PATHS = [".".join(path) for path in config_module._INTEGER_KNOBS]
WRONG = ["deep", True, None, 1.0, math.nan, float("1e400"), 1 << 31, 10**5000, [], {}]


@pytest.mark.parametrize("path", INTEGER_PATHS)
@pytest.mark.parametrize("value", WRONG, ids=[type(v).__name__ + str(i) for i, v in enumerate(WRONG)])
def test_wrong_type_names_the_field(path, value):
    nested = value
    for key in reversed(path.split(".")):
        nested = {key: nested}
    with pytest.raises(amk.Rejected, match=path):
        amk.ScheduleConfig.from_dict(nested)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"tiling": 7}, "tiling"),
        ({"tiling": {"gemv": []}}, "tiling.gemv"),
        ({"fusion_grouping": "qkv"}, "fusion_grouping"),
        ({"fusion_grouping": ["qkv", "gemv+mul"]}, "fusion_grouping"),
        ({"fusion_grouping": ["qkv", "qkv"]}, "fusion_grouping"),
        ({"fusion_grouping": [["qkv"]]}, "fusion_grouping"),
        ({"sm_assignment": "explicit"}, "sm_assignment"),
        ({"sm_assignment": 3}, "sm_assignment"),
        ({"sm_assignment": {"x": 0}}, "sm_assignment"),
        ({"sm_assignment": {"01": 0}}, "sm_assignment"),
        ({"sm_assignment": {-1: 0}}, "sm_assignment"),
        ({"sm_assignment": {True: 0}}, "sm_assignment"),
        ({"sm_assignment": {1: 0, "1": 0}}, "sm_assignment"),
        ({"sm_assignment": {"5": "0"}}, "sm_assignment.5"),
        ({"page_allocation": "best"}, "page_allocation"),
        ({"page_allocation": 1}, "page_allocation"),
    ],
    ids=str,
)
def test_wrong_shape_names_the_field(given, name):
    with pytest.raises(amk.Rejected, match=name):
        amk.ScheduleConfig.from_dict(given)
    with pytest.raises(amk.Rejected, match=name):
        amk.ScheduleConfig(**given)


@pytest.mark.parametrize("given", [None, 7, "{}", [], [("tiling", {})]])
def test_config_that_is_no_object(given):
    with pytest.raises(amk.Rejected, match="object"):
        amk.ScheduleConfig.from_dict(given)


# Every knob, with a value of the right type outside its domain: Python passes it on, the library names the field.
OUTSIDE = {
    "tiling.gemv.N_tile": 17,
    "tiling.attention.kv_block": 0,
    "pipelining_depth": -1,
    "threads_per_block": 1000,
    "smem_bytes_per_block": -1,
    "kernel_knobs.cols_per_warp": -1,
    "kernel_knobs.cpasync": 2,
    "kernel_knobs.cpa_stages": -1,
    "kernel_knobs.cpa_cols": -1,
}


def test_outside_covers_every_integer():
    assert set(OUTSIDE) == set(INTEGER_PATHS)


@pytest.mark.parametrize("path", OUTSIDE)
def test_domain_is_checked_by_the_library(path):
    nested = OUTSIDE[path]
    for key in reversed(path.split(".")):
        nested = {key: nested}
    config, notes = amk.ScheduleConfig.from_dict(nested)
    assert notes == []
    with pytest.raises(amk.Rejected, match=path):
        config.check(H200)


@pytest.mark.parametrize("policy", config_module.PAGE_POLICIES)
@pytest.mark.parametrize("assignment", config_module.SM_POLICIES)
def test_every_policy_reaches_the_library(policy, assignment):
    config = replace(DEFAULT, page_allocation=policy, sm_assignment=assignment)
    schedule, _ = config.to_c()
    assert schedule.page_policy == config_module.PAGE_POLICIES[policy]
    assert schedule.sm_policy == config_module.SM_POLICIES[assignment]
    config.check(H200)


def test_fusion_bits_reach_the_library():
    for name, bit in config_module.FUSION_NAMES.items():
        assert replace(DEFAULT, fusion_grouping=(name,)).to_c()[0].fusion == bit
    assert replace(DEFAULT, fusion_grouping=()).to_c()[0].fusion == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from([field.name for field in fields(amk.ScheduleConfig)]) | st.text(max_size=4)
KNOBS = st.sampled_from(["gemv", "attention", "N_tile", "kv_block", "cpasync", "0", "1"]) | st.text(max_size=3)
NESTED = st.recursive(JSON, lambda inner: st.dictionaries(KNOBS, inner, max_size=3), max_leaves=6)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, NESTED | st.sampled_from(["round_robin", "linear", 0, 8]), max_size=6))
def test_any_dict_gives_a_config_or_rejected(given):
    try:
        config, notes = amk.ScheduleConfig.from_dict(given)
    except amk.Rejected as error:
        assert str(error).startswith("V26: ")
        return
    assert amk.ScheduleConfig.from_dict(config.to_dict(), strict=True) == (config, [])
    if not notes:
        assert amk.ScheduleConfig.from_dict(given, strict=True)[0] == config
    try:
        config.check(H200)
    except amk.Rejected as error:
        assert str(error)
