"""The proof that two checkouts draw the same images can fail: by a level, a byte, a bit of latents, a lost file."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import same_images
from benchmarks.same_images import Report, compared_latents, differing_files, differing_pictures, levels
from benchmarks.same_images_grid import Case, cases, commands, conversions

IMAGES = np.full((1, 4, 4, 3), 7, np.uint8)
LATENTS = np.ones((2, 1, 2, 2, 4), np.float32)


class Checkout:
    """One checkout's folder, filled by hand."""

    def __init__(self, folder, result):
        self.folder, self.result = folder, result

    def draw(self, chosen, name):
        (self.folder / name).mkdir(parents=True)
        if self.result is None:
            return "ImportError: no minflux"
        np.savez(self.folder / name / "0.npz", **self.result)
        return ""


def result(**changed) -> dict[str, np.ndarray]:
    return {"images": IMAGES, "latents": LATENTS} | changed


ONE_OFF = IMAGES + np.eye(4, dtype=np.uint8)[None, :, :, None]


@pytest.mark.parametrize(
    ("new", "different", "hidden", "words"),
    [
        (result(), 0, 0, "equal     latents equal"),
        (result(images=ONE_OFF), 1, 0, "1 level   latents equal"),
        (result(latents=np.nextafter(LATENTS, 2)), 0, 1, "equal     differ by 1.2e-07"),
        (result(latents=-0.0 * LATENTS), 0, 1, "equal     differ by 1.0e+00"),
        (result(images=IMAGES[:, :2]), 1, 0, "(1, 4, 4, 3) and (1, 2, 4, 3)"),
        ({"error": np.array("KeyError: 'x'")}, 1, 0, "KeyError: 'x'"),
        (None, 1, 0, "ImportError: no minflux"),
    ],
    ids=["same", "level", "last bit", "latents", "shape", "error", "no process"],
)
def test_images_are_compared(tmp_path, capsys, new, different, hidden, words):
    report = Report()
    pair = [Checkout(tmp_path / "old", result()), Checkout(tmp_path / "new", new)]
    same_images.compare_images(report, pair, [Case("tiny", {})], "numpy")
    assert (report.count, report.different, report.hidden) == (1, different, hidden)
    assert capsys.readouterr().out.startswith(words)


def test_zeros_of_both_signs_differ():
    assert compared_latents({"latents": np.zeros(1)}, {"latents": -np.zeros(1)}).startswith("differ")


def test_files_are_compared_byte_by_byte(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        (folder / "vae").mkdir(parents=True)
        (folder / "vae" / "a").write_bytes(b"123")
    assert differing_files(old, new) == ""
    (new / "vae" / "a").write_bytes(b"124")
    assert differing_files(old, new) == "vae/a differs"
    (old / "b").touch()
    assert differing_files(old, new) == "b is in one alone"
    assert differing_files(tmp_path / "none", tmp_path / "nothing") == "no file was written"


def test_every_frame_is_compared(tmp_path):
    first, second = (Image.fromarray(np.full((4, 4, 3), grey, np.uint8)) for grey in (0, 200))
    for name, frames in (("old", [first, second]), ("new", [first, first])):
        (tmp_path / name).mkdir()
        frames[0].save(tmp_path / name / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert differing_pictures(tmp_path / "old", tmp_path / "old") == ""
    assert differing_pictures(tmp_path / "old", tmp_path / "new") != ""


def test_no_difference_is_zero_levels():
    assert levels(IMAGES, IMAGES.copy()) == ""


@pytest.mark.parametrize("backend", ["numpy", "mlx"])
def test_models_are_drawn_with_only_if_they_are_made(backend):
    """A name in the grid that no conversion writes would make every case of it an error on both sides."""
    for quick in (True, False):
        made = {"tiny", "../shared/dev", "../shared/schnell"} | {args[1] for args in conversions(quick)}
        assert {case.model for case in cases(backend, quick)} <= made
        given = [args[args.index("--model") + 1] for args in commands(backend, quick) if "--model" in args]
        assert set(given) <= made
