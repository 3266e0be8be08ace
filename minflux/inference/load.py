"""Load a model: open it, check it, and read its weights onto a backend; and save one.

    model_index.json, transformer/, vae/, text_encoder/ (CLIP), text_encoder_2/ (T5), tokenizer/, tokenizer_2/,
    scheduler/

A file `minflux.json` beside them may say how the model is best sampled with (see `Defaults`), and what it was trained
on (see `hints.py`). A single file (BFL's, ComfyUI's, …) inside the folder, or a component's folder, takes the place of
the components that it holds; so does each file that is named for a component (`checkpoints/loose.py`). What files lack
beside the weights is FLUX.1's own (`beside.py`).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from minflux.arrays import Tree
from minflux.backend import Backend, get_backend
from minflux.backend.malloc import keep_freed_memory
from minflux.backend.metal import set_limits
from minflux.backend.processes import ALONE, Group, check_alike, connect
from minflux.checkpoints.comfy import choose_from_comfy, controlnet_in, lora_in, redux_in
from minflux.checkpoints.components import (
    ADAPTERS,
    CLIP,
    COMPONENTS,
    CONTROLNET,
    REDUX,
    SIGLIP,
    T5,
    TRANSFORMER,
    VAE,
    Family,
    network,
)
from minflux.checkpoints.components.flux import takes, variant
from minflux.checkpoints.controlnet import locate_controlnet, open_controlnet
from minflux.checkpoints.diffusionkit import what_is_lost
from minflux.checkpoints.fit import check_controlnet, check_fit
from minflux.checkpoints.folder import save_component
from minflux.checkpoints.formats.entry import Coded
from minflux.checkpoints.formats.json_files import read_json, write_json
from minflux.checkpoints.hashes import hash_components
from minflux.checkpoints.lazy import Progress, no_progress, stream
from minflux.checkpoints.loose import Files, model_of, named_files, open_with_files, option
from minflux.checkpoints.lora import Change, add_loras, read_loras, widened, with_loras
from minflux.checkpoints.open import INDEX, Checkpoint, warn_of_unexpected
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.redux import ReduxFiles, locate_redux, open_redux
from minflux.checkpoints.relaid import relaid
from minflux.checkpoints.shares import share_model
from minflux.checkpoints.stored import StoredComponent
from minflux.checkpoints.tree import flatten, tree
from minflux.errors import ArgumentError, CheckpointError, quoted
from minflux.inference.arguments import check_loading, check_path, check_paths
from minflux.inference.beside import read_tokenizers, usual_schedule
from minflux.inference.cache import identity, open_cache
from minflux.inference.controlnets import GUIDANCE, ControlNet
from minflux.inference.flux1 import Flux1
from minflux.inference.flux2 import DEV_MODEL, KLEIN_MODEL
from minflux.inference.hints import FLUX1_TRAINED, Report, Trained, parse_trained, tell, trained_content
from minflux.inference.image_prompts import Redux
from minflux.inference.memory import choose, when_read
from minflux.inference.neighbour import Neighbour, Traits
from minflux.inference.pipeline import Defaults
from minflux.inference.sd3 import SD3_MODEL
from minflux.inference.settings import read_fields, read_schedule
from minflux.inference.unet import SD1_MODEL
from minflux.inference.with_vae import VAEPipeline
from minflux.model.flux import FluxConfig
from minflux.sampling.timesteps import Schedule
from minflux.version import __version__

DEFAULTS, SCHEDULER = "minflux.json", "scheduler/scheduler_config.json"
KONTEXT = "FluxKontextPipeline"
CLASSES = {"": "FluxPipeline", "mask": "FluxFillPipeline", "control": "FluxControlPipeline"}  # by what they take
TRAINED = "trained"  # in minflux.json
DEV_DEFAULTS = Defaults()
SCHNELL_DEFAULTS = Defaults(steps=4, guidance=1.0, text_length=256)
KONTEXT_DEFAULTS = Defaults(guidance=2.5)
SHOWN_DEFAULTS = Defaults(steps=50, guidance=30.0)  # of Fill and Canny; Depth's guidance is 10
NEIGHBOURS = (SD3_MODEL, SD1_MODEL, KLEIN_MODEL, DEV_MODEL)


def load(
    model: str | Path | None = None,
    backend: str | Backend = "auto",
    dtype: str | None = None,
    lora: str | Sequence[str] = (),
    memory: str = "auto",
    report: Report | None = None,
    cache: str | Path | None = None,
    progress: Progress = no_progress,
    *,
    transformer: str | Path | None = None,
    text_encoder: str | Path | None = None,
    text_encoder_2: str | Path | None = None,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    comfy: str | Path | None = None,
    redux: str | Path | None = None,
    image_encoder: str | Path | None = None,
    controlnet: str | Path | Sequence[str | Path] = (),
    split: bool = False,
) -> Flux1:
    """Load a model by name ("tiny"), from a folder or from files, onto "numpy", "mlx" or "auto".

    model: a model that ships here, a folder in diffusers' layout, a .safetensors file with what it lacks beside it, or
    on the Hugging Face Hub "schnell", "dev" or OWNER/NAME; "tiny" unless given. backend: "auto" is MLX where it has a
    GPU and NumPy elsewhere. dtype: of the weights; unless given, "float32" on a CPU and the file's own on a GPU. lora:
    LoRAs to add, each a file, "FOLDER[:FILE]" or "OWNER/NAME[:FILE]" on the Hub, and ":SCALE" after it or not. memory:
    "resident", "staged", "streamed", or "auto" for the first of them that fits into what is free (see
    `inference/memory.py`). report: a function that is told a line that is good to know, as that a slow way was chosen;
    without it there is a warning. cache: a folder in which what the text encoders say is kept, so that for the same
    prompts they need not run again (see `inference/cache.py`).

    transformer, text_encoder (CLIP), text_encoder_2 (T5), vae: files, each in place of the model's own part; without a
    model, the transformer's file is the model. tokenizer: a folder that holds `tokenizer` and `tokenizer_2`, in place
    of the model's own. comfy: ComfyUI's folder `models`, whose files are taken where there is one that fits; where
    there are several, name one, by its name there.

    redux: FLUX.1 Redux, which makes image prompts of images: its folder, its file, or OWNER/NAME on the Hub.
    image_encoder: a folder or a file with SigLIP's vision encoder, where Redux has none beside it. controlnet: a
    ControlNet or several, each a folder, a file or OWNER/NAME[:FILE] on the Hub. With `comfy` all may be named as they
    are there. split: share the transformer and T5 among the processes that `mlx.launch` has started, each of which
    then does the same and has the same image in the end, up to rounding (see `checkpoints/shares.py`).

    Raises `ArgumentError` for an unknown name, `CheckpointError` for a folder that is no model, a weight that is
    missing or wrong, or a LoRA of another model, `BackendError` for a backend that isn't installed.
    """
    loras = check_loading(dtype, lora, memory, report, progress)
    nx = backend if isinstance(backend, Backend) else get_backend(backend)
    parts = {"transformer": transformer, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "vae": vae}
    check_paths(parts | {"model": model, "tokenizer": tokenizer, "comfy": comfy, "cache": cache})
    check_paths({"redux": redux, "image_encoder": image_encoder})
    loras = find_loras(comfy, loras)
    name, files = choose_files(model, comfy, parts | {"tokenizer": tokenizer}, report)
    checkpoint = open_with_files(name, files, fetch=True)
    adapter = find_redux(*choose_redux(comfy, redux, image_encoder, report), fetch=True)
    nets = find_controlnets(choose_controlnets(comfy, controlnet), fetch=True)
    group = joined_group(split)
    return load_checkpoint(checkpoint, nx, name, dtype, loras, memory, report, cache, progress, adapter, nets, group)


def joined_group(split: bool) -> Group:
    """Return the processes that share a model, `ALONE` where it is not split; `ArgumentError` where there is but one.

    Raises `MinfluxError` when they can't be reached.
    """
    if not isinstance(split, bool):
        raise ArgumentError(f"split must be True or False, got {quoted(split)}")
    if not split:
        return ALONE
    group = connect()
    if group.size == 1:
        raise ArgumentError("split: this is the only process; start several, as in: mlx.launch -n 2 -- COMMAND")
    return group


def choose_files(
    model: str | Path | None, comfy: str | Path | None, given: Mapping[str, str | Path | None], report: Report | None
) -> tuple[str, Files]:
    """Return the model, and the files in place of its parts, from what was named and what ComfyUI's folder has."""
    if comfy is None:
        return model_of(model, named_files(given))
    chosen = choose_from_comfy(comfy, given, tuple(COMPONENTS) if model is None else ())
    if report is not None:
        for name, path in chosen.items():
            report(f"{name}: {path}")
    return model_of(model, chosen)


