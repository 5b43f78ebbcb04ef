"""Small programs by hand, as the plain data `amk.Program.from_dict` reads. Nothing here judges or repairs."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

BYTES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "BOOL": 1}


class ProgramSketch:
    """Buffers, counters and tasks by number, in the order they are added."""

    def __init__(self, grid: int = 4, max_seq: int = 16) -> None:
        self.data: dict[str, Any] = {
            "ir_version": 1,
            "abi_version": "1.0",
            "meta": {"launch": {"grid": grid, "max_seq": max_seq, "kv_block": 16}},
            "target": "h200",
            "buffers": [],
            "counters": [],
            "tasks": [],
            "pages": {"buffer_to_page": {}, "pages": []},
            "config": {},
        }

    def buffer(self, name: str, kind: str, shape: Any, dtype: Any = "F32", page: int | None = None, source="") -> int:
        index = len(self.data["buffers"])
        record = {"id": index, "name": name, "kind": kind, "dtype": dtype, "shape": shape}
        record |= {"space": "HBM" if page is None else "GLOBAL_SCRATCH", "source": source}
        self.data["buffers"].append(record)
        if page is not None:
            self.data["pages"]["buffer_to_page"][str(index)] = page
        return index

    def weight(self, name: str, shape: Any, dtype: str = "F32") -> int:
        return self.buffer(name, "WEIGHT", shape, dtype, source=name)

    def input(self, name: str, shape: Any, dtype: str = "F32") -> int:
        return self.buffer(name, "IO_INPUT", shape, dtype)

    def output(self, name: str, shape: Any, dtype: str = "F32") -> int:
        return self.buffer(name, "IO_OUTPUT", shape, dtype)

    def cache(self, name: str, shape: Any, dtype: str = "F32") -> int:
        return self.buffer(name, "KV_CACHE", shape, dtype)

    def activation(self, name: str, shape: list[int], dtype: str = "F32", page: int | None = None) -> int:
        """On a page of its own, unless one is given."""
        if page is None:
            nbytes = BYTES[dtype]
            for dim in shape:
                nbytes *= dim
            page = self.page(nbytes)
        return self.buffer(name, "ACTIVATION", shape, dtype, page)

    def page(self, nbytes: int) -> int:
        pages = self.data["pages"]["pages"]
        end = max((page["offset"] + page["nbytes"] for page in pages), default=0)
        pages.append({"id": len(pages), "space": "GLOBAL_SCRATCH", "offset": -(-end // 256) * 256, "nbytes": nbytes})
        return len(pages) - 1

    def counter(self, init: int = 0) -> int:
        self.data["counters"].append({"id": len(self.data["counters"]), "init": init})
        return len(self.data["counters"]) - 1

    def task(
        self,
        sm: int,
        op: Any,
        inputs: list[int],
        outputs: list[int],
        *,
        after: tuple[int, ...] = (),
        counter: int | None = None,
        waits: list[tuple[int, int]] | None = None,
        **params: Any,
    ) -> int:
        """`after` names tasks with a counter of their own; waits spells (counter, threshold) out instead."""
        tasks = self.data["tasks"]
        pairs = [(tasks[task]["out_counter"], 1) for task in after] if waits is None else waits
        tasks.append(
            {
                "id": len(tasks),
                "op": op,
                "inputs": inputs,
                "outputs": outputs,
                "out_counter": self.counter() if counter is None else counter,
                "waits": [{"counter": counter, "threshold": threshold} for counter, threshold in pairs],
                "params": params,
                "sm": sm,
                "label": "",
            }
        )
        return len(tasks) - 1

    def copy(self, sm: int, source: int, target: int, count: int, **more: Any) -> int:
        return self.task(sm, "COPY", [source], [target], N_tile=count, **more)

    def to_dict(self) -> dict[str, Any]:
        return deepcopy(self.data)


def gemv_sketch(**params: Any) -> ProgramSketch:
    """y = W x, 8 x 8 in one tile, straight to the output; `params` replace the right ones."""
    sketch = ProgramSketch()
    x, w, y = sketch.input("x", [8]), sketch.weight("w", [8, 8]), sketch.output("y", [8])
    sketch.task(0, "GEMV_TILE", [x, w], [y], **({"K": 8, "N": 8, "N_tile": 8} | params))
    return sketch


def attention_sketch(*, wait: bool = True, **params: Any) -> ProgramSketch:
    """Append k and v (one kv head of width 8, 16 rows), attend with two query heads; `params` go to the attention."""
    sketch = ProgramSketch()
    q, kv = sketch.input("q", [16]), sketch.input("kv", [16])
    k, v = sketch.cache("kv.0.k", [1, 16, 8]), sketch.cache("kv.0.v", [1, 16, 8])
    o, ml = sketch.activation("part_o", [2, 1, 8]), sketch.activation("part_ml", [2, 1, 2])
    y = sketch.output("y", [16])
    append = {"n_kv_heads": 1, "head_dim": 8, "K": 16, "N_tile": 1}
    first = sketch.task(0, "KV_APPEND", [kv], [k], **append)
    second = sketch.task(1, "KV_APPEND", [kv], [v], **append, m_off=8)
    attend = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "K": 16, "M": 1, "M_tile": 16, "N_tile": 1, "scale": 0.5}
    after = (first, second) if wait else ()
    third = sketch.task(2, "ATTENTION_TILE", [q, k, v], [o, ml], after=after, **(attend | params))
    sketch.task(0, "ATTENTION_COMBINE", [o, ml], [y], after=(third,), n_heads=2, head_dim=8, M=1, N_tile=2)
    return sketch
