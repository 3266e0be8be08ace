"""A latent-diffusion U-Net, the road that FLUX.1 did not take: what Stable Diffusion 1 draws with.

A convolutional network on latents, NHWC here. On the way down each level keeps what it computed; on the way up the same
level takes it back, beside what comes from below. Time is added inside every residual block. Text is looked at from the
pixels, by cross-attention, on the coarser levels.

x -> conv -> down levels -> middle -> up levels, each with its own level's features -> norm, SiLU, conv

Sources: Ronneberger et al. 2015 (arXiv 1505.04597), Ho et al. 2020 (arXiv 2006.11239), Rombach et al. 2021 (arXiv
2112.10752); diffusers `unet_2d_condition.py`.
"""

from dataclasses import dataclass

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.attention import merge_heads, project_heads
from minflux.model.embeddings import timestep_embedding
from minflux.model.hooks import OnBlock, ignore
from minflux.model.linear import linear
from minflux.model.vae import conv3, norm_silu

EPS = 1e-5  # of norms, but for the one before attention, which has 1e-6


@dataclass(frozen=True)
class UNetConfig:
    """The sizes of a U-Net, under diffusers' names where they say what they mean.

    Level i has block_out_channels[i] channels, and attention if attends[i]; num_heads is what diffusers calls
    attention_head_dim. The defaults are Stable Diffusion 1.5's.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attends: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    num_heads: int = 8
    cross_attention_dim: int = 768
    norm_groups: int = 32


# -- the whole -------------------------------------------------------------------------------------------------


@shaped
def unet(
    p: Tree,
    cfg: UNetConfig,
    x: Float[Array, "B H W C"],
    timesteps: Float[Array, "B"],
    txt: Float[Array, "B T E"],
    on_block: OnBlock = ignore,
) -> Float[Array, "B H W O"]:
    """Predict the noise in latents, or whatever the network was trained to predict.

    x: latents of any height and width; timesteps: 0 to 999, 999 being the noisiest; txt: a text encoder's hidden
    states; on_block: called after each level with its name and {"img": (B, h, w, C)} (see `hooks`). Computed in the
    weights' dtype; the result has it too.
    """
    nx, dtype = backend_of(x, timesteps, txt), p["conv_in"]["weight"].dtype
    txt = txt.astype(dtype)
    vec = embed_time(p["time_embedding"], cfg, timesteps, dtype)
    x = conv3(p["conv_in"], x.astype(dtype))
    kept = [x]
    for i, level in enumerate(p["down_blocks"]):
        kept += down_level(level, cfg, kept[-1], vec, txt)
        on_block(f"down_blocks.{i}", {"img": kept[-1]})
    x = middle(p["mid_block"], cfg, kept[-1], vec, txt)
    on_block("mid_block", {"img": x})
    for i, level in enumerate(p["up_blocks"]):
        count = len(level["resnets"])
        own, kept = kept[-count:], kept[:-count]
        x = up_level(level, cfg, x, own, vec, txt)
        if kept:
            x = upsample_to(level["upsamplers"][0]["conv"], x, *kept[-1].shape[1:3])
        on_block(f"up_blocks.{i}", {"img": x})
    x = norm_silu(p["conv_norm_out"], x, cfg.norm_groups, EPS)
    return nx.conv2d(x, **p["conv_out"], padding=1)


@shaped
def embed_time(p: Tree, cfg: UNetConfig, timesteps: Float[Array, "B"], dtype) -> Float[Array, "B D"]:
    """Embed timesteps 0 to 999 by sinusoids, Linear, SiLU, Linear; and a last SiLU, which all residual blocks share."""
    nx = backend_of(timesteps)
    waves = timestep_embedding(timesteps, cfg.block_out_channels[0], time_factor=1.0)
    hidden = nx.silu(linear(waves.astype(dtype), **p["linear_1"]))  # (B, D)
    return nx.silu(linear(hidden, **p["linear_2"]))


# -- levels ----------------------------------------------------------------------------------------------------


def down_level(p: Tree, cfg: UNetConfig, x: Array, vec: Array, txt: Array) -> list[Array]:
    """Run a level on the way down: return what each of its layers gives, and last x at half the size if it halves."""
    found: list[Array] = []
    for i in range(len(p["resnets"])):
        x = layer(p, i, cfg, x, vec, txt)
        found.append(x)
    if "downsamplers" in p:
        found.append(backend_of(x).conv2d(x, **p["downsamplers"][0]["conv"], stride=2, padding=1))
    return found


@shaped
def middle(
    p: Tree, cfg: UNetConfig, x: Float[Array, "B H W C"], vec: Float[Array, "B D"], txt: Float[Array, "B T E"]
) -> Float[Array, "B H W C"]:
    """Apply a residual block, attention and a residual block, at the smallest size."""
    x = layer(p, 0, cfg, x, vec, txt)
    return resnet_block(p["resnets"][1], x, vec, cfg.norm_groups)


def up_level(p: Tree, cfg: UNetConfig, x: Array, kept: list[Array], vec: Array, txt: Array) -> Array:
    """Run a level on the way up: before each layer, put beside x what the level kept, the last first."""
    nx = backend_of(x)
    for i, features in enumerate(reversed(kept)):
        both = nx.concatenate([x, features], axis=-1)
        x = layer(p, i, cfg, both, vec, txt)
    return x


@shaped
def upsample_to(p: Tree, x: Float[Array, "B H W C"], height: int, width: int) -> Float[Array, "B H2 W2 O"]:
    """Double height and width, cut what an odd size has too much, and convolve."""
    twice = backend_of(x).upsample(x)
    return conv3(p, twice[:, :height, :width])


def layer(p: Tree, i: int, cfg: UNetConfig, x: Array, vec: Array, txt: Array) -> Array:
    """Apply a level's residual block `i`, and its attention `i` if the level has any."""
    x = resnet_block(p["resnets"][i], x, vec, cfg.norm_groups)
    return spatial_transformer(p["attentions"][i], cfg, x, txt) if "attentions" in p else x


