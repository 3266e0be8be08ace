"""A whole model from a folder in diffusers' layout, and back into one.

    model_index.json, transformer/, vae/, text_encoder/ (CLIP), text_encoder_2/ (T5), tokenizer/, tokenizer_2/,
    scheduler/

A file `minflux.json` beside them may say how the model is best drawn with (see `Defaults`).
"""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from minflux import zoo
from minflux.backend import Backend
from minflux.errors import ArgumentError, CheckpointError
from minflux.model.flux import FluxConfig
from minflux.model.vae import VAEConfig
from minflux.pipeline import Defaults, Pipeline
from minflux.sampling import Schedule
from minflux.shapes import Tree
from minflux.text import Tokenizer
from minflux.weights.files import contents, read_json, write_json
from minflux.weights.folder import check_shapes, load_component, save_component
from minflux.weights.lora import added, read_loras
from minflux.weights.parts import expected, find_parts, load_part, sizes_in, variant
from minflux.weights.tree import flatten, tree

INDEX, DEFAULTS, SCHEDULER = "model_index.json", "minflux.json", "scheduler/scheduler_config.json"
DEV_DEFAULTS = Defaults()
SCHNELL_DEFAULTS = Defaults(steps=4, guidance=1.0, text_length=256)


def load_model(model: str | Path, nx: Backend, dtype: str | None = None, lora: Sequence[str] = ()) -> Pipeline:
    """Load a model by its name in the zoo, from a folder, or from a transformer's .safetensors file inside one.

    dtype: of the weights as computed with; unless given, float32 on a CPU and the file's own on a GPU. lora: files,
    each "FILE" or "FILE:SCALE", added to the weights. Raises `ArgumentError` when there is no such model,
    `CheckpointError` when something in it is missing or wrong.
    """
    folder, file = find(model)
    dtype = dtype or (None if nx.on_gpu else "float32")
    flux = load_transformer(file, nx, dtype) if file else load_component(folder, "transformer", nx, dtype)
    vae = load_component(folder, "vae", nx, dtype)
    check_drawable(model, flux[0], vae[0])
    clip, t5 = (load_component(folder, kind, nx, dtype) for kind in ("text_encoder", "text_encoder_2"))
    pipe = Pipeline(
        nx=nx,
        flux=flux,
        vae=vae,
        clip=clip,
        t5=t5,
        clip_tokenizer=Tokenizer.from_folder(folder / "tokenizer", clip[0].vocab_size),
        t5_tokenizer=Tokenizer.from_folder(folder / "tokenizer_2", t5[0].vocab_size),
        schedule=read_schedule(folder / SCHEDULER),
        defaults=read_defaults(folder / DEFAULTS, flux[0]),
        name=str(model),
    )
    return with_lora(pipe, lora) if lora else pipe


def with_lora(pipe: Pipeline, lora: Sequence[str]) -> Pipeline:
    """Add LoRAs to a model's weights, for good; each is "FILE" or "FILE:SCALE"."""
    parts = {"transformer": pipe.flux, "text_encoder": pipe.clip, "text_encoder_2": pipe.t5}
    changes = read_loras(lora, {kind: cfg for kind, (cfg, _) in parts.items()})

    def changed(kind: str) -> tuple[Any, Tree]:
        cfg, p = parts[kind]
        return cfg, tree(added(flatten(p), [change for change in changes if change.module.kind == kind]))

    return replace(
        pipe,
        flux=changed("transformer"),
        clip=changed("text_encoder"),
        t5=changed("text_encoder_2"),
        lora=(*pipe.lora, *lora),
    )


def find(model: str | Path) -> tuple[Path, Path | None]:
    """Find the model's folder, and the transformer's own file where one was named."""
    inside = zoo.FOLDER / str(model)
    path = inside if (inside / INDEX).exists() else Path(model)
    if path.suffix == ".safetensors" and path.is_file():
        path, file = path.parent, path
    else:
        file = None
    if not path.exists():
        known = ", ".join(sorted(p.parent.name for p in zoo.FOLDER.glob(f"*/{INDEX}")))
        raise ArgumentError(f"model {str(model)!r} is neither a folder nor a file nor one that ships here ({known})")
    if not (path / INDEX).exists():
        raise CheckpointError(f"{path}: expected a model in diffusers' layout, found no {INDEX}")
    return path, file


def load_transformer(file: Path, nx: Backend, dtype: str | None) -> tuple[FluxConfig, Tree]:
    """Load the transformer in a single file (BFL's, ComfyUI's, …), whose sizes are the file's own."""
    parts, _ = find_parts(contents(file))
    part = next((part for part in parts if part.kind == "transformer"), None)
    if part is None:
        raise CheckpointError(f"{file}: expected a transformer, found {', '.join(p.kind for p in parts) or 'none'}")
    cfg = sizes_in(file, part)
    check_shapes(file, part.found, expected(part.kind, part.naming, cfg))
    return cfg, load_part(part, nx, dtype)


def check_drawable(model: str | Path, flux: FluxConfig, vae: VAEConfig) -> None:
    """Raise `CheckpointError` for a transformer that takes more than the latents (Fill, Canny, Depth), or others."""
    if flux.in_channels != 4 * vae.z_channels:
        raise CheckpointError(
            f"{model}: expected a transformer of {4 * vae.z_channels} channels, a 2×2 patch of latents; found "
            f"{flux.in_channels}: FLUX.1 {variant(flux)}; minflux can't draw with it"
        )


def read_schedule(path: Path) -> Schedule:
    """Read the sampler's settings; those that are not there have their defaults."""
    return _of(Schedule, read_json(path))


def read_defaults(path: Path, cfg: FluxConfig) -> Defaults:
    """Read how a model is best drawn with; without a file, as dev or schnell, by whether it takes guidance."""
    if not path.exists():
        return DEV_DEFAULTS if cfg.guidance_embed else SCHNELL_DEFAULTS
    return _of(Defaults, read_json(path))


def _of(kind: type, values: dict[str, Any]) -> Any:
    return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})


def save_model(pipe: Pipeline, folder: Path, dtype: str | None = None) -> None:
    """Write the model's weights, configs, index and settings so that diffusers and `load_model` open the folder.

    Floats are stored as `dtype`, or as they are. The tokenizers' folders are not written: they are there before a model
    can be trained.
    """
    parts = {"transformer": pipe.flux, "vae": pipe.vae, "text_encoder": pipe.clip, "text_encoder_2": pipe.t5}
    for kind, (cfg, p) in parts.items():
        save_component(folder, kind, cfg, p, dtype)
    (folder / SCHEDULER).parent.mkdir(exist_ok=True)
    write_json(folder / INDEX, INDEX_CONTENT)
    write_json(folder / SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler", **asdict(pipe.schedule)})
    write_json(folder / DEFAULTS, asdict(pipe.defaults))


INDEX_CONTENT = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
