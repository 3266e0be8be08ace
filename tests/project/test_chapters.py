"""The checker of the chapters sees what it is there for: outputs edited by hand, warnings, files too large."""

import base64
import doctest
import struct
import sys

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from chapters import check, thumbnails

sys.path.append(str(check.FOLDER))
import figures


def text(printed: str, **metadata) -> nbformat.NotebookNode:
    return cell(new_output("stream", name="stdout", text=printed), **metadata)


def png(width: int, height: int) -> nbformat.NotebookNode:
    data = base64.b64encode(bytes(16) + struct.pack(">II", width, height)).decode()
    return cell(new_output("display_data", data={"image/png": data, "text/plain": "<Figure>"}))


def cell(*outputs, count: int = 1, **metadata) -> nbformat.NotebookNode:
    return new_code_cell("pass", outputs=list(outputs), execution_count=count, metadata=metadata)


def compared(was, now) -> list[str]:
    return list(check.output_problems(new_notebook(cells=[was]), new_notebook(cells=[now])))


def in_file(tmp_path, *cells) -> list[str]:
    path = tmp_path / "00_x.ipynb"
    nbformat.write(notebook := new_notebook(cells=list(cells)), path)
    return list(check.file_problems(path, notebook))


@pytest.mark.parametrize("module", [check, thumbnails], ids=lambda module: module.__name__)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# -- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("latents (1, 8, 8, 16)", "latents (1, 8, 8, 32)"),
        ("loss 0.52", "loss 0.53"),
        ("loss 0.1234", "loss 0.1250"),
        ("loss 1.23e-03", "loss 1.23e-02"),
        ("loss 0.5", "loss nan"),
        ("they agree", "they differ"),
        ("one", "one\ntwo"),
        ("5", "5 5"),
    ],
)
def test_an_output_edited_by_hand_is_caught(was, now):
    (problem,) = compared(text(was), text(now))
    assert "cell 0" in problem


@pytest.mark.parametrize(
    ("was", "now"),
    [("error 1.2e-07", "error 3.1e-07"), ("[ 0.5 -0.123]", "[0.5 -0.124]"), ("9.9996", "10.0001"), ("a  b\n", "a b")],
)
def test_the_last_digits_of_another_machine_are_not(was, now):
    assert compared(text(was), text(now)) == []


def test_times_are_compared_by_their_words_alone():
    assert compared(text("0.52 ms", tags=["varies"]), text("17 ms")) == []
    assert compared(text("0.52 ms", tags=["varies"]), text("0.52 s")) != []


def test_a_figure_of_another_size_is_caught():
    assert compared(png(750, 350), png(750, 350)) == []
    assert "750x350 pixels" in compared(png(750, 350), png(750, 400))[0]


def test_an_output_too_few_or_too_many_is_caught():
    assert compared(png(1, 1), cell()) != []
    assert compared(cell(), text("x")) != []


def test_where_jupyter_cuts_a_text_does_not_count():
    halves = cell(*(new_output("stream", name="stdout", text=part) for part in ("a 1", "2\n")))
    assert compared(halves, text("a 12\n")) == compared(text("a 12\n"), halves) == []


def test_what_cannot_run_here_is_not_compared():
    assert compared(text("equal"), text(f"{figures.SKIPPED} no MLX")) == []
    assert figures.SKIPPED == check.SKIPPED


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_good_file_has_no_problems(tmp_path):
    assert in_file(tmp_path, new_markdown_cell("# A"), text("a"), cell(count=2)) == []


def test_an_oversized_file_is_caught(tmp_path):
    assert "KB, allowed 300" in in_file(tmp_path, text("x" * check.LARGEST))[0]


@pytest.mark.parametrize("counts", [(1, 3), (2, 1), (None, None)])
def test_a_file_not_run_from_top_to_bottom_is_caught(tmp_path, counts):
    assert "top to bottom" in in_file(tmp_path, *(cell(count=count) for count in counts))[0]


def test_a_file_committed_with_an_error_or_without_a_library_is_caught(tmp_path):
    error = cell(new_output("error", ename="ValueError", evalue="", traceback=[]))
    assert "ValueError" in in_file(tmp_path, error)[0]
    assert "without its library" in in_file(tmp_path, text("skipped: MLX is not installed"))[0]


# -- running ---------------------------------------------------------------------------------------------------------


def run(tmp_path, source: str, write: bool = True) -> list[str]:
    path = tmp_path / "00_x.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    return check.check(path, write)


def test_a_warning_is_caught(tmp_path):
    (problem,) = run(tmp_path, "import numpy as np\nnp.float32(1) / np.float32(0)")
    assert "RuntimeWarning: divide by zero" in problem


