"""Kernel tasks: a baseline and a solution of one small problem, compared so that nobody can fool himself.

In: a task by name (benchmarks/tasks/NAME, installed as amk/task_data/NAME), a device. Out: a record of what was checked
and timed, or the reason why there is none. Nothing here is imported by `import amk`.
"""
