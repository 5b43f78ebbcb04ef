"""The float64 decoder against transformers, its error limits against an emulated machine, and its cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amk import oracle
from amk.oracle import Oracle, error_limit, logit_error, round_to, synthetic_kv, to_float64
from amk.oracle_cache import OracleCache

DTYPES = ["f32", "f16", "bf16"]


@dataclass(frozen=True)
class Config:
    hidden: int = 64
    layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 160
    vocab: int = 128
    eps: float = 1e-5
    dtype: str = "f32"
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 10000.0
    rope_scaling: Any = None
    rotary_dim: int = 0
    full_attention_interval: int = 0
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_head_dim: int = 0
    conv_width: int = 0
    attention_gate: bool = False
    norm_plus_one: bool = False


def random_weights(cfg: Config, seed: int) -> dict[str, np.ndarray]:
    """Storage-form tensors whose activations keep unit scale, so that every part of the model moves the logits."""
    rng = np.random.default_rng(seed)
    q, kv = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    out: dict[str, np.ndarray] = {}

    def matrix(name: str, n: int, k: int, bias: bool = False, gain: float = 1.0) -> None:
        out[name + ".weight"] = round_to(rng.standard_normal((n, k)) * gain / math.sqrt(k), cfg.dtype)
        if bias:
            out[name + ".bias"] = round_to(rng.standard_normal(n) * 0.3, cfg.dtype)

    def norm(name: str, n: int) -> None:
        out[name + ".weight"] = round_to(1.0 + 0.2 * rng.standard_normal(n), cfg.dtype)

    matrix("model.embed_tokens", cfg.vocab, cfg.hidden, gain=math.sqrt(cfg.hidden))
    for i in range(cfg.layers):
        at = f"model.layers.{i}."
        norm(at + "input_layernorm", cfg.hidden)
        norm(at + "post_attention_layernorm", cfg.hidden)
        matrix(at + "self_attn.q_proj", q, cfg.hidden, cfg.qkv_bias)
        matrix(at + "self_attn.k_proj", kv, cfg.hidden, cfg.qkv_bias, 2.0)
        matrix(at + "self_attn.v_proj", kv, cfg.hidden, cfg.qkv_bias)
        matrix(at + "self_attn.o_proj", cfg.hidden, q, cfg.o_bias)
        matrix(at + "mlp.gate_proj", cfg.ffn, cfg.hidden, cfg.mlp_bias)
        matrix(at + "mlp.up_proj", cfg.ffn, cfg.hidden, cfg.mlp_bias)
        matrix(at + "mlp.down_proj", cfg.hidden, cfg.ffn, cfg.mlp_bias, 2.0)
        if cfg.qk_norm:
            norm(at + "self_attn.q_norm", cfg.head_dim)
            norm(at + "self_attn.k_norm", cfg.head_dim)
    norm("model.norm", cfg.hidden)
    if not cfg.tied:
        matrix("lm_head", cfg.vocab, cfg.hidden)
    return out


class Machine:
    """Emulates a decoder that accumulates in f32 and rounds to the storage dtype at every stored activation."""

    def __init__(
        self, cfg: Config, weights: dict[str, np.ndarray], *, sequential: bool = False, defect: str = ""
    ) -> None:
        self.cfg, self.sequential, self.defect = cfg, sequential, defect
        self.w = {name: to_float64(value, cfg.dtype).astype(np.float32) for name, value in weights.items()}
        self.freq = oracle.inverse_frequencies(cfg).astype(np.float32)

    def store(self, x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.float32
        return to_float64(round_to(x, self.cfg.dtype), self.cfg.dtype).astype(np.float32)

    def gemv(self, name: str, x: np.ndarray) -> np.ndarray:
        w = self.w[name + ".weight"]
        y = np.add.accumulate(w * x, axis=1, dtype=np.float32)[:, -1] if self.sequential else w @ x
        return self.store(y + self.w[name + ".bias"] if name + ".bias" in self.w else y)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        scale = np.float32(1) / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.cfg.eps))
        return self.store(x * scale * self.w[name + ".weight"])

    def rope(self, x: np.ndarray, pos: int) -> np.ndarray:
        angle = np.float32(pos + (self.defect == "rope off by one")) * self.freq
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = np.split(x, 2, axis=-1)
        if self.defect == "rope pairs neighbours":
            a, b = x[:, 0::2], x[:, 1::2]
        return self.store(np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1))

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        cfg, out = self.cfg, np.empty_like(q)
        scale = np.float32((2.0 if self.defect == "score scale x2" else 1.0) / math.sqrt(cfg.head_dim))
        for j in range(cfg.n_heads):
            g = j % cfg.n_kv_heads if self.defect == "kv head mapping" else j * cfg.n_kv_heads // cfg.n_heads
            scores = k[g] @ q[j] * scale
            p = np.exp(scores - scores.max())
            if self.sequential:
                out[j] = np.add.accumulate(p[:, None] * v[g], axis=0)[-1] / np.add.accumulate(p)[-1]
            else:
                out[j] = (p @ v[g]) / p.sum()
        return self.store(out)

    def step(self, token: int, pos: int, history: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        cfg = self.cfg
        x = self.w["model.embed_tokens.weight"][token]
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []
        for i in range(cfg.layers):
            at = f"model.layers.{i}."
            h = self.norm(at + "input_layernorm", x)
            q, k, v = (self.gemv(f"{at}self_attn.{n}_proj", h).reshape(-1, cfg.head_dim) for n in "qkv")
            if cfg.qk_norm:
                q, k = self.norm(at + "self_attn.q_norm", q), self.norm(at + "self_attn.k_norm", k)
            q, k = self.rope(q, pos), self.rope(k, pos)
            self.rows.append((k, v))
            past = pos - 1 if self.defect == "mask drops a row" else pos
            past_k, past_v = (rows[:, :past] for rows in history(i))
            all_k, all_v = np.concatenate([past_k, k[:, None]], 1), np.concatenate([past_v, v[:, None]], 1)
            mixed = self.gemv(at + "self_attn.o_proj", self.attention(q, all_k, all_v).reshape(-1))
            x = mixed if self.defect == "dropped residual" and i == 0 else self.store(x + mixed)
            h = self.norm(at + "post_attention_layernorm", x)
            gate, up = self.gemv(at + "mlp.gate_proj", h), self.gemv(at + "mlp.up_proj", h)
            if self.defect == "gate and up swapped":
                gate, up = up, gate
            x = self.store(x + self.gemv(at + "mlp.down_proj", self.store(gate / (1 + np.exp(-gate)) * up)))
        return self.gemv("model.embed_tokens" if cfg.tied else "lm_head", self.norm("model.norm", x))


PROBE_TOKENS, PROBE_POSITIONS = [3, 5, 7, 11, 13], [0, 1, 17, 63, 127]


def emulated_error(cfg: Config, seed: int, *, sequential: bool = False, defect: str = "", skip: int = 0) -> float:
    """`logit_error` of the emulator over its limit: above 1 is a rejection."""
    weights = random_weights(cfg, seed)
    kv = [synthetic_kv(cfg, PROBE_POSITIONS[-1], seed, layer) for layer in range(cfg.layers)]
    asked = list(zip(PROBE_TOKENS, PROBE_POSITIONS, strict=True))[skip:]
    ref = Oracle(cfg, weights.__getitem__).probe([t for t, _ in asked], [p for _, p in asked], kv.__getitem__)
    machine = Machine(cfg, weights, sequential=sequential, defect=defect)
    got = np.array([machine.step(t, p, kv.__getitem__) for t, p in asked])
    return logit_error(got, ref) / error_limit(cfg.dtype, cfg, position=PROBE_POSITIONS[-1])


# --- against transformers ---------------------------------------------------------------------------------------------

LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
FAMILIES: dict[str, tuple[str, dict[str, Any], Config]] = {
    "llama": ("Llama", {}, Config(eps=1e-3)),
    "llama-mha-bias": ("Llama", {"attention_bias": True, "mlp_bias": True},
                       Config(n_kv_heads=4, qkv_bias=True, o_bias=True, mlp_bias=True)),
    "llama3": ("Llama", {}, Config(head_dim=32, tied=True, rope_theta=500000.0, rope_scaling=LLAMA3)),
    "llama-linear": ("Llama", {}, Config(rope_scaling={"rope_type": "linear", "factor": 4.0})),
    "mistral": ("Mistral", {"sliding_window": None}, Config(n_kv_heads=1, head_dim=24, rope_theta=1e6)),
    "qwen2": ("Qwen2", {}, Config(qkv_bias=True, eps=1e-6, tied=True)),
    "qwen3": ("Qwen3", {}, Config(head_dim=32, qk_norm=True, eps=1e-6, rope_theta=1e6)),
}  # fmt: skip


def build_peer(name: str, *, exact: bool, dtype: str = "f32") -> tuple[Any, Config, dict[str, np.ndarray]]:
    """A transformers model in float64 over the same weights.

    Even then transformers takes RMSNorm and the rotary angles through float32. `exact` replaces the forward of those
    two kinds of module by the same formula in float64; without it the comparison is to float32 precision.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, extra, cfg = FAMILIES[name]
    cfg = replace(cfg, dtype=dtype)
    rope = {"rope_type": "default"} | (cfg.rope_scaling or {}) | {"rope_theta": cfg.rope_theta}
    peer_config = getattr(transformers, family + "Config")(
        hidden_size=cfg.hidden, num_hidden_layers=cfg.layers, num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_kv_heads, head_dim=cfg.head_dim, intermediate_size=cfg.ffn, vocab_size=cfg.vocab,
        rms_norm_eps=cfg.eps, tie_word_embeddings=cfg.tied, rope_parameters=rope, max_position_embeddings=1024, **extra,
    )  # fmt: skip
    weights = random_weights(cfg, seed=len(name))
    peer = getattr(transformers, family + "ForCausalLM")(peer_config).double().eval()
    state = {key: torch.from_numpy(to_float64(value, cfg.dtype)) for key, value in weights.items()}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if cfg.tied else [])

    freq = torch.from_numpy(oracle.inverse_frequencies(cfg))
    np.testing.assert_allclose(peer.model.rotary_emb.inv_freq.numpy(), freq.numpy(), rtol=1e-6)

    def rotary(x: Any, position_ids: Any) -> Any:
        angle = position_ids[..., None].double() * freq
        return torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()

    def norm(module: Any) -> Callable[[Any], Any]:
        eps = module.variance_epsilon
        return lambda x: module.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    if exact:
        peer.model.rotary_emb.forward = rotary
        for module in peer.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = norm(module)
    return peer, cfg, weights


