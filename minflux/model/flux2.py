"""FLUX.2's transformer: FLUX.1's two kinds of block, and around them less that is a block's own.

    embed img, txt, and (t, guidance) -> modulations for all blocks -> double blocks -> single blocks -> final layer

What differs from `flux`: all blocks of a kind have one modulation, where in FLUX.1 each makes its own of `vec`; `vec`
knows no pooled text; MLPs are gated, SwiGLU in GELU's place; no matrix has a bias; positions have a fourth axis, a
token's place in the text, and the first one's steps are 10 from reference to reference. Sources: BFL
`flux2/model.py`; diffusers `transformer_flux2.py`; SwiGLU is due to Shazeer 2020 (arXiv 2002.05202).
"""

from dataclasses import dataclass

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.model import blocks, latents
from minflux.model.embeddings import mlp_embedder, timestep_embedding
from minflux.model.flux import TIME_DIM, velocity
from minflux.model.hooks import OnBlock, RunBlock, ignore, run
from minflux.model.modulation import modulation
from minflux.model.rope import rope

REFERENCE_STEP = 10  # from one reference to the next, on the first axis; text and image stand at 0
SHARED = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")


@dataclass(frozen=True)
class Flux2Config:
    """The sizes of a FLUX.2 transformer, under FLUX.1's names for them; unless told otherwise klein's of 4 B.

    in_channels is a token's length, 32 latent channels × 2×2 patch. An MLP is hidden_size · mlp_ratio wide, and its
    first matrix gives twice as many, half of them gates.
    """

    in_channels: int = 128
    out_channels: int = 128
    context_in_dim: int = 7680
    hidden_size: int = 3072
    mlp_ratio: float = 3.0
    num_heads: int = 24
    depth: int = 5
    depth_single_blocks: int = 20
    axes_dim: tuple[int, ...] = (32, 32, 32, 32)
    theta: int = 2000
    guidance_embed: bool = False

    @property
    def head_dim(self) -> int:
        """The width of a head."""
        return self.hidden_size // self.num_heads


KLEIN_4B = Flux2Config()
KLEIN_9B = Flux2Config(context_in_dim=12288, hidden_size=4096, num_heads=32, depth=8, depth_single_blocks=24)
FLUX2_DEV = Flux2Config(
    context_in_dim=15360, hidden_size=6144, num_heads=48, depth=8, depth_single_blocks=48, guidance_embed=True
)
FLUX2_PRESETS = {"klein 4B": KLEIN_4B, "klein 9B": KLEIN_9B, "dev": FLUX2_DEV}


# -- positions -----------------------------------------------------------------------------------------------


def image_ids(like: Array, height: int, width: int, reference: int = 0) -> Array:
    """Number the tokens of height × width latents: (B, I, 4) int32 rows of (reference, row, column, 0).

    `like` is any array (B, ...) of the wanted backend; only its batch size is used.
    """
    ids = latents.image_ids(like, height, width, (reference, 0, 0))  # (B, I, 3)
    return backend_of(like).pad(ids, ((0, 0), (0, 0), (0, 1)))


def text_ids(txt: Array) -> Array:
    """Number the text tokens: (B, T, 4) int32 rows of (0, 0, 0, place)."""
    batch, length, _ = txt.shape
    nx = backend_of(txt)
    place = nx.arange(length, dtype=nx.int32)[None, :, None]  # (1, T, 1)
    ids = nx.pad(place, ((0, 0), (0, 0), (3, 0)))  # (1, T, 4)
    return nx.broadcast_to(ids, (batch, length, 4))


# -- time ----------------------------------------------------------------------------------------------------


@shaped
def condition(p: Tree, timesteps: Float[Array, "B"], guidance: Float[Array, "B"] | None = None) -> Float[Array, "B D"]:
    """Make `vec`, all that steers the blocks: time + (guidance), each through its own MLP."""
    dtype = p["time_in"]["in_layer"]["weight"].dtype
    time = timestep_embedding(timesteps, TIME_DIM)
    vec = mlp_embedder(p["time_in"], time.astype(dtype))
    if guidance is not None:
        strength = timestep_embedding(guidance, TIME_DIM)
        vec = vec + mlp_embedder(p["guidance_in"], strength.astype(dtype))
    return vec


