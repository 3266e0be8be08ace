"""`minflux generate`: a prompt to a PNG, under a progress bar, with previews of the way."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from minflux.backend import get_backend
from minflux.checkpoints import hub
from minflux.checkpoints.components import FAMILIES, TRANSFORMER, network
from minflux.checkpoints.folder import CONFIG, read_config
from minflux.checkpoints.formats.atomic import written_whole
from minflux.checkpoints.loose import open_with_files
from minflux.checkpoints.lora import with_loras
from minflux.checkpoints.open import Checkpoint, component_in, locate_here
from minflux.commands.again import (
    ask_before_fetching,
    check_nothing_beside,
    check_unchanged,
    find_pictures,
    hash_inputs,
    moved,
    parts_of,
    pictures_in,
    seen_from,
)
from minflux.commands.options import (
    BACKEND,
    FILE,
    LORA,
    MODEL,
    STEPS,
    ReadingBar,
    check_output,
    image_options,
    print_note,
    take_files,
    with_files,
)
from minflux.commands.png import ImageSettings, read_png_settings, save_png
from minflux.edit.base import Edit
from minflux.edit.canvas import Canvas
from minflux.edit.image_to_image import check_share
from minflux.edit.kontext import Reference
from minflux.errors import ArgumentError
from minflux.images import grid
from minflux.inference.arguments import check_guidance, check_side, check_solver, check_steps, check_strength, effective
from minflux.inference.cache_files import default_folder
from minflux.inference.edits import ImageInput, check_image_input, check_references, check_taken, strength_of
from minflux.inference.flux1 import Flux1
from minflux.inference.image_prompts import ImagePrompts, read_image_prompts
from minflux.inference.load import choose_files, find_loras, find_redux, load_checkpoint, traits_of
from minflux.inference.memory import MODES
from minflux.inference.pipeline import Conditioning, finished
from minflux.model.flux import FluxConfig
from minflux.sampling.noise import check_seed
from minflux.sampling.solvers import SOLVERS


def parse_size(ctx, param, value: str | None) -> tuple[int | None, int | None]:
    """Read WxH."""
    if value is None:
        return None, None
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ArgumentError(f"--size must be WIDTHxHEIGHT in pixels, like 64x64, got {value!r}")
    return int(width), int(height)


@click.command("generate", short_help="Generate an image of a prompt.")
@click.argument("prompt", required=False)
@MODEL
@BACKEND
@STEPS
@click.option(
    "--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True, help="Repeat for several images."
)
@click.option("--guidance", type=float, help="How strongly to follow the prompt; unless given, what suits the model.")
@click.option("--true-cfg-scale", type=float, help="Classifier-free guidance on models with built-in guidance.")
@click.option("--negative-prompt", help="What classifier-free guidance leads away from.")
@click.option("--size", callback=parse_size, metavar="WxH", help="In pixels; unless given, what suits the model.")
@click.option(
    "--solver",
    type=click.Choice(list(SOLVERS)),
    default="euler",
    show_default=True,
    help="How steps follow the velocity; heun and midpoint evaluate it twice a step.",
)
@image_options
@click.option("--out", type=FILE, default="minflux.png", show_default=True, help="Of several seeds, each adds its own.")
@click.option("--preview", type=FILE, help="Each step's denoised image: a .gif, or a .png strip.")
@click.option("--from", "source", type=FILE, help="Generate an image of minflux again from its PNG, to the bit.")
@click.option("--anyway", is_flag=True, help="With --from: also where the model or a LoRA is no longer the same.")
@click.option("--yes", is_flag=True, help="With --from: fetch the model that the PNG names, without asking.")
@LORA
@click.option(
    "--memory",
    type=click.Choice(["auto", *MODES]),
    default="auto",
    show_default=True,
    help="How weights are held: all at once, each part while it works, or each matrix while it works.",
)
@click.option("--cache", is_flag=True, help="Keep the encoded prompt on disk, for the next time.")
@with_files
def command(prompt, model, backend, seeds, size, out, preview, source, anyway, yes, lora, memory, cache, **given):
    """Generate an image of PROMPT, as a PNG that carries its own settings.

    \b
    minflux generate "a cat left of an apple on a blue background" --seed 7 --out cat.png
    minflux generate "a cat on a blue background" --seed 1 --seed 2 --solver heun --steps 10
    minflux generate --from cat.png --out again.png
    minflux generate "a lighthouse at dusk" --model schnell --size 768x512
    minflux generate "a dog on a blue background" --image cat.png --strength 0.8
    minflux generate "a lighthouse at dusk" --comfy ComfyUI/models --transformer flux1-dev-fp8
    """
    named, control_out = take_files(given), given.pop("control_out")
    given |= {"width": size[0], "height": size[1]}
    check_files(out, preview)
    png = None
    if source is not None:
        check_nothing_beside(source)
        png = read_png_settings(source)
        ask_before_fetching(source, png, yes)
        prompt, model, backend, lora, seeds = png.prompt, png.model, png.backend, png.lora, [png.seed]
        named |= parts_of(source, png)
        given = {name: getattr(png, name) for name in given}
        given = find_pictures(given, source)
    elif anyway or yes:
        raise ArgumentError("--anyway and --yes go with --from")
    if prompt is None:
        raise ArgumentError('give a prompt, as in: minflux generate "a cat on a blue background"')
    pictures = pictures_in(given)
    check_pictures(pictures)
    check_control_out(control_out, pictures, (out, preview))
    check_settings(seeds, given)
    images = image_input(given)
    check_image_prompts(given)
    lora = find_loras(named["comfy"], lora)
    model, files = choose_files(model, named.pop("comfy"), named, print_note)
    if TRANSFORMER.name not in files:
        check_ahead_of_fetching(model, given, lora)
    redux = find_redux(given["redux"], given["image_encoder"], fetch=True)
    checkpoint = open_with_files(model, files, fetch=True)
    wanted = given["width"], given["height"]  # of an image's, what isn't given is the image's own
    given = complete(checkpoint, given, lora)
    hashes = hash_inputs(checkpoint, lora, pictures, redux)
    if png is not None:
        check_unchanged(source, png, hashes, anyway)
    folder = default_folder() if cache else None
    how = {"lora": lora, "memory": memory, "report": print_note, "cache": folder, "progress": ReadingBar()}
    how |= {"redux": redux}
    pipe = load_checkpoint(checkpoint, get_backend(backend), model, **how)
    canvas = pipe.open_canvas(images, *wanted)
    save_control(canvas, control_out)
    image_prompts = pipe.image_prompts(*image_prompts_of(given))
    references = pipe.encode_references(given["reference"], given["reference_layout"])
    width, height = pipe.size_of(canvas, references, *wanted)
    given |= {"width": width or given["width"], "height": height or given["height"]}
    if images.image is not None:
        given["strength"] = strength_of(images, pipe.takes)
    given = moved(given, lambda path: seen_from(path, out))
    given |= {"lora": pipe.lora, "files": {name: str(path) for name, path in files.items()}, "hashes": hashes}
    jobs = [ImageSettings(prompt, model, pipe.nx.name, seed, **given) for seed in seeds]
    generate(pipe, jobs, out, preview, Shown(images, canvas, references, image_prompts))


# -- checks, before a weight is read -----------------------------------------------------------------------------


def check_files(out: Path, preview: Path | None) -> None:
    """Raise `ArgumentError` unless both files can be written."""
    check_output(out, "--out", (".png",))
    if preview is None:
        return
    check_output(preview, "--preview", (".gif", ".png"))
    if preview.resolve() == out.resolve():
        raise ArgumentError(f"--preview must be another file than --out, got {str(preview)!r} for both")


def check_pictures(pictures: Mapping[str, Path]) -> None:
    """Raise `ArgumentError` unless the image and the mask are files."""
    for role, path in pictures.items():
        if not path.is_file():
            raise ArgumentError(f"--{role}: there is no file {str(path)!r}")


def check_control_out(path: Path | None, pictures: Mapping[str, Path], written: Sequence[Path | None]) -> None:
    """Raise `ArgumentError` unless the control image can be written there, over none of the other files."""
    if path is None:
        return
    if "control" not in pictures:
        raise ArgumentError("--control-out goes with --control")
    check_output(path, "--control-out", (".png",))
    others = [other.resolve() for other in (*pictures.values(), *written) if other is not None]
    if path.resolve() in others:
        raise ArgumentError(f"--control-out must be another file than those read and written, got {str(path)!r}")


def image_input(given: Mapping[str, Any]) -> ImageInput:
    """Return what is said of images; raises `ArgumentError` for settings without the image that they are about."""
    images = ImageInput(**{field.name: given[field.name] for field in fields(ImageInput)})
    check_image_input(images)
    return images


def image_prompts_of(given: Mapping[str, Any]) -> tuple[list[Path], list[float] | float | None, str]:
    """Return image prompts, their strengths and their mix as a call takes them; a single strength is for all."""
    strengths = list(given["image_prompt_strength"])
    return (
        list(given["image_prompt"]),
        strengths if len(strengths) > 1 else next(iter(strengths), None),
        given["image_prompt_mix"],
    )


def check_image_prompts(given: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` for image prompts without Redux, Redux without them, and settings that don't fit them."""
    read_image_prompts(*image_prompts_of(given))
    if bool(given["image_prompt"]) != (given["redux"] is not None):
        raise ArgumentError("--image-prompt and --redux go together: black-forest-labs/FLUX.1-Redux-dev is one")