@pytest.mark.parametrize(("exact", "limit"), [(True, 1e-9), (False, 2e-5)], ids=["float64", "unpatched"])
@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_matches_transformers(name: str, exact: bool, limit: float) -> None:
    peer, cfg, weights = build_peer(name, exact=exact)
    import torch

    tokens = np.random.default_rng(5).integers(0, cfg.vocab, 150)
    rows: oracle.Rows = []
    got = Oracle(cfg, weights.__getitem__).prefill(tokens.tolist(), rows=rows)
    with torch.no_grad():
        out = peer(torch.from_numpy(tokens)[None], use_cache=True)
    assert logit_error(got, out.logits[0].numpy()) < limit
    for (k, v), theirs in zip(rows, out.past_key_values.layers, strict=True):
        np.testing.assert_allclose(k.transpose(1, 0, 2), theirs.keys[0].numpy(), atol=10 * limit)
        np.testing.assert_allclose(v.transpose(1, 0, 2), theirs.values[0].numpy(), atol=10 * limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_probe_matches_transformers(name: str, dtype: str) -> None:
    peer, cfg, weights = build_peer(name, exact=True, dtype=dtype)
    import torch
    from transformers import DynamicCache

    tokens, positions = [1, 127, 64, 9], [0, 1, 200, 37]
    kv = [synthetic_kv(cfg, 256, 11, layer) for layer in range(cfg.layers)]
    got = Oracle(cfg, weights.__getitem__).probe(tokens, positions, kv.__getitem__)
    for i, (token, pos) in enumerate(zip(tokens, positions, strict=True)):
        cache = DynamicCache()
        for layer, pair in enumerate(kv):
            cache.update(*(torch.from_numpy(rows[None, :, :pos].astype(np.float64)) for rows in pair), layer)
        with torch.no_grad():
            out = peer(torch.tensor([[token]]), past_key_values=cache, position_ids=torch.tensor([[pos]]))
        assert logit_error(got[i], out.logits[0, 0].numpy()) < 1e-9


# --- the decoder itself -----------------------------------------------------------------------------------------------


def test_probe_continues_prefill() -> None:
    cfg = Config(qk_norm=True)
    decoder = Oracle(cfg, random_weights(cfg, 1).__getitem__)
    tokens, rows, last = [3, 1, 4, 1, 5, 9, 2, 6], [], []
    full = decoder.prefill(tokens, rows=rows)
    kv = [(k.transpose(1, 0, 2), v.transpose(1, 0, 2)) for k, v in rows]
    again = decoder.probe(tokens, range(len(tokens)), kv.__getitem__, rows=last)
    assert logit_error(again, full) < 1e-12
    np.testing.assert_allclose(last[1][0], rows[1][0], atol=1e-12)


def test_weights_are_read_once_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config(dtype="bf16", qkv_bias=True)
    weights, reads, pieces = random_weights(cfg, 2), [], []
    convert = oracle.to_float64

    def raw(name: str) -> np.ndarray:
        reads.append(name)
        return weights[name]

    def spy(array: np.ndarray, dtype: str) -> np.ndarray:
        pieces.append(8 * array.size)
        return convert(array, dtype)

    whole = Oracle(cfg, raw).prefill([1, 2, 3])
    assert sorted(reads) == sorted(weights)
    monkeypatch.setattr(oracle, "CHUNK_BYTES", 8 * 64 * 7)
    monkeypatch.setattr(oracle, "to_float64", spy)
    assert logit_error(Oracle(cfg, raw).prefill([1, 2, 3]), whole) < 1e-12
    assert max(pieces) <= 8 * 64 * 7


def test_bad_questions_are_refused() -> None:
    cfg = Config()
    weights = random_weights(cfg, 1)
    decoder = Oracle(cfg, weights.__getitem__)
    kv = [synthetic_kv(cfg, 4, 0, layer) for layer in range(cfg.layers)]
    for tokens, positions in (([128], [0]), ([-1], [0]), ([1], [-1]), ([1], [5]), ([1, 2], [0]), ([], [])):
        with pytest.raises(ValueError):
            decoder.probe(tokens, positions, kv.__getitem__)
    with pytest.raises(ValueError, match="no tokens"):
        decoder.prefill([])
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1]
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        decoder.prefill([1])
    with pytest.raises(ValueError, match="yarn"):
        Oracle(replace(cfg, rope_scaling={"rope_type": "yarn"}), weights.__getitem__)
    with pytest.raises(ValueError, match="low_freq_factor"):
        Oracle(replace(cfg, rope_scaling={"rope_type": "llama3"}), weights.__getitem__)


