"""The language models that FLUX.2 takes its text from, in files: Qwen3 for klein, Mistral-Small-3 for dev.

Qwen3 is a model of text alone, as transformers' `Qwen3ForCausalLM` calls its weights. Mistral-Small-3 is the text part
of a model that sees images too, `Mistral3ForConditionalGeneration`: its names have a prefix, and its config is nested.
FLUX.2 takes states from inside these models. So the layers after the last such state, the final norm, the head that
says words and the tower that sees images stay in their files (see `is_used`), and `minflux inspect` says so.
Sources: `modeling_qwen3.py`, `modeling_mistral3.py`; llama.cpp's `gguf-py/gguf/constants.py`.
"""

import re
from dataclasses import fields, replace
from typing import Any

from minflux.checkpoints.components.base import Component, Flat, Json, Naming, is_like, require, take
from minflux.checkpoints.components.renaming import Rules, backwards, rename, renamed
from minflux.checkpoints.components.shapes import Shapes, Sizes, linear_shapes, norm_shapes, under
from minflux.errors import CheckpointError, quoted
from minflux.model.decoder import MISTRAL_SMALL, QWEN3_4B, DecoderConfig, MistralConfig, Qwen3Config

TEXT_TOKENS = 512  # that FLUX.2 reads of a prompt
EMBEDDING, LAYERS, FINAL_NORM = "model.embed_tokens.weight", "model.layers", "model.norm.weight"
FIRST_QUERIES = "layers.0.self_attn.q_proj.weight"
LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
# the final norm; the head, tied to the table of tokens or not; Mistral3's head, its vision tower and what joins the two
UNUSED = re.compile(r"(model\.norm|(language_model\.)?lm_head|(model\.)?(vision_tower|multi_modal_projector))\.")

# -- names -----------------------------------------------------------------------------------------------------

MISTRAL3_RULES: Rules = (("language_model.model", "model"),)  # (Mistral3's, ours)
LLAMA_CPP_RULES: Rules = (  # (llama.cpp's name in GGUF files, ours). # is a number, which is kept.
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("blk.#.attn_norm", "model.layers.#.input_layernorm"),
    ("blk.#.attn_q", "model.layers.#.self_attn.q_proj"),
    ("blk.#.attn_k", "model.layers.#.self_attn.k_proj"),
    ("blk.#.attn_v", "model.layers.#.self_attn.v_proj"),
    ("blk.#.attn_output", "model.layers.#.self_attn.o_proj"),
    ("blk.#.attn_q_norm", "model.layers.#.self_attn.q_norm"),
    ("blk.#.attn_k_norm", "model.layers.#.self_attn.k_norm"),
    ("blk.#.ffn_norm", "model.layers.#.post_attention_layernorm"),
    ("blk.#.ffn_gate", "model.layers.#.mlp.gate_proj"),
    ("blk.#.ffn_up", "model.layers.#.mlp.up_proj"),
    ("blk.#.ffn_down", "model.layers.#.mlp.down_proj"),
)


def from_mistral3(flat: Flat) -> Flat:
    """Turn the names of the text part of a Mistral3 into ours."""
    return renamed(flat, MISTRAL3_RULES)


def to_mistral3(flat: Flat) -> Flat:
    """Undo `from_mistral3`."""
    return renamed(flat, backwards(MISTRAL3_RULES))


def our_part_of_mistral3(name: str, config: Any) -> str:
    """Return our name of a weight that Mistral3 names.

    >>> our_part_of_mistral3("language_model.model.layers.3.mlp.up_proj.weight", None)
    'model.layers.3.mlp.up_proj.weight'
    """
    return rename(name, MISTRAL3_RULES)


def from_llama_cpp(flat: Flat) -> Flat:
    """Turn llama.cpp's names of a Qwen3's weights into ours."""
    return renamed(flat, LLAMA_CPP_RULES)


def to_llama_cpp(flat: Flat) -> Flat:
    """Undo `from_llama_cpp`."""
    return renamed(flat, backwards(LLAMA_CPP_RULES))