def check_settings(seeds: Sequence[int], given: dict) -> None:
    """Raise `ArgumentError` for a setting that no FLUX model can honour."""
    checks = {
        "steps": check_steps,
        "guidance": lambda value: check_strength("guidance", value),
        "true_cfg_scale": lambda value: check_strength("true_cfg_scale", value),
        "width": lambda value: check_side("width", value),
        "height": lambda value: check_side("height", value),
        "solver": check_solver,
        "strength": lambda value: check_share("strength", value),
    }
    for seed in seeds:
        check_seed(seed)
    for name, check in checks.items():
        if given[name] is not None:
            check(given[name])


def check_ahead_of_fetching(model: str, given: dict[str, Any], lora: Sequence[str]) -> None:
    """Fetch the settings of a model on the Hub, two small files, and raise what `complete` would raise of them.

    So that nobody waits for gigabytes to be told that they can't be used in this way.
    """
    repository = hub.repository(model)
    if locate_here(model) is None and repository is not None:
        folder = hub.fetch(repository, hub.SETTINGS)
        for path in {folder / network(family).name for family in FAMILIES.values()}:
            component = component_in(path)
            if path.exists() and component is not None:
                complete_for(folder, read_config(path / CONFIG, component), given, lora)


def complete(checkpoint: Checkpoint, given: dict[str, Any], lora: Sequence[str]) -> dict[str, Any]:
    """Return an image's settings, completed with the model's defaults; `ArgumentError` if it can't honour them."""
    stored = checkpoint.components.get(network(checkpoint.family).name)
    if stored is None:
        return given  # loading says what is missing
    return complete_for(checkpoint.folder, stored.config, given, lora)


