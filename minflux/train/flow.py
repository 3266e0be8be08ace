"""Training the transformer and both small text encoders together, as a rectified flow in the VAE's latents."""

from typing import Any

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.shapes import under
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.inference.text import Tokenizer
from minflux.model.clip import CLIPConfig, clip_encoder
from minflux.model.flux import FluxConfig
from minflux.model.latents import pack
from minflux.model.t5 import T5Config, t5_encoder
from minflux.train.objective import noised, velocity
from minflux.train.recipe import part, section

CLIP_TOKENIZER, T5_TOKENIZER = "tokenizer", "tokenizer_2"


@shaped
def flow_loss(
    p: Tree,
    configs: tuple,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    clip_ids: Int[Array, "B S"],
    t5_ids: Int[Array, "B T"],
    pooled: Float[Array, "B"] | None = None,
) -> Array:
    """mean ‖v(x_t, t, text) - (noise - x₀)‖², with x_t = (1 - t) x₀ + t noise.

    x0: latents; t in (0, 1); p holds "transformer", "clip" and "t5"; pooled: by how much each sample's pooled text is
    multiplied, 0 to hide it. Source: Esser et al. 2024 (arXiv 2403.03206) §2.
    """
    txt, y = read_text(p, configs, clip_ids, t5_ids, pooled)
    return velocity_loss(p, configs, x0, noise, t, txt, y)


@shaped
def read_text(
    p: Tree,
    configs: tuple,
    clip_ids: Int[Array, "B S"],
    t5_ids: Int[Array, "B T"],
    pooled: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, "B T E"], Float[Array, "B P"]]:
    """Return T5's hidden states `txt` and CLIP's pooled output `y`, each sample's times its factor `pooled`."""
    _, clip_cfg, t5_cfg = configs
    txt = t5_encoder(p["t5"], t5_cfg, t5_ids)
    _, y = clip_encoder(p["clip"], clip_cfg, clip_ids)
    return txt, y if pooled is None else y * pooled[:, None]


@shaped
def velocity_loss(
    p: Tree,
    configs: tuple,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    txt: Float[Array, "B T E"],
    y: Float[Array, "B P"],
    **how: Any,
) -> Array:
    """mean ‖v(x_t, t, txt, y) - (noise - x₀)‖², for a text that has been read; `how` is for the transformer."""
    error = velocity(p["transformer"], configs[0], noised(x0, noise, t), t, txt, y, **how) - pack(noise - x0)
    return backend_of(x0, noise, t).mean(error * error)


def configs_of(recipe: dict[str, Any], clip_tokens: Tokenizer, t5_tokens: Tokenizer) -> tuple:
    """Make the three configs of a recipe, the vocabularies taken from the tokenizers."""
    clip = {
        **part(recipe, "flow.clip"),
        "vocab_size": clip_tokens.vocab_size,
        "eos_token_id": clip_tokens.vocab_size - 1,
    }
    t5 = {**part(recipe, "flow.t5"), "vocab_size": t5_tokens.vocab_size}
    return section(FluxConfig, part(recipe, "flow.model")), section(CLIPConfig, clip), section(T5Config, t5)


def shapes_of(configs: tuple) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that is trained: "transformer", "clip" and "t5"."""
    flux_cfg, clip_cfg, t5_cfg = configs
    return (
        under("transformer", flux_shapes(flux_cfg))
        | under("clip", clip_shapes(clip_cfg))
        | under("t5", t5_shapes(t5_cfg))
    )
