"""`python -m benchmarks.bench`: the command line."""

import argparse
import sys

from benchmarks.bench import works
from benchmarks.bench.contenders import CONTENDERS, REFERENCE
from benchmarks.bench.race import Interrupted, Lap, race
from benchmarks.bench.report import section
from benchmarks.bench.works import Work


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--device", choices=list(CONTENDERS), default="cpu")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="works and contenders")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    every = works.on_cpu()
    reference = REFERENCE[args.device]
    chosen = [w for w in every if w.name in args.only or w.name == "product" or not any(x.name in args.only for x in every)]
    running = [
        c for c in CONTENDERS[args.device]
        if c.name in args.only or c.name == reference or not any(x.name in args.only for x in CONTENDERS[args.device])
    ]
    peak = 0.0
    for work in chosen:
        laps = race(work, [c for c in running if c.can(work)], reference, args.device, args.rounds, args.seconds, lambda s: print(s, file=sys.stderr))
        if work.kind == "product":
            peak = max(work.flops / min(l.seconds) / 1e9 for l in laps if "float32" in l.contender or "NumPy" in l.contender)
        print(section(work, laps, reference, peak) + "\n", flush=True)


main()
