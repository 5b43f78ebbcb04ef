"""The rows of residual_gate_add, written to workloads.json by benchmarks/tasks/freeze.py.

Production shapes are those of diffusion transformers, bf16. The regression grid takes every dtype through every layout
of the gate, odd sizes, strided and sliced operands, and what has to be refused.
"""

TOLERANCE = {"f32": 1e-5, "f16": 5e-2, "bf16": 5e-2}
PRODUCTION = [
    ((1, 8160, 4096), "full"), ((1, 32640, 4096), "11D"), ((1, 4096, 4608), "11D"), ((1, 4608, 3072), "11D"),
    ((1, 4096, 3072), "11D"), ((1, 512, 3072), "11D"), ((1, 126, 2048), "full"),
]  # fmt: skip
LAYOUTS = ("1", "D", "1D", "BD", "B1D", "11D", "1SD", "BSD", "BF1D")


def gate_shape(layout, shape):
    b, s, d = shape
    return {
        "1": [1], "D": [d], "1D": [1, d], "BD": [b, d], "B1D": [b, 1, d], "11D": [1, 1, d], "1SD": [1, s, d],
        "BSD": [b, s, d], "full": [b, s, d], "BF1D": [b, 4, 1, d],
    }[layout]  # fmt: skip


def rows():
    found = []

    def add(name, kind, shape, layout, dtype, gate_dtype=None, strides=None, **extra):
        shape = list(shape)
        seed = 1000 + len(found)
        spec = {"shape": shape, "dtype": dtype}
        inputs = {"residual": dict(spec), "x": dict(spec),
                  "gate": {"shape": gate_shape(layout, shape), "dtype": gate_dtype or dtype}}  # fmt: skip
        outputs = {"y": dict(spec)}
        for operand, stride in (strides or {}).items():
            (outputs if operand == "y" else inputs)[operand]["stride"] = stride
        limit = TOLERANCE[dtype]
        found.append({"name": name, "kind": kind, "inputs": inputs, "outputs": outputs, "scalars": {},
                      "tolerance": {"atol": limit, "rtol": limit}, "seed": seed, **extra})  # fmt: skip

    for shape, layout in PRODUCTION:
        add(f"{'x'.join(map(str, shape))}_{layout}", "production", shape, layout, "bf16")
    for dtype in ("f16", "bf16", "f32"):
        for layout in LAYOUTS:
            add(f"{dtype}_{layout}_2x24x128", "regression", (2, 24, 128), layout, dtype)
        for layout in ("1", "D", "11D", "BSD"):
            add(f"{dtype}_{layout}_odd_3x7x131", "regression", (3, 7, 131), layout, dtype)
        add(f"{dtype}_11D_one_element", "regression", (1, 1, 1), "11D", dtype)
        add(f"{dtype}_BSD_long_1x1031x264", "regression", (1, 1031, 264), "BSD", dtype)
        b, s, d = 2, 20, 96
        wide, slow = [s * 2 * d, 2 * d, 1], [d, b * d, 1]  # the first half of rows twice as wide; [S, B, D] in memory
        sliced, apart = [s * d * 2, d * 2, 2], [s * (d + 1), d + 1, 1]  # every other element; rows on no vector
        for layout in ("11D", "BSD", "BF1D"):
            add(f"{dtype}_{layout}_wide_rows", "regression", (b, s, d), layout, dtype,
                strides={"x": wide, "y": wide})  # fmt: skip
            add(f"{dtype}_{layout}_transposed", "regression", (b, s, d), layout, dtype,
                strides={"x": slow, "residual": wide, "y": slow})  # fmt: skip
            add(f"{dtype}_{layout}_every_other", "regression", (b, s, d), layout, dtype,
                strides={"residual": sliced, "y": sliced})  # fmt: skip
            add(f"{dtype}_{layout}_unaligned_rows", "regression", (b, s, d), layout, dtype,
                strides={"x": apart, "residual": apart, "y": apart})  # fmt: skip
        add(f"{dtype}_BSD_strided_gate", "regression", (b, s, d), "BSD", dtype, strides={"gate": slow})
        add(f"{dtype}_BSD_gate_of_stride_0", "regression", (b, s, d), "BSD", dtype, strides={"gate": [0, 0, 1]})
        if dtype != "f32":
            for layout in ("D", "11D", "BSD"):
                add(f"{dtype}_{layout}_f32_gate", "regression", (2, 24, 128), layout, dtype, "f32")
        add(f"{dtype}_BF1D_frames_that_do_not_divide", "regression", (2, 18, 128), "BF1D", dtype,
            rejects="INVALID_ARGUMENT")  # fmt: skip
    add("bf16_x_of_another_width", "regression", (2, 24, 128), "11D", "bf16", rejects="INVALID_ARGUMENT")
    found[-1]["inputs"]["x"]["shape"] = [2, 24, 64]
    add("i32_operands", "regression", (2, 24, 128), "11D", "bf16", rejects="UNSUPPORTED")
    for operand in ("residual", "x", "gate"):
        found[-1]["inputs"][operand]["dtype"] = "i32"
    return found
