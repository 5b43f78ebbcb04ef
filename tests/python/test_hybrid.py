"""Hybrid models end to end on the reference machine: tokens as transformers has them, states, and how they are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import amk  # noqa: E402
from amk import vm  # noqa: E402
from amk.errors import AmkError, DevicePoisoned, InputError  # noqa: E402
from amk.history import set_states, stored_history, stored_states  # noqa: E402
from amk.oracle import Oracle, Rows, logit_error  # noqa: E402
from families import build_checkpoint, wholly_in_float64  # noqa: E402

MAX_SEQ, NEW_TOKENS, PROMPT = 96, 64, [3, 141, 59]
GDN_STATE, CONV_STATE = "layers.0.gdn_state", "layers.0.conv_state"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMK_CACHE_DIR", str(tmp_path / "cache"))


def open_machine(model: Any, **options: Any) -> tuple[amk.ReferenceVM, Any]:
    source = amk.open_model(model)
    image = amk.lower(source.config, amk.ScheduleConfig.default(), "h200", MAX_SEQ).pack(source.config)
    return amk.ReferenceVM(image, source.weights(), **options), source.config


@pytest.fixture
def toy() -> Any:
    machine, config = open_machine("toy-gdn")
    with machine:
        yield machine, config


# --- as transformers ------------------------------------------------------------------------------------------------

SHAPES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "equal heads, biases": {"linear_num_value_heads": 2, "attention_bias": True},
    "every second layer, tied": {
        "layer_types": ["linear_attention", "full_attention"] * 2, "tie_word_embeddings": True,
        "linear_conv_kernel_dim": 3, "linear_num_key_heads": 1,
    },
    "attention alone": {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2},
    "scaled rotary": {
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_generation_equals_transformers_token_for_token(shape: str, tmp_path: Path) -> None:
    model = build_checkpoint(tmp_path / "model", "qwen3next", sharded=shape == "as it is", seed=7, **SHAPES[shape])
    options = {"device": "cpu", "gpu": "h200", "max_new_tokens": NEW_TOKENS, "max_seq": MAX_SEQ, "stop_at_eos": False}
    with amk.generate(tmp_path / "model", PROMPT, **options) as generation:
        got = [token.token for token in generation]
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(PROMPT) :].tolist()
    assert got == theirs and len(got) == NEW_TOKENS
    assert len(set(got)) > 8, "a decode that repeats itself tests little"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_machine_goes_on_from_what_transformers_remembers(dtype: Any, tmp_path: Path) -> None:
    """Its cache rows (heads reordered) and states, after a prompt that the machine never saw."""
    model = build_checkpoint(tmp_path / "model", "qwen3next", seed=8, dtype=dtype)
    machine, config = open_machine(tmp_path / "model")
    tokens = np.random.default_rng(1).integers(0, config.vocab, 48).tolist()
    with torch.no_grad(), wholly_in_float64(model):
        cache = model(torch.tensor([tokens[:40]]), use_cache=True).past_key_values
        truth = model(torch.tensor([tokens])).logits[0, 40:].numpy()
    half, rest = config.rotary_dim // 2, (config.head_dim - config.rotary_dim) // 2
    places = [*range(half), *range(2 * half, 2 * half + rest), *range(half, 2 * half), *range(2 * half + rest, 32)]
    store = lambda part: vm_form(part.numpy(), config.dtype)  # noqa: E731
    with machine:
        for layer, theirs in enumerate(cache.layers):
            if config.is_linear(layer):
                memory = theirs.recurrent_states[0][0].transpose(1, 2).numpy()
                machine.set_state(
                    layer, store(theirs.conv_states[0][0, :, 1:]), np.ascontiguousarray(memory, dtype=np.float32)
                )
            else:
                machine.set_kv(layer, store(theirs.keys[0][..., places]), store(theirs.values[0]))
        got = np.array([machine.step(tokens[pos], pos) for pos in range(40, 48)])
    assert logit_error(got.astype(np.float64), truth) < (1e-4 if config.dtype == "f32" else 0.1)


def vm_form(values: np.ndarray, dtype: str) -> np.ndarray:
    from amk.oracle import round_to

    return np.ascontiguousarray(round_to(values, dtype))


# --- states of a machine ----------------------------------------------------------------------------------------------


def test_states_are_those_of_the_oracle_after_every_token(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "model", "qwen3next", seed=9)
    machine, config = open_machine(tmp_path / "model")
    tokens, rows = [5, 80, 200, 5, 9, 31], []
    oracle: Rows = rows
    Oracle(config, amk.open_model(tmp_path / "model").raw).prefill(tokens, rows=oracle)
    with machine:
        for pos, token in enumerate(tokens):
            machine.step(token, pos)
            for layer in filter(config.is_linear, range(config.layers)):
                for mine, theirs in zip(machine.get_state(layer), rows[layer], strict=True):
                    np.testing.assert_allclose(mine, theirs[pos], atol=1e-4)


def test_what_a_state_may_be_set_to(toy: Any) -> None:
    machine, config = toy
    states = stored_states(config, 3)
    assert sorted(states) == [0, 1, 2]
    set_states(machine, states)
    for layer, (conv, memory) in states.items():
        got = machine.get_state(layer)
        assert np.array_equal(got[0], conv) and np.array_equal(got[1], memory)
    conv, memory = states[0]
    for wrong in ((conv, memory[:2]), (conv[:8], memory), (conv, memory.astype(np.float64)), (memory, conv)):
        with pytest.raises(InputError, match="layers.0"):
            machine.set_state(0, *wrong)
    for absent in (3, 4, -1):
        with pytest.raises(InputError, match="expected the name of a buffer"):
            machine.get_state(absent)
    with pytest.raises(InputError, match="kv.0.k"):
        machine.get_kv(0)
    assert machine.get_kv(3, 2)[0].shape == (config.n_kv_heads, 2, config.head_dim)


def test_a_step_is_another_one_when_it_is_run_again(toy: Any) -> None:
    machine, config = toy
    states = stored_states(config, 4)
    for layer, (k, v) in stored_history(config, 30, 4).items():
        machine.set_kv(layer, k, v)
    set_states(machine, states)
    first = machine.step(9, 30)
    after = machine.get_state(0)
    machine.relaunch()
    assert machine.read("logits").tobytes() != first.tobytes()
    assert not np.array_equal(machine.get_state(0)[1], after[1])
    set_states(machine, states)
    machine.relaunch()
    assert machine.read("logits").tobytes() == first.tobytes()
    assert all(np.array_equal(mine, other) for mine, other in zip(machine.get_state(0), after, strict=True))


def test_a_run_by_name_takes_states_with_the_cache(toy: Any) -> None:
    machine, config = toy
    caches = {f"kv.3.{name}": part for name, part in zip("kv", stored_history(config, 30, 4)[3], strict=True)}
    for layer, (conv, memory) in stored_states(config, 4).items():
        caches |= {f"layers.{layer}.conv_state": conv, f"layers.{layer}.gdn_state": memory}
    inputs = {"token": np.array([9], np.int32)}
    first = machine.run(inputs, caches, pos=30)
    assert machine.run(inputs, pos=30)["logits"].tobytes() != first["logits"].tobytes()
    assert machine.run(inputs, caches, pos=30)["logits"].tobytes() == first["logits"].tobytes()


def test_generation_begins_with_no_memory(toy: Any) -> None:
    """On a machine that has decoded before, the tokens are those of a new one."""
    machine, _ = toy
    options = {"max_new_tokens": 20, "stop_at_eos": False}
    first = [token.token for token in amk.generate("toy-gdn", [1, 2, 3], machine=machine, **options)]
    with amk.generate("toy-gdn", [7, 8], machine=machine, **options) as left:  # not to its end
        next(left)
    assert [token.token for token in amk.generate("toy-gdn", [1, 2, 3], machine=machine, **options)] == first
    unread = amk.generate("toy-gdn", [1, 2, 3], machine=machine, **options)
    machine.step(5, 0)  # after the call, before its first token
    assert [token.token for token in unread] == first


def test_a_step_that_fails_poisons_the_states(toy: Any) -> None:
    """Until they are cleared or all written; a generation clears them, and a cache has no such memory."""
    machine, config = toy
    fresh = machine.step(9, 0)
    states = stored_states(config, 5)

    def fail() -> None:
        machine.reset_state()
        past, memory = (part.copy() for part in states[1])
        memory[:] = np.nan
        machine.set_state(1, past, memory)
        with pytest.raises(AmkError) as caught:
            machine.step(9, 0)
        assert caught.value.code == "non-finite"
        with pytest.raises(DevicePoisoned) as again:
            machine.step(9, 0)
        assert again.value.code == "poisoned"
        with pytest.raises(DevicePoisoned, match="state"):
            machine.get_state(0)

    fail()
    for layer in (0, 1):
        machine.set_state(layer, *states[layer])
    with pytest.raises(DevicePoisoned):  # layer 2 is still what the failed step left
        machine.step(9, 0)
    machine.set_state(2, *states[2])
    assert np.isfinite(machine.step(9, 0)).all()
    fail()
    machine.reset_state()
    assert machine.step(9, 0).tobytes() == fresh.tobytes()
    fail()
    tokens = [token.token for token in amk.generate("toy-gdn", [9], machine=machine, max_new_tokens=3)]
    assert tokens[0] == int(np.argmax(fresh))


def test_a_dense_model_has_no_state_and_clearing_it_is_nothing() -> None:
    machine, config = open_machine("toy")
    with machine:
        first = machine.step(3, 0)
        machine.reset_state()
        assert machine.step(3, 0).tobytes() == first.tobytes() and not config.has_state
        with pytest.raises(InputError, match="layers.0.conv_state"):
            machine.get_state(0)
    with pytest.raises(InputError, match="closed"):
        machine.reset_state()


# --- wrong machines -------------------------------------------------------------------------------------------------


def edited(change: Any) -> type:
    """A machine that reads other weights than the judge's oracle."""

    class Edited(vm.ReferenceVM):
        def __init__(self, image: Any, weights: Any, **options: Any) -> None:
            copies = {name: array.copy() for name, array in weights.items()}
            change(copies)
            super().__init__(image, copies, **options)

    return Edited


