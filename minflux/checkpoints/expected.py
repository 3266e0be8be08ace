"""Every weight a model has, and its shape, worked out from the config.

Names and layout are those of our trees: BFL's names for the transformer and the autoencoder, Hugging Face's
for the text encoders; linear maps (out, in); convolution kernels (out, kh, kw, in), 1×1 ones plain (out, in)
matrices. Two uses: to check a file before it is used, and to make the weights of a model to be trained.
"""

from minflux.model.clip import CLIPConfig
from minflux.model.flux import TIME_DIM, FluxConfig
from minflux.model.t5 import T5Config
from minflux.model.vae import VAEConfig

Shapes = dict[str, tuple[int, ...]]


def under(prefix: str, *parts: Shapes) -> Shapes:
    """Put `prefix` and a dot before every name of the parts, and join them.

    >>> under("a", {"weight": (2, 3)}, {"bias": (2,)})
    {'a.weight': (2, 3), 'a.bias': (2,)}
    """
    return {f"{prefix}.{name}": shape for part in parts for name, shape in part.items()}


def linear_shapes(outputs: int, inputs: int, bias: bool = True) -> Shapes:
    """A linear map: weight (out, in), and a bias unless told otherwise."""
    return {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if bias else {})


def norm_shapes(width: int, bias: bool = True) -> Shapes:
    """A norm's weight and bias."""
    shapes: Shapes = {"weight": (width,), "bias": (width,)}
    return shapes if bias else {"weight": (width,)}


# -- the transformer -----------------------------------------------------------------------------------------


def qk_norm_shapes(cfg: FluxConfig) -> Shapes:
    """The scales of a block's query and key norms, one number for each of a head's dimensions."""
    width = cfg.hidden_size // cfg.num_heads
    return {"norm.query_norm.scale": (width,), "norm.key_norm.scale": (width,)}


def stream_shapes(cfg: FluxConfig, stream: str) -> Shapes:
    """One stream ("img" or "txt") of a double block."""
    d, hidden = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio)
    return (
        under(f"{stream}_mod.lin", linear_shapes(6 * d, d))
        | under(f"{stream}_attn.qkv", linear_shapes(3 * d, d, cfg.qkv_bias))
        | under(f"{stream}_attn", qk_norm_shapes(cfg))
        | under(f"{stream}_attn.proj", linear_shapes(d, d))
        | under(f"{stream}_mlp.0", linear_shapes(hidden, d))
        | under(f"{stream}_mlp.2", linear_shapes(d, hidden))
    )


def single_block_shapes(cfg: FluxConfig) -> Shapes:
    """A single-stream block: linear1 makes q, k, v and the MLP's hidden layer, linear2 joins the two."""
    d, hidden = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio)
    return (
        under("modulation.lin", linear_shapes(3 * d, d))
        | under("linear1", linear_shapes(3 * d + hidden, d))
        | qk_norm_shapes(cfg)
        | under("linear2", linear_shapes(d, d + hidden))
    )


def embedder_shapes(outputs: int, inputs: int) -> Shapes:
    """The two layers that bring a vector into the model's width."""
    return under("in_layer", linear_shapes(outputs, inputs)) | under("out_layer", linear_shapes(outputs, outputs))


def flux_shapes(cfg: FluxConfig) -> Shapes:
    """Name every weight of the transformer: 780 for FLUX.1-dev. Source: BFL `flux/model.py`."""
    d = cfg.hidden_size
    shapes = (
        under("img_in", linear_shapes(d, cfg.in_channels))
        | under("txt_in", linear_shapes(d, cfg.context_in_dim))
        | under("time_in", embedder_shapes(d, TIME_DIM))
        | under("vector_in", embedder_shapes(d, cfg.vec_in_dim))
    )
    if cfg.guidance_embed:
        shapes |= under("guidance_in", embedder_shapes(d, TIME_DIM))
    for i in range(cfg.depth):
        shapes |= under(f"double_blocks.{i}", stream_shapes(cfg, "img"), stream_shapes(cfg, "txt"))
    for i in range(cfg.depth_single_blocks):
        shapes |= under(f"single_blocks.{i}", single_block_shapes(cfg))
    shapes |= under("final_layer.adaLN_modulation.1", linear_shapes(2 * d, d))
    return shapes | under("final_layer.linear", linear_shapes(cfg.out_channels, d))


# -- the autoencoder -----------------------------------------------------------------------------------------


def conv_shapes(outputs: int, inputs: int) -> Shapes:
    """A 3×3 convolution."""
    return {"weight": (outputs, 3, 3, inputs), "bias": (outputs,)}


def resnet_shapes(outputs: int, inputs: int) -> Shapes:
    """A residual block; it has a shortcut where the number of channels changes."""
    shapes = (
        under("norm1", norm_shapes(inputs))
        | under("conv1", conv_shapes(outputs, inputs))
        | under("norm2", norm_shapes(outputs))
        | under("conv2", conv_shapes(outputs, outputs))
    )
    return shapes | (under("nin_shortcut", linear_shapes(outputs, inputs)) if inputs != outputs else {})


