"""`minflux generate`: a prompt to a PNG, under a progress bar, with previews of the way."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from minflux.backend import get_backend
from minflux.backend.processes import check_alike, together
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
from minflux.commands.controlnet import as_in_a_call, check_controlnets, controlnet_options
from minflux.commands.flowedit import FLOW_EDIT, flow_edit_options, with_flow_edit
from minflux.commands.headings import WithHeadings
from minflux.commands.options import (
    BACKEND,
    FILE,
    LORA,
    MODEL,
    SIZE,
    STEPS,
    check_output,
    image_options,
    take_files,
    with_files,
)
from minflux.commands.png import ImageSettings, read_png_settings, save_png
from minflux.commands.together import Part, Task, prompts_of
from minflux.edit.canvas import Canvas, grow
from minflux.edit.flowedit import check_counts
from minflux.edit.image_to_image import check_share
from minflux.edit.kontext import Reference
from minflux.errors import ArgumentError, quoted
from minflux.images import grid
from minflux.inference.arguments import check_guidance, check_side, check_solver, check_steps, check_strength, effective
from minflux.inference.cache_files import default_folder
from minflux.inference.edits import (
    CONTROL,
    ImageInput,
    check_image_input,
    check_references,
    check_taken,
    strength_of,
    uses_of,
)
from minflux.inference.flux1 import Flux1
from minflux.inference.hints import Hint, Report
from minflux.inference.image_prompts import ImagePrompts, read_image_prompts, usual_guidance
from minflux.inference.load import (
    choose_controlnets,
    choose_files,
    choose_redux,
    find_controlnets,
    find_loras,
    find_redux,
    load_checkpoint,
    traits_of,
)
from minflux.inference.memory import MODES
from minflux.inference.pipeline import Conditioning, finished
from minflux.inference.step_cache import StepCache, check_step_cache, check_usable
from minflux.model.flux import FluxConfig
from minflux.sampling.noise import check_seed
from minflux.sampling.solvers import SOLVERS, Step

HEADINGS = {
    "What to draw": ("prompts", "seeds"),
    "The image": ("size", "steps", "solver", "guidance", "true_cfg_scale", "negative_prompt", "step_cache"),
    "Output": ("out", "preview", "source", "anyway", "yes"),
    "Model": ("model", "lora", "transformer", "text_encoder", "text_encoder_2", "vae", "tokenizer", "comfy"),
    "Backend and memory": ("backend", "memory", "cache"),
    "Several machines, or processes (mlx.launch)": ("split",),
    "Begin with an image": ("image", "strength", "posterior"),
    "Redraw a part of it, or beyond it": ("mask", "mask_blur", "mask_crop", "paste", "grow"),
    "Change what a sentence says of it (FlowEdit)": FLOW_EDIT,
    "FLUX.1 Canny and Depth": ("control", "canny", "control_out"),
    "ControlNets, which take --control too": (
        "controlnet",
        "control_scale",
        "control_start",
        "control_end",
        "control_mode",
    ),
    "FLUX.1 Kontext and FLUX.2": ("reference", "reference_layout"),
    "FLUX.1 Redux": ("image_prompt", "image_prompt_strength", "image_prompt_mix", "redux", "image_encoder"),
}


@click.command("generate", cls=WithHeadings, headings=HEADINGS, short_help="Generate an image of a prompt.")
@click.argument("prompt", required=False)
@MODEL
@BACKEND
@STEPS
@click.option("--prompts", type=FILE, help="Draw each line of this text file, in place of PROMPT.")
@click.option(
    "--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True, help="Repeat for several images."
)
@click.option(
    "--guidance",
    type=float,
    help="How strongly to follow the prompt; unless given, what suits the model, for dev with --image-prompt 2.5.",
)
@click.option("--true-cfg-scale", type=float, help="Classifier-free guidance on models with built-in guidance.")
@click.option("--negative-prompt", help="What classifier-free guidance leads away from.")
@SIZE
@click.option(
    "--solver",
    type=click.Choice(list(SOLVERS)),
    default="euler",
    show_default=True,
    help="How steps follow the velocity; heun and midpoint evaluate it twice a step.",
)
@click.option(
    "--step-cache", metavar="RULE[:N]", help="first-block or teacache: skip what hardly changes from step to step."
)
@image_options
@flow_edit_options
@controlnet_options
@click.option("--out", type=FILE, default="minflux.png", show_default=True, help="Several images add their numbers.")
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
@click.option("--split", is_flag=True, help="Share the model among all processes, which draw each image together.")
@with_files
def command(**given):
    """Generate an image of PROMPT, as a PNG that carries its own settings.

    \b
    minflux generate "a cat left of an apple on a blue background" --seed 7 --out cat.png
    minflux generate "a cat on a blue background" --seed 1 --seed 2 --solver heun --steps 10
    minflux generate --from cat.png --out again.png
    minflux generate "a lighthouse at dusk" --model schnell --size 768x512
    minflux generate "a dog on a blue background" --image cat.png --strength 0.8
    minflux generate "a frog" --image cat.png --source-prompt "a cat"
    minflux generate "a lighthouse at dusk" --comfy ComfyUI/models --transformer flux1-dev-fp8

    Several machines share out the images of several prompts or seeds, or each image, with --split:

    \b
    mlx.launch --hosts 10.0.0.1,10.0.0.2 -- minflux generate --prompts prompts.txt --model schnell
    mlx.launch --hosts 10.0.0.1,10.0.0.2 -- minflux generate "a lighthouse at dusk" --model dev --split
    """
    with together() as group:
        draw(group, **given)


def draw(
    group, prompt, prompts, model, backend, seeds, size, out, preview, source, anyway, yes, lora, memory, cache, split,
    **given,
):  # fmt: skip
    """Do what the command is for, as one process of a group."""
    named, control_out = take_files(given), given.pop("control_out")
    given |= {"width": size[0], "height": size[1]}
    part = Part(group, split)
    part.check(given["step_cache"], lora, cache)
    if part.writes:
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
    given_prompts = prompts_of(prompt, prompts)
    pictures = pictures_in(given)
    check_pictures(pictures)
    if part.speaks:
        check_control_out(control_out, pictures, (out, preview))
    check_settings(seeds, given)
    given = with_flow_edit(given)
    images = image_input(given)
    given |= redux_of(named["comfy"], given, part.tell)
    check_image_prompts(given)
    check_controlnets(given)
    lora = find_loras(named["comfy"], lora)
    given["controlnet"] = tuple(map(str, choose_controlnets(named["comfy"], given["controlnet"])))
    model, files = choose_files(model, named.pop("comfy"), named, part.tell)
    tasks = part.tasks(given_prompts, seeds)
    if not tasks:
        return
    if split:
        begin_together(part, tasks)
    if TRANSFORMER.name not in files:
        check_ahead_of_fetching(model, given, images, lora)
    redux = find_redux(given["redux"], given["image_encoder"], fetch=True)
    controlnets = find_controlnets([Path(path) for path in given["controlnet"]], fetch=True)
    uses_of(images, [stored.config for stored in controlnets])
    checkpoint = open_with_files(model, files, fetch=True)
    wanted = given["width"], given["height"]  # of an image's, what isn't given is the image's own
    given = complete(checkpoint, given, images, lora)
    hashes = hash_inputs(checkpoint, lora, pictures, redux, controlnets)
    if png is not None:
        check_unchanged(source, png, hashes, anyway)
    folder = default_folder() if cache else None
    how = {"lora": lora, "memory": memory, "report": part.tell, "cache": folder, "progress": part.reading()}
    how |= {"redux": redux, "controlnets": controlnets, "group": part.sharers}
    pipe = load_checkpoint(checkpoint, get_backend(backend), model, **how)
    canvas = pipe.open_canvas(images, *wanted)
    if part.speaks:
        save_control(canvas, control_out)
    image_prompts = pipe.image_prompts(*image_prompts_of(given))
    references = pipe.encode_references(given["reference"], given["reference_layout"])
    width, height = pipe.size_of(canvas, references, *wanted)
    given |= {"width": width or given["width"], "height": height or given["height"]}
    if images.image is not None and given["source_prompt"] is None:
        given["strength"] = strength_of(images, pipe.takes)
    given["step_cache"] = None if given["step_cache"] is None else str(check_step_cache(given["step_cache"]))
    given = moved(given, lambda path: seen_from(path, out))
    given |= {"lora": pipe.lora, "files": {name: str(path) for name, path in files.items()}, "hashes": hashes}
    jobs = {task.mark: ImageSettings(task.prompt, model, pipe.nx.name, task.seed, **given) for task in tasks}
    generate(pipe, jobs, out, preview, Shown(images, canvas, references, image_prompts), part)


def begin_together(part: Part, tasks: Sequence[Task]) -> None:
    """Raise `MinfluxError` unless all processes draw the same images; all hints are then the first one's."""
    check_alike(part.group, f"prompts and seeds {hashlib.sha256(repr(tasks).encode()).hexdigest()[:12]}")
    if not part.speaks:
        warnings.simplefilter("ignore", Hint)


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
        raise ArgumentError("--control-out goes with one --control")
    check_output(path, "--control-out", (".png",))
    others = [other.resolve() for other in (*pictures.values(), *written) if other is not None]
    if path.resolve() in others:
        raise ArgumentError(f"--control-out must be another file than those read and written, got {str(path)!r}")