def complete_for(folder: Path, cfg: Any, given: dict[str, Any], lora: Sequence[str]) -> dict[str, Any]:
    """Do as `complete` does for a model whose defaults lie in `folder`; cfg: its network's config without the LoRAs."""
    cfg = with_loras(lora, cfg) if isinstance(cfg, FluxConfig) else cfg
    traits = traits_of(folder, cfg)
    defaults, built_in = traits.defaults, traits.built_in_guidance
    check_references(given["reference"], traits.takes_references)
    check_taken(image_input(given), traits.takes)
    guidance = check_guidance(given["guidance"], given["true_cfg_scale"], defaults.guidance, built_in)
    effective(given["negative_prompt"], guidance)
    names = ["steps", "width", "height"]
    if built_in or given["true_cfg_scale"] is None:  # otherwise the one takes the place of the other
        names.append("guidance")
    missing = {name: getattr(defaults, name) for name in names if given[name] is None}
    return given | missing


# -- images ------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """The images that a model is shown: what is said of them, their canvas, encoded references, and image prompts."""

    images: ImageInput
    canvas: Canvas | None
    references: tuple[Reference, ...]
    image_prompts: ImagePrompts


def generate(pipe: Flux1, jobs: Sequence[ImageSettings], out: Path, preview: Path | None, shown: Shown) -> None:
    """Generate and write images that differ in their seeds alone, and print where they are."""
    text = None
    for job in jobs:
        with tqdm(total=job.steps, desc="reading the prompt", unit="step") as bar:
            text = text or encode_prompt(pipe, job, shown)
            bar.set_description(f"seed {job.seed}")
            edit = pipe.edit_of(shown.images, shown.canvas, [job.seed])
            bar.reset(len(edit.timesteps(np.zeros(job.steps + 1))) - 1)
            pixels, frames = sample_image(pipe, job, text, edit, bar, previews=preview is not None)
            image = finished(shown.canvas, pixels)
        path = numbered(out, job.seed, len(jobs))
        save_png(image, path, job)
        click.echo(path)
        if preview is not None:
            path = numbered(preview, job.seed, len(jobs))
            save_preview(frames, path)
            click.echo(path)