def find_loras(comfy: str | Path | None, loras: Sequence[str]) -> list[str]:
    """Return LoRAs with the paths of those that are named as they are in ComfyUI's folder."""
    return list(loras) if comfy is None else [lora_in(comfy, lora) for lora in loras]


def choose_redux(
    comfy: str | Path | None,
    redux: str | Path | None,
    image_encoder: str | Path | None,
    report: Report | None,
    is_wanted: bool = False,
) -> tuple[str | Path | None, str | Path | None]:
    """Return Redux and its vision encoder, by their paths where ComfyUI's folder has them.

    is_wanted: whether the only one there is taken where none was named.
    """
    if comfy is None or (redux is None and not is_wanted):
        return redux, image_encoder
    found = redux_in(comfy, redux, image_encoder)
    if report is not None:
        for name, path in zip(("redux", "image_encoder"), found, strict=True):
            if path is not None:
                report(f"{name}: {path}")
    return found


def find_redux(redux: str | Path | None, image_encoder: str | Path | None, fetch: bool = False) -> ReduxFiles | None:
    """Open Redux and its vision encoder where they were named; raises `ArgumentError` for the encoder alone."""
    if redux is None:
        if image_encoder is not None:
            raise ArgumentError("image_encoder goes with redux: name its folder or file too")
        return None
    encoder = named_files({"image_encoder": image_encoder}).get("image_encoder")
    return open_redux(locate_redux(redux, fetch), encoder)


