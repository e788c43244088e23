"""A report on one GPU: whether the kernels are right, and how fast attention, networks and the trainer are.

`program.run_stages` measures, and writes one JSON file per stage and report.md. It needs only what the package itself
requires; the stage `trainer` also needs the extra [train].
"""
