"""The same decode step in PyTorch: what the kernel's times are compared with. Needs only torch; imports nothing of amk.

    python torch_decode.py '{"shape": {...}, "versions": ["eager", "compile"], "contexts": [1, 1024], "device": 0}'

In: a job: the model's dimensions (fields of amk's ModelConfig), versions, contexts, a device. Out: JSON lines on
stdout: {"about": ...}, a row per version and context as soon as it is known, {"stage": what begins now} in between, or
{"skipped": reason}; everything else, and the stages again, go to stderr. Whoever ends it knows from the last stage what
took so long.
A step at batch 1 with random weights: embedding row, all layers with the cache append, grouped-query attention over a
preallocated cache, LM head, argmax; captured once per context in a CUDA graph, replayed per token with a fresh token.
  eager    library calls, q/k/v and gate/up as one matrix each
  compile  torch.compile (max-autotune) of everything between two attentions, attention as a library call: three
           graphs, the same for every layer and context, compiled once before the first row
Attention is whichever of four stock forms was fastest at that context, measured first. Time: CUDA events around a
replay. Scaled rotary frequencies are left out: they are a table, and cost the same.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

VERSIONS = ("eager", "compile")
STEPS, WARM_UP = 60, 10
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class Decoder:
    """Weights, caches for `rows` tokens, and one step over them."""

    def __init__(self, torch: Any, shape: dict[str, Any], rows: int, device: str = "cuda") -> None:
        self.torch, self.f = torch, torch.nn.functional
        self.q, self.kv, self.dim = shape["n_heads"], shape["n_kv_heads"], shape["head_dim"]
        self.vocab, self.eps, self.has_head_norm = shape["vocab"], shape["eps"], shape["qk_norm"]
        self.device, self.dtype = device, getattr(torch, DTYPES[shape["dtype"]])
        hidden, ffn, width = shape["hidden"], shape["ffn"], self.q * self.dim
        torch.manual_seed(0)
        self.embed = self._random(self.vocab, hidden)
        self.head = self.embed if shape["tied"] else self._random(self.vocab, hidden)
        self.final_norm = self._ones(hidden)
        self.layers = [
            {
                "attn_norm": self._ones(hidden),
                "qkv": self._random(width + 2 * self.kv * self.dim, hidden),
                "qkv_bias": self._random(width + 2 * self.kv * self.dim) if shape["qkv_bias"] else None,
                "head_norm": self._ones(self.q + self.kv, self.dim),
                "k": self._random(self.kv, rows, self.dim),
                "v": self._random(self.kv, rows, self.dim),
                "o": self._random(hidden, width),
                "o_bias": self._random(hidden) if shape["o_bias"] else None,
                "mlp_norm": self._ones(hidden),
                "gate_up": self._random(2 * ffn, hidden),
                "gate_up_bias": self._random(2 * ffn) if shape["mlp_bias"] else None,
                "down": self._random(hidden, ffn),
                "down_bias": self._random(hidden) if shape["mlp_bias"] else None,
            }
            for _ in range(shape["layers"])
        ]
        angle = torch.outer(
            torch.arange(rows, device=device).float(),
            float(shape["rope_theta"]) ** (-torch.arange(0, self.dim, 2, device=device).float() / self.dim),
        )
        # x turned = x * cos + (x rolled by half a head) * signed_sin, all heads of q and k at once.
        self.cos = torch.cat([angle.cos(), angle.cos()], -1).to(self.dtype)
        self.signed_sin = torch.cat([-angle.sin(), angle.sin()], -1).to(self.dtype)
        self.token = torch.zeros(1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.start, self.middle, self.end = self._start, self._middle, self._end

    def _random(self, *size: int) -> Any:
        return self.torch.empty(size, device=self.device, dtype=self.dtype).uniform_(-0.05, 0.05)

    def _ones(self, *size: int) -> Any:
        return self.torch.ones(size, device=self.device, dtype=self.dtype)

    def compile(self) -> None:
        for name in ("start", "middle", "end"):
            compiled = self.torch.compile(getattr(self, name), mode="max-autotune-no-cudagraphs", dynamic=False)
            setattr(self, name, compiled)

    def norm(self, x: Any, weight: Any) -> Any:
        return self.f.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def attention_input(self, x: Any, layer: dict[str, Any], turn: Any) -> Any:
        """Appends k and v, returns the rotated query [heads, dim]."""
        heads = self.f.linear(self.norm(x, layer["attn_norm"]), layer["qkv"], layer["qkv_bias"]).view(-1, self.dim)
        qk, v = heads.split([self.q + self.kv, self.kv])
        if self.has_head_norm:
            qk = self.norm(qk, None) * layer["head_norm"]
        cos, signed_sin = turn
        qk = self.torch.addcmul(qk * cos, self.torch.roll(qk, self.dim // 2, -1), signed_sin)
        q, k = qk.split([self.q, self.kv])
        layer["k"].index_copy_(1, self.position, k[:, None])
        layer["v"].index_copy_(1, self.position, v[:, None])
        return q

    def rest_of_layer(self, x: Any, attended: Any, layer: dict[str, Any]) -> Any:
        x = x + self.f.linear(attended, layer["o"], layer["o_bias"])
        both = self.f.linear(self.norm(x, layer["mlp_norm"]), layer["gate_up"], layer["gate_up_bias"])
        gate, up = both.chunk(2, -1)
        return x + self.f.linear(self.f.silu(gate) * up, layer["down"], layer["down_bias"])

    def _start(self, layer: dict[str, Any]) -> tuple[Any, Any, Any]:
        x = self.f.embedding(self.token, self.embed)
        turn = self.cos[self.position], self.signed_sin[self.position]
        return x, self.attention_input(x, layer, turn), turn

    def _middle(self, x: Any, attended: Any, layer: dict[str, Any], following: dict[str, Any], turn: Any) -> Any:
        x = self.rest_of_layer(x, attended, layer)
        return x, self.attention_input(x, following, turn)

    def _end(self, x: Any, attended: Any, layer: dict[str, Any]) -> Any:
        logits = self.f.linear(self.norm(self.rest_of_layer(x, attended, layer), self.final_norm), self.head)
        return logits, logits.argmax(-1)

    def attention_forms(self) -> dict[str, Callable[..., Any]]:
        """q [heads, dim] over k, v [kv heads, context, dim]: stock ways to say it."""
        torch = self.torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def sdpa(q: Any, k: Any, v: Any) -> Any:
            return self.f.scaled_dot_product_attention(q[None, :, None], k[None], v[None], enable_gqa=True)

        def grouped(backend: Any) -> Callable[..., Any]:
            def attend(q: Any, k: Any, v: Any) -> Any:  # the query heads of a kv head are its query rows: no mask
                with sdpa_kernel(backend):
                    return self.f.scaled_dot_product_attention(q.view(1, self.kv, -1, self.dim), k[None], v[None])

            return attend

        def matmul(q: Any, k: Any, v: Any) -> Any:
            scores = q.view(self.kv, -1, self.dim) @ k.transpose(1, 2) / math.sqrt(self.dim)
            return torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) @ v

        return {
            "sdpa": sdpa,
            "sdpa, grouped, flash": grouped(SDPBackend.FLASH_ATTENTION),
            "sdpa, grouped, cudnn": grouped(SDPBackend.CUDNN_ATTENTION),
            "matmul": matmul,
        }

    def fastest_attention(self, context: int) -> tuple[str, Callable[..., Any]]:
        times = {}
        q = self.torch.randn(self.q, self.dim, device=self.device, dtype=self.dtype)
        forms = self.attention_forms()
        for name, attend in forms.items():
            try:  # over all layers' caches, as in a step: one layer alone would stay in the cache of the device
                graph, _ = capture(
                    self.torch,
                    lambda attend=attend: [attend(q, x["k"][:, :context], x["v"][:, :context]) for x in self.layers],
                )
                us = time_replays(self.torch, graph)
                times[name] = us[len(us) // 2]
            except RuntimeError as error:  # not every backend takes every length
                print(f"{name} at {context}: {str(error).splitlines()[0]}", file=sys.stderr)
        name = min(times, key=times.__getitem__)
        return name, forms[name]

    def step(self, attend: Callable[..., Any], context: int) -> Any:
        """(logits, the best token) of the token at position context - 1."""
        x, q, turn = self.start(self.layers[0])
        for i, layer in enumerate(self.layers):
            attended = attend(q, layer["k"][:, :context], layer["v"][:, :context]).reshape(1, -1)
            if i + 1 < len(self.layers):
                x, q = self.middle(x, attended, layer, self.layers[i + 1], turn)
        return self.end(x, attended, layer)


def time_replays(torch: Any, graph: Any, before: Callable[[int], Any] | None = None) -> list[float]:
    """Microseconds of each replay, sorted; before(i) runs outside of what is timed."""
    out = []
    for i in range(WARM_UP + STEPS):
        if before:
            before(i)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        out.append(begin.elapsed_time(end) * 1000)
    return sorted(out[WARM_UP:])


def capture(torch: Any, function: Callable[[], Any]) -> tuple[Any, Any]:
    """The function as a CUDA graph, after three calls on a side stream (where libraries choose and compile)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function()
    return graph, out