def image_input(given: dict[str, Any]) -> ImageInput:
    """Return what is said of images; raises `ArgumentError` for settings without the image that they are about."""
    called = {name: as_in_a_call(given[name]) for name in ("control", *CONTROL)}
    images = ImageInput(**{field.name: (given | called)[field.name] for field in fields(ImageInput)})
    images = images if given["grow"] is None else grown(images, given["grow"])
    check_image_input(images)
    return images


def grown(images: ImageInput, margins: Sequence[int]) -> ImageInput:
    """Return what is said of images with the image grown, and the mask of what is new."""
    if images.image is None or images.mask is not None:
        raise ArgumentError("grow goes with an image, and makes its mask: give image, and no mask")
    if not isinstance(margins, Sequence) or len(margins) != 4:
        raise ArgumentError(f"grow must be four numbers of pixels, left, top, right and bottom, got {quoted(margins)}")
    image, mask = grow(images.image, *margins)
    return replace(images, image=image, mask=mask)


def image_prompts_of(given: Mapping[str, Any]) -> tuple[list[Path], list[float] | float | None, str]:
    """Return image prompts, their strengths and their mix as a call takes them; a single strength is for all."""
    strengths = as_in_a_call(given["image_prompt_strength"])
    return list(given["image_prompt"]), strengths, given["image_prompt_mix"]


