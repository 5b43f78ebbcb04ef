"""V17 as Python sees it: a program is judged with the model it is meant to be, and only then called that model."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

import amk
from amk.embedded import EMBEDDED
from amk.model_config import ModelConfig
from program_sketch import gemv_sketch

DEFAULT = amk.ScheduleConfig.default()
TOY = EMBEDDED["toy"]


def lowered(model: ModelConfig = TOY, max_seq: int = 32) -> amk.Program:
    return amk.lower(model, DEFAULT, "h200", max_seq)


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_model_is_itself_and_no_other(name):
    program = lowered(EMBEDDED[name])
    for other, model in EMBEDDED.items():
        report = program.validate(model)
        assert report.ok == (other == name), str(report)
        assert report.ok or {found.code for found in report.rejections} == {"V17"}
    assert program.validate().ok  # what it computes is no matter of safety


# Fields of ModelConfig that the library's description of a model does not hold.
BESIDES = {"family", "rope_theta", "rope_scaling", "max_position", "bos_token_id", "eos_token_ids", "rotary_dim"}
CHANGES = {
    **{"hidden": 128, "layers": 2, "n_heads": 8, "n_kv_heads": 2, "head_dim": 32, "ffn": 64, "vocab": 128},
    **{"eps": 1e-4, "dtype": "bf16", "tied": True, "qkv_bias": True, "o_bias": True, "mlp_bias": True, "qk_norm": True},
    **{"attention_gate": True, "norm_plus_one": True, "weight_group": 64},
}
HYBRID = EMBEDDED["toy-gdn"]
HYBRID_CHANGES = {
    **{"full_attention_interval": 2, "linear_key_heads": 1, "linear_value_heads": 2, "linear_head_dim": 64},
    **{"conv_width": 3},
}


def test_every_field_counts():
    assert {*CHANGES, *HYBRID_CHANGES} == {field.name for field in fields(ModelConfig)} - BESIDES
    for model, changes in ((TOY, CHANGES), (HYBRID, HYBRID_CHANGES)):
        program = lowered(model)
        for name, value in changes.items():
            assert getattr(model, name) != value
            report = program.validate(replace(model, **{name: value}))
            assert not report.ok and report.rejections[0].code == "V17", name
    program = lowered()
    for max_seq in (31, 33):
        report = program.validate(TOY, max_seq)
        assert str(report) == f"V17: launch.max_seq is 32, the model's is {max_seq}"


def test_a_judgement_is_made_once_and_serves_the_others():
    program = lowered()
    report = program.validate(TOY)
    assert program.validate(TOY) is report and program.validate() is report
    assert program.pack(TOY).hash == program.pack().hash == lowered().pack().hash
    other = program.validate(replace(TOY, eps=1.0))
    with pytest.raises(amk.Rejected, match="V17: .* eps") as caught:
        program.pack(replace(TOY, eps=1.0))
    assert caught.value.report is other
    assert program.pack().hash == lowered().pack().hash  # still safe


def test_other_proofs_come_first():
    data = lowered().to_dict()
    data["meta"]["launch"]["max_seq"] = 0
    assert amk.Program.from_dict(data).validate(TOY).rejections[0].code == "V19"
    data["tasks"][0]["op"] = "NO_SUCH_OP"
    assert amk.Program.from_dict(data).validate(TOY).rejections[0].code == "V3"
    assert amk.Program.from_dict(gemv_sketch().to_dict()).validate(TOY).rejections[0].code == "V17"


def test_a_model_outside_its_domain_is_misuse():
    with pytest.raises(amk.InputError, match="layers"):
        lowered().validate(replace(TOY, layers=0))
    with pytest.raises(amk.InputError, match="dtype"):
        lowered().validate(replace(TOY, dtype="i8"))


@pytest.mark.parametrize("verb", ["validate", "eval", "compile"])
def test_every_verb_that_lowers_a_model_proves_it(verb, monkeypatch, tmp_path, capsys):
    from amk import cli, program

    original = program.lower
    monkeypatch.setattr(program, "lower", lambda model, *rest: original(replace(model, eps=1e-3), *rest))
    arguments = ["toy", "--gpu", "h200", *(["--output", str(tmp_path / "out")] if verb == "compile" else [])]
    assert cli.main([verb, *arguments, "--quiet"]) == 1
    said = capsys.readouterr()
    assert "V17: task " in said.out + said.err and "eps of layers.0.wqkv" in said.out + said.err
