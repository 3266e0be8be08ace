"""What a safetensors file holds, told from its names and shapes alone.

One file may be a transformer under BFL's names or diffusers', an autoencoder, a text encoder, or, as ComfyUI packs
them, several of these under prefixes. `find_parts` takes it apart, and `sizes` reads each part's config off the shapes:
nothing needs to be known of the file in advance, and only its header is read.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minflux.arrays import Array, Tree
from minflux.backend import Backend
from minflux.checkpoints import names
from minflux.checkpoints.expected import Shapes
from minflux.checkpoints.folder import (
    KINDS,
    OWN_FILE,
    Copy,
    check_finite,
    check_shapes,
    file_shapes,
    has_right_code,
    read_config,
    standard_names,
    weights_path,
)
from minflux.checkpoints.formats.dtypes import FLOATS
from minflux.checkpoints.formats.safetensors import Stored, contents, load
from minflux.checkpoints.names import Flat
from minflux.checkpoints.quantise import stem_of, with_packed
from minflux.checkpoints.tree import tree
from minflux.errors import CheckpointError
from minflux.model.clip import CLIPConfig
from minflux.model.flux import SCHNELL, FluxConfig
from minflux.model.t5 import T5Config
from minflux.model.vae import FLUX_VAE, VAEConfig


@dataclass(frozen=True)
class Layout:
    """How one kind of part is laid out in files: a weight that only it has, and the prefixes it may lie under."""

    kind: str
    naming: str  # "bfl", "diffusers" or "transformers"
    mark: str
    prefixes: tuple[str, ...] = ("",)


SHOWN = 5  # names listed in a message
REDUX = "redux_up.weight"  # of flux1-redux-dev.safetensors
PIPELINES = {  # what a model is by the class that its model_index.json names
    "FluxKontextPipeline": "FLUX.1 Kontext, which takes a reference picture beside the text",
    "FluxFillPipeline": "FLUX.1 Fill, which takes a masked picture beside the latents",
    "FluxControlPipeline": "FLUX.1 Canny or Depth, which takes a control picture beside the latents",
    "FluxPriorReduxPipeline": "FLUX.1 Redux, an adapter for picture prompts",
}
COMFY = "model.diffusion_model."
LAYOUTS = (
    Layout("transformer", "bfl", "img_in.weight", (COMFY, "diffusion_model.", "")),
    Layout("transformer", "diffusers", "x_embedder.weight", ("transformer.", "")),
    Layout("vae", "bfl", "decoder.mid.block_1.conv1.weight", ("vae.", "first_stage_model.", "")),
    Layout("vae", "diffusers", "decoder.mid_block.resnets.0.conv1.weight", ("vae.", "")),
    Layout(
        "text_encoder_2", "transformers", "encoder.block.0.layer.0.SelfAttention.q.weight",
        ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", ""),
    ),
    Layout(
        "text_encoder", "transformers", "text_model.embeddings.token_embedding.weight",
        ("text_encoders.clip_l.transformer.", "text_encoders.clip_l.", ""),
    ),
    Layout("text_encoder", "transformers", "embeddings.token_embedding.weight"),
)  # fmt: skip

# whose names the components of a model folder have
FOLDER_NAMING = {
    "transformer": "diffusers", "vae": "diffusers", "text_encoder": "transformers", "text_encoder_2": "transformers"
}  # fmt: skip

OWN_NAMING = FOLDER_NAMING | {"transformer": "bfl", "vae": "bfl"}  # of those that minflux wrote for itself

# what files hold beside the weights: marks and scales of quantisation, and tables that follow from the sizes.
SCALES = ("scale_weight", "weight_scale")  # a float8 weight's factor, beside it
UNUSED = re.compile(r"(^|\.)(scaled_fp8|scale_input|input_scale|logit_scale|text_projection\.weight|position_ids)$")


@dataclass(frozen=True)
class Part:
    """One model in a file: its kind, whose names it has, its weights under those names, and float8 scales."""

    kind: str
    naming: str
    prefix: str
    found: dict[str, Stored]
    scales: dict[str, Stored]  # by the weight's name
    copies: dict[str, list[Copy]] = field(default_factory=dict)  # what is there twice of a weight: itself, its scale


def check_no_redux(path: Path, found: dict[str, Stored]) -> None:
    """Raise `CheckpointError` for Redux's file, which holds no part of the model itself."""
    if REDUX in found:
        raise CheckpointError(f"{path}: is {PIPELINES['FluxPriorReduxPipeline']}: minflux can't draw with it")


