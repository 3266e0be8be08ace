"""Regional prompts: each is heard by its own part of the image, by a bias of the attention's logits.

The text is the prompts' tokens, one prompt after another. A prompt hears itself and the image tokens of its region, and
these hear it; no prompt hears another one. Image tokens all hear one another, so that the image stays one:

    bias[i, j] = 0 where token i may hear token j, and -inf elsewhere

It is the attention mask of Chen et al. 2024 (arXiv 2411.02395) with the whole image's self-attention left as it is.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from minflux.backend import backend_of
from minflux.errors import ArgumentError
from minflux.inference.pipeline import Conditioning


def regional(texts: Sequence[Conditioning], regions: np.ndarray) -> Conditioning:
    """Return the conditioning of prompts that hold in regions of the image, bool (R, rows, columns) in image tokens.

    texts: what `encode` says of each prompt alone. The pooled vector and the negative prompt are the first one's, which
    is best that of the whole image, its region everywhere. Raises `ArgumentError` unless there is a region for each.
    """
    regions = np.asarray(regions, bool)
    if not texts or regions.ndim != 3 or len(regions) != len(texts):
        raise ArgumentError(f"regions must be ({len(texts)}, rows, columns), one for each text, got {regions.shape}")
    if any(text.references for text in texts):
        raise ArgumentError("regions don't go with references")
    nx = backend_of(texts[0].txt)
    lengths = [text.txt.shape[1] for text in texts]
    txt = nx.concatenate([text.txt for text in texts], axis=1)
    return replace(texts[0], txt=txt, bias=nx.array(region_bias(regions, lengths)))


def region_bias(regions: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Return what regions (R, rows, columns) add to the logits of text and image tokens: (1, 1, L, L) float32.

    lengths: how many tokens each prompt has.
    """
    count, text = len(regions), sum(lengths)
    prompt = np.repeat(np.arange(count), lengths)  # of each text token
    inside = regions.reshape(count, -1)[prompt]  # (T, I)
    hears = np.ones((text + inside.shape[1],) * 2, bool)
    hears[:text, :text] = prompt[:, None] == prompt
    hears[:text, text:], hears[text:, :text] = inside, inside.T
    return np.where(hears, 0, -np.inf).astype(np.float32)[None, None]
