"""The rows of norm_scale_shift, written to workloads.json by benchmarks/tasks/freeze.py.

Production: LayerNorm without weights, as diffusion transformers have it, bf16, scale and shift [1, 1, C] unless a row
says otherwise; then residual + gate first, on one shape of each size. The regression grid takes every dtype through
both norms, with and without weights, every layout of scale, shift and gate, odd sizes, strided and sliced operands, and
what has to be refused.
"""

TOLERANCE = {"f32": 1e-5, "f16": 5e-2, "bf16": 5e-2}
# (S, C, layout and dtype of scale and shift)
PRODUCTION = [(s, 3072, "11D", "bf16") for s in (19, 47, 189, 195, 4096, 8424, 55, 27030, 27085)]
PRODUCTION += [(s, 4096, "11D", "bf16") for s in (997, 1004, 7904)]
PRODUCTION += [(18144, 3072, "full", "f32"), (18144, 3072, "full", "bf16")]
PRODUCTION += [(s, 5120, "11D", dtype) for s in (37800, 75600, 37044, 74088) for dtype in ("f32", "bf16")]
PRODUCTION += [(8640, 5120, "full", "bf16"), (11040, 5120, "full", "f32"), (101, 1536, "11D", "bf16")]
GATED = [(19, 3072, "bf16"), (195, 3072, "bf16"), (4096, 3072, "bf16"), (27030, 3072, "bf16"), (7904, 4096, "bf16"),
         (37800, 5120, "bf16"), (37800, 5120, "f32"), (101, 1536, "bf16")]  # fmt: skip
LAYOUTS = ("1", "D", "1D", "BD", "B1D", "11D", "1SD", "BSD", "BF1D")
FRAMES = 4


def modulation_shape(layout, shape):
    b, s, d = shape
    return {
        "1": [1], "D": [d], "1D": [1, d], "BD": [b, d], "B1D": [b, 1, d], "11D": [1, 1, d], "1SD": [1, s, d],
        "BSD": [b, s, d], "full": [b, s, d], "BF1D": [b, FRAMES, 1, d],
    }[layout]  # fmt: skip