# -- residual blocks -------------------------------------------------------------------------------------------


@shaped
def resnet_block(p: Tree, x: Float[Array, "B H W C"], vec: Float[Array, "B D"], groups: int) -> Float[Array, "B H W O"]:
    """Compute x + conv(silu(norm(conv(silu(norm(x))) + time))); a 1×1 convolution of x where the channels change."""
    h = norm_silu(p["norm1"], x, groups, EPS)
    h = conv3(p["conv1"], h)  # (B, H, W, O)
    time = linear(vec, **p["time_emb_proj"])  # (B, O)
    h = h + time[:, None, None]
    h = norm_silu(p["norm2"], h, groups, EPS)
    h = conv3(p["conv2"], h)
    return h + (linear(x, **p["conv_shortcut"]) if "conv_shortcut" in p else x)


# -- attention -------------------------------------------------------------------------------------------------


@shaped
def spatial_transformer(
    p: Tree, cfg: UNetConfig, x: Float[Array, "B H W C"], txt: Float[Array, "B T E"]
) -> Float[Array, "B H W C"]:
    """Let pixels attend to each other and to the text, as tokens: norm, Linear, a block, Linear, added to x."""
    nx = backend_of(x)
    batch, height, width, channels = x.shape
    h = nx.group_norm(x, cfg.norm_groups, p["norm"]["weight"], p["norm"]["bias"])
    h = h.reshape(batch, height * width, channels)  # a token a pixel
    h = linear(h, **p["proj_in"])
    for block in p["transformer_blocks"]:
        h = transformer_block(block, h, txt, channels // cfg.num_heads)
    h = linear(h, **p["proj_out"])
    return x + h.reshape(x.shape)


@shaped
def transformer_block(
    p: Tree, x: Float[Array, "B I D"], txt: Float[Array, "B T E"], head_dim: int
) -> Float[Array, "B I D"]:
    """Add self-attention, cross-attention to the text, and a gated MLP, each of the normed x."""
    h = layer_norm(p["norm1"], x)
    x = x + cross_attention(p["attn1"], h, h, head_dim)
    h = layer_norm(p["norm2"], x)
    x = x + cross_attention(p["attn2"], h, txt, head_dim)
    h = layer_norm(p["norm3"], x)
    return x + gated_mlp(p["ff"]["net"], h)


@shaped
def cross_attention(
    p: Tree, x: Float[Array, "B I D"], seen: Float[Array, "B T E"], head_dim: int
) -> Float[Array, "B I D"]:
    """Let each token of x attend to all of `seen`, which is x itself in self-attention."""
    q = project_heads(p["to_q"], x, head_dim)  # (B, H, I, K)
    k = project_heads(p["to_k"], seen, head_dim)  # (B, H, T, K)
    v = project_heads(p["to_v"], seen, head_dim)
    attended = merge_heads(backend_of(x).attention(q, k, v))  # (B, I, D)
    return linear(attended, **p["to_out"][0])


@shaped
def gated_mlp(p: Tree, x: Float[Array, "B I D"]) -> Float[Array, "B I D"]:
    """Apply Linear to twice 4 D, value · GELU(gate), Linear back (GEGLU: Shazeer 2020, arXiv 2002.05202)."""
    nx = backend_of(x)
    both = linear(x, **p["0"]["proj"])  # (B, I, 8 D)
    value, gate = nx.split(both, 2, axis=-1)
    return linear(value * nx.exact_gelu(gate), **p["2"])


def layer_norm(p: Tree, x: Array) -> Array:
    """Apply LayerNorm with a scale and a bias."""
    return backend_of(x).layer_norm(x, p["weight"], p["bias"], EPS)
