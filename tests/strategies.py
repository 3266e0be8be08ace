"""Models of random, small sizes for Hypothesis to choose from; odd sizes find what powers of two hide."""

from hypothesis import strategies as st

from minflux.model.clip import CLIPConfig
from minflux.model.controlnet import ControlNetConfig
from minflux.model.decoder import DecoderConfig
from minflux.model.flux import FluxConfig
from minflux.model.flux2 import Flux2Config
from minflux.model.sd3 import SD3Config
from minflux.model.siglip import SiglipConfig
from minflux.model.t5 import T5Config
from minflux.model.unet import UNetConfig
from minflux.model.vae import Flux2VAEConfig, VAEConfig

batches = st.integers(1, 3)
tokens = st.integers(1, 9)


@st.composite
def flux_configs(draw, wide=False, **fixed) -> FluxConfig:
    """A transformer of 1 to 3 heads, each axis of RoPE 2 to 8 wide.

    Those that run whole in bfloat16 too are `wide`, 54 at least: a model six numbers wide is now and then
    wrong by more than 2% in bfloat16, PyTorch's own as much as ours.
    """
    axes = tuple(draw(st.sampled_from([6, 8, 12] if wide else [2, 4, 6, 8])) for _ in range(3))
    heads = draw(st.integers(*(3, 4) if wide else (1, 3)))
    sizes = {
        "in_channels": draw(st.sampled_from([4, 12, 16])),
        "out_channels": draw(st.sampled_from([4, 12])),
        "vec_in_dim": draw(st.integers(1, 9)),
        "context_in_dim": draw(st.integers(1, 9)),
        "hidden_size": heads * sum(axes),
        "num_heads": heads,
        "depth": draw(st.integers(1, 2)),
        "depth_single_blocks": draw(st.integers(1, 3)),
        "axes_dim": axes,
        "guidance_embed": draw(st.booleans()),
    }
    return FluxConfig(**sizes | fixed)


@st.composite
def flux2_configs(draw, **fixed) -> Flux2Config:
    """A FLUX.2 transformer of 3 or 4 heads, each of RoPE's four axes 4 to 8 wide (no narrower: see `flux_configs`)."""
    axes = tuple(draw(st.sampled_from([4, 6, 8])) for _ in range(4))
    heads = draw(st.integers(3, 4))
    sizes = {
        "in_channels": draw(st.sampled_from([4, 12, 16])),
        "out_channels": draw(st.sampled_from([4, 12])),
        "context_in_dim": draw(st.integers(1, 9)),
        "hidden_size": heads * sum(axes),
        "mlp_ratio": draw(st.sampled_from([1.5, 3.0])),
        "num_heads": heads,
        "depth": draw(st.integers(1, 2)),
        "depth_single_blocks": draw(st.integers(1, 3)),
        "axes_dim": axes,
        "guidance_embed": draw(st.booleans()),
    }
    return Flux2Config(**sizes | fixed)


@st.composite
def sd3_configs(draw, **fixed) -> SD3Config:
    """An SD3 transformer of 3 or 4 heads; diffusers' table of positions asks for widths divisible by 4.

    No narrower and no deeper: without QK-norm, two numbers a patch in three blocks are wrong by 2.1% in bfloat16.
    """
    heads = draw(st.integers(3, 4))
    sizes = {
        "in_channels": draw(st.integers(4, 6)),
        "out_channels": draw(st.integers(3, 6)),
        "vec_in_dim": draw(st.integers(1, 9)),
        "context_in_dim": draw(st.integers(4, 9)),
        "hidden_size": heads * draw(st.sampled_from([20, 24])),
        "num_heads": heads,
        "depth": draw(st.integers(1, 2)),
        "pos_embed_max_size": draw(st.integers(5, 8)),
    }
    return SD3Config(**sizes | fixed)