def our_part_of_llama_cpp(name: str, config: Any) -> str:
    """Return our name of a weight that llama.cpp names."""
    return rename(name, LLAMA_CPP_RULES)


def mistral3_alias(name: str) -> str:
    """Return the standard name of a weight: some versions of transformers swap the first two parts of the prefix."""
    return re.sub(r"^model\.language_model\.", "language_model.model.", name)


def is_used(name: str, cfg: DecoderConfig) -> bool:
    """Return whether FLUX.2 needs a weight, by our name: the table of tokens, and the layers up to its last state.

    Any other name is a mistake, and is needed in so far as it is to be told of; those that are known of the whole model
    are not.
    """
    layer = LAYER.match(name)
    if layer:
        return not cfg.state_layers[-1] <= int(layer[1]) < cfg.num_hidden_layers
    return not UNUSED.match(name)


# -- config ----------------------------------------------------------------------------------------------------

NAMES = {field.name: field.name for field in fields(DecoderConfig) if field.name != "rope_theta"}
FIXED: Json = {"hidden_act": "silu", "attention_bias": False}  # what our code takes for granted
QWEN3_FIXED = FIXED | {"model_type": "qwen3", "use_sliding_window": False}
MISTRAL_FIXED = FIXED | {"model_type": "mistral"}
THETA = 10_000.0  # what a config that names no θ means

QWEN3_DEFAULTS: Json = {  # what a config that leaves a size out means to transformers
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "rms_norm_eps": 1e-6,
}  # fmt: skip
MISTRAL_DEFAULTS: Json = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
}  # fmt: skip


def read_qwen3_config(config: Json) -> Qwen3Config:
    """Read the config of a transformers `Qwen3ForCausalLM`; raises `CheckpointError` on one we can't run."""
    require(config, QWEN3_FIXED)
    found = QWEN3_DEFAULTS | take(config, QWEN3_4B, NAMES)
    return checked(Qwen3Config(**found, rope_theta=read_theta(config)))


