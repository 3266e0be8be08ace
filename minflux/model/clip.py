"""CLIP's text encoder: the whole prompt as one vector, `y`.

A plain causal transformer with learned positions. The state at the first end-of-text token has seen the whole prompt,
and stands for it. Source: Radford et al. 2021 (arXiv 2103.00020); transformers `modeling_clip.py`.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.model.attention import merge_heads, project_heads
from minflux.model.embeddings import embedding
from minflux.model.hooks import OnBlock, ignore
from minflux.model.linear import linear


@dataclass(frozen=True)
class CLIPConfig:
    """The sizes of a CLIP text encoder, under the names of its config.json. eos_token_id marks the end of the text.

    hidden_act: "quick_gelu" in OpenAI's CLIPs, "gelu" in OpenCLIP's, as the larger one of SD3 is. projection_dim: what
    the pooled output is projected to (see `projected_clip`), 0 where there is no projection, as in FLUX.1.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    hidden_act: str = "quick_gelu"
    projection_dim: int = 0


CLIP_L = CLIPConfig()
CLIP_G = CLIPConfig(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
    projection_dim=1280,
)  # fmt: skip


def quick_gelu(x: Array) -> Array:
    """Compute x · sigmoid(1.702 x), CLIP's stand-in for GELU."""
    nx = backend_of(x)
    return x * nx.sigmoid(1.702 * x)


ACTIVATIONS = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: backend_of(x).exact_gelu(x),
    "gelu_pytorch_tanh": lambda x: backend_of(x).gelu(x),
}


@runtime_checkable
class LayerConfig(Protocol):
    """What a layer must be told, of text in CLIP or of an image in SigLIP."""

    @property
    def num_attention_heads(self) -> int:
        """Heads of the attention."""

    @property
    def layer_norm_eps(self) -> float:
        """What is added to the variance in both norms."""

    @property
    def hidden_act(self) -> str:
        """Which of `ACTIVATIONS` the MLP has, by transformers' name."""


def causal_mask(like: Array, length: int) -> Array:
    """Make (1, 1, T, T) that is 0 where key <= query and a large negative number above: later tokens are unseen."""
    position = backend_of(like).arange(length)
    unseen = position[None, :] > position[:, None]  # key > query
    mask = unseen.astype(like.dtype) * -30000.0
    return mask[None, None]


@shaped
def self_attention(p: Tree, x: Float[Array, "B T D"], heads: int, mask: Array | None = None) -> Float[Array, "B T D"]:
    """Let each token attend to all that the mask lets it see; all four projections have biases."""
    nx = backend_of(x)
    head_dim = x.shape[-1] // heads
    q = project_heads(p["q_proj"], x, head_dim)  # (B, H, T, K)
    k = project_heads(p["k_proj"], x, head_dim)
    v = project_heads(p["v_proj"], x, head_dim)
    attended = nx.attention(q, k, v, bias=mask)
    attended = merge_heads(attended)  # (B, T, D)
    return linear(attended, **p["out_proj"])


@shaped
def clip_mlp(p: Tree, cfg: LayerConfig, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Apply Linear, the config's activation, Linear back."""
    hidden = linear(x, **p["fc1"])
    hidden = ACTIVATIONS[cfg.hidden_act](hidden)
    return linear(hidden, **p["fc2"])


@shaped
def clip_layer(p: Tree, cfg: LayerConfig, x: Float[Array, "B T D"], mask: Array | None = None) -> Float[Array, "B T D"]:
    """Add attention, then the MLP, each of the normed x."""
    h = layer_norm(p["layer_norm1"], cfg, x)
    x = x + self_attention(p["self_attn"], h, cfg.num_attention_heads, mask)
    h = layer_norm(p["layer_norm2"], cfg, x)
    return x + clip_mlp(p["mlp"], cfg, h)


def layer_norm(p: Tree, cfg: LayerConfig, x: Array) -> Array:
    """Apply LayerNorm with a scale and a bias."""
    nx = backend_of(x)
    return nx.layer_norm(x, p["weight"], p["bias"], cfg.layer_norm_eps)


@shaped
def clip_encoder(
    p: Tree, cfg: CLIPConfig, ids: Int[Array, "B T"], on_block: OnBlock = ignore
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """Encode token ids to (states, pooled): (B, T, D), and (B, D) at each row's first end-of-text token.

    on_block: called after each layer with its name and {"txt": (B, T, D)} (see `hooks`).
    """
    nx, p = backend_of(ids), p["text_model"]
    length = ids.shape[1]
    tokens = embedding(ids, p["embeddings"]["token_embedding"]["weight"])  # (B, T, D)
    positions = p["embeddings"]["position_embedding"]["weight"][:length]  # (T, D)
    x = tokens + positions
    mask = causal_mask(x, length)
    for i, layer in enumerate(p["encoder"]["layers"]):
        x = clip_layer(layer, cfg, x, mask)
        on_block(f"text_model.encoder.layers.{i}", {"txt": x})
    x = layer_norm(p["final_layer_norm"], cfg, x)
    ends = (ids == cfg.eos_token_id).astype(nx.int32)
    first_end = nx.argmax(ends, axis=1)  # (B,)
    return x, x[nx.arange(len(ids)), first_end]


@shaped
def projected_clip(
    p: Tree, cfg: CLIPConfig, ids: Int[Array, "B T"], on_block: OnBlock = ignore
) -> tuple[Float[Array, "B T D"], Float[Array, "B P"]]:
    """Encode token ids to (the states before the last layer, the pooled output projected), as SD3 reads a CLIP.

    on_block: see `clip_encoder`. Source: transformers' `CLIPTextModelWithProjection`.
    """
    states: list[Array] = []

    def keep(name: str, seen: dict) -> None:
        states.append(seen["txt"])
        on_block(name, seen)

    _, pooled = clip_encoder(p, cfg, ids, keep)
    return states[-2], linear(pooled, **p["text_projection"])
