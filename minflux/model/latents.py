"""Latents as tokens. A token is a 2×2 patch of the latent image, channel-major: (c, row, column) inside a token.

A 1024² image is 128×128 latents of 16 channels, so 64×64 tokens of 64 numbers. Source: BFL `flux/sampling.py`.
"""

from minflux.arrays import Array, Float, shaped
from minflux.backend import backend_of


@shaped
def pack(latents: Float[Array, "B H W C"]) -> Float[Array, "B I E"]:
    """Cut latents into patches of 2×2: (B, 2h, 2w, C) -> (B, h·w, C·2·2), tokens row by row."""
    batch, height, width, channels = latents.shape
    rows, columns = height // 2, width // 2
    x = latents.reshape(batch, rows, 2, columns, 2, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)  # (B, h, w, C, 2, 2)
    return x.reshape(batch, rows * columns, channels * 4)


@shaped
def unpack(tokens: Float[Array, "B I E"], height: int, width: int) -> Float[Array, "B H W C"]:
    """Put the tokens of height × width latents back in their places, and so undo `pack`: (B, height, width, C)."""
    batch, _, numbers = tokens.shape
    rows, columns, channels = height // 2, width // 2, numbers // 4
    x = tokens.reshape(batch, rows, columns, channels, 2, 2)
    x = x.transpose(0, 1, 4, 2, 5, 3)  # (B, h, 2, w, 2, C)
    return x.reshape(batch, height, width, channels)


def image_ids(like: Array, height: int, width: int, place: tuple[int, int, int] = (0, 0, 0)) -> Array:
    """Number the tokens of height × width latents: (B, I, 3) int32 rows of (reference, row, column), from `place` on.

    Rows and columns are those of the packed grid. `like` is any array (B, ...) of the wanted backend; only its batch
    size is used.
    """
    nx = backend_of(like)
    rows, columns = height // 2, width // 2
    row = nx.arange(rows, dtype=nx.int32)[:, None] + place[1]
    column = nx.arange(columns, dtype=nx.int32)[None] + place[2]
    zero = nx.zeros((rows, columns), dtype=nx.int32)
    ids = nx.stack([zero + place[0], zero + row, zero + column], axis=-1)  # (h, w, 3)
    ids = ids.reshape(1, rows * columns, 3)
    return nx.broadcast_to(ids, (like.shape[0], rows * columns, 3))


def text_ids(txt: Array) -> Array:
    """Number the text tokens: all at (0, 0, 0), for their order is in T5's output already. (B, T, 3) int32."""
    batch, length, _ = txt.shape
    nx = backend_of(txt)
    return nx.zeros((batch, length, 3), dtype=nx.int32)
