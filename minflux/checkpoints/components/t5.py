"""FLUX.1's T5 encoder in files: everybody calls its weights as transformers does. Source: `modeling_t5.py`."""

import re
from dataclasses import asdict, fields

from minflux.checkpoints.components.base import Component, Flat, Json, Naming, Sharing, require, take
from minflux.checkpoints.components.renaming import Rules, backwards, rename, renamed
from minflux.checkpoints.components.shapes import Shapes, Sizes, linear_shapes, norm_shapes, under
from minflux.model.t5 import T5Config

TABLE = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


AGAIN = re.compile(r"t5_blocks\.[1-9]\d*\.attention\.SelfAttention\.relative_attention_bias\.")  # mflux's copies


def alias(name: str) -> str | None:
    """Return the standard name of a weight: some files hold the token table, and its scale, under a second name.

    mflux copies the table of position biases into every block; the first is used.
    """
    if AGAIN.match(name):
        return None
    return name.replace("encoder.embed_tokens.", "shared.", 1) if name.startswith("encoder.embed_tokens.") else name


# (llama.cpp's name in GGUF files, ours). # is a number, which is kept.
LLAMA_CPP_RULES: Rules = (
    ("token_embd", "shared"),
    ("enc.output_norm", "encoder.final_layer_norm"),
    ("enc.blk.#.attn_norm", "encoder.block.#.layer.0.layer_norm"),
    ("enc.blk.#.attn_q", "encoder.block.#.layer.0.SelfAttention.q"),
    ("enc.blk.#.attn_k", "encoder.block.#.layer.0.SelfAttention.k"),
    ("enc.blk.#.attn_v", "encoder.block.#.layer.0.SelfAttention.v"),
    ("enc.blk.#.attn_o", "encoder.block.#.layer.0.SelfAttention.o"),
    ("enc.blk.#.attn_rel_b", "encoder.block.#.layer.0.SelfAttention.relative_attention_bias"),
    ("enc.blk.#.ffn_norm", "encoder.block.#.layer.1.layer_norm"),
    ("enc.blk.#.ffn_gate", "encoder.block.#.layer.1.DenseReluDense.wi_0"),
    ("enc.blk.#.ffn_up", "encoder.block.#.layer.1.DenseReluDense.wi_1"),
    ("enc.blk.#.ffn_down", "encoder.block.#.layer.1.DenseReluDense.wo"),
)


MFLUX_RULES: Rules = (  # (mflux's name, ours)
    ("t5_blocks.#.attention", "encoder.block.#.layer.0"),
    ("t5_blocks.#.ff", "encoder.block.#.layer.1"),
    ("final_layer_norm", "encoder.final_layer_norm"),
)


def from_llama_cpp(flat: Flat) -> Flat:
    """Turn llama.cpp's names of a T5 encoder's weights into ours."""
    return renamed(flat, LLAMA_CPP_RULES)


def to_llama_cpp(flat: Flat) -> Flat:
    """Undo `from_llama_cpp`."""
    return renamed(flat, backwards(LLAMA_CPP_RULES))


def our_part(name: str, config: T5Config) -> str:
    """Return our name of a weight that llama.cpp names."""
    return rename(name, LLAMA_CPP_RULES)


def from_mflux(flat: Flat) -> Flat:
    """Turn mflux's names of a T5 encoder's weights into ours."""
    return renamed(flat, MFLUX_RULES)


def to_mflux(flat: Flat) -> Flat:
    """Undo `from_mflux`."""
    return renamed(flat, backwards(MFLUX_RULES))


def our_part_of_mflux(name: str, config: T5Config) -> str:
    """Return our name of a weight that mflux names."""
    return rename(name, MFLUX_RULES)


# -- config ----------------------------------------------------------------------------------------------------

CONFIG_NAMES = {field.name: field.name for field in fields(T5Config)}
FIXED = {"model_type": "t5", "feed_forward_proj": "gated-gelu"}  # what our code takes for granted


def read_config(config: Json) -> T5Config:
    """Read the config of a transformers `T5EncoderModel`; raises `CheckpointError` on one we can't run."""
    require(config, FIXED)
    return T5Config(**take(config, T5Config(), CONFIG_NAMES))


def write_config(cfg: T5Config) -> Json:
    """Return the config that transformers reads."""
    rest = {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False, "use_cache": False}
    return FIXED | asdict(cfg) | rest


# -- shapes ----------------------------------------------------------------------------------------------------