def test_a_line_on_stderr_is_caught(tmp_path):
    (problem,) = run(tmp_path, "import sys\nprint('careful', file=sys.stderr)")
    assert problem == "cell 0 warns: careful"


def test_what_is_written_passes_and_an_edit_of_it_does_not(tmp_path):
    assert run(tmp_path, "print(2 + 2)") == []
    path = tmp_path / "00_x.ipynb"
    assert check.check(path, write=False) == []
    path.write_text(path.read_text().replace('"4\\n"', '"5\\n"'))
    (problem,) = check.check(path, write=False)
    assert "'5', now '4'" in problem


# -- exercises -------------------------------------------------------------------------------------------------------


def exercise(source: str, printed: str) -> nbformat.NotebookNode:
    of = text(printed)
    of.source = source
    return new_notebook(cells=[of])


def test_an_exercise_without_its_solution_is_caught():
    chapter, solved = exercise("check(x)", "not solved yet"), exercise("check(x)", "solved")
    assert list(check.exercise_problems(chapter, solved)) == []
    assert "lack the test" in next(check.exercise_problems(chapter, exercise("check(y)", "solved")))
    assert "leave unsolved" in next(check.exercise_problems(chapter, chapter))
    assert "no exercise" in next(check.exercise_problems(solved, solved))


# -- the way through the course --------------------------------------------------------------------------------------


def test_a_chapter_that_does_not_lead_to_the_next_one_is_told():
    first, second = (new_notebook(cells=[new_markdown_cell(text)]) for text in ("# 00 A\n\nWhy?", "# 01 B\n\nHow\nso?"))
    chapters = {"00_a.ipynb": first, "01_b.ipynb": second, "A1_c.ipynb": second}
    (problem,) = check.next_problems(chapters)
    assert "00_a.ipynb: its last cell has not the title and question of 01_b.ipynb" in problem
    first.cells.append(new_markdown_cell("**Next.** [01 B](01_b.ipynb). How so?\n\n**Read further.** C."))
    assert list(check.next_problems(chapters)) == []


# -- the table -------------------------------------------------------------------------------------------------------


def course(tmp_path) -> list[str]:
    (tmp_path / "README.md").write_text("<!-- chapters: begin -->\n<!-- chapters: end -->\n")
    file = tmp_path / "picture.png"
    Image.fromarray(np.zeros((300, 600, 3), np.uint8)).save(file)
    figure = new_output("display_data", data={"image/png": base64.b64encode(file.read_bytes()).decode()})
    cells = [new_markdown_cell("# 00 The map\n\nWhere is\nit?"), cell(figure)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "00_map.ipynb")
    return list(thumbnails.problems(tmp_path))


def test_a_missing_thumbnail_and_an_old_table_are_caught(tmp_path):
    missing, old = course(tmp_path)
    assert "00_map.ipynb: its thumbnail is missing" in missing
    assert "its table is not the chapters' own" in old


def test_the_table_is_made_from_the_notebooks(tmp_path):
    course(tmp_path)
    thumbnails.write(tmp_path)
    assert list(thumbnails.problems(tmp_path)) == []
    assert "[00 The map](00_map.ipynb) | Where is it? |" in (tmp_path / "README.md").read_text()
    with Image.open(tmp_path / "thumbnails" / "00.png") as small:
        assert small.size == (240, 120)


def test_a_thumbnail_of_another_figure_is_caught(tmp_path):
    course(tmp_path)
    thumbnails.write(tmp_path)
    Image.new("RGB", (240, 120), "white").save(tmp_path / "thumbnails" / "00.png")
    (problem,) = thumbnails.problems(tmp_path)
    assert "shows another figure" in problem


# -- figures ---------------------------------------------------------------------------------------------------------


def test_agreement_is_printed_and_disagreement_raises(capsys):
    figures.agree("sum", np.float32([1, 2]), np.float64([1, 2]), 0)
    figures.agree("sum", [1.0, 2.001], np.float32([1, 2]), 1e-3)
    assert capsys.readouterr().out == "sum: equal\nsum: relative error 4.5e-04, allowed 1e-03\n"
    with pytest.raises(AssertionError, match="allowed 1e-04"):
        figures.agree("sum", [1.0, 2.001], np.float32([1, 2]), 1e-4)
    with pytest.raises(AssertionError, match="shapes"):
        figures.agree("sum", np.ones((1, 2)), np.ones(2), 1e-4)
    with pytest.raises(AssertionError, match="nan"):
        figures.agree("sum", [np.nan], [1.0], 1e-4)
