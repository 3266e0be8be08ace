"""A whole model from a folder in diffusers' layout, and back into one.

    model_index.json, transformer/, vae/, text_encoder/ (CLIP), text_encoder_2/ (T5), tokenizer/, tokenizer_2/,
    scheduler/

A file `minflux.json` beside them may say how the model is best drawn with (see `Defaults`). A single file (BFL's,
ComfyUI's, …) inside the folder takes the place of the components that it holds.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minflux import zoo
from minflux.arrays import Tree
from minflux.backend import Backend, get_backend
from minflux.backend.malloc import keep_freed_memory
from minflux.checkpoints import hub
from minflux.checkpoints.folder import KINDS, check_shapes, save_component
from minflux.checkpoints.formats.json_files import read_json, write_json
from minflux.checkpoints.formats.safetensors import contents
from minflux.checkpoints.lazy import stream
from minflux.checkpoints.lora import added, read_loras
from minflux.checkpoints.parts import (
    PIPELINES,
    Part,
    check_no_redux,
    expected_of,
    find_component,
    find_parts,
    load_part,
    sizes_in,
    variant,
    warn_of,
    whole_name,
)
from minflux.checkpoints.tree import flatten, tree
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.cache import Cache, identity
from minflux.inference.flux1 import Flux1
from minflux.inference.memory import TEXT, WHEN, choose
from minflux.inference.pipeline import Defaults
from minflux.inference.text import Tokenizer
from minflux.model.flux import FluxConfig
from minflux.sampling.timesteps import Schedule

INDEX, DEFAULTS, SCHEDULER = "model_index.json", "minflux.json", "scheduler/scheduler_config.json"
KONTEXT = "FluxKontextPipeline"
PLAIN_SCHEDULE = {  # settings of diffusers' scheduler that would change the steps: these values alone are right
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "shift_terminal": None,
    "time_shift_type": "exponential",
}
NEVER_INSIDE = ("scheduler", "tokenizer", "tokenizer_2")  # what no single file holds
DEV_DEFAULTS = Defaults()
SCHNELL_DEFAULTS = Defaults(steps=4, guidance=1.0, text_length=256)


def load(
    model: str | Path = "tiny",
    backend: str = "auto",
    dtype: str | None = None,
    lora: str | Sequence[str] = (),
    memory: str = "auto",
    report: Callable[[str], None] | None = None,
    cache: str | Path | None = None,
) -> Flux1:
    """Load a model: a name ("tiny", "schnell", "dev"), a folder, a .safetensors file, or OWNER/NAME on the Hub.

    backend: "numpy", "mlx", or "auto", which is MLX where it has a GPU and NumPy elsewhere. dtype: of the weights;
    unless given, "float32" on a CPU and the file's own on a GPU. lora: files of LoRAs to add, each "FILE" or
    "FILE:SCALE". memory: "resident", "staged", "streamed", or "auto" for the first of them that fits into what is free
    (see `minflux.inference.memory`). report: a function that is called with a line when "auto" chooses a slow one;
    without it, there is a warning. cache: a folder in which encoded prompts are kept, so that the text
    encoders need not run for them again (see `minflux.inference.cache`). Raises `ArgumentError` for an unknown name,
    `CheckpointError` for a folder that is no model or a LoRA of another, `BackendError` for a backend that isn't
    installed.
    """
    nx = get_backend(best_backend() if backend == "auto" else backend)
    return load_model(model, nx, dtype, [lora] if isinstance(lora, str) else lora, memory, report, cache)


def best_backend() -> str:
    """Return the name of the faster backend here: "mlx" where MLX has a GPU, "numpy" on a CPU (docs/log.md)."""
    if find_spec("mlx") is None:
        return "numpy"
    return "mlx" if get_backend("mlx").on_gpu else "numpy"


def load_model(
    model: str | Path,
    nx: Backend,
    dtype: str | None = None,
    lora: Sequence[str] = (),
    memory: str = "auto",
    report: Callable[[str], None] | None = None,
    cache: str | Path | None = None,
) -> Flux1:
    """Load a model by its name in the zoo, from a folder, or from a .safetensors file with what it lacks beside it.

    dtype: of the weights as computed with; unless given, float32 on a CPU and the file's own on a GPU. lora: files,
    each "FILE" or "FILE:SCALE", added to the weights. memory, report: see `minflux.inference.memory.choose`. cache:
    a folder for what the text encoders say. Raises `ArgumentError` when there is no such model, `CheckpointError` when
    something in it is missing or wrong.
    """
    folder, file = find(model)
    dtype = dtype or (None if nx.on_gpu else "float32")
    inside = {}
    if file is not None:
        inside = find_inside(file)
        check_drawable(model, inside["transformer"][0])
        check_beside(file, [name for name in (*KINDS, *NEVER_INSIDE) if name not in inside])
    parts = inside | {kind: find_component(folder, kind) for kind in KINDS if kind not in inside}
    configs = {kind: cfg for kind, (cfg, _) in parts.items()}
    check_drawable(model, configs["transformer"], configs["vae"].z_channels)
    changes = read_loras(lora, configs)
    mode = choose(memory, nx, {kind: part for kind, (_, part) in parts.items()}, dtype, report)
    when = WHEN[mode]
    if mode == "resident" and not nx.on_gpu:
        keep_freed_memory()

    def opened(kind: str) -> tuple[Any, Tree]:
        cfg, part = parts[kind]
        own = [change for change in changes if change.module.kind == kind]
        if any(when(kind, whole_name(kind, part.naming, name)) != "kept" for name in part.found):
            return cfg, stream(part, nx, dtype, own, lambda name: when(kind, name))
        p = load_part(part, nx, dtype)
        return cfg, tree(added(flatten(p), own)) if own else p

    text = [change for change in changes if change.module.kind in TEXT]
    return Flux1(
        nx=nx,
        flux=opened("transformer"),
        vae=opened("vae"),
        clip=opened("text_encoder"),
        t5=opened("text_encoder_2"),
        clip_tokenizer=Tokenizer.from_folder(folder / "tokenizer", configs["text_encoder"].vocab_size),
        t5_tokenizer=Tokenizer.from_folder(folder / "tokenizer_2", configs["text_encoder_2"].vocab_size),
        schedule=read_schedule(folder / SCHEDULER),
        defaults=read_defaults(folder / DEFAULTS, configs["transformer"]),
        name=str(model),
        lora=tuple(lora),
        cache=Cache(Path(cache), identity([parts[kind] for kind in TEXT], text, nx, dtype), nx) if cache else None,
    )


def find(model: str | Path) -> tuple[Path, Path | None]:
    """Find the model's folder, and the single file where one was named."""
    inside = zoo.FOLDER / str(model)
    path = inside if (inside / INDEX).exists() else Path(model)
    if path.is_file():
        if path.suffix != ".safetensors":
            contents(path)  # says what it is
        return path.parent, path
    if not path.exists():
        path = hub.fetch(_repository(str(model)))
    if not (path / INDEX).exists():
        raise CheckpointError(f"{path}: expected a model in diffusers' layout, found no {INDEX}")
    pipeline = str(read_json(path / INDEX).get("_class_name"))
    if not pipeline.startswith("Flux") or "Redux" in pipeline:
        what = f", {PIPELINES[pipeline]}" if pipeline in PIPELINES else ""
        raise CheckpointError(f"{path / INDEX}: expected a FluxPipeline, found a {pipeline}{what}")
    if "Kontext" in pipeline:
        warnings.warn(f"{path}: is {PIPELINES[KONTEXT]}; it is drawn with from the text alone", stacklevel=2)
    return path, None