def t5_shapes(cfg: T5Config) -> Shapes:
    """Return the shape of every weight of the T5 encoder; the table of position biases lies in the first block."""
    shapes: Shapes = {"shared.weight": (cfg.vocab_size, cfg.d_model)}
    for i in range(cfg.num_layers):
        shapes |= under(f"encoder.block.{i}", block_shapes(cfg))
    shapes[TABLE] = (cfg.relative_attention_num_buckets, cfg.num_heads)
    return shapes | under("encoder.final_layer_norm", norm_shapes(cfg.d_model, bias=False))


def block_shapes(cfg: T5Config) -> Shapes:
    """Return the shapes of a T5 block: attention, then gated MLP; nothing in it has a bias."""
    d, inner = cfg.d_model, cfg.num_heads * cfg.d_kv
    shapes = under("layer.0.SelfAttention.o", linear_shapes(d, inner, bias=False))
    for name in "qkv":
        shapes |= under(f"layer.0.SelfAttention.{name}", linear_shapes(inner, d, bias=False))
    for name in ("wi_0", "wi_1"):
        shapes |= under(f"layer.1.DenseReluDense.{name}", linear_shapes(cfg.d_ff, d, bias=False))
    shapes |= under("layer.1.DenseReluDense.wo", linear_shapes(d, cfg.d_ff, bias=False))
    for layer in ("layer.0", "layer.1"):
        shapes |= under(f"{layer}.layer_norm", norm_shapes(d, bias=False))
    return shapes


# -- sizes -----------------------------------------------------------------------------------------------------


def t5_sizes(size: Sizes, beside: T5Config | None) -> T5Config:
    """Read the T5 encoder's config off its shapes; heads are counted by the table of position biases."""
    layer = "encoder.block.0.layer"
    heads = size(TABLE, 1)
    return T5Config(
        vocab_size=size("shared.weight", 0),
        d_model=size("shared.weight", 1),
        d_kv=size(f"{layer}.0.SelfAttention.q.weight", 0) // heads,
        d_ff=size(f"{layer}.1.DenseReluDense.wi_0.weight", 0),
        num_layers=size.count("encoder.block"),
        num_heads=heads,
        relative_attention_num_buckets=size(TABLE, 0),
    )


def sharings(cfg: T5Config) -> dict[str, Sharing]:
    """Return how processes share a block's matrices: its heads, the position biases of these, and the hidden layer."""
    inner, hidden = cfg.num_heads * cfg.d_kv, cfg.d_ff
    shared = {f"SelfAttention.{name}": Sharing(0, (inner,)) for name in "qkv"}
    shared |= {name: Sharing(0, (hidden,)) for name in ("wi_0", "wi_1")}
    shared |= {"SelfAttention.o": Sharing(1, (inner,), "summed"), "wo": Sharing(1, (hidden,), "summed")}
    return shared | {"relative_attention_bias": Sharing(1, (cfg.num_heads,))}


def shared_counts(cfg: T5Config) -> dict[str, int]:
    """Return what the processes have equal shares of."""
    return {"heads": cfg.num_heads, "channels of the MLP": cfg.d_ff}


def describe(cfg: T5Config) -> str:
    """Return the T5 encoder's sizes in a line."""
    return f"width {cfg.d_model}, {cfg.num_layers} layers, {cfg.num_heads} heads, {cfg.vocab_size} tokens"


# -- the record ------------------------------------------------------------------------------------------------

T5 = Component(
    name="text_encoder_2",
    title="T5",
    stem="model",
    library=("transformers", "T5EncoderModel"),
    config=T5Config,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=t5_shapes,
    sizes=t5_sizes,
    namings=(
        Naming(
            "transformers", "Hugging Face's names", ("encoder.block.0.layer.0.SelfAttention.q.weight",),
            ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", ""),
        ),
        Naming(
            "llama.cpp", "llama.cpp's names", ("enc.blk.0.attn_q.weight",), ("",), from_llama_cpp, to_llama_cpp,
            our_part,
        ),
        Naming(
            "mflux", "mflux's names", ("t5_blocks.0.attention.SelfAttention.q.weight",), ("",), from_mflux, to_mflux,
            our_part_of_mflux, has_config=False,
        ),
    ),
    own="transformers",
    stage="text",
    in_blocks=re.compile(r"encoder\.block\."),
    never_quantised=re.compile(r"relative_attention_bias"),  # looked up, not multiplied by
    never_float16=re.compile(r"\.DenseReluDense\.wo\."),  # T5-XXL's gives more than 65504; transformers does the same
    lora_prefixes=(
        "text_encoder_2.", "text_encoder_2.base_model.model.", "text_encoders.t5xxl.transformer.",
        "text_encoders.transformer.", "lora_te2_", "lora_te3_",
    ),
    gguf=("llama.cpp", "t5encoder"),
    sharings=sharings,
    shared_counts=shared_counts,
    alias=alias,
)  # fmt: skip
