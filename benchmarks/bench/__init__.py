"""The benchmark, `make bench`: minflux beside PyTorch's FLUX.1, each in a process of its own, in one run.

works.py       what is computed, and how many operations that takes
contenders.py  who computes it: how each loads the same weights, and runs
devices.py     the device that each computes on
worker.py      a process with one contender in it
race.py        starts the workers, compares their results, and goes round them
report.py      tables
records.py     one file for each kind of processor, and a page with all of them
kinds.py       which kind this machine's is
"""
