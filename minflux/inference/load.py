"""Load a model: open it, check it, and read its weights onto a backend; and save one.

    model_index.json, transformer/, vae/, text_encoder/ (CLIP), text_encoder_2/ (T5), tokenizer/, tokenizer_2/,
    scheduler/

A file `minflux.json` beside them may say how the model is best sampled with (see `Defaults`). A single file (BFL's,
ComfyUI's, …) inside the folder, or a component's folder, takes the place of the components that it holds.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from minflux.arrays import Tree
from minflux.backend import Backend, get_backend
from minflux.backend.malloc import keep_freed_memory
from minflux.checkpoints.components import CLIP, COMPONENTS, T5, TRANSFORMER, VAE
from minflux.checkpoints.components.flux import variant
from minflux.checkpoints.family import PIPELINES, REDUX_TITLE
from minflux.checkpoints.folder import save_component
from minflux.checkpoints.formats.json_files import read_json, write_json
from minflux.checkpoints.lazy import Progress, no_progress, stream
from minflux.checkpoints.lora import Change, add_loras, read_loras
from minflux.checkpoints.open import INDEX, Checkpoint, open_model, warn_of_unexpected
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.stored import StoredComponent
from minflux.checkpoints.tree import flatten, tree
from minflux.errors import CheckpointError
from minflux.inference.cache import Cache, identity
from minflux.inference.flux1 import Flux1
from minflux.inference.memory import choose, when_read
from minflux.inference.pipeline import Defaults
from minflux.inference.text import Tokenizer
from minflux.model.flux import FluxConfig
from minflux.sampling.timesteps import Schedule

DEFAULTS, SCHEDULER = "minflux.json", "scheduler/scheduler_config.json"
KONTEXT = "FluxKontextPipeline"
NEVER_INSIDE = ("scheduler", "tokenizer", "tokenizer_2")  # what no single file holds
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
DEV_DEFAULTS = Defaults()
DEV_SCHEDULE = Schedule(shift=3.0, use_dynamic_shifting=True)  # of FLUX.1-dev's scheduler_config.json
SCHNELL_DEFAULTS = Defaults(steps=4, guidance=1.0, text_length=256)


def load(
    model: str | Path = "tiny",
    backend: str | Backend = "auto",
    dtype: str | None = None,
    lora: str | Sequence[str] = (),
    memory: str = "auto",
    report: Callable[[str], None] | None = None,
    cache: str | Path | None = None,
    progress: Progress = no_progress,
) -> Flux1:
    """Load a model by name ("tiny"), from a folder or a file, onto "numpy", "mlx" or "auto".

    model: a model that ships here, a folder in diffusers' layout, a .safetensors file with what it lacks beside it, or
    on the Hugging Face Hub "schnell", "dev" or OWNER/NAME. backend: "auto" is MLX where it has a GPU and NumPy
    elsewhere. dtype: of the weights; unless given, "float32" on a CPU and the file's own on a GPU. lora: LoRAs to
    add, each a file, "FOLDER[:FILE]" or "OWNER/NAME[:FILE]" on the Hub, and ":SCALE" after it or not.
    memory: "resident", "staged", "streamed", or "auto" for the first of them that
    fits into what is free (see `inference/memory.py`); `report` is told when that is a slow one, and without it there
    is a warning. cache: a folder in which what the text encoders say is kept, so that for the same prompts they need
    not run again (see `inference/cache.py`).

    Raises `ArgumentError` for an unknown name, `CheckpointError` for a folder that is no model, a weight that is
    missing or wrong, or a LoRA of another model, `BackendError` for a backend that isn't installed.
    """
    nx = backend if isinstance(backend, Backend) else get_backend(backend)
    loras = [lora] if isinstance(lora, str) else lora
    return load_checkpoint(open_model(model, fetch=True), nx, str(model), dtype, loras, memory, report, cache, progress)


def load_checkpoint(
    checkpoint: Checkpoint,
    nx: Backend,
    name: str,
    dtype: str | None = None,
    lora: Sequence[str] = (),
    memory: str = "auto",
    report: Callable[[str], None] | None = None,
    cache: str | Path | None = None,
    progress: Progress = no_progress,
) -> Flux1:
    """Read the weights of a model that was opened; `name` is what it is called, and the rest as for `load`."""
    dtype = dtype or (None if nx.on_gpu else "float32")
    components = take_components(checkpoint)
    configs = {name: stored.config for name, stored in components.items()}
    changes = read_loras(lora, configs)
    mode = choose(memory, nx, components, dtype, report)
    if mode == "resident" and not nx.on_gpu:
        keep_freed_memory()
    trees = {
        name: read_in_mode(stored, nx, dtype, of_component(changes, name), mode) for name, stored in components.items()
    }
    folder = checkpoint.folder
    return Flux1(
        nx=nx,
        flux=(configs[TRANSFORMER.name], trees[TRANSFORMER.name]),
        vae=(configs[VAE.name], trees[VAE.name]),
        clip=(configs[CLIP.name], trees[CLIP.name]),
        t5=(configs[T5.name], trees[T5.name]),
        clip_tokenizer=Tokenizer.from_folder(folder / "tokenizer", configs[CLIP.name].vocab_size),
        t5_tokenizer=Tokenizer.from_folder(folder / "tokenizer_2", configs[T5.name].vocab_size),
        schedule=schedule_of(checkpoint, configs[TRANSFORMER.name]),
        defaults=read_defaults(folder / DEFAULTS, configs[TRANSFORMER.name]),
        name=name,
        lora=tuple(lora),
        cache=Cache(Path(cache), text_identity(components, changes, nx, dtype), nx) if cache else None,
        progress=progress,
    )


def read_in_mode(stored: StoredComponent, nx: Backend, dtype: str | None, changes: Sequence[Change], mode: str) -> Tree:
    """Read a component's weights, all at once or as they are used, with the changes of LoRAs added."""
    if any(when_read(mode, stored.component, name) != "kept" for name in stored.sources):
        return stream(stored, nx, dtype, changes, lambda name: when_read(mode, stored.component, name))
    p = read_tree(stored, nx, dtype)
    return tree(add_loras(flatten(p), changes)) if changes else p