def redux_of(comfy: str | None, given: Mapping[str, Any], report: Report) -> dict[str, str | None]:
    """Return Redux and its vision encoder as a PNG names them, by their paths where ComfyUI's folder has them."""
    named = given["redux"], given["image_encoder"]
    found = choose_redux(comfy, *named, report, is_wanted=bool(given["image_prompt"]))
    return dict(zip(("redux", "image_encoder"), (None if path is None else str(path) for path in found), strict=True))


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
        "step_cache": lambda value: check_usable(
            check_step_cache(value), given["solver"], 1, False, bool(given["controlnet"])
        ),
    }
    for seed in seeds:
        check_seed(seed)
    for name, check in checks.items():
        if given[name] is not None:
            check(given[name])


def check_ahead_of_fetching(model: str, given: dict[str, Any], images: ImageInput, lora: Sequence[str]) -> None:
    """Fetch the settings of a model on the Hub, a few small files, and raise what `complete` would raise of them.

    So that nobody waits for gigabytes to be told that they can't be used in this way.
    """
    repository = hub.repository(model)
    if locate_here(model) is None and repository is not None:
        folder = hub.fetch(repository, hub.SETTINGS)
        for path in {folder / network(family).name for family in FAMILIES.values()}:
            component = component_in(path)
            if path.exists() and component is not None:
                complete_for(folder, read_config(path / CONFIG, component), given, images, lora)


def complete(checkpoint: Checkpoint, given: dict[str, Any], images: ImageInput, lora: Sequence[str]) -> dict[str, Any]:
    """Return an image's settings, completed with the model's defaults; `ArgumentError` if it can't honour them."""
    stored = checkpoint.components.get(network(checkpoint.family).name)
    if stored is None:
        return given  # loading says what is missing
    return complete_for(checkpoint.folder, stored.config, given, images, lora)


def complete_for(
    folder: Path, cfg: Any, given: dict[str, Any], images: ImageInput, lora: Sequence[str]
) -> dict[str, Any]:
    """Do as `complete` does for a model whose defaults lie in `folder`; cfg: its network's config without the LoRAs."""
    cfg = with_loras(lora, cfg) if isinstance(cfg, FluxConfig) else cfg
    traits = traits_of(folder, cfg)
    defaults, built_in = traits.defaults, traits.built_in_guidance
    check_references(given["reference"], traits.takes_references)
    check_taken(images, traits.takes, len(given["controlnet"]))
    if given["guidance"] is None:
        is_dev_like = built_in and not traits.takes
        given = given | {"guidance": usual_guidance(defaults.guidance, is_dev_like, given["image_prompt"])}
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