def rows():
    found = []

    def add(name, kind, shape, layout, dtype, **options):
        """options: modulation, weight, bias (dtypes), residual, gate, rms, eps, strides, instead, without, rejects."""
        shape = list(shape)
        spec = {"shape": shape, "dtype": dtype}
        modulation = {"shape": modulation_shape(layout, shape), "dtype": options.get("modulation", dtype)}
        inputs, outputs = {"x": dict(spec)}, {"y": dict(spec)}
        if options.get("residual"):
            inputs["residual"] = dict(spec)
            outputs["residual_out"] = dict(spec)
        if options.get("gate"):
            inputs["gate"] = dict(modulation)
        inputs |= {"scale": dict(modulation), "shift": dict(modulation)}
        for operand in ("weight", "bias"):
            if operand in options:
                inputs[operand] = {"shape": [shape[2]], "dtype": options[operand]}
        for change in (options.get("instead", {}), {k: {"stride": v} for k, v in options.get("strides", {}).items()}):
            for operand, fields in change.items():
                (outputs if operand in outputs else inputs)[operand].update(fields)
        for operand in options.get("without", ()):
            (outputs if operand in outputs else inputs).pop(operand)
        limit = TOLERANCE[dtype]
        found.append({"name": name, "kind": kind, "inputs": inputs, "outputs": outputs,
                      "scalars": {"eps": options.get("eps", 1e-6), "rms": options.get("rms", 0)},
                      "tolerance": {"atol": limit, "rtol": limit}, "seed": 3000 + len(found)})  # fmt: skip
        if "rejects" in options:
            found[-1]["rejects"] = options["rejects"]

    for s, c, layout, modulation in PRODUCTION:
        add(f"1x{s}x{c}_{layout}_{modulation}", "production", (1, s, c), layout, "bf16", modulation=modulation)
    for s, c, modulation in GATED:
        add(f"1x{s}x{c}_11D_{modulation}_gated", "production", (1, s, c), "11D", "bf16", modulation=modulation,
            residual=True, gate=True)  # fmt: skip

    gated = {"residual": True, "gate": True}
    for dtype in ("f16", "bf16", "f32"):
        for rms, norm in ((0, "layer"), (1, "rms")):
            for affine, words in (({}, ""), ({"weight": dtype}, "_weight"),
                                  ({"weight": dtype, "bias": dtype}, "_weight_bias")):  # fmt: skip
                for first, what in (({}, ""), ({"residual": True}, "_residual"), (gated, "_gated")):
                    add(f"{dtype}_{norm}{words}{what}", "regression", (2, 5, 136), "11D", dtype, rms=rms, eps=1e-5,
                        **affine, **first)  # fmt: skip
            for layout in LAYOUTS:
                add(
                    f"{dtype}_{norm}_{layout}_gated_2x12x64", "regression", (2, 12, 64), layout, dtype, rms=rms, **gated
                )
        for layout in LAYOUTS:
            add(f"{dtype}_{layout}_odd_3x8x67", "regression", (3, 8, 67), layout, dtype, weight=dtype, **gated)
        for i, c in enumerate((1, 3, 8, 72, 100, 131, 264, 1000, 1032, 1536, 3072, 3076, 4096, 5120, 8192, 8200)):
            add(f"{dtype}_width_{c}", "regression", (1, 3, c), ("11D", "BSD")[i % 2], dtype, rms=i % 2)
            add(f"{dtype}_width_{c}_gated", "regression", (1, 3, c), ("BSD", "11D")[i % 2], dtype, rms=i % 2, **gated)
        if dtype != "f32":
            for layout in ("11D", "BSD", "BF1D"):
                add(f"{dtype}_{layout}_f32_modulation", "regression", (2, 8, 264), layout, dtype, modulation="f32")
                add(f"{dtype}_{layout}_f32_modulation_weight_gated", "regression", (2, 8, 264), layout, dtype,
                    modulation="f32", weight="f32", bias="f32", **gated)  # fmt: skip
            add(f"{dtype}_odd_f32_modulation", "regression", (2, 3, 131), "B1D", dtype, modulation="f32", weight="f32",
                bias="f32", **gated)  # fmt: skip
        b, s, d = 2, 8, 96
        wide, slow = [s * 2 * d, 2 * d, 1], [d, b * d, 1]  # the first half of rows twice as wide; [S, B, D] in memory
        sliced, apart = [s * d * 2, d * 2, 2], [s * (d + 1), d + 1, 1]  # every other element; rows on no vector
        for layout in ("11D", "BSD", "BF1D"):
            for name, x, y in (("wide_rows", wide, wide), ("transposed", slow, wide), ("every_other", sliced, slow),
                               ("every_other_out", wide, sliced), ("unaligned_rows", apart, apart)):  # fmt: skip
                add(f"{dtype}_{layout}_{name}", "regression", (b, s, d), layout, dtype, **gated,
                    strides={"x": x, "residual": y, "y": y, "residual_out": x})  # fmt: skip
        add(f"{dtype}_strided_modulation", "regression", (b, s, d), "BSD", dtype, **gated,
            strides={"scale": slow, "shift": wide, "gate": sliced})  # fmt: skip
        add(f"{dtype}_modulation_of_stride_0", "regression", (b, s, d), "BSD", dtype, **gated,
            strides={"scale": [0, 0, 1], "shift": [d, 0, 1], "gate": [0, 0, 0]})  # fmt: skip
        add(f"{dtype}_strided_weight", "regression", (b, s, d), "11D", dtype, weight=dtype, bias=dtype,
            strides={"weight": [2], "bias": [3]})  # fmt: skip
        add(f"{dtype}_frames_that_do_not_divide", "regression", (2, 10, 64), "BF1D", dtype, rejects="INVALID_ARGUMENT")
    # More rows than the plans for few: the lengths of production, and one that no plan fills.
    for c in (1536, 2088, 3072, 4096, 5120):
        add(f"bf16_many_rows_265x{c}", "regression", (1, 265, c), "11D", "bf16")
    add("bf16_many_rows_of_two_batches_2x133x3072_gated", "regression", (2, 133, 3072), "B1D", "bf16", **gated)
    add("bf16_many_rows_265x3072_f32_full", "regression", (1, 265, 3072), "full", "bf16", modulation="f32")
    add(
        "bf16_many_rows_265x5120_f32_full_gated",
        "regression",
        (1, 265, 5120),
        "full",
        "bf16",
        modulation="f32",
        **gated,
    )
    bad, no, shape = "INVALID_ARGUMENT", "UNSUPPORTED", (2, 8, 64)
    add(
        "residual_without_its_output",
        "regression",
        shape,
        "11D",
        "bf16",
        **gated,
        without=("residual_out",),
        rejects=bad,
    )
    add("residual_output_alone", "regression", shape, "11D", "bf16", **gated, without=("residual", "gate"), rejects=bad)
    add("gate_without_residual", "regression", shape, "11D", "bf16", gate=True, rejects=bad)
    add("bias_without_weight", "regression", shape, "11D", "bf16", bias="bf16", rejects=bad)
    add("no_shift", "regression", shape, "11D", "bf16", without=("shift",), rejects=bad)
    add(
        "scale_of_another_width",
        "regression",
        shape,
        "11D",
        "bf16",
        instead={"scale": {"shape": [1, 1, 32]}},
        rejects=bad,
    )
    add("scale_of_another_batch", "regression", shape, "BD", "bf16", instead={"scale": {"shape": [3, 64]}}, rejects=bad)
    add("y_of_another_length", "regression", shape, "11D", "bf16", instead={"y": {"shape": [2, 9, 64]}}, rejects=bad)
    add("norm_2", "regression", shape, "11D", "bf16", rms=2, rejects=bad)
    add("f16_scale_of_bf16", "regression", shape, "11D", "bf16", modulation="f16", rejects=no)
    add("y_of_another_type", "regression", shape, "11D", "bf16", instead={"y": {"dtype": "f16"}}, rejects=no)
    add("f32_weight_with_bf16_bias", "regression", shape, "11D", "bf16", weight="f32", bias="bf16", rejects=no)
    return found