def of_component(changes: Sequence[Change], name: str) -> list[Change]:
    """Return the changes of LoRAs to one component."""
    return [change for change in changes if change.module.component == name]


def text_identity(
    components: dict[str, StoredComponent], changes: Sequence[Change], nx: Backend, dtype: str | None
) -> str:
    """Hash what the text encoders' outputs depend on beside the prompt."""
    encoders = [stored for stored in components.values() if stored.component.stage == "text"]
    names = [stored.name for stored in encoders]
    return identity(encoders, [change for change in changes if change.module.component in names], nx, dtype)


# -- what can be sampled from --------------------------------------------------------------------------------


def take_components(checkpoint: Checkpoint) -> dict[str, StoredComponent]:
    """Return the four components of a model, by name; raises `CheckpointError` at the first thing that is wrong."""
    check_pipeline(checkpoint)
    held, is_whole = checkpoint.components, checkpoint.path == checkpoint.folder
    if TRANSFORMER.name in held:
        check_channels(checkpoint.path, held[TRANSFORMER.name].config)
    if not is_whole:
        check_beside(checkpoint)
    components = {name: checkpoint.take(name) for name in COMPONENTS}
    check_channels(checkpoint.path, components[TRANSFORMER.name].config, components[VAE.name].config.z_channels)
    used = {stored.path for stored in components.values()}
    warn_of_unexpected({path: names for path, names in checkpoint.unexpected_keys.items() if path in used})
    return components