class Forgets(vm.ReferenceVM):
    """Clears its states before each step."""

    def step(self, token: int, pos: int) -> np.ndarray:
        self.reset_state()
        return super().step(token, pos)


class NeverForgets(vm.ReferenceVM):
    """Does not clear its states when it is told to, but for a NaN."""

    def reset_state(self) -> None:
        for layer in (0, 1, 2):
            super().set_state(layer, *self.kept[layer])

    def set_state(self, layer: int, conv: np.ndarray, memory: np.ndarray) -> None:
        super().set_state(layer, conv, memory)
        if np.isfinite(memory).all():
            self.__dict__.setdefault("kept", {})[layer] = (conv, memory)


class StepsTwice(vm.ReferenceVM):
    """Idempotent on a cache, not on a state; the logits are those of the first run."""

    def step(self, token: int, pos: int) -> np.ndarray:
        logits = super().step(token, pos)
        self.relaunch()
        self.write_logits = logits
        return logits


class LosesOneInput(vm.ReferenceVM):
    """The convolution's oldest input is gone."""

    def step(self, token: int, pos: int) -> np.ndarray:
        conv, memory = self.get_state(1)
        conv[:, 0] = 0
        self.set_state(1, conv, memory)
        return super().step(token, pos)


class TransposedState(vm.ReferenceVM):
    def set_state(self, layer: int, conv: np.ndarray, memory: np.ndarray) -> None:
        super().set_state(layer, conv, np.ascontiguousarray(memory.swapaxes(1, 2)))