def _repository(model: str) -> str:
    """Give the repository that a model's name stands for, or raise `ArgumentError` with the names that are known."""
    repository = hub.repository(model)
    if repository is None:
        known = ", ".join(sorted(p.parent.name for p in zoo.FOLDER.glob(f"*/{INDEX}")))
        raise ArgumentError(
            f"model {model!r} is neither a folder nor a file nor one that ships here ({known}), nor a name on the "
            f"Hugging Face Hub ({', '.join(hub.NAMES)}, or OWNER/NAME)"
        )
    return repository


def find_inside(file: Path) -> dict[str, tuple[Any, Part]]:
    """Find the parts in a single file (BFL's, ComfyUI's, …), by kind, and read their sizes off it.

    Raises `CheckpointError` when no transformer is among them, or a weight is missing or of another shape.
    """
    held = contents(file)
    check_no_redux(file, held)
    listed, strangers = find_parts(held)
    warn_of(file, strangers)
    parts = {part.kind: part for part in reversed(listed)}  # of two of a kind, the first
    if "transformer" not in parts:
        raise CheckpointError(f"{file}: expected a transformer, found {', '.join(parts) or 'none'}")
    found = {kind: (sizes_in(file, part), part) for kind, part in parts.items()}
    for cfg, part in found.values():
        wanted = expected_of(part, cfg)
        check_shapes(file, _prefixed(part.prefix, part.found), _prefixed(part.prefix, wanted))
    return found


