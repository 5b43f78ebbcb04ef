"""ReferenceVM: what it accepts, what it refuses by name, and that no legal order changes a bit."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

import amk
from amk import _lib
from amk.embedded import EMBEDDED
from program_sketch import ProgramSketch, attention_sketch

MAX_SEQ = 32
DEFAULT = amk.ScheduleConfig.default()


@pytest.fixture(scope="module", params=EMBEDDED)
def model(request):
    source = amk.open_model(request.param)
    image = amk.lower(source.config, DEFAULT, "h200", MAX_SEQ).pack()
    return source.config, image, source.weights()


@pytest.fixture(scope="module")
def toy():
    source = amk.open_model("toy-gqa")
    return source.config, amk.lower(source.config, DEFAULT, "h200", MAX_SEQ).pack(), source.weights()


def decode(machine, tokens):
    return np.stack([machine.step(token, pos) for pos, token in enumerate(tokens)])


TOKENS = [7, 3, 250, 7, 0, 255, 1]


def test_any_order_any_threads_same_bits(model):
    config, image, weights = model
    with amk.ReferenceVM(image, weights) as machine:
        expected = decode(machine, TOKENS)
        assert machine.next_token == int(np.argmax(expected[-1]))
    assert expected.dtype == np.float32 and expected.shape == (len(TOKENS), config.vocab)
    assert np.isfinite(expected).all() and len(np.unique(expected, axis=0)) == len(TOKENS)
    for seed, threads, guard in ((1, 0, True), (2, 0, False), (0, 1, False), (3, 2, True), (4, 4, False)):
        with amk.ReferenceVM(image, weights, seed=seed, threads=threads, guard=guard) as machine:
            assert decode(machine, TOKENS).tobytes() == expected.tobytes()
            machine.reseed(seed + 100)
            machine.reset_state()
            assert decode(machine, TOKENS).tobytes() == expected.tobytes()


def test_decode_is_the_step_without_its_logits(model):
    config, image, weights = model
    with amk.ReferenceVM(image, weights) as one, amk.ReferenceVM(image, weights) as two:
        for pos, token in enumerate(TOKENS):
            chosen = one.decode(token, pos)
            assert type(chosen) is int and chosen == int(np.argmax(two.step(token, pos)))
        for layer in range(config.layers):
            kept = "get_state" if config.is_linear(layer) else "get_kv"
            pairs = zip(*(getattr(machine, kept)(layer) for machine in (one, two)), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs), "the cache grows the same"
        for bad in ((1.5, 0), (True, 0), (10**9, 0), (1, MAX_SEQ), (1, "0")):
            with pytest.raises(amk.InputError):
                one.decode(*bad)
        one.decode(7, 2)
        two.step(7, 2)
        one.relaunch()
        if config.has_state:  # the state has moved on
            two.relaunch()
        assert one.next_token == two.next_token, "relaunch repeats a decode"
    with pytest.raises(amk.InputError, match="closed"):
        one.decode(1, 0)


def test_an_image_reopened_from_bytes_is_the_same_machine(toy):
    _, image, weights = toy
    with amk.ReferenceVM(image, weights) as one, amk.ReferenceVM(amk.Image.from_bytes(image.bytes), weights) as two:
        assert decode(one, TOKENS).tobytes() == decode(two, TOKENS).tobytes()


def test_cache_can_be_moved_between_machines(model):
    config, image, weights = model
    rows = len(TOKENS) - 1
    with amk.ReferenceVM(image, weights) as one, amk.ReferenceVM(image, weights) as two:
        decode(one, TOKENS[:rows])
        for layer in range(config.layers):
            if config.is_linear(layer):
                two.set_state(layer, *one.get_state(layer))
                continue
            k, v = one.get_kv(layer, rows)
            assert k.shape == v.shape == (config.n_kv_heads, rows, config.head_dim)
            assert k.dtype == (np.float32 if config.dtype == "f32" else np.uint16) and k.any() and v.any()
            two.set_kv(layer, k, v)
            assert all(np.array_equal(a, b) for a, b in zip(two.get_kv(layer, rows), (k, v), strict=True))
            whole, _ = two.get_kv(layer)
            assert whole.shape == (config.n_kv_heads, MAX_SEQ, config.head_dim) and not whole[:, rows:].any()
        assert one.step(TOKENS[-1], rows).tobytes() == two.step(TOKENS[-1], rows).tobytes()


def test_run_of_any_program():
    program = amk.Program.from_dict(attention_sketch().to_dict())
    rng = np.random.default_rng(0)
    q, kv = rng.standard_normal(16).astype(np.float32), rng.standard_normal(16).astype(np.float32)
    past_k, past_v = (rng.standard_normal((1, 5, 8)).astype(np.float32) for _ in range(2))
    with amk.ReferenceVM(program.pack(), {}) as machine:
        out = machine.run({"q": q, "kv": kv}, {"kv.0.k": past_k, "kv.0.v": past_v}, pos=5)
        assert set(out) == {"y"}
        k, v = machine.get_kv(0, 6)
        assert np.array_equal(k[0, 5], kv[:8]) and np.array_equal(v[0, :5], past_v[0])
        scores = 0.5 * q.reshape(2, 8).astype(np.float64) @ k[0].T
        chance = np.exp(scores - scores.max(axis=1, keepdims=True))
        expected = (chance / chance.sum(axis=1, keepdims=True)) @ v[0]
        np.testing.assert_allclose(out["y"], expected.ravel(), rtol=1e-5, atol=1e-6)
        for bad in ({}, {"q": q}, {"q": q, "kv": kv, "z": kv}):
            with pytest.raises(amk.InputError, match="inputs"):
                machine.run(bad)
        with pytest.raises(amk.InputError, match="'q'"):
            machine.run({"q": q, "kv": kv}, {"q": q})


class TestWeights:
    def test_missing_is_named(self, toy):
        _, image, weights = toy
        some = {name: array for name, array in weights.items() if name != "layers.1.wo"}
        with pytest.raises(amk.InputError, match=r"layers\.1\.wo"):
            amk.ReferenceVM(image, some)
        with pytest.raises(amk.InputError, match="and .* more"):
            amk.ReferenceVM(image, {})

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda a: a.astype(np.float32),
            lambda a: a[:-1].copy(),
            lambda a: a.T.copy(),
            lambda a: np.asfortranarray(a),
            lambda a: a.tolist(),
            lambda a: a.astype(">u2"),
            lambda a: None,
        ],
    )
    def test_wrong_array_is_named(self, toy, spoil):
        _, image, weights = toy
        spoiled = dict(weights.items())
        spoiled["layers.0.w_down"] = spoil(spoiled["layers.0.w_down"])
        with pytest.raises(amk.InputError, match=r"layers\.0\.w_down"):
            amk.ReferenceVM(image, spoiled)

    def test_misaligned_and_read_only_arrays_work(self, toy):
        _, image, weights = toy
        shifted = {}
        for name, array in weights.items():
            room = np.empty(array.nbytes + array.itemsize, np.uint8)
            copy = room[array.itemsize :].view(array.dtype).reshape(array.shape)
            copy[...] = array
            copy.flags.writeable = False
            shifted[name] = copy
        with amk.ReferenceVM(image, weights) as one, amk.ReferenceVM(image, shifted) as two:
            assert one.step(7, 0).tobytes() == two.step(7, 0).tobytes()

    def test_the_machine_keeps_its_weights(self, toy):
        _, image, weights = toy
        copies = {name: array.copy() for name, array in weights.items()}
        with amk.ReferenceVM(image, weights) as one, amk.ReferenceVM(image, copies) as two:
            expected = one.step(7, 0).tobytes()
            copies.clear()
            gc.collect()
            assert two.step(7, 0).tobytes() == expected

    def test_nan_in_a_weight_gives_no_number(self, toy):
        _, image, weights = toy
        bad = dict(weights.items())
        bad["final_norm"] = np.full_like(bad["final_norm"], 0x7FC0)  # bf16 NaN
        with amk.ReferenceVM(image, bad) as machine, pytest.raises(amk.NonFinite):
            machine.step(7, 0)


@pytest.mark.parametrize(
    ("token", "pos"),
    [(-1, 0), (512, 0), (1 << 40, 0), (1.0, 0), (True, 0), ("7", 0), (7, -1), (7, MAX_SEQ), (7, 1 << 40), (7, None)],
)
def test_token_or_position_out_of_range(toy, token, pos):
    _, image, weights = toy
    with amk.ReferenceVM(image, weights) as machine:
        with pytest.raises(amk.InputError):
            machine.step(token, pos)
        assert np.isfinite(machine.step(7, 0)).all()  # and it still works


def test_numpy_integers_are_integers(toy):
    _, image, weights = toy
    with amk.ReferenceVM(image, weights) as machine:
        assert machine.step(np.int64(7), np.int32(0)).tobytes() == machine.step(7, 0).tobytes()


@pytest.mark.parametrize(
    "options", [{"seed": -1}, {"seed": 1 << 64}, {"threads": -1}, {"threads": 5000}, {"seed": "1"}]
)
def test_absurd_options(toy, options):
    _, image, weights = toy
    with pytest.raises(amk.InputError, match=next(iter(options))):
        amk.ReferenceVM(image, weights, **options)


def test_buffers_by_name(toy):
    config, image, weights = toy
    with amk.ReferenceVM(image, weights) as machine:
        assert machine.max_seq == MAX_SEQ
        machine.write("token", np.array([9], np.int32))
        assert machine.read("token").tolist() == [9]
        cache = np.full((config.n_kv_heads, MAX_SEQ, config.head_dim), 0x3F80, np.uint16)
        machine.write("kv.1.v", cache)
        assert np.array_equal(machine.read("kv.1.v"), cache)
        for name in ("nothing", "", None, "kv.2.k", 7):
            with pytest.raises(amk.InputError):
                machine.read(name)
        for name in ("logits", "embed", "layers.0.wqkv"):
            with pytest.raises(amk.InputError):
                machine.write(name, machine.read("logits") if name == "logits" else weights[name])
        for array in (np.zeros(2, np.int32), np.zeros(1, np.int64), [7], np.int32(7)):
            with pytest.raises(amk.InputError, match="token"):
                machine.write("token", array)
        for rows in (np.zeros((2, 33, 32), np.uint16), np.zeros((1, 3, 32), np.uint16), np.zeros((2, 3), np.uint16)):
            with pytest.raises(amk.InputError, match=r"kv\.0\.k"):
                machine.set_kv(0, rows, rows)
        machine.set_kv(0, cache[:, :0].copy(), cache[:, :0].copy())
        for layer in (2, -1, "x"):
            with pytest.raises(amk.InputError):
                machine.get_kv(layer)
        for rows in (-1, MAX_SEQ + 1, 2.0):
            with pytest.raises(amk.InputError, match="rows"):
                machine.get_kv(0, rows)


def test_use_after_close(toy):
    _, image, weights = toy
    machine = amk.ReferenceVM(image, weights)
    machine.step(7, 0)
    machine.close()
    machine.close()
    calls = [lambda: machine.step(7, 1), lambda: machine.read("logits"), lambda: machine.reseed(1)]
    calls += [lambda: machine.get_kv(0), lambda: machine.run({"token": np.array([1], np.int32)})]
    for call in calls:
        with pytest.raises(amk.InputError, match="closed"):
            call()


def test_image_may_go_before_the_machine():
    source = amk.open_model("toy")
    image = amk.lower(source.config, DEFAULT, "h200", 8).pack()
    machine = amk.ReferenceVM(image, source.weights())
    expected = machine.step(7, 0)
    del image
    gc.collect()
    assert machine.step(7, 0).tobytes() == expected.tobytes()


def test_threads_take_turns(toy):
    """One machine, many Python threads: every result is one that a single thread gets."""
    _, image, weights = toy
    with amk.ReferenceVM(image, weights) as machine:
        expected = {token: machine.step(token, 0).tobytes() for token in range(4)}
        wrong = []

        def work(token):
            for _ in range(20):
                if machine.step(token, 0).tobytes() != expected[token]:
                    wrong.append(token)

        workers = [threading.Thread(target=work, args=(token,)) for token in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert wrong == []


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_every_storage_dtype_decodes(dtype):
    config = replace(EMBEDDED["toy"], dtype=dtype)
    image = amk.lower(config, DEFAULT, "h200", 8).pack()
    source = amk.open_model("toy").weights()
    storage = {"f32": lambda a: a, "f16": lambda a: a.astype(np.float16)}
    storage["bf16"] = lambda a: (a.view(np.uint32) >> 16).astype(np.uint16)
    weights = {name: a if name == "rope_inv_freq" else storage[dtype](a) for name, a in source.items()}
    reference = amk.lower(EMBEDDED["toy"], DEFAULT, "h200", 8).pack()
    with amk.ReferenceVM(image, weights) as machine, amk.ReferenceVM(reference, source) as exact:
        difference = np.abs(decode(machine, TOKENS) - decode(exact, TOKENS)).max()
        assert difference < {"f32": 1e-9, "f16": 0.05, "bf16": 0.3}[dtype]


def test_two_names_for_one_source_bind_once():
    sketch = ProgramSketch()
    a = sketch.buffer("a", "WEIGHT", [8], source="shared")
    b = sketch.buffer("b", "WEIGHT", [2, 4], source="shared")
    y = sketch.output("y", [8])
    sketch.task(0, "ADD", [a, b], [y], N_tile=8)
    image = amk.Program.from_dict(sketch.to_dict()).pack()
    with amk.ReferenceVM(image, {"shared": np.arange(8, dtype=np.float32)}) as machine:
        assert machine.run({})["y"].tolist() == [2.0 * i for i in range(8)]
    with pytest.raises(amk.InputError, match="shared"):
        amk.ReferenceVM(image, {"shared": np.zeros((4, 2), np.float32)})


def options_of(**fields):
    options = _lib.ffi.new("amk_vm_options_t *")
    options.struct_size = _lib.ffi.sizeof("amk_vm_options_t")
    for name, value in fields.items():
        setattr(options, name, value)
    return options


@pytest.mark.parametrize("struct_size", [0, 31])
def test_options_shorter_than_their_first_version_are_refused(toy, struct_size):
    out = _lib.ffi.new("amk_vm **")
    with pytest.raises(amk.AmkError, match=f"struct_size is {struct_size}, expected at least 32"):
        status = _lib.lib.amk_vm_create_reference(toy[1]._handle, options_of(struct_size=struct_size), out)
        _lib.check(status)


def test_options_of_an_older_caller_have_no_timeline_whatever_lies_behind_them(toy):
    out = _lib.ffi.new("amk_vm **")
    _lib.check(_lib.lib.amk_vm_create_reference(toy[1]._handle, options_of(struct_size=32, timeline=1), out))
    count = _lib.ffi.new("int64_t *")
    try:
        with pytest.raises(amk.errors.Unavailable, match="no device"):
            _lib.check(_lib.lib.amk_vm_timeline(out[0], _lib.ffi.NULL, 0, count))
        with pytest.raises(amk.AmkError, match="room is -1"):
            _lib.check(_lib.lib.amk_vm_timeline(out[0], _lib.ffi.NULL, -1, count))
        with pytest.raises(amk.AmkError, match="n is NULL"):
            _lib.check(_lib.lib.amk_vm_timeline(out[0], _lib.ffi.NULL, 0, _lib.ffi.NULL))
    finally:
        _lib.lib.amk_vm_destroy(out[0])


def test_the_reference_machine_says_that_it_keeps_no_timeline(toy):
    out = _lib.ffi.new("amk_vm **")
    with pytest.raises(amk.errors.Unavailable, match="timeline is 1: the reference machine keeps none"):
        _lib.check(_lib.lib.amk_vm_create_reference(toy[1]._handle, options_of(timeline=1), out))