def move_rows(name: str, size: int, one: int, other: int) -> Any:
    def change(weights: dict[str, np.ndarray]) -> None:
        rows = weights[name]
        rows[[*range(one, one + size), *range(other, other + size)]] = rows[
            [*range(other, other + size), *range(one, one + size)]
        ]

    return change


def reverse_taps(weights: dict[str, np.ndarray]) -> None:
    weights["layers.0.conv_w"][:] = weights["layers.0.conv_w"][:, ::-1].copy()


def no_decay(weights: dict[str, np.ndarray]) -> None:
    weights["layers.1.a_log"][:] = -30.0


def other_bias(weights: dict[str, np.ndarray]) -> None:
    weights["layers.2.dt_bias"][:] = 0.0


# toy-gdn: 2 key heads and 4 value heads of 32, so q, k, v, z, b, a begin at rows 0, 64, 128, 256, 384, 388; and 4 query
# and 2 kv heads of 32: q, k, v, gate at 0, 128, 192, 256.
WRONG: dict[str, type] = {
    "forgets": Forgets,
    "never forgets": NeverForgets,
    "steps twice": StepsTwice,
    "loses an input": LosesOneInput,
    "state transposed": TransposedState,
    "taps reversed": edited(reverse_taps),
    "no decay": edited(no_decay),
    "no dt bias": edited(other_bias),
    "b and a swapped": edited(move_rows("layers.0.w_gdn_in", 4, 384, 388)),
    "v and z swapped": edited(move_rows("layers.1.w_gdn_in", 128, 128, 256)),
    "two value heads swapped": edited(move_rows("layers.2.w_gdn_in", 32, 160, 192)),
    "two key heads swapped": edited(move_rows("layers.0.w_gdn_in", 32, 64, 96)),
    "q and gate swapped": edited(move_rows("layers.3.wqkv", 128, 0, 256)),
    "gates of two heads swapped": edited(move_rows("layers.3.wqkv", 32, 256, 320)),
    "rotary half misplaced": edited(move_rows("layers.3.wqkv", 4, 16, 4)),
}