def measure(torch: Any, job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """One row for each version and context."""
    torch.cuda.set_device(job["device"])
    with torch.inference_mode():
        tell({"stage": "making weights"})
        decoder = Decoder(torch, job["shape"], max(job["contexts"]))
        tokens = torch.randint(decoder.vocab, (WARM_UP + STEPS,), device="cuda")
        chosen = {}
        for version in job["versions"]:
            compile_s = 0.0
            if version == "compile":
                tell({"stage": "compiling (max-autotune)"})
                start = time.monotonic()
                decoder.compile()
                decoder.step(decoder.attention_forms()["matmul"], min(job["contexts"]))
                torch.cuda.synchronize()
                compile_s = time.monotonic() - start
            for context in job["contexts"]:
                if context not in chosen:
                    tell({"stage": f"choosing the attention of context {context}"})
                    chosen[context] = decoder.fastest_attention(context)
                name, attend = chosen[context]
                tell({"stage": f"{version}: capturing and timing context {context}"})
                decoder.position.fill_(context - 1)
                start = time.monotonic()
                graph, found = capture(torch, lambda attend=attend, context=context: decoder.step(attend, context))
                prepared_s = time.monotonic() - start
                us = time_replays(torch, graph, lambda i: decoder.token.copy_(tokens[i : i + 1]))
                row = {"version": version, "context": context, "latency_us": us[STEPS // 2]}
                row |= {"latency_p10_us": us[STEPS // 10], "latency_p90_us": us[STEPS * 9 // 10], "steps": STEPS}
                row |= {"attention": name, "prepared_s": round(prepared_s, 1), "compile_s": round(compile_s, 1)}
                tell(row | {"finite": bool(torch.isfinite(found[0]).all())})


def die_with_parent() -> None:
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):  # not Linux: the parent's deadline remains
        pass


def main() -> None:
    die_with_parent()
    job = json.loads(sys.argv[1])
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints is no answer

    def tell(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()
        if "stage" in message:
            print(f"torch: {message['stage']}", file=sys.stderr, flush=True)

    tell({"stage": "importing torch"})
    try:
        import torch
    except ImportError as error:
        return tell({"skipped": f"torch is not installed ({error})"})
    if not torch.cuda.is_available():
        return tell({"skipped": f"torch {torch.__version__} sees no CUDA device"})
    tell({"about": {"torch": torch.__version__, "device": torch.cuda.get_device_name(job["device"])}})
    return measure(torch, job, tell)


if __name__ == "__main__":
    main()
