"""FLUX.1 at its full size on a small machine: a 12-billion-weight model drawn with in `streamed` mode, and measured.

    python -m benchmarks.laptop [--folder runs/laptop] [--depth 1 1] > laptop.txt
    python -m tools.insert laptop docs/large-models.md < laptop.txt

It makes a model folder of FLUX.1-schnell's names, shapes and dtypes with random weights (34 GB in bfloat16), draws
256×256 with it in 4 steps, on NumPy unless told, in a process of its own, and runs one step of the transformer block by
block beside diffusers. Parts that are in the folder already are not made again. It reads /proc, so it runs on Linux
alone.

Peak memory is measured twice. RssAnon is what the process has taken for itself: files that the system keeps in its
cache are not in it; it is sampled, so a short peak can be missed. VmHWM, the kernel's own record of the peak, misses
nothing, and counts mapped files too, such as the libraries' code.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from minflux import load, zoo
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.formats.atomic import check_room
from minflux.checkpoints.formats.json_files import write_json
from minflux.checkpoints.open import INDEX, open_component
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.load import SCHEDULER, index_content
from minflux.inference.memory import count_numbers
from minflux.inference.text import Tokenizer
from minflux.model.clip import CLIP_L
from minflux.model.flux import SCHNELL
from minflux.model.t5 import T5_XXL
from minflux.model.vae import FLUX_VAE
from minflux.sampling.timesteps import Schedule
from tools.model_card import table
from tools.synthetic_checkpoint import make_component

LIMIT = 4 << 30  # bytes of memory for the whole drawing
TOLERANCE = 1e-4  # relative error against diffusers, as for every whole model in the tests
PROMPT, SIZE, STEPS = "a cat left of an apple on a blue background", 256, 4
BACKENDS = {"numpy": "NumPy", "mlx": "MLX"}
TOKENIZERS = ("tokenizer", "tokenizer_2")  # the small model's: their ids are few, and all are in the large tables
INTERVAL = 0.02  # seconds between two looks at the memory

Configs = dict[str, Any]  # component -> its sizes


# -- the model ---------------------------------------------------------------------------------------------------


def configs(depth: tuple[int, int] | None = None) -> Configs:
    """Give FLUX.1-schnell's sizes; with `depth` fewer blocks, and no more T5 layers than blocks in all."""
    double, single = depth or (SCHNELL.depth, SCHNELL.depth_single_blocks)
    last = Tokenizer.from_folder(zoo.FOLDER / "tiny" / "tokenizer").vocab_size - 1
    return {
        "transformer": replace(SCHNELL, depth=double, depth_single_blocks=single),
        "vae": FLUX_VAE,
        "text_encoder": replace(CLIP_L, eos_token_id=last),
        "text_encoder_2": replace(T5_XXL, num_layers=max(1, min(T5_XXL.num_layers, double + single))),
    }


def build(folder: Path, sizes: Configs) -> None:
    """Make the model in `folder`, as much of it as is not there yet.

    Raises `CheckpointError` when the disk has no room for it, or when the folder holds a model of other sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = {kind: cfg for kind, cfg in sizes.items() if not is_there(folder, kind, cfg)}
    check_room(folder / "model", sum(bytes_of(kind, cfg) for kind, cfg in missing.items()))
    for kind, cfg in missing.items():
        make_component(folder, kind, cfg)
    for name in TOKENIZERS:
        shutil.copytree(zoo.FOLDER / "tiny" / name, folder / name, dirs_exist_ok=True)
    (folder / SCHEDULER).parent.mkdir(exist_ok=True)
    write_json(folder / SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler", **asdict(Schedule())})
    write_json(folder / INDEX, index_content(""))


def is_there(folder: Path, kind: str, cfg: Any) -> bool:
    """Tell whether a component is in the folder, whole; one of other sizes raises `CheckpointError`."""
    if not (folder / kind / "config.json").exists():  # it is written last
        return False
    found = open_component(folder, kind).config
    if found != cfg:
        raise CheckpointError(f"{folder / kind}: expected {cfg}, found {found}: name another --folder")
    return True


def bytes_of(kind: str, cfg: Any) -> int:
    """Count the bytes of a component's weights in bfloat16."""
    return 2 * sum(map(math.prod, COMPONENTS[kind].file_shapes(COMPONENTS[kind].folder_naming, cfg).values()))


# -- drawing, in a process of its own ----------------------------------------------------------------------------


def draw(folder: Path, backend: str = "numpy") -> dict[str, Any]:
    """Draw a picture in `streamed` mode; return the seconds that each stage took, and what this process took."""
    clock = [time.perf_counter()]
    pipe = load(folder, backend, memory="streamed")
    clock.append(time.perf_counter())
    conditioning = pipe.encode(PROMPT)
    clock.append(time.perf_counter())
    for step in pipe.sample(conditioning, width=SIZE, height=SIZE, steps=STEPS):
        latents = step.x
        clock.append(time.perf_counter())
    (picture,) = pipe.decode(latents)
    clock.append(time.perf_counter())
    Image.fromarray(picture).save(folder / "picture.png")
    opening, text, *steps, decoding = (after - before for before, after in pairwise(clock))
    peak = proc("self", "status")["VmHWM"]
    return {"opening": opening, "text": text, "steps": steps, "decoding": decoding, "VmHWM": peak, **proc("self", "io")}


