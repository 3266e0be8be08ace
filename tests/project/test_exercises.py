"""The answers tried on the exercises: a test that accepts a wrong one, or says nothing, is noticed."""

import doctest

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from chapters import exercises

TEST = """if legs is None:
    print("not solved yet")
else:
    assert legs > 0, "a cat stands on something"
    assert legs == 4, "count again"
    print("solved")"""
THREE = "".join(f"# %% 1 wrong: {n}\nlegs = {n}\n" for n in (-1, 3, 5))


def problems(tmp_path, answers: str, test: str = TEST) -> list[str]:
    for folder in ("solutions", "answers"):
        (tmp_path / folder).mkdir()
    unsolved = new_code_cell(test, outputs=[new_output("stream", name="stdout", text="not solved yet\n")])
    nbformat.write(new_notebook(cells=[new_code_cell("legs = None"), unsolved]), tmp_path / "00_cat.ipynb")
    solved = new_notebook(cells=[new_code_cell("legs = 4"), new_code_cell(test), new_code_cell("assert legs == 4")])
    nbformat.write(solved, tmp_path / "solutions" / "00_cat.ipynb")
    (tmp_path / "answers" / "00_cat.py").write_text(answers)
    return list(exercises.problems(tmp_path / "00_cat.ipynb"))


def test_examples():
    result = doctest.testmod(exercises)
    assert result.attempted > 0
    assert result.failed == 0


def test_three_wrong_answers_rejected_and_a_right_one_accepted_are_no_problem(tmp_path):
    assert problems(tmp_path, THREE + "# %% 1 right: added up\nlegs = 2 + 2\n") == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("# %% 1 wrong: a float\nlegs = 4.0\n", "accepted: solved"),
        ("# %% 1 right: a dog has as many\nlegs = 5\n", "rejected: count again"),
        ("# %% 1 wrong: a word\nlegs = 'four'\n", "broken: TypeError"),
        ("# %% 1 wrong: none\nlegs = None\n", "not solved yet"),
    ],
)
def test_an_answer_judged_wrongly_is_told(tmp_path, answer, told):
    (problem,) = problems(tmp_path, THREE + answer)
    assert told in problem


def test_a_rejection_without_a_word_is_told(tmp_path):
    assert len(problems(tmp_path, THREE, TEST.replace(', "count again"', ""))) == 2


def test_too_few_wrong_answers_are_told(tmp_path):
    (problem,) = problems(tmp_path, THREE.partition("# %% 1 wrong: 5")[0])
    assert problem == "exercise 1 has 2 wrong answers, and needs 3"


def test_a_test_that_lacks_its_library_judges_nothing(tmp_path):
    assert problems(tmp_path, THREE, f"print({exercises.SKIPPED!r}, 'no MLX')") == []


def test_a_chapter_without_answers_is_told(tmp_path):
    (problem,) = exercises.problems(tmp_path / "00_cat.ipynb")
    assert problem == "there is no answers/00_cat.py"
