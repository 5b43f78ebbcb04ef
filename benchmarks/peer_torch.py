#!/usr/bin/env python3
"""The same decode step in PyTorch, on the same machine: what the kernel's times are compared with. Needs only torch.

    python benchmarks/peer_torch.py [--shapes 0.6B 1B 8B] [--limit-s 120] [--output FILE.json]

A Llama-shaped step at batch 1 with random bf16 weights: embedding row, all layers with the cache append, grouped-query
attention over a preallocated cache, LM head, argmax. Shapes, contexts and steps are those of tests/gpu/gpu_bench.cpp.
Two versions, each captured once per context in one CUDA graph and replayed per token with a fresh token id:
  eager    library calls, q/k/v and gate/up as one matrix each
  compile  torch.compile (max-autotune) of everything between two attentions, attention as a library call
Attention is whichever of four stock forms was fastest at that context, measured first. Time: CUDA events around a
replay. Each shape and version runs in a process of its own, which is ended at --limit-s; what it had measured counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# layers, hidden, query heads, kv heads, head width, feed-forward, vocabulary, norm of q and k, head shares embedding
SHAPES = {
    "0.6B": (28, 1024, 16, 8, 128, 3072, 151936, True, True),
    "1B": (16, 2048, 32, 8, 64, 8192, 128256, False, True),
    "8B": (32, 4096, 32, 8, 128, 14336, 128256, False, False),
}
CONTEXTS = (1, 1024, 8192)
STEPS, WARM_UP = 60, 10
EPS = 1e-5


def median_of(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def time_replays(torch, graph, before=None) -> list[float]:
    """Microseconds of each replay; before(i) runs outside of what is timed."""
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


def capture(torch, function):
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


class Decoder:
    def __init__(self, torch, shape: str, rows: int) -> None:
        self.torch, self.f = torch, torch.nn.functional
        (layers, hidden, self.q, self.kv, self.dim, ffn, self.vocab, self.has_head_norm, tied) = SHAPES[shape]
        torch.manual_seed(0)

        def random(*size, spread=0.05):
            return torch.empty(size, device="cuda", dtype=torch.bfloat16).uniform_(-spread, spread)

        def ones(n):
            return torch.ones(n, device="cuda", dtype=torch.bfloat16)

        self.embed = random(self.vocab, hidden)
        self.head = self.embed if tied else random(self.vocab, hidden)
        self.final_norm = ones(hidden)
        width = self.q * self.dim
        self.layers = [
            {
                "attn_norm": ones(hidden),
                "qkv": random(width + 2 * self.kv * self.dim, hidden),
                "head_norm": torch.ones(self.q + self.kv, self.dim, device="cuda", dtype=torch.bfloat16),
                "k": random(self.kv, rows, self.dim),
                "v": random(self.kv, rows, self.dim),
                "o": random(hidden, width),
                "mlp_norm": ones(hidden),
                "gate_up": random(2 * ffn, hidden),
                "down": random(hidden, ffn),
            }
            for _ in range(layers)
        ]
        angle = torch.outer(
            torch.arange(rows, device="cuda").float(),
            10000.0 ** (-torch.arange(0, self.dim, 2, device="cuda").float() / self.dim),
        )
        # x turned = x * cos + (x rolled by half a head) * signed_sin, all heads of q and k at once.
        self.cos = torch.cat([angle.cos(), angle.cos()], -1).bfloat16()
        self.signed_sin = torch.cat([-angle.sin(), angle.sin()], -1).bfloat16()
        self.token = torch.zeros(1, dtype=torch.long, device="cuda")
        self.position = torch.zeros(1, dtype=torch.long, device="cuda")
        self.start, self.middle, self.end = self._start, self._middle, self._end

    def compile(self) -> None:
        for name in ("start", "middle", "end"):
            compiled = self.torch.compile(getattr(self, name), mode="max-autotune-no-cudagraphs", dynamic=False)
            setattr(self, name, compiled)

    def norm(self, x, weight):
        return self.f.rms_norm(x, (x.shape[-1],), weight, EPS)

    def attention_input(self, x, layer, turn):
        """Appends k and v, returns the rotated query [heads, dim]."""
        heads = self.f.linear(self.norm(x, layer["attn_norm"]), layer["qkv"]).view(-1, self.dim)
        qk, v = heads.split([self.q + self.kv, self.kv])
        if self.has_head_norm:
            qk = self.norm(qk, None) * layer["head_norm"]
        cos, signed_sin = turn
        qk = self.torch.addcmul(qk * cos, self.torch.roll(qk, self.dim // 2, -1), signed_sin)
        q, k = qk.split([self.q, self.kv])
        layer["k"].index_copy_(1, self.position, k[:, None])
        layer["v"].index_copy_(1, self.position, v[:, None])
        return q

    def rest_of_layer(self, x, attended, layer):
        x = x + self.f.linear(attended, layer["o"])
        gate, up = self.f.linear(self.norm(x, layer["mlp_norm"]), layer["gate_up"]).chunk(2, -1)
        return x + self.f.linear(self.f.silu(gate) * up, layer["down"])

    def _start(self, layer):
        x = self.f.embedding(self.token, self.embed)
        turn = self.cos[self.position], self.signed_sin[self.position]
        return x, self.attention_input(x, layer, turn), turn

    def _middle(self, x, attended, layer, following, turn):
        x = self.rest_of_layer(x, attended, layer)
        return x, self.attention_input(x, following, turn)

    def _end(self, x, attended, layer):
        logits = self.f.linear(self.norm(self.rest_of_layer(x, attended, layer), self.final_norm), self.head)
        return logits.argmax(-1)

    def attention_forms(self) -> dict:
        """q [heads, dim] over k, v [kv heads, context, dim]: stock ways to say it."""
        torch = self.torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def sdpa(q, k, v):
            return self.f.scaled_dot_product_attention(q[None, :, None], k[None], v[None], enable_gqa=True)

        def grouped(backend):
            def attend(q, k, v):  # the query heads of one kv head are its query rows: no mask is needed
                with sdpa_kernel(backend):
                    return self.f.scaled_dot_product_attention(q.view(1, self.kv, -1, self.dim), k[None], v[None])

            return attend

        def matmul(q, k, v):
            scores = q.view(self.kv, -1, self.dim) @ k.transpose(1, 2) / math.sqrt(self.dim)
            return torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) @ v

        return {
            "sdpa": sdpa,
            "sdpa, grouped, flash": grouped(SDPBackend.FLASH_ATTENTION),
            "sdpa, grouped, cudnn": grouped(SDPBackend.CUDNN_ATTENTION),
            "matmul": matmul,
        }

    def fastest_attention(self, context: int) -> tuple[str, object]:
        times = {}
        q = self.torch.randn(self.q, self.dim, device="cuda", dtype=self.torch.bfloat16)
        for name, attend in self.attention_forms().items():
            try:  # over all layers' caches, as in a step: one layer alone would stay in the cache of the device
                graph, _ = capture(
                    self.torch,
                    lambda attend=attend: [attend(q, x["k"][:, :context], x["v"][:, :context]) for x in self.layers],
                )
                times[name] = median_of(time_replays(self.torch, graph))
            except RuntimeError as error:  # not every backend takes every length
                print(f"{name} at {context}: {str(error).splitlines()[0]}", file=sys.stderr)
        name = min(times, key=times.__getitem__)
        return name, self.attention_forms()[name]

    def step(self, attend, context: int):
        x, q, turn = self.start(self.layers[0])
        for i, layer in enumerate(self.layers):
            attended = attend(q, layer["k"][:, :context], layer["v"][:, :context]).reshape(1, -1)
            if i + 1 < len(self.layers):
                x, q = self.middle(x, attended, layer, self.layers[i + 1], turn)
        return self.end(x, attended, layer)


def worker(shape: str, version: str) -> None:
    """One JSON line for each context."""
    import warnings

    import torch

    warnings.filterwarnings("ignore", module=r".*peer_torch|__main__")  # why a backend was not taken, at length
    with torch.inference_mode():
        decoder = Decoder(torch, shape, max(CONTEXTS))
        if version == "compile":
            decoder.compile()
        tokens = torch.randint(decoder.vocab, (WARM_UP + STEPS,), device="cuda")
        for context in CONTEXTS:
            name, attend = decoder.fastest_attention(context)
            decoder.position.fill_(context - 1)
            start = time.monotonic()
            graph, choice = capture(torch, lambda attend=attend, context=context: decoder.step(attend, context))
            prepared_s = time.monotonic() - start
            us = time_replays(torch, graph, lambda i: decoder.token.copy_(tokens[i : i + 1]))
            assert 0 <= int(choice) < decoder.vocab
            row = {"shape": shape, "version": version, "context": context, "steps": STEPS, "attention": name}
            row |= {"median_us": us[STEPS // 2], "p10_us": us[STEPS // 10], "p90_us": us[STEPS * 9 // 10]}
            row = {key: round(value, 1) if isinstance(value, float) else value for key, value in row.items()}
            print(json.dumps(row | {"prepared_s": round(prepared_s, 1)}), flush=True)


def run_worker(shape: str, version: str, limit_s: float) -> list[dict]:
    command = [sys.executable, __file__, "--worker", shape, version]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    note = ""
    try:
        output, _ = process.communicate(timeout=limit_s)
        if process.returncode:
            note = f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the compiler's own processes too
        output, _ = process.communicate()
        note = f"ended after {limit_s:.0f} s"
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    done = {row["context"] for row in rows}
    missing = [context for context in CONTEXTS if context not in done]
    return rows + [{"shape": shape, "version": version, "context": c, "median_us": None, "note": note} for c in missing]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--versions", nargs="*", choices=("eager", "compile"), default=["eager", "compile"])
    parser.add_argument("--limit-s", type=float, default=120, help="seconds for one shape and version")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return 0
    import torch

    rows = []
    for version in options.versions:  # the quick one first
        for shape in options.shapes:
            rows += run_worker(shape, version, options.limit_s)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {"torch": torch.__version__, "device": torch.cuda.get_device_name(0), "results": rows}
    text = json.dumps(result, indent=1)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