@st.composite
def controlnet_configs(draw, kind: str, **fixed) -> ControlNetConfig:
    """A ControlNet of one of the families "latents" (InstantX's), "union" or "pixels" (XLabs')."""
    sizes = vars(draw(flux_configs(wide=True, depth=draw(st.integers(1, 2)), **fixed)))
    own = {"out_channels": 64, "depth_single_blocks": draw(st.integers(0, 2))}
    if kind == "pixels":
        own |= {"hint_channels": sizes["in_channels"] // 4, "depth_single_blocks": 0}
    if kind == "union":
        own |= {"modes": draw(st.integers(2, 5))}
    return ControlNetConfig(**sizes | own)


@st.composite
def vae_configs(draw) -> VAEConfig:
    """An autoencoder of 1 to 3 levels and groups, 4 channels a group (why no fewer: see `flux_configs`)."""
    groups = draw(st.integers(1, 3))
    return VAEConfig(
        ch=groups * (draw(st.integers(12, 16)) // groups),
        ch_mult=tuple(draw(st.lists(st.integers(1, 2), min_size=0, max_size=2).map(lambda rest: [1, *rest]))),
        num_res_blocks=draw(st.integers(1, 2)),
        z_channels=draw(st.integers(3, 5)),
        scale_factor=draw(st.sampled_from([0.3611, 1.7])),
        shift_factor=draw(st.sampled_from([0.1159, -0.4])),
        norm_groups=groups,
        quant_conv=draw(st.booleans()),
    )


@st.composite
def flux2_vae_configs(draw) -> Flux2VAEConfig:
    """FLUX.2's autoencoder in sizes of `vae_configs`, with a decoder of other widths or not."""
    shared = ("ch", "ch_mult", "num_res_blocks", "z_channels", "norm_groups")
    sizes = {name: value for name, value in vars(draw(vae_configs())).items() if name in shared}
    first = sizes["norm_groups"] * draw(st.integers(4, 5))
    own = tuple(sorted(first * mult for mult in sizes["ch_mult"])) if draw(st.booleans()) else ()
    return Flux2VAEConfig(**sizes, batch_norm_eps=draw(st.sampled_from([1e-4, 0.3])), decoder_widths=own)


@st.composite
def unet_configs(draw, wide=False) -> UNetConfig:
    """A U-Net of 1 to 3 levels; each level's channels are an even multiple of groups and heads, 12 at least.

    Those that run whole in bfloat16 too are `wide`, 32 at least, with 4 channels out: the worst of 80 random ones of 12
    to 20 channels was wrong by 2.7%, of 60 of 32 to 48 by 1.6%; and a single channel of four pixels once by 2.03%.
    """
    groups, heads = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    levels, unit, least = draw(st.integers(1, 3)), 2 * groups * heads, 32 if wide else 12
    return UNetConfig(
        in_channels=draw(st.integers(1, 5)),
        out_channels=draw(st.integers(4 if wide else 1, 5)),
        block_out_channels=tuple(
            unit * draw(st.integers(-(-least // unit), -(-(least + 6) // unit))) for _ in range(levels)
        ),
        attends=tuple(draw(st.booleans()) for _ in range(levels)),
        layers_per_block=draw(st.integers(1, 2)),
        num_heads=heads,
        cross_attention_dim=draw(st.integers(3, 9)),
        norm_groups=groups,
    )


@st.composite
def t5_configs(draw) -> T5Config:
    """A T5 encoder; d_kv · heads need not be d_model. Few buckets, so that a short text meets the far ones.

    No narrower, for the sake of the bfloat16 trials: RMSNorm of three numbers is wrong by 4% in bfloat16, and
    PyTorch's own as much as ours.
    """
    return T5Config(
        vocab_size=draw(st.integers(20, 50)),
        d_model=draw(st.integers(16, 25)),
        d_kv=draw(st.integers(3, 8)),
        d_ff=draw(st.integers(9, 33)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=draw(st.integers(1, 3)),
        relative_attention_num_buckets=draw(st.sampled_from([8, 32])),
        relative_attention_max_distance=draw(st.sampled_from([20, 128])),
    )


@st.composite
def clip_configs(draw) -> CLIPConfig:
    """A CLIP text encoder; the end-of-text token is the last of the vocabulary, as in CLIP-L.

    No narrower, as in `t5_configs`: four numbers a token in two layers are wrong by 2.1% in bfloat16.
    """
    heads, vocab = draw(st.integers(1, 3)), draw(st.integers(20, 50))
    return CLIPConfig(
        vocab_size=vocab,
        hidden_size=heads * draw(st.integers(8, 11)),
        intermediate_size=draw(st.integers(9, 33)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        max_position_embeddings=draw(st.integers(9, 20)),
        eos_token_id=vocab - 1,
    )


@st.composite
def siglip_configs(draw) -> SiglipConfig:
    """A vision encoder whose patches may leave some pixels out (no narrower: see `t5_configs`)."""
    heads, patch = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return SiglipConfig(
        hidden_size=heads * draw(st.integers(8, 11)),
        intermediate_size=draw(st.integers(9, 33)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        image_size=draw(st.integers(patch, 17)),
        patch_size=patch,
    )


@st.composite
def decoder_configs(draw, kind: type[DecoderConfig]) -> DecoderConfig:
    """A Qwen3 or a Mistral; heads · head_dim need not be hidden_size (no narrower: see `t5_configs`)."""
    groups = draw(st.integers(1, 2))
    return kind(
        vocab_size=draw(st.integers(20, 50)),
        hidden_size=draw(st.integers(16, 25)),
        intermediate_size=draw(st.integers(9, 33)),
        num_hidden_layers=draw(st.integers(4, 5)),
        num_attention_heads=groups * draw(st.integers(1, 3)),
        num_key_value_heads=groups,
        head_dim=draw(st.sampled_from([16, 18, 20])),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope_theta=draw(st.sampled_from([1e4, 1e6, 1e9])),
    )
