"""One module per task: what its operands are, its inputs from a seed, and its result in float64.

Each defines
- OPERANDS: {"inputs": (...), "outputs": (...), "scalars": (...)}, names in the order of the C entry;
- make_inputs(row, rng) -> {operand: array}: every input of the row, and every output that is read (in place). Values as
  float or integer arrays of the operand's shape; the caller rounds them to the row's dtypes before anybody sees them;
- reference(row, inputs) -> {output: float64 array}, from the rounded inputs;
- torch_reference(row, tensors) -> {output: tensor}: the same in plain torch eager code, in the dtypes given;
- optionally bytes_moved(row): what a launch must read and write at least (default: each operand once).
An oracle imports nothing of amk: it shares no arithmetic with what it judges.
"""
