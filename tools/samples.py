"""The README's first images: the first eight held-out prompts, each under the image that the small model makes of it.

    python -m tools.samples | python -m tools.insert samples README.md

Nothing is selected: they are what `minflux evaluate --prompts 8` measures. Each image is enlarged to twice its
size without smoothing, and written to docs/images/.
"""

from pathlib import Path

from PIL import Image

import minflux
from minflux.world.evaluate import SIZES, follow

FOLDER = Path(__file__).parent.parent / "docs" / "images"
COUNT, COLUMNS, ZOOM = 8, 4, 2


def table(prompts: list[str]) -> str:
    """Write the table, below an empty heading: in each cell an image, and its prompt below it.

    >>> print(table(["a cat"]).splitlines()[2])
    | ![a cat](docs/images/held-out-1.png)<br>a cat |
    """
    cells = [f"![{prompt}](docs/images/held-out-{i}.png)<br>{prompt}" for i, prompt in enumerate(prompts, 1)]
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    columns = len(rows[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in [[""] * columns, ["---"] * columns, *rows])


def main() -> None:
    """Generate the images, write them, and print the table."""
    drawn = follow(minflux.load("tiny"), SIZES[0], COUNT)
    FOLDER.mkdir(exist_ok=True)
    for i, pixels in enumerate(drawn.images, 1):
        image = Image.fromarray(pixels)
        size = image.width * ZOOM, image.height * ZOOM
        image.resize(size, Image.Resampling.NEAREST).save(FOLDER / f"held-out-{i}.png", optimize=True)
    print(table(drawn.prompts))


if __name__ == "__main__":
    main()