@shaped
def modulations(p: Tree, vec: Float[Array, "B D"], on_block: OnBlock = ignore) -> Tree:
    """Compute the modulations from `vec`: one that all double blocks share, one that all single blocks do, the final.

    Returns {"double": [{"img", "txt"}, …], "single": […], "final": …} as `modulation.modulations` does, with the same
    arrays for each block. on_block: called with {"mod": …} after each of the four products.
    """
    img, txt, single = (shared_modulation(p, name, vec, on_block) for name in SHARED)
    final = modulation(p["final_layer"]["adaLN_modulation"], vec)
    on_block("final_layer", {"mod": final})
    double = [{"img": img, "txt": txt}] * len(p.get("double_blocks", ()))
    return {"double": double, "single": [single] * len(p.get("single_blocks", ())), "final": final}


def shared_modulation(p: Tree, name: str, vec: Array, on_block: OnBlock) -> Array:
    """Compute the modulation called `name`, and tell `on_block`."""
    mod = modulation(p[name], vec)
    on_block(name, {"mod": mod})
    return mod


# -- blocks --------------------------------------------------------------------------------------------------


@shaped
def swiglu(x: Float[Array, "B L C"]) -> Float[Array, "B L M"]:
    """Compute silu(gate) · value of the two halves of the channels: (B, L, 2 M) -> (B, L, M)."""
    nx = backend_of(x)
    gate, value = nx.split(x, 2, axis=-1)
    return nx.silu(gate) * value


@shaped
def double_block(
    p: Tree, img: Float[Array, "B I D"], txt: Float[Array, "B T D"], mod: Tree, pe: tuple, seen=None, bias=None
) -> tuple[Float[Array, "B I D"], Float[Array, "B T D"]]:
    """Run FLUX.1's double-stream block with SwiGLU in its MLPs, (img, txt) -> (img, txt); see `blocks.double_block`."""
    return blocks.double_block(p, img, txt, mod, pe, seen, bias, activate=swiglu)


@shaped
def single_block(
    p: Tree, x: Float[Array, "B L D"], mod: Float[Array, "B O"], pe: tuple, seen=None, bias=None
) -> Float[Array, "B L D"]:
    """Run FLUX.1's single-stream block with SwiGLU; see `blocks.single_block`.

    linear1 gives (q, k, v, gate, value) of widths D, D, D, 3 D and 3 D; linear2 takes 4 D.
    """
    return blocks.single_block(p, x, mod, pe, seen, bias, activate=swiglu)


BLOCKS = double_block, single_block


# -- the whole -----------------------------------------------------------------------------------------------


@shaped
def flux2(
    p: Tree,
    cfg: Flux2Config,
    img: Float[Array, "B I C"],
    img_ids: Int[Array, "B I A"],
    txt: Float[Array, "B T E"],
    txt_ids: Int[Array, "B T A"],
    timesteps: Float[Array, "B"],
    guidance: Float[Array, "B"] | None = None,
    on_block: OnBlock = ignore,
    keep_qkv: bool = False,
    run_block: RunBlock = run,
) -> Float[Array, "B I O"]:
    """Predict the velocity of every image token: noise - image, as the flow's ODE needs it.

    img: packed latents at time t, and those of references after them; txt: states of a language model's layers side by
    side; timesteps in [0, 1], 1 for pure noise; guidance: the strength for guidance-distilled models
    (cfg.guidance_embed); the rest: see `flux.through_blocks`. Computed in the weights' dtype; the result has it too.
    Raises ValueError when guidance is missing, or given to a model without it. Source: diffusers
    `transformer_flux2.py`.
    """
    if cfg.guidance_embed != (guidance is not None):
        raise ValueError(f"this model takes {'a' if cfg.guidance_embed else 'no'} guidance strength")
    nx = backend_of(img, img_ids, txt, txt_ids, timesteps, guidance)
    ids = nx.concatenate([txt_ids, img_ids], axis=1)  # (B, T + I, 4)
    pe = rope(ids, tuple(cfg.axes_dim), cfg.theta)
    mod = modulations(p, condition(p, timesteps, guidance))
    return velocity(p, img, txt, mod, pe, on_block, keep_qkv, run_block, blocks=BLOCKS)
