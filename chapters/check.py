"""Run the chapters and their solutions, hold each to its outputs, and its exercises' tests to right and wrong answers.

    python -m chapters.check               all of them: what `make chapters` does
    python -m chapters.check 04 07         those alone
    python -m chapters.check --write 04    run it, and keep the new outputs in the file

A notebook fails when a cell raises or warns, when it is larger than 300 KB, when its outputs were not made by running
it from top to bottom, or when they are not what its code prints now. Text must be the same but for its numbers: whole
numbers are exact, others may differ as `same_number` says. Figures must be as many, and of the same size in pixels.

The answers in answers/ are tried on the exercises' tests (chapters/exercises.py) unless the outputs are to be kept.

A cell tagged "varies" prints times or other numbers of the machine: there, numbers are not compared. A cell that prints
"skipped:" lacks a library that is not installed here: it is not compared, and must not be committed so.
"""

import argparse
import base64
import io
import os
import re
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, pairwise
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image

from chapters import exercises, thumbnails
from chapters.exercises import SKIPPED, UNSOLVED

FOLDER = Path(__file__).parent
LARGEST = 300_000  # bytes of a notebook
SLOWEST = 60  # seconds of a run, on two cores; a slower one is told, not failed
WARNINGS_ARE_ERRORS = """import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=PendingDeprecationWarning)
warnings.filterwarnings("error", category=DeprecationWarning, module="__main__|figures|minflux")"""
INLINE = "module://matplotlib_inline.backend_inline"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
COLOURS = re.compile(r"\x1b\[[\d;]*m")
NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


# -- running -----------------------------------------------------------------------------------------------------


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Return the notebook as a fresh kernel runs it in `folder`, warnings being errors; raises nbclient's errors."""
    fresh = nbformat.from_dict({**notebook, "metadata": METADATA})
    with tempfile.TemporaryDirectory() as profile:
        env = os.environ | {"IPYTHONDIR": profile, "PYTHONPATH": str(FOLDER.parent), "MPLBACKEND": INLINE}
        arguments = ["--log-level=ERROR", f"--IPKernelApp.exec_lines={WARNINGS_ARE_ERRORS}"]
        where = {"metadata": {"path": str(folder)}}
        client = NotebookClient(fresh, timeout=600, kernel_manager_class=Kernel, resources=where)
        client.extra_arguments, client.coalesce_streams = arguments, True
        client.execute(env=env)
    return tidy(fresh)


class Kernel(AsyncKernelManager):
    """A kernel of this very Python, whatever kernels the user has installed."""

    def __init__(self, **options):
        super().__init__(**options, kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Leave in the notebook only what a reader or the checker needs: no times, no colours of one editor."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": list(tags(cell))} if tags(cell) else {})
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
    return notebook


def shrink(notebook: NotebookNode) -> None:
    """Write every PNG of the notebook anew, with 256 colours: a third of the bytes."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                image = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                output.data["image/png"] = base64.b64encode(thumbnails.png(image, 256)).decode()


# -- rules of the file -------------------------------------------------------------------------------------------


def file_problems(path: Path, notebook: NotebookNode) -> Iterator[str]:
    """Tell what is wrong with a notebook as it lies there, without running it."""
    if path.stat().st_size > LARGEST:
        yield f"{path.stat().st_size / 1000:.0f} KB, allowed {LARGEST / 1000:.0f}: draw its figures smaller"
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"it was not run from top to bottom in a fresh kernel: its cells count {counts}"
    for place, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"cell {place} was committed with an error: {output.ename}"
            elif SKIPPED in output.get("text", ""):
                yield f"cell {place} was committed without its library: {last_line(output.text)}"


def stderr_problems(notebook: NotebookNode) -> Iterator[str]:
    """Tell which cells warn, or write to stderr in another way."""
    for place, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                yield f"cell {place} warns: {last_line(output.text)}"


def exercise_problems(chapter: NotebookNode, solutions: NotebookNode) -> Iterator[str]:
    """Tell which of a chapter's tests are not in its solutions, word for word, or not solved there."""
    answers = {cell.source: printed(cell) for cell in code_cells(solutions)}
    tests = [cell.source for cell in code_cells(chapter) if UNSOLVED in printed(cell)]
    if not tests:
        yield f"it has no exercise: no cell prints {UNSOLVED!r}"
    for test in tests:
        if test not in answers:
            yield f"its solutions lack the test that begins {test.splitlines()[0]!r}"
    for source, text in answers.items():
        if UNSOLVED in text:
            yield f"its solutions leave unsolved the test that begins {source.splitlines()[0]!r}"