def middle_shapes(channels: int) -> Shapes:
    """Residual block, attention, residual block."""
    attention = under("norm", norm_shapes(channels))
    for name in ("q", "k", "v", "proj_out"):
        attention |= under(name, linear_shapes(channels, channels))
    block = resnet_shapes(channels, channels)
    return under("block_1", block) | under("attn_1", attention) | under("block_2", block)


def level_shapes(outputs: int, inputs: int, blocks: int, resize: str | None) -> Shapes:
    """A level of residual blocks, the first changing the channels; `resize` names the step to the next."""
    shapes: Shapes = {}
    for j in range(blocks):
        shapes |= under(f"block.{j}", resnet_shapes(outputs, inputs if j == 0 else outputs))
    return shapes | (under(f"{resize}.conv", conv_shapes(outputs, outputs)) if resize else {})


def encoder_shapes(cfg: VAEConfig) -> Shapes:
    """Picture to mean and log-variance: levels from fine to coarse, then the middle."""
    shapes, width = under("conv_in", conv_shapes(cfg.ch, cfg.in_channels)), cfg.ch
    for i, mult in enumerate(cfg.ch_mult):
        resize = "downsample" if i < len(cfg.ch_mult) - 1 else None
        shapes |= under(f"down.{i}", level_shapes(cfg.ch * mult, width, cfg.num_res_blocks, resize))
        width = cfg.ch * mult
    shapes |= under("mid", middle_shapes(width)) | under("norm_out", norm_shapes(width))
    return shapes | under("conv_out", conv_shapes(2 * cfg.z_channels, width))


def decoder_shapes(cfg: VAEConfig) -> Shapes:
    """Latents to picture: the middle, then levels from coarse to fine (up.0), one block more each."""
    width = cfg.ch * cfg.ch_mult[-1]
    shapes = under("conv_in", conv_shapes(width, cfg.z_channels)) | under("mid", middle_shapes(width))
    for i, mult in reversed(list(enumerate(cfg.ch_mult))):
        resize = "upsample" if i > 0 else None
        shapes |= under(f"up.{i}", level_shapes(cfg.ch * mult, width, cfg.num_res_blocks + 1, resize))
        width = cfg.ch * mult
    shapes |= under("norm_out", norm_shapes(width))
    return shapes | under("conv_out", conv_shapes(cfg.out_ch, width))


def vae_shapes(cfg: VAEConfig) -> Shapes:
    """Name every weight of the autoencoder: 244 for FLUX.1's. Source: BFL `flux/modules/autoencoder.py`."""
    return under("encoder", encoder_shapes(cfg)) | under("decoder", decoder_shapes(cfg))


# -- the text encoders ---------------------------------------------------------------------------------------


def t5_block_shapes(cfg: T5Config) -> Shapes:
    """A T5 block: attention, then gated MLP; nothing in it has a bias."""
    d, inner = cfg.d_model, cfg.num_heads * cfg.d_kv
    shapes = under("layer.0.SelfAttention.o", linear_shapes(d, inner, bias=False))
    for name in "qkv":
        shapes |= under(f"layer.0.SelfAttention.{name}", linear_shapes(inner, d, bias=False))
    for name in ("wi_0", "wi_1"):
        shapes |= under(f"layer.1.DenseReluDense.{name}", linear_shapes(cfg.d_ff, d, bias=False))
    shapes |= under("layer.1.DenseReluDense.wo", linear_shapes(d, cfg.d_ff, bias=False))
    return (
        shapes
        | under("layer.0.layer_norm", norm_shapes(d, bias=False))
        | under("layer.1.layer_norm", norm_shapes(d, bias=False))
    )


def t5_shapes(cfg: T5Config) -> Shapes:
    """Name every weight of the T5 encoder; the table of position biases lies in the first block."""
    shapes: Shapes = {"shared.weight": (cfg.vocab_size, cfg.d_model)}
    for i in range(cfg.num_layers):
        shapes |= under(f"encoder.block.{i}", t5_block_shapes(cfg))
    table = (cfg.relative_attention_num_buckets, cfg.num_heads)
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = table
    return shapes | under("encoder.final_layer_norm", norm_shapes(cfg.d_model, bias=False))


def clip_layer_shapes(cfg: CLIPConfig) -> Shapes:
    """A CLIP layer: attention with a bias on every projection, and an MLP."""
    d = cfg.hidden_size
    shapes = under("layer_norm1", norm_shapes(d)) | under("layer_norm2", norm_shapes(d))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= under(f"self_attn.{name}", linear_shapes(d, d))
    shapes |= under("mlp.fc1", linear_shapes(cfg.intermediate_size, d))
    return shapes | under("mlp.fc2", linear_shapes(d, cfg.intermediate_size))


def clip_shapes(cfg: CLIPConfig) -> Shapes:
    """Name every weight of the CLIP text encoder."""
    d = cfg.hidden_size
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (cfg.vocab_size, d),
        "embeddings.position_embedding.weight": (cfg.max_position_embeddings, d),
    }
    for i in range(cfg.num_hidden_layers):
        shapes |= under(f"encoder.layers.{i}", clip_layer_shapes(cfg))
    return under("text_model", shapes, under("final_layer_norm", norm_shapes(d)))