def test_rope_scaling_as_an_object() -> None:
    @dataclass(frozen=True)
    class Scaling:
        rope_type: str = "llama3"
        factor: float = 8.0
        low_freq_factor: float = 1.0
        high_freq_factor: float = 4.0
        original_max_position_embeddings: int = 64

    pair = [oracle.inverse_frequencies(Config(rope_scaling=scaling)) for scaling in (LLAMA3, Scaling())]
    assert pair[0].tolist() == pair[1].tolist()


# --- storage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_rounding_is_to_nearest_even(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    value = to_float64(bits, dtype)
    finite = np.isfinite(value)
    assert (round_to(value, dtype).view(np.uint16)[finite] == bits[finite]).all()
    assert np.isnan(to_float64(round_to(np.array([np.nan]), dtype), dtype)).all()
    low = bits[:-1][finite[:-1] & finite[1:] & (value[1:] > value[:-1])]  # neighbours among the positive values
    a, b = to_float64(low, dtype), to_float64(low + np.uint16(1), dtype)
    tie = (a + b) / 2
    for sign in (1.0, -1.0):
        top = np.uint16(0 if sign > 0 else 0x8000)
        assert (round_to(sign * tie, dtype).view(np.uint16) == low + (low & 1) + top).all()
        # A hair off the tie: visible in float64, lost in float32, so that rounding twice would go wrong.
        assert (round_to(sign * tie * (1 - 2.0**-50), dtype).view(np.uint16) == low + top).all()
        assert (round_to(sign * tie * (1 + 2.0**-50), dtype).view(np.uint16) == low + np.uint16(1) + top).all()
    assert np.isinf(to_float64(round_to(np.array([1e300, -np.inf]), dtype), dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_synthetic_rows(dtype: str) -> None:
    cfg = Config(dtype=dtype, head_dim=64)
    k, v = synthetic_kv(cfg, 300, 9, 1)
    assert k.shape == v.shape == (2, 300, 64) and k.dtype == v.dtype == np.float32
    assert (to_float64(round_to(k, dtype), dtype) == k).all() and (to_float64(round_to(v, dtype), dtype) == v).all()
    query = np.random.default_rng(0).standard_normal((500, 64))
    assert abs(np.std(query @ k[0].T / 8) - 2) < 0.1 and abs(v.std() - 1) < 0.02
    short = synthetic_kv(cfg, 7, 9, 1)
    assert (short[0] == k[:, :7]).all() and (short[1] == v[:, :7]).all()
    assert all((synthetic_kv(cfg, 7, *other)[0] != short[0]).any() for other in ((9, 0), (8, 1), (-9, 1)))
    assert synthetic_kv(cfg, 0, 9, 1)[0].shape == (2, 0, 64)


# --- error limits -----------------------------------------------------------------------------------------------------

MODELS = {
    "one layer": Config(layers=1),
    "two layers": Config(),
    "wide": Config(hidden=256, ffn=512, vocab=512, n_heads=8, head_dim=32),
    "qk norm": Config(qk_norm=True, layers=4),
    "biases": Config(qkv_bias=True, o_bias=True, mlp_bias=True, layers=4),
    "deep": Config(layers=16, n_kv_heads=1, tied=True),
}
DEFECTS = [
    "score scale x2", "rope off by one", "rope pairs neighbours", "gate and up swapped", "dropped residual",
    "kv head mapping", "mask drops a row",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_a_rounding_machine_stays_within_its_limit(model: str, dtype: str) -> None:
    cfg = replace(MODELS[model], dtype=dtype)
    ratios = [emulated_error(cfg, seed, sequential=bool(seed % 2)) for seed in range(4)]
    assert max(ratios) < 0.8, ratios
    assert min(ratios) > 0.05, ratios


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_defect_exceeds_the_limit(dtype: str, defect: str) -> None:
    for model in ("one layer", "qk norm", "deep"):
        cfg = replace(MODELS[model], dtype=dtype, n_kv_heads=2)
        assert emulated_error(cfg, 3, defect=defect, skip=1) > 2


def test_logit_error_never_passes_what_is_not_a_number() -> None:
    ref = np.ones((2, 3))
    assert logit_error(ref, ref) == 0
    assert logit_error(np.where(np.eye(2, 3) > 0, np.nan, ref), ref) == math.inf
    assert logit_error(ref[:, :2], ref) == math.inf
    assert logit_error(ref, 0 * ref) == logit_error(ref[:0], ref[:0]) == math.inf


# --- cache ------------------------------------------------------------------------------------------------------------


def fetch(cache: OracleCache, key: str, value: float, shape: Sequence[int] = (2, 3)) -> float:
    return float(cache.fetch(key, tuple(shape), lambda: np.full(tuple(shape), value))[0, 0])


def test_cache_returns_what_it_stored(tmp_path: Path) -> None:
    cache = OracleCache(tmp_path / "a" / "b")
    assert fetch(cache, "k", 1.0) == 1.0
    assert fetch(cache, "k", 2.0) == 1.0
    assert np.load(tmp_path / "a" / "b" / "oracle-k.npy").tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "shape", "garbage", "long", "pickle"])
def test_a_damaged_entry_is_rewritten(tmp_path: Path, damage: str) -> None:
    cache, path = OracleCache(tmp_path), tmp_path / "oracle-k.npy"
    fetch(cache, "k", 1.0)
    data = path.read_bytes()
    flipped = data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]
    new = {"truncate": data[:-1], "flip": flipped, "empty": b"", "garbage": b"x" * 99, "long": data + b"x" * 9999}
    if damage == "shape":
        fetch(cache, "other", 5.0, (3, 2))
        (tmp_path / "oracle-other.npy").replace(path)
    elif damage == "pickle":
        np.save(path, np.array([[{}] * 3] * 2, dtype=object), allow_pickle=True)
    else:
        path.write_bytes(new[damage])
    assert fetch(cache, "k", 2.0) == 2.0
    assert fetch(cache, "k", 3.0) == 2.0