# -- comparing ---------------------------------------------------------------------------------------------------


def output_problems(committed: NotebookNode, fresh: NotebookNode) -> Iterator[str]:
    """Tell, cell by cell, where the committed outputs are not those of the committed code."""
    for place, (old, new) in enumerate(zip(committed.cells, fresh.cells, strict=True)):
        if old.cell_type != "code" or SKIPPED in printed(new):
            continue
        before, now = shown(old), shown(new)
        if len(before) != len(now):
            yield f"cell {place}: {len(before)} outputs were committed, {len(now)} come now"
        for (kind, was), (new_kind, text) in zip(before, now, strict=False):
            if kind != new_kind or not same_text(was, text, numbers="varies" not in tags(old)):
                yield f"cell {place}: committed {kind} {excerpt(was, text)}"


def shown(cell: NotebookNode) -> list[tuple[str, str]]:
    """List what a cell shows as (kind, text); of a PNG, its size in pixels."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream" and found and found[-1][0] == output.name:
            found[-1] = (output.name, found[-1][1] + output.text)  # Jupyter may cut a text anywhere
        elif output.output_type == "stream":
            found.append((output.name, output.text))
        elif output.output_type == "error":
            found.append(("error", output.ename))
        else:
            data = sorted(output.data.items())
            found += [(kind, png_size(value) if kind == "image/png" else value) for kind, value in data]
    return found


def png_size(data: str) -> str:
    """Read the size of a PNG from its header.

    >>> png_size(base64.b64encode(bytes(16) + struct.pack(">II", 750, 350)).decode())
    '750x350 pixels'
    """
    width, height = struct.unpack(">II", base64.b64decode(data)[16:24])
    return f"{width}x{height} pixels"


def same_text(a: str, b: str, numbers: bool = True) -> bool:
    """Tell whether two texts have the same words and, if asked, the same numbers; spaces don't count.

    >>> same_text("error 1.2e-07 of (2, 3)", "error 3.4e-07 of (2, 3)"), same_text("(2, 3)", "(2, 4)")
    (True, False)
    """
    a_parts, b_parts = NUMBER.split(a), NUMBER.split(b)
    words = [["".join(text.split()) for text in parts[::2]] for parts in (a_parts, b_parts)]
    pairs = zip(a_parts[1::2], b_parts[1::2], strict=False)
    return words[0] == words[1] and (not numbers or all(same_number(*pair) for pair in pairs))


def same_number(a: str, b: str) -> bool:
    """Tell whether two printed numbers are one, computed on two machines.

    Whole numbers are exact. Others may differ by 0.1%, by 1e-5 (what is smaller is rounding), or by one in the last
    digit where three or more are shown.

    >>> same_number("0.9994", "1.0000"), same_number("0.52", "0.53"), same_number("16", "17")
    (True, False, False)
    """
    if a.lstrip("+-").isdigit() and b.lstrip("+-").isdigit():
        return int(a) == int(b)
    x, y = float(a), float(b)
    allowed = max(1e-3 * max(abs(x), abs(y)), 1e-5, last_digit(a), last_digit(b))
    return abs(x - y) <= allowed * (1 + 1e-9)


def last_digit(number: str) -> float:
    """Return the worth of a number's last decimal, or 0 when it shows fewer than three digits.

    >>> last_digit("0.123"), last_digit("1.23e+02"), last_digit("0.5"), last_digit("120.")
    (0.001, 1.0, 0.0, 0.0)
    """
    mantissa, _, exponent = number.lower().partition("e")
    whole, _, decimals = mantissa.lstrip("+-").partition(".")
    digits = (whole + decimals).lstrip("0")
    return float(f"1e{int(exponent or 0) - len(decimals)}") if decimals and len(digits) >= 3 else 0.0


# -- small parts -------------------------------------------------------------------------------------------------


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """List the code cells that have code in them."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell: NotebookNode) -> list[str]:
    """List a cell's tags."""
    return cell.metadata.get("tags", [])


def printed(cell: NotebookNode) -> str:
    """Join what a cell printed."""
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def excerpt(was: str, now: str) -> str:
    """Show the first lines that differ, the committed one and the new one."""
    old, new = was.splitlines(), now.splitlines()
    for a, b in zip(old, new, strict=False):
        if not same_text(a, b):
            return f"{a.strip()!r}, now {b.strip()!r}"
    return f"of {len(old)} lines, now {len(new)}"


