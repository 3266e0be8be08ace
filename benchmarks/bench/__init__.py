"""The benchmark, `make bench`: minflux beside PyTorch's FLUX.1, each in a process of its own, in one run.

works.py       what is computed, and how many operations that takes
contenders.py  who computes it: how each loads the same weights, and runs
worker.py      a process with one contender in it
race.py        starts the workers, compares their results, and goes round them
report.py      tables and JSON
"""
