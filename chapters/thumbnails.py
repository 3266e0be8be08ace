"""The table of chapters in chapters/README.md, and a small picture of each chapter's figure, made from the notebooks.

    python -m chapters.thumbnails

A chapter's title and question are the heading and the next paragraph of its first cell. Its figure is the first PNG of
the cell tagged "thumbnail", or the first PNG of all where no cell is.
"""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image, ImageChops, ImageStat

from tools.insert import insert

FOLDER = Path(__file__).parent
WIDTH, COLOURS = 240, 64
LARGEST = 20_000  # bytes of a thumbnail


def heading(notebook: NotebookNode) -> tuple[str, str]:
    """Return a chapter's title and its question; raises ValueError when its first cell does not begin with them.

    >>> from nbformat.v4 import new_markdown_cell, new_notebook
    >>> heading(new_notebook(cells=[new_markdown_cell("# Paths\\n\\nWhich way is\\nshort?\\n\\nAnd so on.")]))
    ('Paths', 'Which way is short?')
    """
    parts = notebook.cells[0].source.strip().split("\n\n")
    title, question = parts[0], " ".join(parts[1].split()) if len(parts) > 1 else ""
    if not title.startswith("# ") or not question:
        raise ValueError("the first cell must begin with '# title', an empty line, and the chapter's question")
    return title[2:].strip(), question


def figure(notebook: NotebookNode) -> Image.Image | None:
    """Return the chapter's figure, or None when it has none."""
    tagged = [cell for cell in notebook.cells if "thumbnail" in cell.metadata.get("tags", [])]
    for cell in tagged or notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                return Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    return None


def thumbnail(image: Image.Image) -> bytes:
    """Shrink a figure to a PNG of 240 pixels' width and 64 colours."""
    size = WIDTH, round(WIDTH * image.height / image.width)
    return png(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), COLOURS)


def png(image: Image.Image, colours: int) -> bytes:
    """Write a picture as a PNG of so many colours, those that suit it best."""
    file = io.BytesIO()
    image.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return file.getvalue()


def alike(a: bytes, b: bytes) -> bool:
    """Tell whether two PNGs have one size and differ by less than 3 of 255 on average: one picture, shrunk twice."""
    first, second = (Image.open(io.BytesIO(png)).convert("RGB") for png in (a, b))
    if first.size != second.size:
        return False
    return sum(ImageStat.Stat(ImageChops.difference(first, second)).mean) / 3 < 3


def table(chapters: dict[str, NotebookNode]) -> str:
    """Write the table, a row for each chapter by its file name."""
    lines = ["| | chapter | its question |", "| --- | --- | --- |"]
    for name, notebook in chapters.items():
        title, question = heading(notebook)
        picture = f"[![{title}](thumbnails/{name[:2]}.png)]({name})"
        lines.append(f"| {picture} | [{title}]({name}) | {question} |")
    return "\n".join(lines)


def read(folder: Path) -> dict[str, NotebookNode]:
    """Read all chapters of the folder, by their file names."""
    return {path.name: nbformat.read(path, as_version=4) for path in sorted(folder.glob("[0-9A]*.ipynb"))}


def page(folder: Path, chapters: dict[str, NotebookNode]) -> str:
    """Return the README as it should be: with the table of the chapters that are there."""
    return insert((folder / "README.md").read_text(), "chapters", table(chapters))


def problems(folder: Path) -> Iterator[str]:
    """Tell which thumbnails are missing or too large, and whether the table is not the chapters' own."""
    chapters = read(folder)
    for name, notebook in chapters.items():
        path, image = folder / "thumbnails" / f"{name[:2]}.png", figure(notebook)
        if image is None:
            yield f"{name}: it has no figure"
        elif not path.exists():
            yield f"{name}: its thumbnail is missing; run python -m chapters.thumbnails"
        elif not alike(path.read_bytes(), thumbnail(image)):
            yield f"{name}: its thumbnail shows another figure; run python -m chapters.thumbnails"
        elif path.stat().st_size > LARGEST:
            yield f"{path.name}: {path.stat().st_size} bytes, allowed {LARGEST}"
    if (folder / "README.md").read_text() != page(folder, chapters):
        yield "README.md: its table is not the chapters' own; run python -m chapters.thumbnails"


def write(folder: Path) -> None:
    """Write every thumbnail, and the table."""
    chapters = read(folder)
    (folder / "thumbnails").mkdir(exist_ok=True)
    for name, notebook in chapters.items():
        image = figure(notebook)
        if image is not None:
            (folder / "thumbnails" / f"{name[:2]}.png").write_bytes(thumbnail(image))
    (folder / "README.md").write_text(page(folder, chapters))


if __name__ == "__main__":
    write(FOLDER)