def save_control(canvas: Canvas | None, path: Path | None) -> None:
    """Write the control image as the model sees it, where that is asked for, and print where it is."""
    if canvas is None or path is None:
        return
    with written_whole(path) as file:
        Image.fromarray(canvas.control_pixels()).save(file, format="PNG")
    click.echo(path)


def encode_prompt(pipe: Flux1, job: ImageSettings, shown: Shown) -> Conditioning:
    """Encode an image's prompt, its image prompts, and its negative prompt where guidance needs one."""
    strength = {"guidance": job.guidance, "true_cfg_scale": job.true_cfg_scale}
    text = pipe.encode(job.prompt, job.negative_prompt, **strength)
    return replace(pipe.with_image_prompts(text, shown.image_prompts), references=shown.references)


def sample_image(
    pipe: Flux1, job: ImageSettings, text: Conditioning, edit: Edit, bar: tqdm, previews: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Sample one image; return its pixels (H, W, 3), and those of each step's denoised image when asked for."""
    frames = []
    for step in pipe.sample(
        text, job.seed, job.steps, guidance=job.guidance, true_cfg_scale=job.true_cfg_scale, width=job.width,
        height=job.height, solver=job.solver, edit=edit,
    ):  # fmt: skip
        if previews:
            frames.append(pipe.decode(step.denoised)[0])
        bar.update()
    return pipe.decode(step.x)[0], frames


def numbered(path: Path, seed: int, count: int) -> Path:
    """Add the seed to an image's name when there are several."""
    return path.with_stem(f"{path.stem}-{seed}") if count > 1 else path


def save_preview(frames: list[np.ndarray], path: Path) -> None:
    """Write each step's denoised image: an animation (.gif, the last one held) or a strip side by side (.png)."""
    with written_whole(path) as file:
        if path.suffix == ".gif":
            images = [Image.fromarray(frame) for frame in frames]
            durations = [120] * (len(images) - 1) + [1500]
            images[0].save(file, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
        else:
            grid(frames, columns=len(frames)).save(file, format="PNG")
