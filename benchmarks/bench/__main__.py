"""minflux beside PyTorch's FLUX.1: the same weights and inputs, each contender in a process of its own, in turn.

Works on a CPU: {cpu}.
Contenders on a CPU: {contenders}.

All works with all contenders take about {minutes} minutes on two cores, and write docs/benchmarks.md and, KIND being
the processor's, docs/benchmarks/KIND.json; a selection only prints. The reference, {reference}, always runs, for the
others are compared with it. Without the product there is no peak to compare with.

    python -m benchmarks.bench --only product S VAE256 "minflux NumPy"
    python -m benchmarks.bench --only train --rounds 5 --json training.json
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.bench import works
from benchmarks.bench.contenders import CONTENDERS, REFERENCE
from benchmarks.bench.devices import memory_of_gpu
from benchmarks.bench.job import Contender
from benchmarks.bench.kinds import gpu_kind, kind_of
from benchmarks.bench.race import Interrupted, Lap, race, stop_on_sigterm
from benchmarks.bench.records import as_json, keep
from benchmarks.bench.report import Record, entry, markdown
from benchmarks.bench.works import Work
from minflux.commands import doctor

LIBRARIES = ("numpy", "mlx", "torch", "diffusers", "transformers", "mflux")
MINUTES = 20  # that all takes on two cores
ACTIVATIONS = 4e9  # bytes that a contender may need on a GPU beside its weights


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for; return 1 if a contender's result was wrong, 130 after Ctrl-C."""
    args = command_line().parse_args(arguments)
    stop_on_sigterm()
    contenders, absent = present(CONTENDERS[args.device])
    every = works.on_cpu() if args.device == "cpu" else works.on_gpu(room(len(contenders)))
    reference = next((c for c in contenders if c.name == REFERENCE[args.device]), None)
    if reference is None:
        sys.exit(f"{REFERENCE[args.device]} is what all are compared with: pip install torch diffusers transformers")
    chosen_works, chosen = select(args.only, every, contenders, reference)
    record = blank(args.device, reference, absent)
    try:
        for work in chosen_works:
            racing = [c for c in chosen if c.can(work)]
            laps = race(work, racing, reference.name, args.device, args.rounds, args.seconds, note)
            add(record, work, laps, reference)
        finished = True
    except Interrupted as stopped:
        add(record, work, stopped.laps, reference)
        finished = False
    print(markdown(record))
    if args.json:
        args.json.write_text(as_json(record))
    if finished and not args.only:
        keep(kind_of(args.device), record)
    wrong = [lap for work in record["works"] for lap in work["laps"] if lap["wrong"]]
    return 130 if not finished else 1 if wrong else 0


def command_line() -> argparse.ArgumentParser:
    """Describe the command line."""
    names = {
        "cpu": ", ".join(w.name for w in works.on_cpu()),
        "contenders": ", ".join(c.name for c in CONTENDERS["cpu"]),
    }
    text = (__doc__ or "").format(**names, reference=REFERENCE["cpu"], minutes=MINUTES)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.bench", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=list(CONTENDERS), default="cpu",
        help="gpu: Metal or CUDA, in bfloat16, FLUX.1's true width at 1024² and as many blocks as memory holds",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some works, some contenders, or both")
    parser.add_argument("--rounds", type=int, default=9, help="turns for each contender (9)")
    parser.add_argument("--seconds", type=float, default=60, help="after so many, a work has three rounds only (60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def present(contenders: tuple[Contender, ...]) -> tuple[list[Contender], dict[str, list[str]]]:
    """Part the contenders that can run here from those that lack a package, with what they lack."""
    missing = {c.name: c.missing() for c in contenders}
    return [c for c in contenders if not missing[c.name]], {name: lacks for name, lacks in missing.items() if lacks}


def select(
    names: list[str], every: list[Work], contenders: list[Contender], reference: Contender
) -> tuple[list[Work], list[Contender]]:
    """Choose by names, of works, contenders or both; the reference always runs."""
    wanted = {name.lower() for name in names}
    known = {x.name.lower() for x in [*every, *contenders]}
    if wanted - known:
        sys.exit(
            f"no work or contender here is called {', '.join(sorted(wanted - known))}: choose from {sorted(known)}"
        )

    def of(items: list[Any], always: str = "") -> list[Any]:
        named = [x for x in items if x.name.lower() in wanted]
        return [x for x in items if x in named or x.name == always] if named else items

    return of(every), of(contenders, reference.name)


def room(contenders: int) -> float:
    """Bytes that each contender may take for weights, if all are to be on the GPU at once."""
    total = memory_of_gpu()
    if not total:
        sys.exit("MLX sees no GPU here")
    return 0.8 * total / contenders - ACTIVATIONS


def note(what: str) -> None:
    """Tell how far we are."""
    print(what, file=sys.stderr, flush=True)


# -- the record --------------------------------------------------------------------------------------------------


def blank(device: str, reference: Contender, absent: dict[str, list[str]]) -> Record:
    """Begin a record: the machine and its libraries."""
    versions = ", ".join(f"{name} {doctor.installed(name)}" for name in LIBRARIES if doctor.installed(name))
    gpu = [("GPU", gpu_kind())] if device == "gpu" else []
    machine = [*doctor.rows_of_machine()[1:4], *gpu, ("NumPy's", doctor.numpy_blas()), ("packages", versions)]
    return {
        "device": device,
        "machine": machine,
        "reference": reference.name,
        "absent": absent,
        "peak": 0.0,
        "works": [],
    }


def add(record: Record, work: Work, laps: list[Lap], reference: Contender) -> None:
    """Add a work; the product of matrices, in the reference's precision, gives the peak."""
    record["works"].append(entry(work, laps))
    if work.kind == "product":
        precision = {c.name: c.dtype for c in CONTENDERS[record["device"]]}
        times = [t for lap in laps if precision[lap.contender] == reference.dtype for t in lap.seconds]
        record["peak"] = work.flops / min(times) if times else 0.0


if __name__ == "__main__":
    sys.exit(main())
