"""33 unsafe or ill-formed programs that an earlier validator of this kind let through (or crashed on), and 4
legitimate ones that it refused. Each is the smallest program with that defect; the code named first must be one of
those that make sense for it."""

from __future__ import annotations

import math

import pytest

import amk
from program_sketch import ProgramSketch, attention_sketch, gemv_sketch


def cross_queue_hang():
    sketch = ProgramSketch(grid=2)
    counters = [sketch.counter() for _ in range(4)]
    x, y, z, w = counters
    sketch.task(0, "NOP", [], [], counter=x, waits=[(w, 1)])
    sketch.task(0, "NOP", [], [], counter=y)
    sketch.task(1, "NOP", [], [], counter=z, waits=[(y, 1)])
    sketch.task(1, "NOP", [], [], counter=w)
    return sketch


def half_written_operand():
    sketch = ProgramSketch()
    x, w = sketch.input("x", [8]), sketch.weight("w", [8, 8])
    h, y = sketch.activation("h", [8]), sketch.output("y", [8])
    first = sketch.task(0, "GEMV_TILE", [x, w], [h], K=8, N=8, N_tile=4)
    sketch.task(1, "GEMV_TILE", [h, w], [y], after=(first,), K=8, N=8, N_tile=8)
    return sketch


def long_copy():
    sketch = ProgramSketch()
    sketch.copy(0, sketch.input("x", [4096]), sketch.output("y", [4]), 4096)
    return sketch


def gemv_reads_its_output():
    sketch = ProgramSketch()
    w, h, y = sketch.weight("w", [8, 8]), sketch.activation("h", [8]), sketch.output("y", [8])
    first = sketch.task(0, "GEMV_TILE", [h, w], [h], K=8, N=8, N_tile=8)
    sketch.copy(0, h, y, 8, after=(first,))
    return sketch


def racing_writes_to_weight():
    sketch = ProgramSketch()
    x, w, y = sketch.input("x", [8]), sketch.weight("w", [8]), sketch.output("y", [8])
    sketch.copy(0, x, w, 8)
    sketch.copy(1, x, w, 8)
    sketch.copy(2, w, y, 8)
    return sketch


def write_to_input():
    sketch = ProgramSketch()
    x, w, y = sketch.input("x", [8]), sketch.weight("w", [8]), sketch.output("y", [8])
    first = sketch.copy(0, w, x, 8)
    sketch.copy(1, x, y, 8, after=(first,))
    return sketch


def caches_on_one_storage():
    sketch = attention_sketch(wait=False)
    for buffer in sketch.data["buffers"]:
        if buffer["kind"] == "KV_CACHE":
            buffer["source"] = "kv"
    return sketch


def append_with(**params):
    sketch = attention_sketch()
    sketch.data["tasks"][0]["params"] |= params
    return sketch


def wait_on(counter):
    sketch = gemv_sketch()
    sketch.data["tasks"][0]["waits"] = [{"counter": counter, "threshold": 1}]
    return sketch


def counter_starts_at_one():
    sketch = ProgramSketch()
    x, h, y = sketch.input("x", [8]), sketch.activation("h", [8]), sketch.output("y", [8])
    first = sketch.copy(0, x, h, 8, counter=sketch.counter(init=1))
    sketch.copy(1, h, y, 8, after=(first,))
    return sketch


def shaped(shape):
    sketch = gemv_sketch()
    sketch.data["buffers"][0]["shape"] = shape
    return sketch


def through_scratch(nbytes=None, page=None):
    """x -> h -> y, with h [1024] on a page of `nbytes`, or on page `page`."""
    sketch = ProgramSketch()
    x, y = sketch.input("x", [1024]), sketch.output("y", [1024])
    own = sketch.page(4096 if nbytes is None else nbytes)
    h = sketch.activation("h", [1024], page=own if page is None else page)
    first = sketch.copy(0, x, h, 1024)
    sketch.copy(1, h, y, 1024, after=(first,))
    return sketch


def input_on_the_page_of_an_activation():
    sketch = through_scratch()
    sketch.data["buffers"][0]["space"] = "GLOBAL_SCRATCH"
    sketch.data["pages"]["buffer_to_page"]["0"] = 0
    return sketch


def norm_with(**params):
    sketch = ProgramSketch()
    x, w, y = sketch.input("x", [8]), sketch.weight("w", [8]), sketch.output("y", [8])
    sketch.task(0, "RMSNORM", [x, w], [y], **({"hidden": 8, "M_tile": 1, "eps": 1e-5} | params))
    return sketch


def gemv_into_bool():
    sketch = gemv_sketch()
    sketch.data["buffers"][1]["dtype"] = "I32"
    sketch.data["buffers"][2]["dtype"] = "BOOL"
    return sketch


def thousands_of_writers():
    sketch = ProgramSketch(grid=132)
    x, h, y = sketch.input("x", [8]), sketch.activation("h", [8]), sketch.output("y", [8])
    writes = sketch.counter()
    for index in range(8001):
        sketch.copy(index % 131, x, h, 8, counter=writes)
    sketch.copy(131, h, y, 8)
    return sketch


def renumbered(table, index, number):
    sketch = gemv_sketch()
    sketch.data[table][index]["id"] = number
    return sketch


