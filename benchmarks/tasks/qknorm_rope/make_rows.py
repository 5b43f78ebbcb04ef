"""The rows of qknorm_rope, written to workloads.json by benchmarks/tasks/freeze.py.

Production: q and k of diffusion transformers, bf16, pairs of opposite halves (neox), positions 0, 1, 2, ... as i64; 30
heads are Z-Image's, with its eps. The regression grid takes every dtype through both pairings and both position types,
odd token and head counts, unequal head counts, strided and sliced operands, and what has to be refused.
"""

D = 128
TOLERANCE = {"f32": (1e-5, 1e-5), "f16": (8e-2, 1e-2), "bf16": (8e-2, 1e-2)}
PRODUCTION = [(s, 24, 1e-6) for s in (19, 47, 4096, 189, 195, 8424)]
PRODUCTION += [(s, 30, 1e-5) for s in (32, 4096, 4128)] + [(7904, 32, 1e-6)]


def rows():
    found = []

    def add(name, kind, tokens, q_heads, k_heads, dtype, **options):
        eps, interleaved = options.get("eps", 1e-6), options.get("interleaved", 0)
        cache_rows, positions = options.get("cache_rows", tokens), options.get("positions", "i64")
        inputs = {
            "q_weight": {"shape": [D], "dtype": dtype, "regime": "weight"},
            "k_weight": {"shape": [D], "dtype": dtype, "regime": "weight"},
            "cos_sin_cache": {"shape": [cache_rows, D], "dtype": "f32", "regime": "cache"},
            "positions": {"shape": [tokens], "dtype": positions, "regime": options.get("order", "shuffled")},
        }
        outputs = {"q": {"shape": [tokens, q_heads, D], "dtype": dtype},
                   "k": {"shape": [tokens, k_heads, D], "dtype": dtype}}  # fmt: skip
        for operand, stride in options.get("strides", {}).items():
            (outputs if operand in outputs else inputs)[operand]["stride"] = stride
        for operand, spec in options.get("instead", {}).items():
            (outputs if operand in outputs else inputs)[operand].update(spec)
        atol, rtol = TOLERANCE[dtype]
        found.append({"name": name, "kind": kind, "inputs": inputs, "outputs": outputs,
                      "scalars": {"eps": eps, "interleaved": interleaved},
                      "tolerance": {"atol": atol, "rtol": rtol}, "seed": 2000 + len(found)})  # fmt: skip
        if "rejects" in options:
            found[-1]["rejects"] = options["rejects"]

    for tokens, heads, eps in PRODUCTION:
        add(f"{tokens}x{heads}", "production", tokens, heads, heads, "bf16", eps=eps, order="counted")
    for dtype in ("f16", "bf16", "f32"):
        for interleaved, pairing in ((0, "neox"), (1, "interleaved")):
            for positions in ("i32", "i64"):
                add(f"{dtype}_{pairing}_{positions}_7x5x3", "regression", 7, 5, 3, dtype, interleaved=interleaved,
                    positions=positions, cache_rows=33)  # fmt: skip
            add(f"{dtype}_{pairing}_many_tokens_523x2x1", "regression", 523, 2, 1, dtype, interleaved=interleaved,
                cache_rows=1000, eps=1e-5)  # fmt: skip
            strided = {"interleaved": interleaved, "cache_rows": 12}
            name = f"{dtype}_{pairing}"
            width = (6 + 2 * 2) * D  # q of a fused projection of 6 query heads and 2 heads each of k and v
            add(f"{name}_fused_projection", "regression", 9, 6, 2, dtype, **strided,
                strides={"q": [width, D, 1], "k": [width, D, 1]})  # fmt: skip
            add(f"{name}_heads_first", "regression", 9, 3, 3, dtype, **strided,
                strides={"q": [D, 9 * D, 1], "k": [D, 9 * D, 1]})  # fmt: skip
            add(f"{name}_every_other", "regression", 9, 3, 2, dtype, **strided,
                strides={"q": [6 * D, 2 * D, 2], "k": [4 * D, 2 * D, 2]})  # fmt: skip
            add(f"{name}_unaligned_heads", "regression", 9, 3, 2, dtype, **strided,
                strides={"q": [3 * (D + 1), D + 1, 1]})  # fmt: skip
            add(f"{name}_elements_of_heads_apart", "regression", 4, 3, 1, dtype, **strided,
                strides={"q": [3 * D, 1, 3]})  # fmt: skip
            add(f"{name}_strided_inputs", "regression", 9, 3, 2, dtype, **strided,
                strides={"q_weight": [2], "cos_sin_cache": [D + 1, 1], "positions": [3]})  # fmt: skip
            add(f"{name}_padded_cache", "regression", 9, 3, 2, dtype, **strided,
                strides={"cos_sin_cache": [D + 4, 1], "positions": [2]})  # fmt: skip
        add(f"{dtype}_one_token_one_head", "regression", 1, 1, 1, dtype, cache_rows=5)
        add(f"{dtype}_grouped_3x16x2", "regression", 3, 16, 2, dtype)
        add(f"{dtype}_long_token_2x65x1", "regression", 2, 65, 1, dtype)
        add(f"{dtype}_repeated_positions", "regression", 40, 3, 3, dtype, cache_rows=4, order="repeated")
    for heads in (24, 30, 32):
        add(f"bf16_production_heads_5x{heads}", "regression", 5, heads, heads, "bf16", eps=1e-5)
    add("bf16_many_tokens_513x24", "regression", 513, 24, 24, "bf16")
    bad, no = "INVALID_ARGUMENT", "UNSUPPORTED"
    add("head_of_64", "regression", 4, 2, 2, "bf16", rejects=no,
        instead={"q": {"shape": [4, 2, 64]}, "q_weight": {"shape": [64]}})  # fmt: skip
    add("weight_of_64", "regression", 4, 2, 2, "bf16", rejects=bad, instead={"q_weight": {"shape": [64]}})
    add("weight_of_another_type", "regression", 4, 2, 2, "bf16", rejects=no, instead={"k_weight": {"dtype": "f32"}})
    add("cache_of_64", "regression", 4, 2, 2, "bf16", rejects=bad, instead={"cos_sin_cache": {"shape": [4, 64]}})
    add("cache_of_bf16", "regression", 4, 2, 2, "bf16", rejects=no, instead={"cos_sin_cache": {"dtype": "bf16"}})
    add("positions_of_floats", "regression", 4, 2, 2, "bf16", rejects=no, instead={"positions": {"dtype": "f32"}})
    add(
        "fewer_positions_than_tokens", "regression", 4, 2, 2, "bf16", rejects=bad, instead={"positions": {"shape": [3]}}
    )
    add("q_and_k_of_other_lengths", "regression", 4, 2, 2, "bf16", rejects=bad, instead={"k": {"shape": [5, 2, D]}})
    add("q_of_rank_2", "regression", 4, 2, 2, "bf16", rejects=bad, instead={"q": {"shape": [8, D]}})
    add("pairing_2", "regression", 4, 2, 2, "bf16", rejects=bad, interleaved=2)
    add("eps_of_one", "regression", 4, 2, 2, "bf16", rejects=bad, eps=1.0)
    return found
