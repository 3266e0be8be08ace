"""A decoder language model, read as a text encoder: what FLUX.2 takes its text from, Qwen3 or Mistral.

Each token sees itself and those before it, and the model was trained to say the next one; FLUX.2 asks it for no word,
but takes the states between its layers, several of them side by side. A layer is attention and a gated MLP, as in T5;
queries share keys and values in groups, and a token's place turns its queries and keys (RoPE), as in FLUX itself.
Sources: Qwen3 (arXiv 2505.09388), Mistral (arXiv 2310.06825); transformers `modeling_qwen3.py`, `modeling_mistral.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.errors import ArgumentError
from minflux.model.attention import merge_heads, project_heads
from minflux.model.embeddings import embedding
from minflux.model.hooks import OnBlock, ignore
from minflux.model.linear import linear
from minflux.model.rope import apply_rope, rope


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The sizes of a decoder language model, under the names of its config.json. head_dim is the width of a head.

    num_key_value_heads: heads of keys and values, each shared by as many heads of queries. qk_norm: whether each head's
    queries and keys are normalised, which the kind of model says.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    qk_norm: ClassVar[bool]

    @property
    def state_layers(self) -> tuple[int, int, int]:
        """After how many layers FLUX.2 takes the states: after a quarter, a half and three quarters of them.

        So it is for Qwen3, 9, 18 and 27 of 36, and for Mistral, 10, 20 and 30 of 40. The layers after these need not be
        run, nor read.
        """
        quarter, half, most = (quarters * self.num_hidden_layers // 4 for quarters in (1, 2, 3))
        return quarter, half, most

    @property
    def text_width(self) -> int:
        """The width of what FLUX.2 takes: of all the states of a token, side by side."""
        return len(self.state_layers) * self.hidden_size


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(DecoderConfig):
    """The sizes of a Qwen3, those of Qwen3-4B unless told otherwise."""

    vocab_size: int = 151936
    hidden_size: int = 2560
    intermediate_size: int = 9728
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    qk_norm: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """The sizes of a Mistral, those of the text part of Mistral-Small-3 unless told otherwise."""

    vocab_size: int = 131072
    hidden_size: int = 5120
    intermediate_size: int = 32768
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e9
    qk_norm: ClassVar[bool] = False


QWEN3_4B = Qwen3Config()
QWEN3_8B = Qwen3Config(hidden_size=4096, intermediate_size=12288)
MISTRAL_SMALL = MistralConfig()


# -- what a token sees -----------------------------------------------------------------------------------------


@shaped
def visible(mask: Int[Array, "B T"]) -> Float[Array, "B 1 T T"]:
    """Return 1 where a token (a row) sees another (a column), 0 elsewhere: itself and those before it, no padding.

    mask: 1 for a token, 0 for padding, on whichever side.
    """
    nx = backend_of(mask)
    position = nx.arange(mask.shape[1])
    is_past = position[None, :] <= position[:, None]  # key <= query, (T, T)
    return (is_past * mask[:, None]).astype(nx.float32)[:, None]


@shaped
def positions(ids: Int[Array, "B T"], cfg: DecoderConfig) -> tuple[Array, Array]:
    """Make `pe`, the rotation of every place in the text: 0, 1, 2, …, padding counted too."""
    place = backend_of(ids).arange(ids.shape[1])
    return rope(place[None, :, None], (cfg.head_dim,), cfg.rope_theta)


# -- a layer ---------------------------------------------------------------------------------------------------


@shaped
def as_neighbours(x: Float[Array, "B H T K"]) -> Float[Array, "B H T K"]:
    """Put the pairs (x₀, x_{K/2}), (x₁, x_{K/2+1}), … side by side, as `rotate` turns them.

    These models turn a number together with the one half a head away. Where queries and keys are both put in another
    order, their products stay the same, and nothing else looks at them.
    """
    halves = x.reshape(*x.shape[:-1], 2, -1)  # (B, H, T, 2, K/2)
    return halves.swapaxes(-1, -2).reshape(x.shape)


@shaped
def shared_among(x: Float[Array, "B G T K"], heads: int) -> Float[Array, "B H T K"]:
    """Repeat each head of keys or values for the group of queries that shares it (Ainslie et al. 2023, 2305.13245)."""
    batch, groups, length, width = x.shape
    repeated = backend_of(x).broadcast_to(x[:, :, None], (batch, groups, heads // groups, length, width))
    return repeated.reshape(batch, heads, length, width)


@shaped
def self_attention(
    p: Tree, cfg: DecoderConfig, x: Float[Array, "B T D"], pe: tuple, seen: Float[Array, "B 1 T T"]
) -> Float[Array, "B T D"]:
    """Let each token attend to those that it sees; one that sees none, padding in front of a text, gets zeros."""
    nx, heads = backend_of(x), cfg.num_attention_heads
    q = project_heads(p["q_proj"], x, cfg.head_dim)  # (B, H, T, K)
    k = project_heads(p["k_proj"], x, cfg.head_dim)  # (B, G, T, K), G heads of keys and values
    v = project_heads(p["v_proj"], x, cfg.head_dim)
    if cfg.qk_norm:
        q, k = norm(p["q_norm"], cfg, q), norm(p["k_norm"], cfg, k)
    q, k = apply_rope(as_neighbours(q), pe), apply_rope(as_neighbours(k), pe)
    k, v = shared_among(k, heads), shared_among(v, heads)
    unseen = (seen - 1) * 30000.0  # 0 where a token sees another
    attended = nx.attention(q, k, v, bias=unseen.astype(x.dtype))
    sees_any = nx.max(seen, axis=-1, keepdims=True)  # (B, 1, T, 1)
    attended = merge_heads(attended * sees_any.astype(x.dtype))  # (B, T, H·K)
    return linear(attended, **p["o_proj"])


@shaped
def gated_mlp(p: Tree, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Compute down(silu(gate x) · up x), SwiGLU (Shazeer 2020, arXiv 2002.05202)."""
    gate = linear(x, **p["gate_proj"])  # (B, T, intermediate_size)
    gate = backend_of(x).silu(gate)
    hidden = gate * linear(x, **p["up_proj"])
    return linear(hidden, **p["down_proj"])


