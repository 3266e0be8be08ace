"""Try answers on the chapters' exercises: the wrong ones must be rejected in words, and the right ones accepted.

    python -m chapters.exercises           all chapters: what `make chapters` does too
    python -m chapters.exercises 02        one, with what each test says to each answer

An exercise's answers stand in answers/NN_name.py, each below a line that says which exercise it is for, what it is, and
why it is wrong or how else it is right:

    # %% 2 wrong: the second look is taken at t, not at t_next

At least three of each exercise's answers are wrong, and they are mistakes that people make. A test rejects by an
assertion with a message, which says what to look at next; an error from inside the test is no message.
"""

import argparse
import contextlib
import io
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat

FOLDER = Path(__file__).parent
FEWEST = 3  # wrong answers of an exercise
UNSOLVED, SKIPPED = "not solved yet", "skipped:"
ANSWER = re.compile(r"^# %% (\d+) (wrong|right): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """One answer to an exercise: its number, whether it is right, what it does, and its code."""

    number: int
    right: bool
    about: str
    source: str

    def __str__(self):
        return f"exercise {self.number}, {'right' if self.right else 'wrong'} ({self.about})"


# -- one answer ------------------------------------------------------------------------------------------------------


def read_answers(text: str) -> list[Answer]:
    """Read the answers of one chapter.

    >>> read_answers("# %% 2 wrong: it is too small\\nsize = 3\\n")
    [Answer(number=2, right=False, about='it is too small', source='\\nsize = 3\\n')]
    """
    _, *parts = ANSWER.split(text)
    groups = zip(*(parts[i::4] for i in range(4)), strict=True)
    return [Answer(int(number), kind == "right", about, source) for number, kind, about, source in groups]


def attempt(answer: Answer, test: str, known: dict) -> str:
    """Return what a test says to an answer, "accepted: …" or "rejected: …"; `known` is what the notebook has so far.

    A test that needs a library which isn't installed says so, and this is returned in place of a verdict.
    """
    names = dict(known)
    try:
        run(answer.source, names)
        said = run(test, names)
    except AssertionError as error:
        return f"rejected: {error}"
    except Exception as error:  # whatever a wrong answer leads to, it is no message
        return f"broken: {type(error).__name__}: {error}"
    return said if SKIPPED in said or UNSOLVED in said else f"accepted: {said}"


def run(source: str, names: dict) -> str:
    """Run code among `names`, and return what it prints; figures and warnings are dropped."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings(action="ignore"):
        exec(compile(source, "<cell>", "exec"), names)
    plt.close("all")
    return " ".join(said.getvalue().split())


def problem(answer: Answer, verdict: str) -> str | None:
    """Tell what is wrong with a test's verdict on an answer, or return None.

    >>> problem(Answer(1, False, "it is too small", ""), "accepted: solved")
    'exercise 1, wrong (it is too small): accepted: solved'
    >>> problem(Answer(1, False, "it is too small", ""), "rejected: a cat has four legs")
    """
    expected = "accepted: " if answer.right else "rejected: "
    if SKIPPED in verdict or (verdict.startswith(expected) and len(verdict) > len(expected)):
        return None
    return f"{answer}: {verdict}"


# -- one chapter -----------------------------------------------------------------------------------------------------


def tests_of(chapter: nbformat.NotebookNode) -> list[str]:
    """List a chapter's tests: the code of the cells that print "not solved yet"."""
    said = ((cell.source, output.get("text", "")) for cell in chapter.cells for output in cell.get("outputs", []))
    return [source for source, text in said if UNSOLVED in text]


def verdicts(path: Path) -> list[tuple[Answer, str]]:
    """Run a chapter's solutions, and before each test the answers to its exercise; list what the test says to each."""
    answers = read_answers((path.parent / "answers" / f"{path.stem}.py").read_text())
    solutions = nbformat.read(path.parent / "solutions" / path.name, as_version=4)
    tests = tests_of(nbformat.read(path, as_version=4))
    known, found = {"__name__": "__main__"}, []
    with contextlib.chdir(path.parent / "solutions"):
        for source in (cell.source for cell in solutions.cells if cell.cell_type == "code"):
            number = tests.index(source) + 1 if source in tests else 0
            found += [(each, attempt(each, source, known)) for each in answers if each.number == number]
            run(source, known)
    return found


def problems(path: Path) -> Iterator[str]:
    """Tell which answers to a chapter's exercises are judged wrongly, and which exercises have too few."""
    if not (path.parent / "answers" / f"{path.stem}.py").exists():
        yield f"there is no answers/{path.stem}.py"
        return
    wrong = []
    for answer, verdict in verdicts(path):
        wrong += [] if answer.right else [answer.number]
        yield from filter(None, [problem(answer, verdict)])
    for number, _ in enumerate(tests_of(nbformat.read(path, as_version=4)), start=1):
        if wrong.count(number) < FEWEST:
            yield f"exercise {number} has {wrong.count(number)} wrong answers, and needs {FEWEST}"


# -- the command -----------------------------------------------------------------------------------------------------


def chapters(names: list[str]) -> list[Path]:
    """List the chapters whose numbers begin as one of `names` does; all of them for none."""
    return [path for path in sorted(FOLDER.glob("[0-9A]*.ipynb")) if not names or path.name.startswith(tuple(names))]


def main() -> None:
    """Try the answers of the chapters asked for, show every verdict, and exit with 1 if one is not as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m chapters.exercises", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="chapters, by their numbers; all unless given")
    matplotlib.use("agg")
    failed = False
    for path in chapters(parser.parse_args().names):
        for answer, verdict in verdicts(path):
            found = problem(answer, verdict)
            failed |= found is not None
            print("ok    " if found is None else "FAILED", path.stem[:2], f"{answer}\n          {verdict}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
