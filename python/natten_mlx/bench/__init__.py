"""Benchmarks behind `natten-mlx bench` and `natten-mlx profile`.

cases      what is measured, one versioned table
cost       floating-point operations, bytes, percentages: every formula
calls      a case as MLX calls; the check against the tier `pure`
measure    warm-up, trials, rounds, statistics, and the machine's limits between them
machine    description of the machine, its multiply-add peak and copy bandwidth
memory     peak extra memory of one call, in a process of its own
table, guardrail, compare, profile   the commands' work: they make and judge reports
report, plots                        reports as terminal tables, Markdown and pictures
"""