def proc(pid: int | str, file: str) -> dict[str, int]:
    """Read the numbers in /proc/PID/status (in bytes) or /proc/PID/io."""
    lines = (line.split() for line in Path(f"/proc/{pid}/{file}").read_text().splitlines())
    return {
        words[0].rstrip(":"): int(words[1]) * (1024 if words[-1] == "kB" else 1)
        for words in lines
        if len(words) > 1 and words[1].isdigit()
    }


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command that prints JSON; return what it printed, and the peak of its memory, RssAnon."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, proc(process.pid, "status").get("RssAnon", 0))  # a process that has just ended has none
            time.sleep(INTERVAL)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        sys.exit(f"drawing failed with exit code {process.returncode}")
    return json.loads(output) | {"RssAnon": peak}


# -- the report --------------------------------------------------------------------------------------------------


def measured(folder: Path, sizes: Configs, run: dict[str, Any], backend: str = "numpy") -> list[list[str]]:
    """Make the table of what drawing took."""
    weights = {kind: count_numbers(open_component(folder, kind)) for kind in sizes}
    first, *rest = run["steps"]
    return [
        [f"{SIZE}×{SIZE}, {STEPS} steps, {BACKENDS[backend]}, streamed", f"{os.cpu_count()} cores"],
        ["weights: transformer", f"{weights['transformer'] / 1e9:.2f} billion"],
        ["weights: T5, CLIP, VAE", f"{(sum(weights.values()) - weights['transformer']) / 1e9:.2f} billion"],
        ["files, bfloat16", gigabytes(sum(bytes_of(*item) for item in sizes.items()))],
        ["peak of memory without page cache (RssAnon, sampled)", gibibytes(run["RssAnon"])],
        ["peak of the resident set (VmHWM)", gibibytes(run["VmHWM"])],
        ["opening the model", seconds(run["opening"])],
        ["both text encoders", seconds(run["text"])],
        ["the first step, and what is worked out once", seconds(first)],
        ["a further step: median, least, most", ", ".join(seconds(f(rest)) for f in (statistics.median, min, max))],
        ["VAE", seconds(run["decoding"])],
        ["bytes read (rchar)", gigabytes(run["rchar"])],
        ["of which from disk (read_bytes)", gigabytes(run["read_bytes"])],
    ]


def errors(found: dict[str, float]) -> list[list[str]]:
    """Make the table of errors against diffusers: of many blocks, the median and the worst.

    >>> errors({"img_in": 1e-7, "single_blocks.0": 2e-7, "single_blocks.1": 4e-7, "the whole step": 5e-7})[1:]
    [['img_in', '1.0e-07'], ['2 single blocks: median, worst', '3.0e-07, 4.0e-07'], ['the whole step', '5.0e-07']]
    """
    return [["one step beside diffusers, float32", "relative error"], *_error_rows(found)]


def _error_rows(found: dict[str, float]) -> Iterator[list[str]]:
    groups: dict[str, list[float]] = {}
    for name, error in found.items():
        groups.setdefault(name.partition("_blocks.")[0], []).append(error)
    for name, group in groups.items():
        if name in found:
            yield [name, f"{found[name]:.1e}"]
        else:
            yield [f"{len(group)} {name} blocks: median, worst", f"{statistics.median(group):.1e}, {max(group):.1e}"]


def gigabytes(size: float) -> str:
    """Write bytes as GB, as disks are sold."""
    return f"{size / 1e9:.1f} GB"


def gibibytes(size: float) -> str:
    """Write bytes as GiB, as memory is sold."""
    return f"{size / 2**30:.2f} GiB"


def seconds(time: float) -> str:
    """Write a time."""
    return f"{time:.1f} s"


def check(run: dict[str, Any], found: dict[str, float]) -> str | None:
    """Say what falls short of the target: a peak above 4 GiB, or a step too far from diffusers'."""
    if max(run["RssAnon"], run["VmHWM"]) > LIMIT:
        return f"memory: expected at most {gibibytes(LIMIT)}, found {gibibytes(max(run['RssAnon'], run['VmHWM']))}"
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= TOLERANCE:
        return f"{worst}: expected a relative error of at most {TOLERANCE}, found {found[worst]}"
    return None


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/laptop"), help="where the model is, or is to be")
    parser.add_argument("--depth", type=int, nargs=2, metavar=("DOUBLE", "SINGLE"), help="fewer blocks than 19 and 38")
    parser.add_argument("--backend", choices=BACKENDS, default="numpy", help="what draws")
    parser.add_argument("--only", choices=["build", "draw"], help="make the model, or draw and print JSON; no more")
    args = parser.parse_args()
    if not Path("/proc/self/io").exists():
        sys.exit("this reads /proc, which is on Linux alone")
    if args.only == "draw":
        return print(json.dumps(draw(args.folder, args.backend)))
    sizes = configs(args.depth)
    try:
        build(args.folder, sizes)
    except (ArgumentError, CheckpointError) as error:
        sys.exit(str(error))
    if args.only == "build":
        return None
    from benchmarks.block_by_block import step_errors  # PyTorch: not in the process that draws

    command = [sys.executable, "-m", "benchmarks.laptop", "--only", "draw", "--folder", str(args.folder)]
    run = watched([*command, "--backend", args.backend])
    found = step_errors(args.folder, SIZE)
    print(table(measured(args.folder, sizes, run, args.backend)), table(errors(found)), sep="\n\n")
    return sys.exit(check(run, found))


if __name__ == "__main__":
    main()