def read_mistral_config(config: Json) -> MistralConfig:
    """Read the config of a transformers `Mistral3ForConditionalGeneration`, of its text part, or of a `Mistral…`.

    Raises `CheckpointError` on one we can't run.
    """
    inner = config.get("text_config", config)
    if not isinstance(inner, dict):
        raise CheckpointError(f"text_config: expected a JSON object, found {quoted(inner)}")
    require(inner, MISTRAL_FIXED)
    check_window(inner)
    found = MISTRAL_DEFAULTS | take(inner, MISTRAL_SMALL, NAMES)
    found.setdefault("head_dim", found["hidden_size"] // found["num_attention_heads"])
    return checked(MistralConfig(**found, rope_theta=read_theta(inner)))


def read_theta(config: Json) -> float:
    """Return RoPE's θ, which transformers 5 keeps in an object of its own; raises `CheckpointError` for scaled RoPE."""
    inner = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(inner, dict):
        raise CheckpointError(f"rope_parameters: expected a JSON object, found {quoted(inner)}")
    kind = inner.get("rope_type", inner.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"rope_type: expected 'default', found {quoted(kind)}: minflux can't run this model")
    theta: Any = inner.get("rope_theta", config.get("rope_theta", THETA))
    if not is_like(theta, THETA, least=1) or theta <= 1:
        raise CheckpointError(f"rope_theta: expected a number above 1, found {quoted(theta)}")
    return float(theta)


def check_window(config: Json) -> None:
    """Raise `CheckpointError` where a token sees fewer tokens before it than FLUX.2's prompts have."""
    window = config.get("sliding_window")
    if window is not None and not is_like(window, 1, least=TEXT_TOKENS):
        raise CheckpointError(f"sliding_window: expected null or {TEXT_TOKENS} at least, found {quoted(window)}")


def checked(cfg: Any) -> Any:
    """Return a config; raises `CheckpointError` where heads can't share keys, or be turned, or layers are too few."""
    if cfg.num_attention_heads % cfg.num_key_value_heads:
        raise CheckpointError(
            f"num_key_value_heads: expected a divisor of {cfg.num_attention_heads}, found {cfg.num_key_value_heads}"
        )
    if cfg.head_dim % 2:
        raise CheckpointError(f"head_dim: expected an even number, found {cfg.head_dim}")
    if cfg.num_hidden_layers < 4:
        raise CheckpointError(
            f"num_hidden_layers: expected four at least, for FLUX.2 takes the states after a quarter, a half and three "
            f"quarters of them, found {cfg.num_hidden_layers}"
        )
    return cfg


def sizes_written(cfg: DecoderConfig) -> Json:
    """Return the sizes as transformers reads them, θ where transformers 4 and 5 look for it."""
    sizes = {name: getattr(cfg, name) for name in NAMES}
    rope = {"rope_theta": cfg.rope_theta, "rope_type": "default"}
    return sizes | {"rope_theta": cfg.rope_theta, "rope_parameters": rope}


def write_qwen3_config(cfg: Qwen3Config) -> Json:
    """Return the config that transformers reads."""
    rest = {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True}
    return QWEN3_FIXED | sizes_written(cfg) | rest


def write_mistral_config(cfg: MistralConfig) -> Json:
    """Return the config that transformers reads, of a Mistral3 whose vision tower it says nothing about."""
    text = FIXED | {"model_type": "mistral", "sliding_window": None} | sizes_written(cfg)
    rest = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
    return rest | {"text_config": text, "tie_word_embeddings": True}


# -- shapes ----------------------------------------------------------------------------------------------------


def decoder_shapes(cfg: DecoderConfig) -> Shapes:
    """Return the shape of every weight that FLUX.2 needs of the model."""
    shapes: Shapes = {EMBEDDING: (cfg.vocab_size, cfg.hidden_size)}
    for i in range(cfg.state_layers[-1]):
        shapes |= under(f"{LAYERS}.{i}", layer_shapes(cfg))
    return shapes


def layer_shapes(cfg: DecoderConfig) -> Shapes:
    """Return the shapes of a layer: attention, then gated MLP; nothing in it has a bias."""
    shapes = under("self_attn", attention_shapes(cfg))
    for name in ("gate_proj", "up_proj"):
        shapes |= under(f"mlp.{name}", linear_shapes(cfg.intermediate_size, cfg.hidden_size, bias=False))
    shapes |= under("mlp.down_proj", linear_shapes(cfg.hidden_size, cfg.intermediate_size, bias=False))
    for name in ("input_layernorm", "post_attention_layernorm"):
        shapes |= under(name, norm_shapes(cfg.hidden_size, bias=False))
    return shapes


def attention_shapes(cfg: DecoderConfig) -> Shapes:
    """Return the shapes of a layer's attention, with norms of queries and keys where the model has them."""
    d, queries, keys = cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    shapes = under("q_proj", linear_shapes(queries, d, bias=False))
    for name in ("k_proj", "v_proj"):
        shapes |= under(name, linear_shapes(keys, d, bias=False))
    shapes |= under("o_proj", linear_shapes(d, queries, bias=False))
    for name in ("q_norm", "k_norm") if cfg.qk_norm else ():
        shapes |= under(name, norm_shapes(cfg.head_dim, bias=False))
    return shapes


# -- sizes -----------------------------------------------------------------------------------------------------


def qwen3_sizes(size: Sizes, beside: Qwen3Config | None) -> Qwen3Config:
    """Read a Qwen3's config off its shapes; no shape shows ε and θ: these are `beside`'s, or Qwen3-4B's."""
    head_dim = size(f"{LAYERS}.0.self_attn.q_norm.weight", 0)
    return checked(replace(beside or QWEN3_4B, **sizes_seen(size, head_dim, beside)))


def mistral_sizes(size: Sizes, beside: MistralConfig | None) -> MistralConfig:
    """Read a Mistral's config off its shapes; no shape shows a head's width, ε and θ.

    These are `beside`'s, or Mistral-Small's.
    """
    known = beside or MISTRAL_SMALL
    return checked(replace(known, **sizes_seen(size, known.head_dim, beside)))


def sizes_seen(size: Sizes, head_dim: int, beside: DecoderConfig | None) -> dict[str, Any]:
    """Return the sizes that shapes show, heads being `head_dim` wide; raises `CheckpointError` where they can't be."""
    queries, keys = (size(f"{LAYERS}.0.self_attn.{name}.weight", 0) for name in ("q_proj", "k_proj"))
    if not head_dim or not keys or queries % head_dim or keys % head_dim:
        raise CheckpointError(f"{size.title}: can't tell its heads from {queries} and {keys} rows, {head_dim} a head")
    return {
        "vocab_size": size(EMBEDDING, 0),
        "hidden_size": size(EMBEDDING, 1),
        "intermediate_size": size(f"{LAYERS}.0.mlp.gate_proj.weight", 0),
        "num_hidden_layers": depth_seen(size, beside),
        "num_attention_heads": queries // head_dim,
        "num_key_value_heads": keys // head_dim,
        "head_dim": head_dim,
    }


def depth_seen(size: Sizes, beside: DecoderConfig | None) -> int:
    """Return how many layers the whole model has: those that are there, if its final norm is.

    A file without the norm holds what FLUX.2 needs, as minflux writes them: three quarters of the layers.
    """
    count = size.count(LAYERS)
    if size.has(FINAL_NORM):
        return count
    if beside is not None and beside.state_layers[-1] == count:
        return beside.num_hidden_layers
    return 4 * count // 3


def describe(cfg: DecoderConfig) -> str:
    """Return the model's sizes in a line, and how many of its layers FLUX.2 runs."""
    heads = f"{cfg.num_attention_heads} heads, {cfg.num_key_value_heads} of keys"
    layers = f"{cfg.num_hidden_layers} layers, of which the first {cfg.state_layers[-1]} are run"
    return f"width {cfg.hidden_size}, {layers}, {heads}, {cfg.vocab_size} tokens"


# -- the records -----------------------------------------------------------------------------------------------

QWEN3 = Component(
    name="text_encoder",
    title="Qwen3",
    stem="model",
    library=("transformers", "Qwen3ForCausalLM"),
    config=Qwen3Config,
    read_config=read_qwen3_config,
    write_config=write_qwen3_config,
    describe=describe,
    shapes=decoder_shapes,
    sizes=qwen3_sizes,
    namings=(
        Naming("transformers", "Hugging Face's names", (f"{LAYERS}.0.self_attn.q_norm.weight",)),
        Naming(
            "llama.cpp", "llama.cpp's names", ("blk.0.attn_q_norm.weight",), ("",), from_llama_cpp, to_llama_cpp,
            our_part_of_llama_cpp,
        ),
    ),
    own="transformers",
    stage="text",
    in_blocks=re.compile(r"model\.layers\."),
    gguf=("llama.cpp", "qwen3"),
    is_used=is_used,
)  # fmt: skip

# llama.cpp lays out a Mistral's queries and keys in another order of rows, which is not read.
MISTRAL = Component(
    name="text_encoder",
    title="Mistral",
    stem="model",
    library=("transformers", "Mistral3ForConditionalGeneration"),
    config=MistralConfig,
    read_config=read_mistral_config,
    write_config=write_mistral_config,
    describe=describe,
    shapes=decoder_shapes,
    sizes=mistral_sizes,
    namings=(
        Naming(
            "mistral3", "Hugging Face's names",
            (f"language_model.model.{FIRST_QUERIES}", f"model.language_model.{FIRST_QUERIES}"),
            ("",), from_mistral3, to_mistral3, our_part_of_mistral3,
        ),
        Naming("transformers", "Hugging Face's names of a Mistral alone", (f"model.{FIRST_QUERIES}",)),
    ),
    own="transformers",
    stage="text",
    in_blocks=re.compile(r"model\.layers\."),
    alias=mistral3_alias,
    is_used=is_used,
)  # fmt: skip
