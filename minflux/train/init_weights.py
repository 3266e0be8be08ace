"""Random weights to start from: one rule a name, the same numbers on every backend."""

import numpy as np

from minflux.checkpoints.tree import tree

ZERO = (
    *("modulation.lin", "img_mod.lin", "txt_mod.lin", "adaLN_modulation.1", "final_layer.linear"),  # transformer
    *("conv2", "proj_out"),  # VAE and U-Net
    "unet.conv_out",
)
AWAY = 4.0  # what a head's logits lose on one side: exp(4) = 55 times less attention
EMBEDDINGS = {"shared.weight": 1.0, "token_embedding.weight": 0.02, "position_embedding.weight": 0.01}


def init_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict:
    """Draw a weight tree for `shapes`: normal with deviation 1/√fan-in for matrices and kernels.

    Norm scales start at 1 and biases at 0. What feeds a gate, and what ends a residual branch, starts at 0, so that
    every block begins as the identity (AdaLN-zero, arXiv 2212.09748): for the VAE that saves a third of the
    steps to a given loss (docs/log.md). Float32 NumPy arrays; deterministic in `seed`.
    """
    rng = np.random.default_rng(seed)
    return tree({name: _draw(name, shape, rng) for name, shape in shapes.items()})


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if any(part in name for part in ZERO) or name.endswith("bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:  # the scale of a norm
        return np.ones(shape, np.float32)
    deviation = next((d for end, d in EMBEDDINGS.items() if name.endswith(end)), np.prod(shape[1:]) ** -0.5)
    if ".SelfAttention.q." in name:
        deviation *= 0.35  # T5 does not scale its logits
    if "relative_attention_bias" in name:
        return _one_way(rng.standard_normal(shape)).astype(np.float32)
    return (deviation * rng.standard_normal(shape)).astype(np.float32)


def _one_way(bias: np.ndarray) -> np.ndarray:
    """Let T5's heads begin by looking one way each: of (buckets, heads), away from later words, or from earlier ones.

    The bias is all that T5 knows of the words' order. From numbers as likely one way as the other, order is not learned
    in hours; from these, which side a word is on is learned in 100 steps (docs/log.md).
    """
    earlier, later = np.split(bias, 2)
    later[:, ::2] -= AWAY
    earlier[:, 1::2] -= AWAY
    return np.concatenate([earlier, later])
