"""Prove that two checkouts of minflux draw the same images, to the bit: `python -m benchmarks.same_images OLD NEW`.

Each checkout runs in processes of its own, and only through what users hold: `minflux.load`, the pipeline's call, and
the command line. The grid is in `benchmarks/same_images_grid.py`. Files that both need (LoRAs, models of random
weights) are written once, by OLD. Models are converted by each checkout itself, and the converted files are compared
byte by byte.

A line a case: "equal", or the largest difference in levels of 255. The second column compares the latents after every
step, for an image's 256 levels may hide a difference. Exit code 1 when an image or a file differs.

    python -m benchmarks.same_images /work/base . --quick
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.same_images_grid import SHARED, Case, cases, commands, conversions, write_loras

WORKER = Path(__file__).with_name("same_images_worker.py")
MAKE = (
    "import sys, pathlib; from tests import tiny_model; tiny_model.make(pathlib.Path(sys.argv[1]), sys.argv[2] == '1')"
)


class Checkout:
    """One checkout, and a folder for what it writes."""

    def __init__(self, source: Path, folder: Path, threads: int):
        self.source, self.folder = source.resolve(), folder
        self.env = os.environ | {
            "PYTHONPATH": str(self.source),
            "MINFLUX_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": str(threads),
        }
        folder.mkdir()
        if not (self.source / "minflux" / "__init__.py").exists():
            raise SystemExit(f"{source}: expected a checkout of minflux, found no minflux/__init__.py")

    def python(self, *args: str) -> str:
        """Run Python with this checkout's modules, in its folder; return "" or the last line of its error."""
        done = subprocess.run([sys.executable, *args], cwd=self.folder, env=self.env, capture_output=True, text=True)
        return "" if done.returncode == 0 else (done.stderr.strip() or "no message").splitlines()[-1]

    def draw(self, chosen: list[Case], name: str) -> str:
        """Draw all cases in one process, each to `images/NUMBER.npz`."""
        jobs = self.folder / f"{name}.json"
        jobs.write_text(json.dumps([asdict(case) for case in chosen]))
        return self.python("-P", str(WORKER), str(self.source), str(jobs), str(self.folder / name))


class Report:
    """The table, printed as it grows, and what is counted: cases, those that differ, and images unlike each other."""

    def __init__(self):
        self.count = self.different = self.hidden = 0
        self.images: set[bytes] = set()

    def add(self, name: str, difference: str, latents: str = "") -> None:
        """Print a line; an empty difference stands for equality."""
        self.count += 1
        self.different += bool(difference)
        self.hidden += latents.startswith("differ")
        print(f"{difference or 'equal':<8}  {latents:<16}  {name}", flush=True)

    def summary(self) -> str:
        """Return the counts in a sentence."""
        return (
            f"{self.count} cases: {self.count - self.different} equal, {self.different} different; "
            f"latents differ in {self.hidden}; {len(self.images)} images unlike each other were drawn"
        )


def main() -> None:
    """Compare the two checkouts and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_images", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--quick", action="store_true", help="a subset of the grid, in less than a minute")
    parser.add_argument("--backends", default="numpy,mlx", help="names with commas between")
    parser.add_argument("--threads", type=int, default=1, help="of each checkout; both run at the same time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-images-") as name:
        root = Path(name)
        pair = [Checkout(args.old, root / "old", args.threads), Checkout(args.new, root / "new", args.threads)]
        report = compare(pair, root / SHARED, args.backends.split(","), args.quick)
    print(report.summary())
    sys.exit(1 if report.different else 0)


def compare(pair: list[Checkout], shared: Path, backends: list[str], quick: bool) -> Report:
    """Write what is shared, then run and compare conversions, images and commands."""
    report = Report()
    prepare(pair[0], shared)
    compare_conversions(report, pair, quick)
    for backend in backends:
        compare_images(report, pair, cases(backend, quick), backend)
        compare_commands(report, pair, commands(backend, quick))
    return report


def prepare(old: Checkout, shared: Path) -> None:
    """Write the LoRAs and the two models of random weights, with guidance embedded and without."""
    shared.mkdir()
    write_loras(old.source / "minflux" / "zoo" / "tiny", shared)
    for name, guidance in (("dev", "1"), ("schnell", "0")):
        error = old.python("-c", MAKE, str(shared / name), guidance)
        if error:
            raise SystemExit(f"{old.source}: tests/tiny_model.py wrote no model: {error}")


def both(work, pair: list[Checkout]) -> list:
    """Run `work` for both checkouts at the same time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, pair))


# -- converted files -------------------------------------------------------------------------------------------