def generate(
    pipe: Flux1, jobs: Mapping[str, ImageSettings], out: Path, preview: Path | None, shown: Shown, part: Part
) -> None:
    """Generate images that differ in their prompts and seeds alone, and write them and print where they are.

    jobs: by what is added to the files' names.
    """
    encoded: dict[str, tuple[Conditioning | None, Conditioning]] = {}
    for mark, job in jobs.items():
        with tqdm(total=job.steps, desc="reading the prompt", unit="step", disable=not part.speaks) as bar:
            if job.prompt not in encoded:
                encoded = {job.prompt: encode_prompts(pipe, job, shown)}
            bar.set_description(f"seed {job.seed}")
            cache = check_step_cache(job.step_cache)
            steps = steps_of(pipe, job, encoded[job.prompt], shown, bar, cache)
            if not part.writes:
                follow(steps)
                continue
            pixels, frames = sample_image(pipe, steps, bar, previews=preview is not None)
            if cache is not None:
                part.tell(f"step cache {cache}: {len(cache.skipped)} of {bar.total} steps skipped")
            image = finished(shown.canvas, pixels)
        path = marked(out, mark)
        save_png(image, path, job)
        click.echo(path)
        if preview is not None:
            path = marked(preview, mark)
            save_preview(frames, path)
            click.echo(path)


def follow(steps: Iterator[Step]) -> None:
    """Take an image's steps for the process that writes it."""
    for _ in steps:
        pass


def save_control(canvas: Canvas | None, path: Path | None) -> None:
    """Write the control image as the model sees it, where that is asked for, and print where it is."""
    if canvas is None or path is None:
        return
    with written_whole(path) as file:
        Image.fromarray(canvas.control_pixels()).save(file, format="PNG")
    click.echo(path)


def encode_prompts(pipe: Flux1, job: ImageSettings, shown: Shown) -> tuple[Conditioning | None, Conditioning]:
    """Encode FlowEdit's source prompt where there is one, and the prompt with its image prompts and its negative."""
    source = None if job.source_prompt is None else pipe.encode(job.source_prompt, guidance=job.source_guidance)
    strength = {"guidance": job.guidance, "true_cfg_scale": job.true_cfg_scale}
    text = pipe.encode(job.prompt, job.negative_prompt, **strength)
    return source, replace(pipe.with_image_prompts(text, shown.image_prompts), references=shown.references)


def steps_of(
    pipe: Flux1,
    job: ImageSettings,
    texts: tuple[Conditioning | None, Conditioning],
    shown: Shown,
    bar: tqdm,
    cache: StepCache | None,
) -> Iterator[Step]:
    """Return an iterator over an image's steps, FlowEdit's or the usual ones, and tell the bar how many there are."""
    source, text = texts
    if source is not None and shown.canvas is not None:
        counts = check_counts(job.n_max, job.n_min, job.n_avg, job.steps)
        bar.reset(counts[0])
        guidances = job.source_guidance, job.guidance
        return pipe.sample_edit(shown.canvas, (source, text), job.seed, job.steps, guidances=guidances, counts=counts)
    edit = pipe.edit_of(shown.images, shown.canvas, [job.seed])
    text = replace(text, controls=pipe.controls_of(shown.images, shown.canvas, [job.seed]))
    bar.reset(len(edit.timesteps(np.zeros(job.steps + 1))) - 1)
    return pipe.sample(
        text, job.seed, job.steps, guidance=job.guidance, true_cfg_scale=job.true_cfg_scale, width=job.width,
        height=job.height, solver=job.solver, edit=edit, step_cache=cache,
    )  # fmt: skip


def sample_image(pipe: Flux1, steps: Iterator[Step], bar: tqdm, previews: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Take an image's steps; return its pixels (H, W, 3), and those of each step's denoised image when asked for."""
    frames = []
    for step in steps:
        if previews:
            frames.append(pipe.decode(step.denoised)[0])
        bar.update()
    return pipe.decode(step.x)[0], frames


def marked(path: Path, mark: str) -> Path:
    """Add to a file's name what tells it from the others."""
    return path.with_stem(path.stem + mark)


def save_preview(frames: list[np.ndarray], path: Path) -> None:
    """Write each step's denoised image: an animation (.gif, the last one held) or a strip side by side (.png)."""
    with written_whole(path) as file:
        if path.suffix == ".gif":
            images = [Image.fromarray(frame) for frame in frames]
            durations = [120] * (len(images) - 1) + [1500]
            images[0].save(file, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
        else:
            grid(frames, columns=len(frames)).save(file, format="PNG")
