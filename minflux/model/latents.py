"""Latents as tokens. A token is a 2×2 patch of the latent picture, channel-major: (c, row, column) inside a token.

A 1024² picture is 128×128 latents of 16 channels, so 64×64 tokens of 64 numbers. Source: BFL `flux/sampling.py`.
"""

from minflux.arrays import Array, Float, shaped
from minflux.backend import backend_of


@shaped
def pack(latents: Float[Array, "B H W C"]) -> Float[Array, "B I E"]:
    """Cut latents into patches of 2×2: (B, 2h, 2w, C) -> (B, h·w, C·2·2), tokens row by row."""
    b, height, width, c = latents.shape
    x = latents.reshape(b, height // 2, 2, width // 2, 2, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, (height // 2) * (width // 2), c * 4)


@shaped
def unpack(tokens: Float[Array, "B I E"], height: int, width: int) -> Float[Array, "B H W C"]:
    """Undo `pack`: tokens of a picture of height × width latents back to (B, height, width, C)."""
    b, _, e = tokens.shape
    x = tokens.reshape(b, height // 2, width // 2, e // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, height, width, e // 4)


def image_ids(like: Array, height: int, width: int) -> Array:
    """Number the tokens of height × width latents: (B, I, 3) int32 rows of (0, row, column) on the packed grid.

    `like` is any array (B, ...) of the wanted backend; only its batch size is used.
    """
    nx = backend_of(like)
    rows, cols = height // 2, width // 2
    row = nx.broadcast_to(nx.arange(rows, dtype=nx.int32)[:, None], (rows, cols))
    col = nx.broadcast_to(nx.arange(cols, dtype=nx.int32)[None], (rows, cols))
    ids = nx.stack([nx.zeros((rows, cols), dtype=nx.int32), row, col], axis=-1).reshape(1, -1, 3)
    return nx.broadcast_to(ids, (like.shape[0], rows * cols, 3))


def text_ids(txt: Array) -> Array:
    """Number the text tokens: all at (0, 0, 0), for their order is in T5's output already. (B, T, 3) int32."""
    nx = backend_of(txt)
    return nx.zeros((*txt.shape[:2], 3), dtype=nx.int32)