def compare_conversions(report: Report, pair: list[Checkout], quick: bool) -> None:
    """Convert with both checkouts and compare every file that was written."""
    for args in conversions(quick):
        if "/" in args[1]:  # a file that is drawn with, in a folder of its own
            both(lambda checkout, file=args[1]: surround(checkout, checkout.folder / file), pair)
        errors = both(lambda checkout, args=args: checkout.python("-m", "minflux", "convert", *args), pair)
        difference = next(filter(None, errors), "") or differing_files(*(c.folder / args[1] for c in pair))
        report.add(f"convert {' '.join(args)}", difference)


def surround(checkout: Checkout, file: Path) -> None:
    """Link beside a single file what it lacks to be drawn with: tiny's other folders, and the transformer's config."""
    tiny = checkout.source / "minflux" / "zoo" / "tiny"
    file.parent.mkdir(exist_ok=True)
    replaced = tiny / "transformer" / "diffusion_pytorch_model.safetensors"
    for source in tiny.rglob("*"):
        target = file.parent / source.relative_to(tiny)
        if source.is_file() and source != replaced:
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(source)


def differing_files(old: Path, new: Path) -> str:
    """Name the first file that differs, or is in one folder alone; "" when all are equal."""
    if old.is_file():
        return "" if new.is_file() and old.read_bytes() == new.read_bytes() else f"{old.name} differs"
    files = sorted({path.relative_to(top) for top in (old, new) for path in top.rglob("*") if path.is_file()})
    if not files:
        return "no file was written"
    for file in files:
        if not ((old / file).exists() and (new / file).exists()):
            return f"{file} is in one alone"
        if (old / file).read_bytes() != (new / file).read_bytes():
            return f"{file} differs"
    return ""


# -- images ----------------------------------------------------------------------------------------------------


def compare_images(report: Report, pair: list[Checkout], chosen: list[Case], backend: str) -> None:
    """Draw all cases with both checkouts and compare image by image."""
    errors = both(lambda checkout: checkout.draw(chosen, backend), pair)
    for number, case in enumerate(chosen):
        files = [checkout.folder / backend / f"{number}.npz" for checkout in pair]
        if not all(file.exists() for file in files):
            report.add(case.name, next(filter(None, errors), "was not drawn"))
            continue
        old, new = (dict(np.load(file)) for file in files)
        problem = str(old.get("error", "")) or str(new.get("error", ""))
        if not problem:
            report.images.add(hashlib.sha256(old["images"].tobytes()).digest())
        report.add(case.name, problem or levels(old["images"], new["images"]), compared_latents(old, new))


def levels(old: np.ndarray, new: np.ndarray) -> str:
    """Return the largest difference of two images in levels, or "" for equal ones."""
    if old.shape != new.shape:
        return f"{old.shape} and {new.shape}"
    largest = int(np.abs(old.astype(int) - new.astype(int)).max())
    return f"{largest} level{'s' * (largest > 1)}" if largest else ""


def compared_latents(old: dict, new: dict) -> str:
    """Say how far the latents of any step are apart."""
    if "latents" not in old or "latents" not in new:
        return ""
    if old["latents"].tobytes() == new["latents"].tobytes():
        return "latents equal"
    if old["latents"].shape != new["latents"].shape:
        return f"differ: {old['latents'].shape} and {new['latents'].shape}"
    return f"differ by {np.abs(old['latents'] - new['latents']).max():.1e}"


# -- the command line ------------------------------------------------------------------------------------------


def compare_commands(report: Report, pair: list[Checkout], chosen: list[tuple[str, ...]]) -> None:
    """Run `minflux generate` with both checkouts and compare the pixels of every file that was written."""
    for args in chosen:
        for checkout in pair:
            (checkout.folder / "out").mkdir(exist_ok=True)
            for file in (checkout.folder / "out").iterdir():
                if args[0] != "--from":
                    file.unlink()
        errors = both(lambda checkout, args=args: checkout.python("-m", "minflux", "generate", *args), pair)
        difference = next(filter(None, errors), "") or differing_pictures(*(c.folder / "out" for c in pair))
        report.add(f"generate {' '.join(args)}", difference)


def differing_pictures(old: Path, new: Path) -> str:
    """Return how far the images in two folders are apart, "" for equal ones."""
    names = sorted(file.name for file in old.iterdir())
    if not names or names != sorted(file.name for file in new.iterdir()):
        return f"{names} and {sorted(file.name for file in new.iterdir())}"
    return next(filter(None, (levels(frames(old / name), frames(new / name)) for name in names)), "")


def frames(file: Path) -> np.ndarray:
    """Read all frames of an image file (N, H, W, 3)."""
    with Image.open(file) as image:
        shown = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            shown.append(np.asarray(image.convert("RGB")))
    return np.stack(shown)


if __name__ == "__main__":
    main()