def check_pipeline(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for what is no FLUX.1 model; warn of one that is sampled from its text alone."""
    path, pipeline = checkpoint.path, str(checkpoint.index.get("_class_name"))
    if not checkpoint.found:
        raise CheckpointError(f"{path}: is {REDUX_TITLE}: minflux can't generate with it")
    if checkpoint.path != checkpoint.folder or checkpoint.lacks_settings:
        return
    if not checkpoint.index:
        raise CheckpointError(f"{path}: expected a model in diffusers' layout, found no {INDEX}")
    if not pipeline.startswith("Flux"):
        raise CheckpointError(f"{path / INDEX}: expected a FluxPipeline, found a {pipeline}")
    if pipeline == KONTEXT:
        warnings.warn(f"{path}: is {PIPELINES[KONTEXT]}; it generates from the text alone", stacklevel=4)


def check_beside(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` unless each folder that a file lacks lies beside it."""
    path, held = checkpoint.path, checkpoint.components
    if TRANSFORMER.name not in held:
        raise CheckpointError(f"{path}: expected a transformer, found {', '.join(held) or 'none'}")
    lacks = [name for name in (*COMPONENTS, *NEVER_INSIDE) if name not in held]
    missing = [name for name in lacks if not (checkpoint.folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{path}: expected beside it {', '.join(lacks)}, folders of a FLUX.1 model in diffusers' layout; found no "
            f"{', '.join(missing)}: put them there, or move the file into such a model's folder"
        )


def check_channels(path: Path, flux: FluxConfig, z_channels: int | None = None) -> None:
    """Raise `CheckpointError` for a transformer that takes more than the latents (Fill, Canny, Depth), or others."""
    wanted = 4 * z_channels if z_channels else flux.out_channels
    if flux.in_channels != wanted:
        raise CheckpointError(
            f"{path}: expected a transformer of {wanted} channels, a 2×2 patch of latents; found "
            f"{flux.in_channels}: FLUX.1 {variant(flux)}; minflux can't generate with it"
        )


# -- settings ------------------------------------------------------------------------------------------------


def schedule_of(checkpoint: Checkpoint, cfg: FluxConfig) -> Schedule:
    """Return the sampler's settings: those of the folder, or FLUX.1's own where mflux saved none."""
    path = checkpoint.folder / SCHEDULER
    if checkpoint.lacks_settings and not path.exists():
        return DEV_SCHEDULE if cfg.guidance_embed else Schedule()
    return read_schedule(path)


def read_schedule(path: Path) -> Schedule:
    """Read the sampler's settings; those that are not there have their defaults."""
    values = read_json(path)
    for name, plain in PLAIN_SCHEDULE.items():
        if values.get(name, plain) not in (plain, None):
            raise CheckpointError(
                f"{path}: {name}: minflux supports {plain!r} alone, found {values[name]!r}; change it there, or use "
                "another model"
            )
    schedule = read_fields(Schedule, values, path)
    if not schedule.shift > 0 or schedule.max_image_seq_len <= schedule.base_image_seq_len:
        raise CheckpointError(f"{path}: expected a shift above 0 and max_image_seq_len above base_image_seq_len")
    return schedule


def read_defaults(path: Path, cfg: FluxConfig) -> Defaults:
    """Read how a model is best sampled with; without a file, as dev or schnell, by whether it takes guidance."""
    if not path.exists():
        return DEV_DEFAULTS if cfg.guidance_embed else SCHNELL_DEFAULTS
    return read_fields(Defaults, read_json(path), path)


def read_fields(kind: type, values: dict[str, Any], path: Path) -> Any:
    """Make settings of what a file has of them; raises `CheckpointError` for one of another type than its default."""
    given = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    for name, value in given.items():
        default = type(getattr(kind, name))
        if not is_of(default, value):
            raise CheckpointError(f"{path}: {name}: expected a {default.__name__}, found {value!r}")
    return kind(**given)


def is_of(kind: type, value: Any) -> bool:
    """Return whether a JSON value has a type; a float may be a whole number, and must be finite."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


# -- saving --------------------------------------------------------------------------------------------------


def save_model(pipe: Flux1, folder: Path, dtype: str | None = None) -> None:
    """Write the model's weights, configs, index and settings so that diffusers and `load` open the folder.

    Floats are stored as `dtype`, or as they are. The tokenizers' folders are not written: they are there before a model
    can be trained.
    """
    parts = {TRANSFORMER.name: pipe.flux, VAE.name: pipe.vae, CLIP.name: pipe.clip, T5.name: pipe.t5}
    for name, (config, p) in parts.items():
        save_component(folder, name, config, p, dtype)
    (folder / SCHEDULER).parent.mkdir(exist_ok=True)
    write_json(folder / INDEX, index_content())
    write_json(folder / SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler", **asdict(pipe.schedule)})
    write_json(folder / DEFAULTS, asdict(pipe.defaults))


def index_content() -> dict[str, Any]:
    """Return model_index.json of a FLUX.1 model: which library opens which part."""
    content = {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        **{name: list(component.library) for name, component in COMPONENTS.items()},
    }
    return dict(sorted(content.items()))
