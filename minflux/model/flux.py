"""The whole transformer: where a noisy image should move, given a text and a time.

embed img, txt, and (t, guidance, pooled text) -> double blocks -> join -> single blocks -> keep img -> final layer
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.model.blocks import double_block, final_layer, single_block
from minflux.model.embeddings import mlp_embedder, timestep_embedding
from minflux.model.hooks import OnBlock, RunBlock, ignore, run
from minflux.model.linear import linear
from minflux.model.modulation import modulations
from minflux.model.rope import rope

Blocks = tuple[Callable, Callable]  # a double-stream block and a single-stream one
Residuals = Mapping[str, Sequence[Array]]  # (B, R, D) each, by the block after which they are added
NONE: Residuals = {}
TIME_DIM = 256  # sinusoids of the timestep and guidance embeddings


@dataclass(frozen=True)
class FluxConfig:
    """The sizes of a FLUX transformer, under the names of BFL's `FluxParams`.

    in_channels is a token's length, 16 latent channels × 2×2 patch; axes_dim sums to hidden_size / num_heads.
    """

    in_channels: int = 64
    out_channels: int = 64
    vec_in_dim: int = 768
    context_in_dim: int = 4096
    hidden_size: int = 3072
    mlp_ratio: float = 4.0
    num_heads: int = 24
    depth: int = 19
    depth_single_blocks: int = 38
    axes_dim: tuple[int, ...] = (16, 56, 56)
    theta: int = 10_000
    qkv_bias: bool = True
    guidance_embed: bool = True


DEV = FluxConfig()
SCHNELL = FluxConfig(guidance_embed=False)
TINY = FluxConfig(
    vec_in_dim=64, context_in_dim=192, hidden_size=192, num_heads=4, depth=2, depth_single_blocks=6,
    axes_dim=(8, 20, 20), guidance_embed=False,
)  # fmt: skip
PRESETS = {"dev": DEV, "schnell": SCHNELL, "tiny": TINY}


@shaped
def condition(
    p: Tree, timesteps: Float[Array, "B"], y: Float[Array, "B P"], guidance: Float[Array, "B"] | None = None
) -> Float[Array, "B D"]:
    """Make `vec`, all that steers the blocks: time + (guidance) + pooled text, each through its own MLP."""
    dtype = p["vector_in"]["in_layer"]["weight"].dtype
    time = timestep_embedding(timesteps, TIME_DIM)
    vec = mlp_embedder(p["time_in"], time.astype(dtype))
    if guidance is not None:
        strength = timestep_embedding(guidance, TIME_DIM)
        vec = vec + mlp_embedder(p["guidance_in"], strength.astype(dtype))
    return vec + mlp_embedder(p["vector_in"], y.astype(dtype))


@shaped
def flux(
    p: Tree,
    cfg: FluxConfig,
    img: Float[Array, "B I C"],
    img_ids: Int[Array, "B I A"],
    txt: Float[Array, "B T E"],
    txt_ids: Int[Array, "B T A"],
    timesteps: Float[Array, "B"],
    y: Float[Array, "B P"],
    guidance: Float[Array, "B"] | None = None,
    on_block: OnBlock = ignore,
    keep_qkv: bool = False,
    run_block: RunBlock = run,
) -> Float[Array, "B I O"]:
    """Predict the velocity of every image token: noise - image, as the flow's ODE needs it.

    img: packed latents at time t; txt: T5's output; y: CLIP's pooled output; timesteps in [0, 1], 1 for pure noise;
    guidance: the strength for guidance-distilled models (cfg.guidance_embed), about 1 to 10; on_block, keep_qkv,
    run_block: see `through_blocks`. Computed in the weights' dtype; the result has it too. Raises ValueError when
    guidance is missing, or given to a model without it. Source: BFL `flux/model.py`.
    """
    if cfg.guidance_embed != (guidance is not None):
        raise ValueError(f"this model takes {'a' if cfg.guidance_embed else 'no'} guidance strength")
    nx = backend_of(img, img_ids, txt, txt_ids, timesteps, y, guidance)
    ids = nx.concatenate([txt_ids, img_ids], axis=1)  # (B, T + I, A)
    pe = rope(ids, tuple(cfg.axes_dim), cfg.theta)
    vec = condition(p, timesteps, y, guidance)  # (B, D)
    mod = modulations(p, vec)
    return velocity(p, img, txt, mod, pe, on_block, keep_qkv, run_block)


@shaped
def velocity(
    p: Tree,
    img: Float[Array, "B I C"],
    txt: Float[Array, "B T E"],
    mod: Tree,
    pe: tuple,
    on_block: OnBlock = ignore,
    keep_qkv: bool = False,
    run_block: RunBlock = run,
    residuals: Residuals = NONE,
    bias: Array | None = None,
    blocks: Blocks | None = None,
) -> Float[Array, "B I O"]:
    """Run the blocks, given their modulations `mod` and the rotations `pe` (which are the same in every block).

    For the rest see `through_blocks`.
    """
    dtype = mod["final"].dtype
    img = linear(img.astype(dtype), **p["img_in"])  # (B, I, D)
    txt = linear(txt.astype(dtype), **p["txt_in"])  # (B, T, D)
    img = through_blocks(p, img, txt, mod, pe, on_block, keep_qkv, run_block, residuals, bias, blocks)
    return final_layer(p["final_layer"], img, mod["final"])


@shaped
def through_blocks(
    p: Tree,
    img: Float[Array, "B I D"],
    txt: Float[Array, "B T D"],
    mod: Tree,
    pe: tuple,
    on_block: OnBlock = ignore,
    keep_qkv: bool = False,
    run_block: RunBlock = run,
    residuals: Residuals = NONE,
    bias: Array | None = None,
    blocks: Blocks | None = None,
) -> Float[Array, "B I D"]:
    """Run both kinds of block on the streams, and return the image's.

    on_block: called after each block with its name and {"img", "txt", "mod"}: both streams and its modulations (see
    `hooks`). With keep_qkv there are "q", "k" and "v" too, normalised and rotated, of the joint sequence (B, H, T + I,
    K); they are then held until the block is done. run_block: how a block is run (see `hooks`). residuals: what
    ControlNets add to the image after a block, by its name (see `controlnet`). bias: what is added to the logits of
    every attention, broadcast to (B, H, T + I, T + I): -inf where a token is not to hear another one. blocks: the two
    kinds of block, FLUX.1's unless given.
    """
    nx, (double, single) = backend_of(img, txt), blocks or (double_block, single_block)
    for i, (block, block_mod) in enumerate(zip(p.get("double_blocks", ()), mod["double"], strict=True)):
        name, seen = f"double_blocks.{i}", {"mod": block_mod}
        img, txt = run_block(double, block, img, txt, block_mod, pe, seen if keep_qkv else None, bias)
        img = with_residuals(img, residuals.get(name, ()))
        on_block(name, {"img": img, "txt": txt, **seen})
    x = nx.concatenate([txt, img], axis=1)  # (B, T + I, D)
    for i, (block, block_mod) in enumerate(zip(p.get("single_blocks", ()), mod["single"], strict=True)):
        name, seen = f"single_blocks.{i}", {"mod": block_mod}
        x = run_block(single, block, x, block_mod, pe, seen if keep_qkv else None, bias)
        x = with_residuals(x, residuals.get(name, ()), first=txt.shape[1])
        txt, img = nx.split(x, [txt.shape[1]], axis=1)  # (B, T, D), (B, I, D)
        on_block(name, {"img": img, "txt": txt, **seen})
    return img


def with_residuals(x: Array, residuals: Sequence[Array], first: int = 0) -> Array:
    """Add each residual (B, R, D) to R of the tokens of x (B, L, D), from the token `first` on."""
    nx = backend_of(x)
    for residual in residuals:
        before, at, after = nx.split(x, [first, first + residual.shape[1]], axis=1)
        x = nx.concatenate([before, at + residual, after], axis=1)
    return x