def test_cache_is_bounded_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.npy").write_bytes(b"mine")
    cache = OracleCache(tmp_path, max_entries=5)
    for i in range(9):
        assert fetch(cache, str(i), i) == i
    assert len(list(tmp_path.glob("oracle-*"))) == 5
    assert (tmp_path / "oracle-8.npy").exists() and (tmp_path / "notes.npy").read_bytes() == b"mine"
    assert OracleCache(tmp_path).max_entries == 64


def test_an_unwritable_directory_only_disables_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = OracleCache(tmp_path / "file" / "cache")
    assert fetch(cache, "k", 1.0) == 1.0
    assert fetch(cache, "k", 2.0) == 2.0
    with pytest.raises(ValueError, match="shape"):
        cache.fetch("k", (1, 1), lambda: np.zeros((2, 2)))


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert OracleCache().directory == tmp_path / "amk"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert OracleCache().directory == tmp_path / ".cache" / "amk"


def test_the_key_covers_the_model_and_the_question() -> None:
    base = (Config(), "digest", [1, 2], [3, 4], 5, "probe")
    changes: list[tuple[int, Any]] = [
        (0, Config(eps=1e-6)), (0, Config(rope_theta=1e6)), (0, Config(rope_scaling=LLAMA3)), (0, Config(dtype="f16")),
        (1, "other"), (2, [1, 3]), (3, [3, 5]), (4, 6), (5, "prefill"),
    ]  # fmt: skip
    keys = [OracleCache.key(*base)]
    keys += [OracleCache.key(*base[:at], value, *base[at + 1 :]) for at, value in changes]
    assert len(set(keys)) == len(keys)
    assert OracleCache.key(Config(), "digest", np.array([1, 2]), np.array([3, 4]), 5, "probe") == keys[0]


def test_noise_is_that_of_one_rounding_per_stored_value() -> None:
    """Copies differ with noise and not without; its size is that of an emulated machine's error, within a factor."""
    cfg = Config(dtype="bf16")
    weights, tokens = random_weights(cfg, 5), [3, 1, 4, 1, 5]
    exact = Oracle(cfg, weights.__getitem__).prefill(tokens, copies=2).reshape(2, 5, cfg.vocab)
    for other in (exact[1], Oracle(cfg, weights.__getitem__).prefill(tokens)):
        assert logit_error(other, exact[0]) < 1e-12
    noisy = Oracle(cfg, weights.__getitem__, noise=np.random.default_rng(1)).prefill(tokens, copies=16)
    errors = [logit_error(copy, exact[0]) for copy in noisy.reshape(16, 5, cfg.vocab)]
    limit = error_limit("bf16", cfg, position=4)
    assert len(set(errors)) == 16 and 0.1 * limit < min(errors) and max(errors) < limit
