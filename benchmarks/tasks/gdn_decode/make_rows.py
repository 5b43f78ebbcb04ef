"""The rows of gdn_decode, written to workloads.json by benchmarks/tasks/freeze.py.

Production: nine batch sizes by six regimes, Hq 4, Hv 8, head dim 128, bf16 operands, f32 state out of place. The
regression grid takes other head counts and dtypes, strides of every kind, states in place, batch 512, and refusals.
"""

DIM = 128
SCALE = DIM**-0.5
BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
# Regime -> l2norm, and the size of a state's elements.
REGIMES = {"normal": (0, 1), "strong_decay": (0, 1), "long_lived": (1, 4), "beta_edges": (1, 1),
           "large_state": (1, 1000), "tiny_qk": (1, 1)}  # fmt: skip
O_TOLERANCE = {"f32": 1e-4, "f16": 1e-2, "bf16": 1e-2}


def rows():
    found = []

    def add(name, kind, batch, key_heads=4, value_heads=8, dtype="bf16", regime="normal", gate=None, bias="f32",
            l2norm=None, in_place=False, strides=None, **extra):  # fmt: skip
        norm, size = REGIMES[regime]
        norm = norm if l2norm is None else l2norm
        state = {"shape": [batch, value_heads, DIM, DIM], "dtype": "f32"}
        heads = lambda n: {"shape": [batch, 1, n, DIM], "dtype": dtype}  # noqa: E731
        gates = {"shape": [batch, 1, value_heads], "dtype": gate or dtype}
        inputs = {"q": heads(key_heads), "k": heads(key_heads), "v": heads(value_heads), "state": dict(state),
                  "a_log": {"shape": [value_heads], "dtype": "f32"}, "a": dict(gates),
                  "dt_bias": {"shape": [value_heads], "dtype": bias}, "b": dict(gates)}  # fmt: skip
        outputs = {"o": heads(value_heads), "state_out": dict(state)}
        if in_place:
            del inputs["state"]
        for spec in inputs.values():
            spec["regime"] = regime
        for operand, stride in (strides or {}).items():
            (inputs if operand in inputs else outputs)[operand]["stride"] = stride
        # Sums of 128 terms in f32; raw q and k are eleven times as long as normalised ones.
        state_limit = {"atol": 1e-5 * size if norm else 2e-4, "rtol": 1e-5}
        o_limit = O_TOLERANCE[dtype]
        if dtype == "f32" and not norm:
            o_limit *= 10
        found.append({"name": name, "kind": kind, "inputs": inputs, "outputs": outputs,
                      "scalars": {"scale": SCALE, "l2norm": norm},
                      "tolerance": {"o": {"atol": o_limit, "rtol": o_limit}, "state_out": state_limit},
                      "seed": 2000 + len(found), **extra})  # fmt: skip

    for batch in BATCHES:
        for regime in REGIMES:
            add(f"b{batch}_{regime}", "production", batch, regime=regime)
    for dtype in ("bf16", "f16", "f32"):
        for heads in ((4, 8), (16, 32), (1, 1), (2, 6)):
            for l2norm in (0, 1):
                add(f"{dtype}_h{heads[0]}-{heads[1]}_norm{l2norm}", "regression", 3, *heads, dtype, l2norm=l2norm)
        for regime in REGIMES:
            add(f"{dtype}_h16-32_{regime}_in_place", "regression", 2, 16, 32, dtype, regime, in_place=True)
        for gate in ("bf16", "f16", "f32"):
            add(f"{dtype}_gates_{gate}_bias_{gate}", "regression", 2, 4, 8, dtype, gate=gate, bias=gate)
        b, q, v = 3, 4, 8
        width = (2 * q + v) * DIM  # rows of a fused q, k, v tensor
        apart = [v * DIM * 2 + 2, v * DIM * 2 + 2, DIM * 2, 2]  # every other element
        padded = [v * 132 * 130, 132 * 130, 132, 1]
        for in_place in (False, True):
            tag = "in_place" if in_place else "out_of_place"
            fused = {"q": [width, width, DIM, 1], "k": [width, width, DIM, 1], "v": [width, width, DIM, 1]}
            add(f"{dtype}_fused_rows_{tag}", "regression", b, q, v, dtype, in_place=in_place, strides=fused)
            add(f"{dtype}_every_other_{tag}", "regression", b, q, v, dtype, in_place=in_place,
                strides={"v": apart, "o": apart,
                         "q": [q * DIM * 2, q * DIM * 2, DIM * 2, 2]})  # fmt: skip
            add(f"{dtype}_dim_first_{tag}", "regression", b, q, v, dtype, in_place=in_place,
                strides={"k": [q, q, 1, b * q], "o": [v, v, 1, b * v]})  # fmt: skip
            states = {"state_out": padded} | ({} if in_place else {"state": [v * DIM * 132, DIM * 132, 132, 1]})
            add(f"{dtype}_padded_states_{tag}", "regression", b, q, v, dtype, in_place=in_place, strides=states)
            add(f"{dtype}_strided_gates_{tag}", "regression", b, q, v, dtype, in_place=in_place,
                strides={"a": [2 * v, 2 * v, 2], "b": [1, b, b]})  # fmt: skip
        add(f"{dtype}_one_q_for_all", "regression", b, q, v, dtype, strides={"q": [0, 0, DIM, 1]})
        add(f"{dtype}_state_rows_on_no_vector", "regression", 2, 4, 8, dtype, rejects="INVALID_ARGUMENT",
            strides={"state": [8 * DIM * 129, DIM * 129, 129, 1]})  # fmt: skip
        add(f"{dtype}_state_transposed", "regression", 2, 4, 8, dtype, rejects="UNSUPPORTED",
            strides={"state": [8 * DIM * DIM, DIM * DIM, 1, DIM]})  # fmt: skip
    add("bf16_b512", "regression", 512)
    add("bf16_b512_h1-1_in_place", "regression", 512, 1, 1, in_place=True)
    add("f16_b129_h2-4", "regression", 129, 2, 4, "f16")
    add("bf16_b513", "regression", 513, 1, 1, rejects="INVALID_ARGUMENT")
    add("bf16_h3-8", "regression", 2, 3, 8, rejects="INVALID_ARGUMENT")
    add("i32_v", "regression", 2, rejects="UNSUPPORTED")
    found[-1]["inputs"]["v"]["dtype"] = "i32"
    return found