def find_parts(found: dict[str, Stored]) -> tuple[list[Part], list[str]]:
    """Take a file's contents apart: every part that minflux knows, and the names that belong to none."""
    parts, rest = [], dict(found)
    for layout in LAYOUTS:
        for prefix in layout.prefixes:
            if prefix + layout.mark in rest:
                inside = {n: s for n, s in rest.items() if _is_inside(n, prefix, layout.kind)}
                rest = {n: s for n, s in rest.items() if n not in inside}
                parts.append(_part(layout, prefix, inside))
                break
    return parts, sorted(name for name in rest if not UNUSED.search(name))


def warn_of(path: Path, strangers: list[str]) -> None:
    """Warn of names in a file that belong to no part, and are left out."""
    if strangers:
        some = some_of(strangers)
        warnings.warn(f"{path}: left out {len(strangers)} weights that belong to no part: {some}", stacklevel=2)


def some_of(names: list[str]) -> str:
    """List the first few names, for a message."""
    return ", ".join(sorted(names)[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _is_inside(name: str, prefix: str, kind: str) -> bool:
    """Tell whether a name belongs to a part: all under its prefix; without one, all that no other prefix claims."""
    if prefix:
        return name.startswith(prefix)
    others = [p for layout in LAYOUTS if layout.kind != kind for p in layout.prefixes if p]
    return not any(name.startswith(p) for p in others)


def _part(layout: Layout, prefix: str, inside: dict[str, Stored]) -> Part:
    bare = {name.removeprefix(prefix): stored for name, stored in inside.items() if not UNUSED.search(name)}
    bare, twice = standard_names(bare, KINDS[layout.kind], prefix)
    scales, copies = {}, {name: [copy] for name, copy in twice.items()}
    for name, stored in bare.items():
        stem, _, leaf = name.rpartition(".")
        if leaf in SCALES:
            scales[weight := f"{stem}.weight"] = stored
            if (weight in twice) != (name in twice):
                some = twice.get(weight) or twice[name]
                raise CheckpointError(
                    f"{stored.path}: {some.name}, {some.other}: expected the weight and its scale under both names"
                )
            copies.setdefault(weight, []).extend(copies.pop(name, []))
    owned = {name for name in bare if name.rpartition(".")[2] in SCALES and f"{stem_of(name)}.weight" in bare}
    weights = {name: stored for name, stored in bare.items() if name not in owned}  # a scale of nothing is a stranger
    return Part(layout.kind, layout.naming, prefix, weights, scales, copies)


# -- sizes ---------------------------------------------------------------------------------------------------


def sizes(part: Part, beside: Any = None) -> Any:
    """Read a part's config off its shapes; raises `CheckpointError` naming the weight that is missing.

    What no shape shows is taken from `beside`, a config of the same kind, or else is FLUX.1's own: how a head's 128
    dimensions are shared among the axes, θ, the autoencoder's shift and scale and its 32 groups, CLIP's heads of 64.
    """
    return READERS[part.kind](_Shapes(part), beside)


def sizes_in(path: Path, part: Part) -> Any:
    """Read the config of a part of a file, with the config of a model folder beside it where there is one."""
    config = path.parent / part.kind / "config.json"
    if path.parent.name == part.kind:
        config = path.with_name("config.json")
    beside = read_config(config, KINDS[part.kind]) if config.exists() else None
    try:
        return sizes(part, beside)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


class _Shapes:
    """A part's shapes under BFL's names, joint matrices still apart; a missing one raises."""

    def __init__(self, part: Part):
        rules = {"transformer": names.FLUX_RULES, "vae": names.VAE_RULES}.get(part.kind, ())
        rules = rules if part.naming == "diffusers" else ()
        self.shapes = {names.rename(name, rules): stored.shape for name, stored in part.found.items()}
        self.kind = part.kind

    def __call__(self, name: str, axis: int) -> int:
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(f"{self.kind}: {name}: found no such weight, and the sizes can't be told without it")
        if len(shape) <= axis:
            raise CheckpointError(f"{self.kind}: {name}: expected at least {axis + 1} axes, found shape {shape}")
        return shape[axis]

    def count(self, prefix: str) -> int:
        """Count the numbers n for which there is a weight "prefix.n.…"."""
        pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
        return len({match[1] for match in map(pattern.match, self.shapes) if match})

    def has(self, name: str) -> bool:
        return name in self.shapes


def flux_sizes(of: _Shapes, beside: FluxConfig | None) -> FluxConfig:
    """The transformer's sizes; heads are as wide as the scale of a query norm."""
    width, axes_dim = of("img_in.weight", 0), (beside or SCHNELL).axes_dim
    block = "double_blocks.0.img_attn" if of.count("double_blocks") else "single_blocks.0"
    head = of(f"{block}.norm.query_norm.scale", 0)
    if head != sum(axes_dim) or width % head:
        raise CheckpointError(
            f"transformer: {width} channels in heads of {head}: expected heads of {sum(axes_dim)}, for no weight shows "
            "how others are shared among the axes; put the model's transformer/config.json beside the file"
        )
    hidden = of("double_blocks.0.img_mlp.0.weight", 0) if of.count("double_blocks") else 4 * width
    return FluxConfig(
        in_channels=of("img_in.weight", 1),
        out_channels=of("final_layer.linear.weight", 0),
        vec_in_dim=of("vector_in.in_layer.weight", 1),
        context_in_dim=of("txt_in.weight", 1),
        hidden_size=width,
        mlp_ratio=hidden / width,
        num_heads=width // head,
        depth=of.count("double_blocks"),
        depth_single_blocks=of.count("single_blocks"),
        axes_dim=axes_dim,
        theta=(beside or SCHNELL).theta,
        guidance_embed=of.has("guidance_in.in_layer.weight"),
    )


def vae_sizes(of: _Shapes, beside: VAEConfig | None) -> VAEConfig:
    """The autoencoder's sizes, from its encoder; no shape shows shift, scale and groups."""
    hidden = beside or FLUX_VAE
    ch, levels = of("encoder.conv_in.weight", 0), of.count("encoder.down")
    widths = [of(f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(levels)]
    if any(width % ch for width in widths):
        raise CheckpointError(f"vae: expected widths that are multiples of {ch}, found {widths}")
    return VAEConfig(
        in_channels=of("encoder.conv_in.weight", 1),
        out_ch=of("decoder.conv_out.weight", 0),
        z_channels=of("decoder.conv_in.weight", 1),
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=of.count("encoder.down.0.block"),
        norm_groups=min(hidden.norm_groups, ch),
        scale_factor=hidden.scale_factor,
        shift_factor=hidden.shift_factor,
    )


def t5_sizes(of: _Shapes, beside: T5Config | None) -> T5Config:
    """The T5 encoder's sizes; heads are counted by the table of position biases."""
    layer = "encoder.block.0.layer"
    buckets, heads = (of(f"{layer}.0.SelfAttention.relative_attention_bias.weight", axis) for axis in (0, 1))
    return T5Config(
        vocab_size=of("shared.weight", 0),
        d_model=of("shared.weight", 1),
        d_kv=of(f"{layer}.0.SelfAttention.q.weight", 0) // heads,
        d_ff=of(f"{layer}.1.DenseReluDense.wi_0.weight", 0),
        num_layers=of.count("encoder.block"),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )


def clip_sizes(of: _Shapes, beside: CLIPConfig | None) -> CLIPConfig:
    """The CLIP text encoder's sizes; no shape shows that its heads are 64 wide, its end-of-text token the last."""
    table = "text_model.embeddings.token_embedding.weight"
    width = of(table, 1)
    return CLIPConfig(
        vocab_size=of(table, 0),
        hidden_size=width,
        intermediate_size=of("text_model.encoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers=of.count("text_model.encoder.layers"),
        num_attention_heads=beside.num_attention_heads if beside else max(1, width // 64),
        max_position_embeddings=of("text_model.embeddings.position_embedding.weight", 0),
        eos_token_id=beside.eos_token_id if beside else of(table, 0) - 1,
    )


READERS: dict[str, Callable[[_Shapes, Any], Any]] = {
    "transformer": flux_sizes, "vae": vae_sizes, "text_encoder": clip_sizes, "text_encoder_2": t5_sizes,
}  # fmt: skip


def variant(cfg: FluxConfig) -> str:
    """Name the member of the FLUX.1 family that has these sizes, at any depth."""
    if cfg.in_channels == 384:
        return "Fill, which takes a masked picture beside the latents"
    if cfg.in_channels == 128:
        return "Canny or Depth, which takes a control picture beside the latents"
    family = FluxConfig(depth=cfg.depth, depth_single_blocks=cfg.depth_single_blocks, guidance_embed=cfg.guidance_embed)
    if cfg == family:
        return "dev (Krea-dev's and Kontext's weights have the same shapes)" if cfg.guidance_embed else "schnell"
    return f"of its own size, {'with' if cfg.guidance_embed else 'without'} guidance built in"


# -- weights -------------------------------------------------------------------------------------------------


def load_component(folder: str | Path, kind: str, nx: Backend, dtype: str | None = None) -> tuple[Any, Tree]:
    """Read "transformer", "vae", "text_encoder" (CLIP) or "text_encoder_2" (T5) from a model folder.

    Returns its config and weight tree; for errors see `find_component` and `load_weight`.
    """
    cfg, part = find_component(Path(folder), kind)
    return cfg, load_part(part, nx, dtype)


def find_component(folder: Path, kind: str) -> tuple[Any, Part]:
    """Find a component of a model folder in diffusers' layout, and read its config.

    Raises `CheckpointError` when the folder lacks a file, or when the file's weights are not those that the config
    asks for.
    """
    spec = KINDS[kind]
    cfg = read_config(folder / kind / "config.json", spec)
    path = weights_path(folder / kind, spec.stem)
    naming = (OWN_NAMING if path.name == OWN_FILE else FOLDER_NAMING)[kind]
    named, twice = standard_names(contents(path), spec)
    part = Part(kind, naming, "", named, {}, {name: [copy] for name, copy in twice.items()})
    check_shapes(path, part.found, expected_of(part, cfg))
    return cfg, part


def load_part(part: Part, nx: Backend, dtype: str | None = None) -> Tree:
    """Read a part's weights as our tree; for errors see `load_weight`. `dtype` is as in `read_safetensors`."""
    return tree(to_ours(part, {name: load_weight(part, name, nx, dtype) for name in part.found}))


def to_ours(part: Part, flat: Flat) -> Flat:
    """Give a part's weights our names and layout."""
    if part.naming == "bfl":
        return names.to_channels_last(flat) if part.kind == "vae" else flat
    return KINDS[part.kind].to_ours(flat)


def load_weight(part: Part, name: str, nx: Backend, dtype: str | None = None) -> Array:
    """Read one weight, a float8 one times its scale.

    Raises `CheckpointError` at NaN or infinity, and where the file has it under two names with other numbers.
    """
    for copy in part.copies.get(name, ()):
        copy.check()
    array = load(part.found[name], nx, dtype)
    if name in part.scales:
        array = (array * load_scale(part, name, nx)).astype(array.dtype)
    check_finite(part.found[name].path, part.prefix + name, array)
    return array


def load_scale(part: Part, name: str, nx: Backend) -> Array:
    """Read a float8 weight's scale, one number or one for each row; raises `CheckpointError` for any other."""
    stored, rows = part.scales[name], part.found[name].shape[:1]
    if stored.code not in FLOATS or stored.shape not in ((), (1,), rows, (*rows, 1)):
        raise CheckpointError(
            f"{stored.path}: {part.prefix}{name}: expected a scale of floats, one or {rows} of them; found "
            f"{stored.code} {stored.shape}"
        )
    scale = load(stored, nx, "float32")
    return scale.reshape(*rows, *[1] * (len(part.found[name].shape) - 1)) if scale.size > 1 else scale.reshape(())


def whole_name(kind: str, naming: str, name: str) -> str:
    """Give the name in our tree of the weight that a file's weight is, or is a part of (not for the autoencoder).

    >>> whole_name("transformer", "diffusers", "transformer_blocks.3.attn.to_k.bias")
    'double_blocks.3.img_attn.qkv.bias'
    """
    renamed = kind == "transformer" and naming == "diffusers"
    return re.sub(r"@\d", "", names.rename(name, names.FLUX_RULES)) if renamed else name


# -- what should be there ------------------------------------------------------------------------------------


def expected(kind: str, naming: str, cfg: Any) -> Shapes:
    """Name every weight that a part of these sizes has, as files with this naming call and shape it."""
    spec = KINDS[kind]
    if naming == "bfl":
        return {name: _torch_shape(shape) if kind == "vae" else shape for name, shape in spec.shapes(cfg).items()}
    return file_shapes(spec, cfg)


def expected_of(part: Part, cfg: Any) -> Shapes:
    """Name every weight that a part of these sizes has: of those that it holds quantised, all three arrays."""
    return with_packed(expected(part.kind, part.naming, cfg), part.found, part.kind)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A kernel's shape in PyTorch's layout: (out, kh, kw, in) is (out, in, kh, kw), and a matrix a 1×1 kernel."""
    if len(shape) == 4:
        return shape[0], shape[3], shape[1], shape[2]
    return (*shape, 1, 1) if len(shape) == 2 else shape


@dataclass(frozen=True)
class Mismatch:
    """A weight that is missing (found None), not asked for (expected None), of another shape, or no floats (`code`)."""

    name: str
    expected: tuple[int, ...] | None
    found: tuple[int, ...] | None
    code: str | None = None

    def __str__(self) -> str:
        expected, found = (("no such weight" if s is None else str(s)) for s in (self.expected, self.found))
        return f"{self.name}: expected {expected}, found {found}{f' of {self.code}' if self.code else ''}"


def mismatches(part: Part, cfg: Any) -> list[Mismatch]:
    """List every weight of a part that is not as its sizes ask, in order of name."""
    wanted = expected_of(part, cfg)
    found = {name: stored.shape for name, stored in part.found.items()}
    codes = {name: None if has_right_code(name, part.found) else part.found[name].code for name in found}
    return [
        Mismatch(name, wanted.get(name), found.get(name), codes.get(name))
        for name in sorted(wanted | found)
        if wanted.get(name) != found.get(name) or codes.get(name)
    ]