UNSAFE = {
    "1 hang across two queues": ({"V9"}, cross_queue_hang),
    "2 tile past the end": ({"V5"}, lambda: gemv_sketch(n_off=4)),
    "3 tile far past the end": ({"V5"}, lambda: gemv_sketch(n_off=1 << 30)),
    "4 half of an operand never written": ({"V14"}, half_written_operand),
    "5 K = 2^31-1": ({"V4", "V5"}, lambda: gemv_sketch(K=(1 << 31) - 1)),
    "6 K = 0": ({"V4"}, lambda: gemv_sketch(K=0)),
    "7 K = -5": ({"V4"}, lambda: gemv_sketch(K=-5)),
    "8 copy of 4096 elements into 4": ({"V5"}, long_copy),
    "9 product in place over its own unwritten output": ({"V14", "V18"}, gemv_reads_its_output),
    "10 racing writes to a weight": ({"V7"}, racing_writes_to_weight),
    "11 write to an input": ({"V7"}, write_to_input),
    "12 two caches on one storage": ({"V6"}, caches_on_one_storage),
    "13 append at pos = max_seq": ({"V19"}, lambda: append_with(pos=16)),
    "14 append at pos = -1": ({"V19"}, lambda: append_with(pos=-1)),
    "15 counter 10^9": ({"V1"}, lambda: wait_on(10**9)),
    "16 counter -7": ({"V1"}, lambda: wait_on(-7)),
    "17 counter starts at 1": ({"V8"}, counter_starts_at_one),
    "18 shape -8": ({"V2"}, lambda: shaped([-8])),
    "19 shape 2^40 x 2^40": ({"V2"}, lambda: shaped([1 << 40, 1 << 40])),
    "20 shape 'x'": ({"V2"}, lambda: shaped(["x"])),
    "21 4096 bytes on a 16-byte page": ({"V6"}, lambda: through_scratch(nbytes=16)),
    "22 page that does not exist": ({"V6"}, lambda: through_scratch(page=7)),
    "23 page shared by an input and an activation": ({"V6"}, input_on_the_page_of_an_activation),
    "24 eps = NaN": ({"V4"}, lambda: norm_with(eps=math.nan)),
    "25 hidden = 4096 over 8": ({"V4"}, lambda: norm_with(hidden=4096)),
    "26 attention over 4096 rows of 16": ({"V4"}, lambda: attention_sketch(K=4096)),
    "27 7 heads on 3 kv heads": ({"V4"}, lambda: attention_sketch(n_heads=7, n_kv_heads=3)),
    "28 no kv heads": ({"V4"}, lambda: attention_sketch(n_kv_heads=0)),
    "29 kv_start = -4": ({"V19"}, lambda: attention_sketch(kv_start=-4)),
    "30 f32 times i32 into bool": ({"V3"}, gemv_into_bool),
    "31 8001 overlapping writers and a reader": ({"V11", "V12"}, thousands_of_writers),
    "32 task ids with a hole": ({"V1"}, lambda: renumbered("tasks", 0, 77)),
    "33 buffer ids with a hole": ({"V1"}, lambda: renumbered("buffers", 2, 77)),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_is_refused(name):
    codes, make = UNSAFE[name]
    report = amk.Program.from_dict(make().to_dict()).validate()
    assert report.ok is False
    assert report.rejections[0].code in codes, str(report)
    assert report.rejections[0].text


def test_there_are_33():
    assert len(UNSAFE) == 33


def in_place_residual_chain():
    sketch = ProgramSketch()
    x, w = sketch.input("x", [8]), sketch.weight("w", [8, 8])
    h, y = sketch.activation("h", [8]), sketch.output("y", [8])
    last = sketch.copy(0, x, h, 8)
    for sm in (1, 2, 3):
        last = sketch.task(sm, "GEMV_TILE", [x, w, h], [h], after=(last,), K=8, N=8, N_tile=8, flags=8)
        last = sketch.task(sm, "ADD", [h, x], [h], after=(last,), N_tile=8)
    sketch.copy(0, h, y, 8, after=(last,))
    return sketch


def scratch_reused_after_its_last_reader():
    sketch = ProgramSketch()
    x, y, z = sketch.input("x", [8]), sketch.output("y", [8]), sketch.output("z", [8])
    page = sketch.page(32)
    a, b = sketch.activation("a", [8], page=page), sketch.activation("b", [8], page=page)
    wrote = sketch.copy(0, x, a, 8)
    read = sketch.copy(1, a, y, 8, after=(wrote,))
    again = sketch.copy(2, x, b, 8, after=(read,))
    sketch.copy(3, b, z, 8, after=(again,))
    return sketch


def tiles_on_two_counters():
    sketch = ProgramSketch()
    x, w = sketch.input("x", [8]), sketch.weight("w", [8, 8])
    h, y = sketch.activation("h", [8]), sketch.output("y", [8])
    low = sketch.task(0, "GEMV_TILE", [x, w], [h], K=8, N=8, N_tile=4)
    high = sketch.task(1, "GEMV_TILE", [x, w], [h], K=8, N=8, N_tile=4, n_off=4)
    sketch.copy(2, h, y, 8, after=(low, high))
    return sketch


def order_by_queue_alone():
    sketch = ProgramSketch(grid=1)
    x, h, y = sketch.input("x", [8]), sketch.activation("h", [8]), sketch.output("y", [8])
    sketch.copy(0, x, h, 8)
    sketch.copy(0, h, y, 8)
    return sketch


LEGITIMATE = [
    in_place_residual_chain,
    scratch_reused_after_its_last_reader,
    tiles_on_two_counters,
    order_by_queue_alone,
]


@pytest.mark.parametrize("make", LEGITIMATE)
def test_legitimate_is_accepted(make):
    program = amk.Program.from_dict(make().to_dict())
    assert program.validate().ok, str(program.validate())
    assert program.pack().program().tables().equals(program.tables())


@pytest.mark.parametrize("make", [gemv_sketch, attention_sketch, norm_with, through_scratch, lambda: shaped([8])])
def test_the_unsafe_ones_are_one_edit_away_from_these(make):
    report = amk.Program.from_dict(make().to_dict()).validate()
    assert report.ok, str(report)