def choose_controlnets(comfy: str | Path | None, given: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the ControlNets that were named, one or several, with the paths of those in ComfyUI's folder.

    Raises `ArgumentError` for what is no name.
    """
    listed = [given] if isinstance(given, str | Path) else given
    if not isinstance(listed, list | tuple):
        raise ArgumentError(f"controlnet must be a path or a list of paths, got {quoted(given)}")
    paths = [check_path("controlnet", one) for one in listed]
    return paths if comfy is None else [controlnet_in(comfy, path) for path in paths]


def find_controlnets(paths: Sequence[Path], fetch: bool = False) -> list[StoredComponent]:
    """Open ControlNets where they were named."""
    return [open_controlnet(locate_controlnet(path, fetch)) for path in paths]


def load_checkpoint(
    checkpoint: Checkpoint,
    nx: Backend,
    name: str,
    dtype: str | None = None,
    lora: Sequence[str] = (),
    memory: str = "auto",
    report: Report | None = None,
    cache: str | Path | None = None,
    progress: Progress = no_progress,
    redux: ReduxFiles | None = None,
    controlnets: Sequence[StoredComponent] = (),
    group: Group = ALONE,
) -> Flux1:
    """Read the weights of a model that was opened; `name` is what it is called, and the rest as for `load`.

    group: the processes that share the model.
    """
    neighbour = neighbour_of(checkpoint.family)
    if group.size > 1:
        check_splittable(neighbour, lora, cache)
    if neighbour is not None:  # which no type tells: for type checkers it is a FLUX.1, whose methods it has
        neighbour.check_alone(checkpoint, lora, redux, controlnets)
        return cast(Flux1, load_neighbour(neighbour, checkpoint, nx, name, dtype, memory, report, cache, progress))
    dtype = dtype or (None if nx.on_gpu else "float32")
    components = take_components(checkpoint)
    if group.size > 1:
        check_same(group, nx, dtype, components)
    components = share_model(components, group)
    configs = {name: stored.config for name, stored in components.items()}
    changes = read_loras(lora, configs)
    configs[TRANSFORMER.name] = with_loras(lora, configs[TRANSFORMER.name])
    components = {name: as_laid_for(nx, dtype, stored, changes) for name, stored in components.items()}
    clip_tokenizer, t5_tokenizer = read_tokenizers(checkpoint, configs[CLIP.name], configs[T5.name], report)
    schedule = find_schedule(checkpoint, configs[TRANSFORMER.name], report)
    beside = adapters(redux, components[TRANSFORMER.name]) | named_controlnets(controlnets, configs[TRANSFORMER.name])
    components |= {name: as_laid_for(nx, dtype, stored, ()) for name, stored in beside.items()}
    tell_guidance(controlnets, configs[TRANSFORMER.name], report)
    mode = choose(memory, nx, components, dtype, report, widened(changes))
    trees = read_trees(components, nx, dtype, changes, mode)
    settings = checkpoint.folder / DEFAULTS
    return Flux1(
        nx=nx,
        flux=(configs[TRANSFORMER.name], trees[TRANSFORMER.name]),
        vae=(configs[VAE.name], trees[VAE.name]),
        clip=(configs[CLIP.name], trees[CLIP.name]),
        t5=(configs[T5.name], trees[T5.name]),
        clip_tokenizer=clip_tokenizer,
        t5_tokenizer=t5_tokenizer,
        schedule=schedule,
        defaults=read_defaults(settings, configs[TRANSFORMER.name]),
        trained=read_trained(settings, configs[TRANSFORMER.name], is_called_kontext(name, checkpoint)),
        name=name,
        lora=tuple(lora),
        redux=None if redux is None else made_of(redux, trees),
        controlnets=controlnets_of(components, trees),
        cache=open_cache(cache, text_identity(components, changes, nx, dtype), nx, report) if cache else None,
        progress=progress,
        group=group,
    )


def check_splittable(neighbour: Neighbour | None, lora: Sequence[str], cache: str | Path | None) -> None:
    """Raise `ArgumentError` for what does not go with a model that is split over processes."""
    if neighbour is not None:
        raise ArgumentError(f"split: minflux splits FLUX.1 only, and this is {neighbour.title}")
    if lora:
        raise ArgumentError("split goes without lora: add it to the model first, by minflux convert --lora")
    if cache:
        raise ArgumentError("split goes without cache: all processes encode a prompt, or none does")


def check_same(group: Group, nx: Backend, dtype: str | None, components: Mapping[str, StoredComponent]) -> None:
    """Raise `MinfluxError` unless all processes compute alike: else they would say things in different orders."""
    how = f"minflux {__version__}, {type(nx).__name__}, {dtype or 'floats as stored'}"
    check_alike(group, f"{how}, model {hash_components(dict(components), '')[:12]}")


def load_neighbour(
    neighbour: Neighbour,
    checkpoint: Checkpoint,
    nx: Backend,
    name: str,
    dtype: str | None,
    memory: str,
    report: Report | None,
    cache: str | Path | None,
    progress: Progress,
) -> VAEPipeline:
    """Read the weights of a model of another family that was opened; as `load_checkpoint`."""
    dtype = dtype or (None if nx.on_gpu else "float32")
    components = neighbour.take(checkpoint)
    configs = {part: stored.config for part, stored in components.items()}
    tokenizers = neighbour.read_tokenizers(checkpoint.folder, configs)
    schedule = neighbour.read_schedule(checkpoint.folder / SCHEDULER)
    trees = read_trees(components, nx, dtype, (), choose(memory, nx, components, dtype, report))
    return neighbour.make(
        {part: (configs[part], trees[part]) for part in components},
        tokenizers,
        nx=nx,
        schedule=schedule,
        defaults=traits_of(checkpoint.folder, configs[network(neighbour.family).name]).defaults,
        name=name,
        cache=open_cache(cache, text_identity(components, (), nx, dtype), nx, report) if cache else None,
        progress=progress,
    )


def neighbour_of(family: Family) -> Neighbour | None:
    """Return the record of another family than FLUX.1's, None for that."""
    return next((neighbour for neighbour in NEIGHBOURS if neighbour.family is family), None)


def read_trees(
    components: Mapping[str, StoredComponent], nx: Backend, dtype: str | None, changes: Sequence[Change], mode: str
) -> dict[str, Tree]:
    """Read the weights of every component in a memory mode."""
    if mode == "resident" and not nx.on_gpu:
        keep_freed_memory()
    set_limits(nx)
    return {
        name: read_in_mode(stored, nx, dtype, of_component(changes, name), mode) for name, stored in components.items()
    }


def read_in_mode(stored: StoredComponent, nx: Backend, dtype: str | None, changes: Sequence[Change], mode: str) -> Tree:
    """Read a component's weights, all at once or as they are used, with the changes of LoRAs added."""
    in_file = any(when_read(mode, stored.component, name) != "kept" for name in stored.sources)
    if in_file or any(tensor.in_blocks for tensor in stored.tensors.values()):
        return stream(stored, nx, dtype, changes, lambda name: when_read(mode, stored.component, name))
    p = read_tree(stored, nx, dtype)
    return tree(add_loras(flatten(p), changes)) if changes else p


def as_laid_for(nx: Backend, dtype: str | None, stored: StoredComponent, changes: Sequence[Change]) -> StoredComponent:
    """Return a component as it is computed with: for MLX, laid out for its kernels where that loses nothing.

    A matrix that changes of LoRAs widen stays as it is.
    """
    if nx.name != "mlx" or dtype == "bfloat16":
        return stored
    return relaid(stored, widened(of_component(changes, stored.name)))


def of_component(changes: Sequence[Change], name: str) -> list[Change]:
    """Return the changes of LoRAs to one component."""
    return [change for change in changes if change.module.component == name]


def text_identity(
    components: dict[str, StoredComponent], changes: Sequence[Change], nx: Backend, dtype: str | None
) -> str:
    """Hash what the text encoders' outputs depend on beside the prompt."""
    encoders = [
        stored for name, stored in components.items() if stored.component.stage == "text" and name not in ADAPTERS
    ]
    names = [stored.name for stored in encoders]
    return identity(encoders, [change for change in changes if change.module.component in names], nx, dtype)


def adapters(redux: ReduxFiles | None, transformer: StoredComponent) -> dict[str, StoredComponent]:
    """Map names to the networks that are loaded beside a model; raises `CheckpointError` for a misfit."""
    if redux is None:
        return {}
    check_fit({TRANSFORMER.name: transformer, REDUX.name: redux.embedder})
    return redux.components


def named_controlnets(nets: Sequence[StoredComponent], flux: FluxConfig) -> dict[str, StoredComponent]:
    """Map names of their own to ControlNets, in their order; raises `CheckpointError` for one that doesn't fit."""
    for stored in nets:
        check_controlnet(flux, stored)
    return {f"{CONTROLNET.name} {number}": stored for number, stored in enumerate(nets, start=1)}


def tell_guidance(nets: Sequence[StoredComponent], flux: FluxConfig, report: Report | None) -> None:
    """Say which guidance ControlNets get that take one beside a transformer that takes none."""
    for stored in nets:
        if stored.config.guidance_embed and not flux.guidance_embed:
            tell(
                f"{stored.path}: takes a guidance, and the model none: it gets {GUIDANCE:g}, as with FLUX.1-dev", report
            )


def controlnets_of(components: Mapping[str, StoredComponent], trees: Mapping[str, Tree]) -> tuple[ControlNet, ...]:
    """Return the ControlNets among the components with their weights, in their order."""
    found = (name for name, stored in components.items() if stored.component is CONTROLNET)
    return tuple(ControlNet(components[name].config, trees[name]) for name in found)


def made_of(redux: ReduxFiles, trees: Mapping[str, Tree]) -> Redux:
    """Return Redux with its weights."""
    encoder = redux.encoder.config, trees[SIGLIP.name]
    return Redux(encoder, trees[REDUX.name], redux.preprocessing)


# -- what can be sampled from --------------------------------------------------------------------------------


def take_components(checkpoint: Checkpoint) -> dict[str, StoredComponent]:
    """Return the components of a model, by name; raises `CheckpointError` at the first thing that is wrong."""
    neighbour = neighbour_of(checkpoint.family)
    if neighbour is not None:
        return neighbour.take(checkpoint)
    check_pipeline(checkpoint)
    held, is_whole = checkpoint.components, checkpoint.path == checkpoint.folder
    if TRANSFORMER.name in held:
        check_channels(checkpoint.path, held[TRANSFORMER.name].config)
    if not is_whole:
        check_beside(checkpoint)
    components = {name: checkpoint.take(name) for name in COMPONENTS}
    check_channels(checkpoint.path, components[TRANSFORMER.name].config, components[VAE.name].config.z_channels)
    check_fit(components)
    for note in what_is_lost(components[TRANSFORMER.name]):
        warnings.warn(f"{components[TRANSFORMER.name].path}: {note}", stacklevel=3)
    used = {stored.path for stored in components.values()}
    warn_of_unexpected({path: names for path, names in checkpoint.unexpected_keys.items() if path in used})
    return components


def check_pipeline(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for what is no FLUX.1 model."""
    path, pipeline = checkpoint.path, str(checkpoint.index.get("_class_name"))
    if not checkpoint.found:
        raise CheckpointError(f"{path}: is no model but {checkpoint.beside}")
    if checkpoint.path != checkpoint.folder:
        return
    if not checkpoint.index and checkpoint.missing:
        raise CheckpointError(
            f"{path}: expected a model in diffusers' layout, found no {INDEX}, and of loose files no "
            f"{', '.join(checkpoint.missing)}: name them, {naming_options(checkpoint.missing)}"
        )
    if not checkpoint.index:
        return
    if not pipeline.startswith("Flux"):
        raise CheckpointError(f"{path / INDEX}: expected a FluxPipeline, found a {pipeline}")


def check_beside(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` unless each component that a file lacks lies in a folder beside it."""
    path, held = checkpoint.path, checkpoint.components
    if TRANSFORMER.name not in held:
        raise CheckpointError(f"{path}: expected a transformer, found {', '.join(held) or 'none'}")
    missing = [name for name in checkpoint.missing if not (checkpoint.folder / name).is_dir()]
    if missing:
        found = f"a transformer{quantised(held[TRANSFORMER.name])}"
        raise CheckpointError(
            f"{path}: holds {found} and no {', '.join(missing)}, nor do folders of that name lie beside it: name "
            f"files, {naming_options(missing)}, or move the file into a FLUX.1 model's folder"
        )


def quantised(stored: StoredComponent) -> str:
    """Return what to say of a component that another program quantised, nothing for any other."""
    kinds = sorted({matrix.dtype for matrix in stored.tensors.values() if isinstance(matrix, Coded)})
    return f", quantised to {' and '.join(kinds)}," if kinds else ""


def naming_options(names: Sequence[str]) -> str:
    """List the options that name files for components."""
    return " ".join(f"{option(name)} FILE" for name in names)


def check_channels(path: Path, flux: FluxConfig, z_channels: int | None = None) -> None:
    """Raise `CheckpointError` for a transformer of other latents, or that takes beside them what no FLUX.1 does."""
    wanted = 4 * z_channels if z_channels else flux.out_channels
    if flux.out_channels != wanted or takes(flux) is None:
        raise CheckpointError(
            f"{path}: expected a transformer of {wanted} channels, a 2×2 patch of latents, or one of FLUX.1 Fill, "
            f"Canny or Depth; found {flux.in_channels} channels in and {flux.out_channels} out"
        )


# -- settings ------------------------------------------------------------------------------------------------


def find_schedule(checkpoint: Checkpoint, cfg: FluxConfig, report: Report | None) -> Schedule:
    """Read the sampler's settings; for files without any beside them, FLUX.1's own."""
    path = checkpoint.folder / SCHEDULER
    if path.exists() or checkpoint.index:
        return read_schedule(path)
    return usual_schedule(checkpoint.path, cfg, report)


def traits_of(folder: Path, cfg: Any) -> Traits:
    """Return what a model can be asked for, by its folder's settings and the config of its network."""
    path = folder / DEFAULTS
    if isinstance(cfg, FluxConfig):
        return Traits(read_defaults(path, cfg), cfg.guidance_embed, takes(cfg) or "", not takes(cfg))
    known = next(known for known in NEIGHBOURS if isinstance(cfg, network(known.family).config))
    usual = known.traits(folder, cfg)
    return replace(usual, defaults=read_fields(Defaults, read_json(path), path)) if path.exists() else usual


def read_defaults(path: Path, cfg: FluxConfig) -> Defaults:
    """Read how a model is best sampled with; without a file, as the one of the family that its transformer is."""
    if not path.exists() and takes(cfg):
        return SHOWN_DEFAULTS
    if not path.exists() and is_kontext(path.parent):
        return KONTEXT_DEFAULTS
    if not path.exists():
        return DEV_DEFAULTS if cfg.guidance_embed else SCHNELL_DEFAULTS
    return read_fields(Defaults, read_json(path), path)


def is_kontext(folder: Path) -> bool:
    """Return whether a model's index names Kontext, whose weights look like dev's."""
    index = folder / INDEX
    return index.exists() and read_json(index).get("_class_name") == KONTEXT


def is_called_kontext(name: str, checkpoint: Checkpoint) -> bool:
    """Return whether a model's name, its transformer's file or its index tells that it is Kontext."""
    path = checkpoint.components[TRANSFORMER.name].path
    names = name, checkpoint.folder.name, path.name, str(checkpoint.index.get("_class_name"))
    return any("kontext" in name.lower() for name in names)


def told_training(path: Path) -> Trained | None:
    """Read what a model's minflux.json says it was trained on, or return None without such a file."""
    return parse_trained(read_json(path).get(TRAINED, {}), path) if path.exists() else None


def read_trained(path: Path, cfg: FluxConfig, is_kontext: bool = False) -> Trained:
    """Read what a model was trained on; without a file, FLUX.1's own for a transformer of its sizes.

    is_kontext: whether its name tells that it was trained with references, though the file does not.
    """
    trained = told_training(path)
    if trained is None:
        trained = Trained() if variant(cfg).startswith("of its own size") else FLUX1_TRAINED
    return replace(trained, references=trained.references or is_kontext)


# -- saving --------------------------------------------------------------------------------------------------


def save_model(pipe: Flux1, folder: Path, dtype: str | None = None) -> None:
    """Write the model's weights, configs, index and settings so that diffusers and `load` open the folder.

    Floats are stored as `dtype`, or as they are. The tokenizers' folders are not written: they are there before a model
    can be trained. Raises `ArgumentError` for a model of which this process has a share alone.
    """
    if pipe.group.size > 1:
        raise ArgumentError("pipe is split over several processes, each with a share: save a model that is not")
    parts = {TRANSFORMER.name: pipe.flux, VAE.name: pipe.vae, CLIP.name: pipe.clip, T5.name: pipe.t5}
    for name, (config, p) in parts.items():
        save_component(folder, name, config, p, dtype)
    (folder / SCHEDULER).parent.mkdir(exist_ok=True)
    write_json(folder / INDEX, index_content(pipe.takes))
    write_json(folder / SCHEDULER, schedule_content(pipe.schedule))
    trained = trained_content(pipe.trained)
    write_json(folder / DEFAULTS, asdict(pipe.defaults) | ({TRAINED: trained} if trained else {}))


def schedule_content(schedule: Schedule) -> dict[str, Any]:
    """Return scheduler_config.json of a schedule."""
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", **asdict(schedule)}


def index_content(taken: str) -> dict[str, Any]:
    """Return model_index.json of a FLUX.1 model that takes an image or nothing: which library opens which part."""
    content = {
        "_class_name": CLASSES[taken],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        **{name: list(component.library) for name, component in COMPONENTS.items()},
    }
    return dict(sorted(content.items()))