def test_the_right_machine_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "ReferenceVM", edited(lambda weights: None))
    assert amk.evaluate("toy-gdn", "h200", device="cpu").correct


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_machine_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "ReferenceVM", WRONG[name])
    verdict = amk.evaluate("toy-gdn", "h200", device="cpu")
    assert verdict.valid and verdict.correct is False, verdict.to_text()
    assert verdict.latency_us is None


# --- timed ----------------------------------------------------------------------------------------------------------


class Timed(vm.ReferenceVM):
    def time(self, pos: int, n: int) -> np.ndarray:
        assert n == 1  # each step of a plan has a position of its own
        with self._lock:
            self._run(pos)
        return np.ones(n)


def test_timed_steps_that_are_compared_start_from_the_known_state() -> None:
    """Alone and in pairs: their logits are the oracle's, and those between them start from what a step left."""
    from amk.exam import ask_oracle
    from amk.measure_pair import _time_pairs
    from amk.oracle_cache import OracleCache
    from amk.timing import make_plan, time_machine

    source = amk.open_model("toy-gdn")
    config, weights = source.config, source.weights()
    images = [
        amk.lower(config, amk.ScheduleConfig.from_dict(schedule)[0], "h200", MAX_SEQ).pack()
        for schedule in ({}, {"fusion_grouping": []})
    ]
    plan = make_plan(config, 40, MAX_SEQ, 1)
    truth = ask_oracle(config, source.raw, weights.digest, plan.as_questions, OracleCache(), lambda _: None).logits
    with Timed(images[0], weights) as one, Timed(images[1], weights) as two:
        alone = time_machine(one, config, plan, lambda: None)
        states = [one.get_state(layer)[1] for layer in (0, 1, 2)]
        first = [i % 2 for i in range(len(plan.positions))]
        pairs = _time_pairs([one, two], config, plan, first, {}, lambda: None)
        assert all(np.array_equal(states[layer], one.get_state(layer)[1]) for layer in (0, 1, 2))
    assert not alone.faults and len(plan.checked) > 4 and np.isfinite(pairs["us"]).all()
    for logits in (alone.checked_logits, *pairs["checked"]):
        assert logit_error(logits.astype(np.float64), truth) < 1e-5


# --- through the verbs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"fusion_grouping": [], "page_allocation": "none", "sm_assignment": "load_balance"},
        {"tiling": {"gemv": {"N_tile": 8}, "attention": {"kv_block": 16}}, "page_allocation": "graph_color"},
    ],
)
def test_other_schedules_are_right(config: dict[str, Any]) -> None:
    verdict = amk.evaluate("toy-gdn", "b200", config, device="cpu", seed=5)
    assert verdict.correct, verdict.notes


def test_a_loop_over_a_hybrid(tmp_path: Path) -> None:
    result = amk.loop(
        "toy-gdn", "h200", budget=4, device="cpu", results_path=tmp_path / "results.tsv",
        corpus_path=tmp_path / "corpus.jsonl",
    )  # fmt: skip
    assert len(result.trials) == 4 and all(trial.tag in ("kept", "tried", "revert") for trial in result.trials)


def test_a_dense_peer_is_not_asked_about_a_hybrid() -> None:
    from amk.bench_peers import run_peer

    run = run_peer("torch-eager", amk.open_model("toy-gdn").config, [1], "cuda:0", 5.0)
    assert not run.rows and "linear layers" in str(run.skipped)


def test_what_the_core_refuses_is_an_error_of_the_model() -> None:
    from dataclasses import replace

    config = amk.open_model("toy-gdn").config
    for change in ({"linear_head_dim": 10}, {"conv_width": 9}, {"linear_value_heads": 3}, {"linear_key_heads": 0}):
        with pytest.raises(AmkError) as caught:
            amk.lower(replace(config, **change), amk.ScheduleConfig.default(), "h200", 32)
        assert caught.value.code in ("unsupported-model", "input"), change
