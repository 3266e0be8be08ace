"""The README's first images: the first eight held-out prompts, each under the image that the small model makes of it.

    python -m tools.samples | python -m tools.insert samples README.md

Nothing is selected: they are what `minflux evaluate --prompts 8` measures. Each image of 64×64 pixels is enlarged three
times without smoothing, and written to docs/images/.
"""

from pathlib import Path

from PIL import Image

import minflux
from minflux.train.evaluate import evaluate

FOLDER = Path(__file__).parent.parent / "docs" / "images"
COUNT, COLUMNS, ZOOM = 8, 4, 3


def table(prompts: list[str]) -> str:
    """Write the table: a row of images, a row of the prompts below them, and so on.

    >>> print(table(["a cat", "a dog", "an owl", "a bee"]).splitlines()[2])
    | a cat | a dog | an owl | a bee |
    """
    images = [f"![{prompt}](docs/images/held-out-{i}.png)" for i, prompt in enumerate(prompts, 1)]
    starts = range(0, len(prompts), COLUMNS)
    rows = [row for i in starts for row in (images[i : i + COLUMNS], prompts[i : i + COLUMNS])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * COLUMNS, *rows[1:]])


def main() -> None:
    """Generate the images, write them, and print the table."""
    result = evaluate(minflux.load("tiny"), COUNT)
    FOLDER.mkdir(exist_ok=True)
    for i, pixels in enumerate(result.pictures, 1):
        image = Image.fromarray(pixels)
        size = image.width * ZOOM, image.height * ZOOM
        image.resize(size, Image.Resampling.NEAREST).save(FOLDER / f"held-out-{i}.png", optimize=True)
    print(table(result.prompts))


if __name__ == "__main__":
    main()
