"""Floating-point operations of each model, counted from its sizes alone.

A product of (m, k) by (k, n) is 2·m·n·k: a multiplication and an addition for each of its m·n·k terms. Products are
counted, and nothing else: biases, norms, activations and softmax are of a lower order.
"""

from minflux.model.clip import CLIPConfig
from minflux.model.flux import TIME_DIM, FluxConfig
from minflux.model.t5 import T5Config
from minflux.model.vae import VAEConfig


def linear(rows: int, inputs: int, outputs: int) -> int:
    """Count x Wᵀ.

    >>> linear(3, 4, 5)
    120
    """
    return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Count q kᵀ and the product with v, all heads together `width` wide."""
    return 2 * linear(queries, width, keys)


def conv(pixels: int, inputs: int, outputs: int, side: int = 3) -> int:
    """Count a convolution of `side`² taps that gives so many pixels."""
    return linear(pixels, side * side * inputs, outputs)


def flux(cfg: FluxConfig, text: int, image: int, batch: int = 1) -> int:
    """Count one step of the transformer on so many text and image tokens."""
    return batch * sum(flux_parts(cfg, text, image).values())


def flux_parts(cfg: FluxConfig, text: int, image: int) -> dict[str, int]:
    """Count one step by part: the maps into the model, what steers the blocks, both kinds of block, the last layer."""
    d, wide, tokens = cfg.hidden_size, int(cfg.mlp_ratio * cfg.hidden_size), text + image
    embedders = [TIME_DIM, cfg.vec_in_dim, *([TIME_DIM] if cfg.guidance_embed else [])]
    vec = sum(linear(1, width, d) + linear(1, d, d) for width in embedders)
    modulation = cfg.depth * 2 * linear(1, d, 6 * d)  # of both streams, one row each
    modulation += cfg.depth_single_blocks * linear(1, d, 3 * d) + linear(1, d, 2 * d)
    double = linear(tokens, d, 3 * d) + attention(tokens, tokens, d) + linear(tokens, d, d)  # q, k, v; out
    double += linear(tokens, d, wide) + linear(tokens, wide, d)
    single = linear(tokens, d, 3 * d + wide) + attention(tokens, tokens, d) + linear(tokens, d + wide, d)
    return {
        "maps in": linear(image, cfg.in_channels, d) + linear(text, cfg.context_in_dim, d),
        "modulation": vec + modulation,
        "double blocks": cfg.depth * double,
        "single blocks": cfg.depth_single_blocks * single,
        "last layer": linear(image, d, cfg.out_channels),
    }


def vae_decode(cfg: VAEConfig, height: int, width: int, batch: int = 1) -> int:
    """Count the decoding of latents of so many rows and columns."""
    widths, pixels = [cfg.ch * mult for mult in cfg.ch_mult], height * width

    def resnet(inputs: int, outputs: int) -> int:
        shortcut = conv(pixels, inputs, outputs, side=1) if inputs != outputs else 0
        return conv(pixels, inputs, outputs) + conv(pixels, outputs, outputs) + shortcut

    now = widths[-1]
    total = conv(pixels, cfg.z_channels, now)
    total += 2 * resnet(now, now) + 4 * linear(pixels, now, now) + attention(pixels, pixels, now)  # the middle
    for level, outputs in reversed(list(enumerate(widths))):
        for _ in range(cfg.num_res_blocks + 1):
            total += resnet(now, outputs)
            now = outputs
        if level > 0:
            pixels *= 4
            total += conv(pixels, now, now)  # after doubling
    return batch * (total + conv(pixels, now, cfg.out_ch))


def t5(cfg: T5Config, tokens: int, batch: int = 1) -> int:
    """Count T5's encoder; its MLP has two matrices in."""
    inner = cfg.num_heads * cfg.d_kv
    layer = 3 * linear(tokens, cfg.d_model, inner) + attention(tokens, tokens, inner)
    layer += linear(tokens, inner, cfg.d_model) + 3 * linear(tokens, cfg.d_model, cfg.d_ff)
    return batch * cfg.num_layers * layer


def clip(cfg: CLIPConfig, tokens: int, batch: int = 1) -> int:
    """Count CLIP's text encoder; masked pairs are computed like all others."""
    d = cfg.hidden_size
    layer = 4 * linear(tokens, d, d) + attention(tokens, tokens, d) + 2 * linear(tokens, d, cfg.intermediate_size)
    return batch * cfg.num_hidden_layers * layer
