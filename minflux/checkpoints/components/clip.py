"""FLUX.1's CLIP text encoder in files: everybody calls its weights as transformers does. Source: `modeling_clip.py`."""

from dataclasses import asdict, fields

from minflux.checkpoints.components.base import Component, Json, Naming, require, take
from minflux.checkpoints.components.shapes import Shapes, Sizes, clip_layer_shapes, norm_shapes, under
from minflux.errors import CheckpointError
from minflux.model.clip import CLIPConfig

EMBEDDINGS = "text_model.embeddings"
PROJECTION = "text_projection.weight"


def alias(name: str) -> str | None:
    """Return the standard name of a weight: transformers 5 drops the prefix "text_model.".

    Old files hold the numbers 0 to 76 as a weight, "position_ids", which is not used, nor is the projection of the
    pooled output.
    """
    if name.endswith("position_ids") or name == PROJECTION:
        return None
    return name if name.startswith("text_model.") else f"text_model.{name}"


# -- config ----------------------------------------------------------------------------------------------------

CONFIG_NAMES = {field.name: field.name for field in fields(CLIPConfig) if field.name != "projection_dim"}
FIXED = {"hidden_act": "quick_gelu"}  # what our code takes for granted


def read_config(config: Json) -> CLIPConfig:
    """Read the config of a transformers `CLIPTextModel`; raises `CheckpointError` on one we can't run.

    Configs from before transformers 4.31 say eos_token_id 2, which is wrong and means "the largest id in the row": the
    end-of-text token is the last of CLIP's vocabulary.
    """
    require(config, FIXED)
    found = take(config, CLIPConfig(), CONFIG_NAMES, may_be_zero=("eos_token_id",))
    if found.get("eos_token_id") == 2:
        found["eos_token_id"] = found.get("vocab_size", CLIPConfig.vocab_size) - 1
    cfg = CLIPConfig(**found)
    if cfg.hidden_size % cfg.num_attention_heads:
        heads = cfg.num_attention_heads
        raise CheckpointError(f"num_attention_heads: expected a divisor of {cfg.hidden_size}, found {heads}")
    return cfg


def write_config(cfg: CLIPConfig) -> Json:
    """Return the config that transformers reads."""
    rest = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "bos_token_id": None}
    return asdict(cfg) | rest | {"projection_dim": cfg.projection_dim or cfg.hidden_size}


# -- shapes ----------------------------------------------------------------------------------------------------


def clip_shapes(cfg: CLIPConfig) -> Shapes:
    """Return the shape of every weight of the CLIP text encoder."""
    d = cfg.hidden_size
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (cfg.vocab_size, d),
        "embeddings.position_embedding.weight": (cfg.max_position_embeddings, d),
    }
    for i in range(cfg.num_hidden_layers):
        shapes |= under(f"encoder.layers.{i}", clip_layer_shapes(cfg.hidden_size, cfg.intermediate_size))
    shapes = under("text_model", shapes, under("final_layer_norm", norm_shapes(d)))
    return shapes | ({PROJECTION: (cfg.projection_dim, d)} if cfg.projection_dim else {})


# -- sizes -----------------------------------------------------------------------------------------------------


def clip_sizes(size: Sizes, beside: CLIPConfig | None) -> CLIPConfig:
    """Read the CLIP text encoder's config off its shapes.

    No shape shows that its heads are 64 wide and its end-of-text token the last: `beside` may say otherwise.
    """
    vocab_size, width = (size(f"{EMBEDDINGS}.token_embedding.weight", axis) for axis in (0, 1))
    return CLIPConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=size("text_model.encoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers=size.count("text_model.encoder.layers"),
        num_attention_heads=beside.num_attention_heads if beside else max(1, width // 64),
        max_position_embeddings=size(f"{EMBEDDINGS}.position_embedding.weight", 0),
        eos_token_id=beside.eos_token_id if beside else vocab_size - 1,
    )


def describe(cfg: CLIPConfig) -> str:
    """Return the CLIP text encoder's sizes in a line."""
    return f"width {cfg.hidden_size}, {cfg.num_hidden_layers} layers, {cfg.vocab_size} tokens"


# -- the record ------------------------------------------------------------------------------------------------

CLIP = Component(
    name="text_encoder",
    title="CLIP",
    stem="model",
    library=("transformers", "CLIPTextModel"),
    config=CLIPConfig,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=clip_shapes,
    sizes=clip_sizes,
    namings=(
        Naming(
            "transformers",
            "Hugging Face's names",
            (f"{EMBEDDINGS}.token_embedding.weight", "embeddings.token_embedding.weight"),
            ("text_encoders.clip_l.transformer.", "text_encoders.clip_l.", ""),
        ),
    ),
    own="transformers",
    stage="text",
    lora_prefixes=(
        "text_encoder.", "text_encoder.base_model.model.", "text_encoders.clip_l.transformer.", "lora_te1_", "lora_te_",
    ),
    lora_rules=(("encoder.layers.#", "text_model.encoder.layers.#"),),  # as transformers 5 has them
    alias=alias,
)  # fmt: skip
