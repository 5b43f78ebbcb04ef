"""tests/rejects: the smallest bad programs, at least one per obligation, each refused by the code it is named after.

A file holds "expect", "why" and one of: "program" (from_dict), with "model" the model that it must compute (an embedded
one and what is different), or with "flip_byte" a byte of its image that is changed after packing; "text" (from_json) or
"image_hex" (Image.from_bytes), hostile input that must end in a typed error; "schedule" (ScheduleConfig, strict, on
h200).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import amk
from amk.embedded import EMBEDDED
from amk.model_config import ModelConfig

FILES = sorted((Path(__file__).parent.parent / "rejects").glob("*.json"))
OBLIGATIONS = {f"V{n}" for n in range(1, 27)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_refused_by_name(path):
    case = json.loads(path.read_text())
    if "schedule" in case:
        with pytest.raises(amk.Rejected) as caught:
            config, _ = amk.ScheduleConfig.from_dict(case["schedule"], strict=True)
            config.check(amk.TARGETS["h200"])
        assert any(key in str(caught.value) for key in case["schedule"])
    elif "text" in case:
        with pytest.raises(amk.InputError):
            amk.Program.from_json(case["text"])
    elif "image_hex" in case:
        with pytest.raises((amk.InputError, amk.BuildMismatch)):
            amk.Image.from_bytes(bytes.fromhex(case["image_hex"]))
    elif "flip_byte" in case:
        image = bytearray(amk.Program.from_dict(case["program"]).pack().bytes)
        image[case["flip_byte"]] ^= 1
        with pytest.raises(amk.BuildMismatch, match=case["expect"]):
            amk.Image.from_bytes(image)
    else:
        program = amk.Program.from_dict(case["program"])
        model = model_of(case)
        if model is not None:
            assert program.validate().ok  # race-free and lawful: only its meaning is wrong
        report = program.validate(model)
        assert not report.ok
        assert report.rejections[0].code == case["expect"], str(report)
        with pytest.raises(amk.Rejected, match=case["expect"]) as caught:
            program.pack(model)
        assert caught.value.report is report


def model_of(case: dict) -> ModelConfig | None:
    if "model" not in case:
        return None
    changed = dict(case["model"])
    return replace(EMBEDDED[changed.pop("like")], **changed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_named_after_its_code(path):
    case = json.loads(path.read_text())
    assert path.stem.split("_")[0] == f"V{int(case['expect'][1:]):02}"
    assert case["why"]


def test_every_obligation_has_a_file():
    assert {json.loads(path.read_text())["expect"] for path in FILES} == OBLIGATIONS