@shaped
def decoder_layer(
    p: Tree, cfg: DecoderConfig, x: Float[Array, "B T D"], pe: tuple, seen: Float[Array, "B 1 T T"]
) -> Float[Array, "B T D"]:
    """Add self-attention, then the gated MLP, each of the normed x."""
    h = norm(p["input_layernorm"], cfg, x)
    x = x + self_attention(p["self_attn"], cfg, h, pe, seen)
    h = norm(p["post_attention_layernorm"], cfg, x)
    return x + gated_mlp(p["mlp"], h)


def norm(p: Tree, cfg: DecoderConfig, x: Array) -> Array:
    """Apply RMSNorm, which the files call a layer norm."""
    return backend_of(x).rms_norm(x, p["weight"], cfg.rms_norm_eps)


# -- the model -------------------------------------------------------------------------------------------------


@shaped
def decoder_hidden_states(
    p: Tree,
    cfg: DecoderConfig,
    ids: Int[Array, "B T"],
    mask: Int[Array, "B T"],
    layers: Sequence[int],
    on_block: OnBlock = ignore,
) -> Float[Array, "B T E"]:
    """Return the states of each token after so many layers, side by side: (B, T) -> (B, T, len(layers) · D).

    mask: 1 for a token, 0 for padding. layers: after how many layers each is taken, 0 for the embeddings; no more
    layers are run than the largest says. FLUX.2's are `cfg.state_layers`. The state after the last layer can't be had,
    for a norm comes after that one. on_block: called after each layer with its name and {"txt": (B, T, D)} (see
    `hooks`).

    Raises `ArgumentError` for layers that the model hasn't, or whose weights were not read.
    """
    p = p["model"]
    last = most_layers(layers, min(cfg.num_hidden_layers - 1, len(p["layers"])))
    seen, pe = visible(mask), positions(ids, cfg)
    x = embedding(ids, p["embed_tokens"]["weight"])  # (B, T, D)
    states = {0: x}
    for i, layer in zip(range(last), p["layers"], strict=False):
        x = decoder_layer(layer, cfg, x, pe, seen)
        on_block(f"model.layers.{i}", {"txt": x})
        if i + 1 in layers:
            states[i + 1] = x
    return backend_of(x).concatenate([states[count] for count in layers], axis=-1)


def most_layers(layers: Sequence[int], most: int) -> int:
    """Return the largest of the numbers of layers; raises `ArgumentError` for any that is not from 0 to `most`."""
    if not layers or not all(0 <= count <= most for count in layers):
        raise ArgumentError(f"layers: expected numbers from 0 to {most}, got {list(layers)}")
    return max(layers)
