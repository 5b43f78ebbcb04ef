"""The rooms of the search: who proposes, who runs a trial, and what is kept. `amk.loop` walks through them.

`keep` and `pairs` are arithmetic; `space`, `prior` and the samplers propose; `executor`, `pool`, `zygote` and
`ray_executor` run a job somewhere else; `jobs` and `pair_job` are what runs there; `campaign` is the state of one loop.
Nothing here prints, and nothing heavy or optional is imported before it is used.
"""