def last_line(text: str) -> str:
    """Return the last line that has something in it."""
    return [line for line in text.splitlines() if line.strip()][-1]


# -- the whole course --------------------------------------------------------------------------------------------


def course_problems() -> list[str]:
    """Tell what is wrong between files: exercises unsolved, a table or thumbnails that are not the chapters'."""
    problems = []
    for path in notebooks([]):
        if path.parent == FOLDER:
            problems += [f"{path.name}: {problem}" for problem in pair_problems(path)]
    return [*problems, *next_problems(thumbnails.read(FOLDER)), *thumbnails.problems(FOLDER)]


def next_problems(chapters: dict[str, NotebookNode]) -> Iterator[str]:
    """Tell which chapters do not end in the next one's title and question; an appendix is nobody's next."""
    numbered = {name: notebook for name, notebook in chapters.items() if name[0].isdigit()}
    for (name, notebook), (next_name, next_one) in pairwise(numbered.items()):
        title, question = thumbnails.heading(next_one)
        if f"**Next.** [{title}]({next_name}). {question}" not in notebook.cells[-1].source:
            yield f"{name}: its last cell has not the title and question of {next_name}, with a link"


def answer_problems(path: Path) -> list[str]:
    """Tell which answers to a chapter's exercises are judged wrongly by their tests."""
    return [f"{path.name}: {each}" for each in exercises.problems(path)]


def pair_problems(path: Path) -> Iterator[str]:
    """Tell what a chapter's solutions lack."""
    answers = path.parent / "solutions" / path.name
    if not answers.exists():
        yield f"there is no solutions/{path.name}"
        return
    yield from exercise_problems(nbformat.read(path, as_version=4), nbformat.read(answers, as_version=4))


# -- the command -------------------------------------------------------------------------------------------------


def notebooks(names: list[str]) -> list[Path]:
    """List the chapters and solutions whose numbers begin as one of `names` does; all of them for none."""
    paths = [path for folder in (FOLDER, FOLDER / "solutions") for path in sorted(folder.glob("[0-9A]*.ipynb"))]
    return [path for path in paths if not names or path.name.startswith(tuple(names))]


def check(path: Path, write: bool) -> list[str]:
    """Run one notebook and return its problems; with `write`, its new outputs are kept."""
    committed = nbformat.read(path, as_version=4)
    try:
        fresh = execute(committed, path.parent)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return [COLOURS.sub("", f"it does not run\n{error}")]
    if write:
        shrink(fresh)
        nbformat.write(fresh, path)
    before = fresh if write else committed
    return [*file_problems(path, before), *stderr_problems(fresh), *output_problems(before, fresh)]


def cpu_seconds() -> float:
    """Return the CPU time of all kernels that have ended: what a run costs, whatever else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(path: Path, write: bool) -> bool:
    """Check one notebook, print what was found, and return whether it failed."""
    start, cpu = time.perf_counter(), cpu_seconds()
    problems = check(path, write)
    seconds = time.perf_counter() - start
    slow = f", over {SLOWEST} s" if seconds > SLOWEST else ""
    size = path.stat().st_size / 1000
    verdict = f"{'FAILED' if problems else 'ok':6} {path.relative_to(FOLDER)}"
    lines = [f"{verdict}: {seconds:.0f} s{slow} ({cpu_seconds() - cpu:.0f} of CPU), {size:.0f} KB"]
    print("\n".join(lines + [f"       {problem}" for problem in problems]), flush=True)
    return bool(problems)


def main() -> None:
    """Check what was asked for, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m chapters.check", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="chapters, by their numbers; all unless given")
    parser.add_argument("--write", action="store_true", help="keep the new outputs in the notebooks")
    parser.add_argument("-n", type=int, default=1, metavar="COUNT", help="how many notebooks to run at once")
    args = parser.parse_args()
    paths = notebooks(args.names)
    with ProcessPoolExecutor(args.n) as pool:
        failed = sum(pool.map(run, paths, [args.write] * len(paths)))
        others = [] if args.write else list(chain(*pool.map(answer_problems, exercises.chapters(args.names))))
    others += [] if args.names or args.write else course_problems()
    print(*others, sep="\n", end="\n" if others else "")
    sys.exit(1 if failed or others else 0)


if __name__ == "__main__":
    main()