def _prefixed(prefix: str, named: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in named.items()}


def check_beside(file: Path, lacks: list[str]) -> None:
    """Raise `CheckpointError` unless each folder that a file lacks lies beside it."""
    missing = [name for name in lacks if not (file.parent / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{file}: expected beside it {', '.join(lacks)}, folders of a FLUX.1 model in diffusers' layout; found no "
            f"{', '.join(missing)}: put them there, or move the file into such a model's folder"
        )


def check_drawable(model: str | Path, flux: FluxConfig, z_channels: int | None = None) -> None:
    """Raise `CheckpointError` for a transformer that takes more than the latents (Fill, Canny, Depth), or others."""
    wanted = 4 * z_channels if z_channels else flux.out_channels
    if flux.in_channels != wanted:
        raise CheckpointError(
            f"{model}: expected a transformer of {wanted} channels, a 2×2 patch of latents; found "
            f"{flux.in_channels}: FLUX.1 {variant(flux)}; minflux can't draw with it"
        )


def read_schedule(path: Path) -> Schedule:
    """Read the sampler's settings; those that are not there have their defaults."""
    values = read_json(path)
    for name, plain in PLAIN_SCHEDULE.items():
        if values.get(name, plain) not in (plain, None):
            raise CheckpointError(
                f"{path}: {name}: expected {plain!r}, found {values[name]!r}: minflux can't sample so"
            )
    schedule = _of(Schedule, values, path)
    if not schedule.shift > 0 or schedule.max_image_seq_len <= schedule.base_image_seq_len:
        raise CheckpointError(f"{path}: expected a shift above 0 and max_image_seq_len above base_image_seq_len")
    return schedule


def read_defaults(path: Path, cfg: FluxConfig) -> Defaults:
    """Read how a model is best drawn with; without a file, as dev or schnell, by whether it takes guidance."""
    if not path.exists():
        return DEV_DEFAULTS if cfg.guidance_embed else SCHNELL_DEFAULTS
    return _of(Defaults, read_json(path), path)


def _of(kind: type, values: dict[str, Any], path: Path) -> Any:
    """Make settings of what a file has of them; raises `CheckpointError` for one of another type than its default."""
    given = {f.name: values[f.name] for f in fields(kind) if f.name in values}
    for name, value in given.items():
        default = type(getattr(kind, name))
        right = isinstance(value, int | float if default is float else default) and math.isfinite(value)
        if not right or isinstance(value, bool) != (default is bool):
            raise CheckpointError(f"{path}: {name}: expected a {default.__name__}, found {value!r}")
    return kind(**given)


def save_model(pipe: Flux1, folder: Path, dtype: str | None = None) -> None:
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
