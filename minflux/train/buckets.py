"""Buckets: the sizes that images of any shape are brought to, so that those of one size can share a batch.

All sizes have multiples of 16 for sides, a token being 16×16 pixels, and about as many tokens as a square of the size
asked for. So a step costs the same for each, and an image is cut as little as that allows. After NovelAI's aspect ratio
bucketing (https://github.com/NovelAI/novelai-aspect-ratio-bucketing).
"""

import math

from minflux.train.captioned import Size

UNIT = 16  # pixels along a token's side
WIDEST = 2.0  # width to height


def bucket_sizes(side: int) -> list[Size]:
    """List the sizes of about side² pixels, from 1:2 to 2:1, the tokens of each within half a row of the square's.

    >>> bucket_sizes(64)
    [(48, 80), (64, 64), (80, 48)]
    """
    across = side // UNIT
    narrow = range(math.ceil(across / math.sqrt(WIDEST)), across + 1)
    columns_rows = [(columns, round(across * across / columns)) for columns in narrow]
    upright = [pair for pair in columns_rows if pair[1] <= WIDEST * pair[0]]
    both = sorted({*upright, *((rows, columns) for columns, rows in upright)})
    return [(UNIT * columns, UNIT * rows) for columns, rows in both]


def bucket_of(size: Size, sizes: list[Size]) -> Size:
    """Choose the size whose aspect is nearest an image's, by the logarithm: twice as wide is as far as half as wide."""
    return min(sizes, key=lambda bucket: abs(math.log(bucket[0] * size[1] / (bucket[1] * size[0]))))


def tokens_of(size: Size) -> int:
    """Return the image tokens of a size."""
    return (size[0] // UNIT) * (size[1] // UNIT)
