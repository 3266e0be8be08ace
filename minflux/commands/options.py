"""Options that several commands share, and checks of files to write."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from minflux.checkpoints.loose import option
from minflux.edit.kontext import LAYOUTS
from minflux.errors import ArgumentError, shown
from minflux.inference.image_prompts import MIXES

MODEL = click.option(
    "--model",
    help="A model that ships here, a folder, a .safetensors or .gguf file, or schnell, dev or OWNER/NAME on the Hub; "
    "tiny unless given.",
)
BACKEND = click.option(
    "--backend",
    type=click.Choice(["auto", "numpy", "mlx"]),
    default="auto",
    show_default=True,
    help="What computes; auto: MLX on a GPU, else NumPy.",
)
LORA = click.option(
    "--lora", multiple=True, metavar="LORA[:SCALE]", help="Add FILE, FOLDER[:FILE] or OWNER/NAME[:FILE]; repeatable."
)
STEPS = click.option("--steps", type=int, help="Denoising steps; unless given, what suits the model.")
FILE = click.Path(path_type=Path, dir_okay=False)


def parse_size(ctx, param, value: str | None) -> tuple[int | None, int | None]:
    """Read WxH."""
    if value is None:
        return None, None
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ArgumentError(f"--size must be WIDTHxHEIGHT in pixels, like 64x64, got {value!r}")
    return int(width), int(height)


SIZE = click.option("--size", callback=parse_size, metavar="WxH", help="In pixels; unless given, what suits the model.")


def parse_thresholds(ctx, param, value: str | None) -> tuple[float, float] | None:
    """Read LOW,HIGH."""
    if value is None:
        return None
    try:
        low, high = map(float, value.split(","))
    except ValueError:
        raise ArgumentError(f"--canny must be LOW,HIGH, like 50,200, got {value!r}") from None
    return low, high


def parse_margins(ctx, param, value: str | None) -> tuple[int, ...] | None:
    """Read LEFT,TOP,RIGHT,BOTTOM."""
    if value is None:
        return None
    sides = value.split(",")
    if len(sides) != 4 or not all(side.isdecimal() for side in sides):
        raise ArgumentError(f"--grow must be LEFT,TOP,RIGHT,BOTTOM in pixels, like 0,0,256,0, got {value!r}")
    return tuple(map(int, sides))


IMAGE_OPTIONS = (  # an image to begin with; the names are a call's
    click.option("--image", type=FILE, help="Begin with this image; the result has its size unless --size is given."),
    click.option("--strength", type=float, help="How much is drawn anew, above 0 and at most 1.  [0.6; 1 for Fill]"),
    click.option("--mask", type=FILE, help="Redraw what is white in this image, and keep the rest."),
    click.option(
        "--control",
        type=FILE,
        multiple=True,
        help="Draw along this image: edges for FLUX.1 Canny, depth for Depth, or what a ControlNet takes; repeatable.",
    ),
    click.option(
        "--canny", callback=parse_thresholds, metavar="LOW,HIGH", help="Draw along the edges of --control, a photo."
    ),
    click.option("--control-out", type=FILE, help="Write the control image as the model sees it, a .png."),
    click.option("--reference", type=FILE, multiple=True, help="Show FLUX.1 Kontext or FLUX.2 this image; repeatable."),
    click.option(
        "--reference-layout",
        type=click.Choice(LAYOUTS),
        default="offset",
        help="Where several references stand: side by side, or one behind the other.  [offset]",
    ),
    click.option("--image-prompt", type=FILE, multiple=True, help="Have Redux say what this image shows; repeatable."),
    click.option("--image-prompt-strength", type=float, multiple=True, help="For all image prompts, or for each.  [1]"),
    click.option("--image-prompt-mix", type=click.Choice(MIXES), default=MIXES[0], help="sum: as diffusers.  [append]"),
    click.option("--redux", metavar="REDUX", help="FLUX.1 Redux, for image prompts: a folder, a file or OWNER/NAME."),
    click.option("--image-encoder", metavar="FILE", help="SigLIP's file or folder, where Redux has none beside it."),
    click.option(
        "--grow",
        callback=parse_margins,
        metavar="L,T,R,B",
        help="Draw beyond --image, so many pixels at its left, top, right and bottom; in place of --mask.",
    ),
    click.option("--mask-blur", type=float, default=0.0, help="Soften the mask's edge by so many pixels."),
    click.option("--mask-crop", type=int, help="See the mask's surroundings alone, with so many pixels around it."),
    click.option("--paste/--no-paste", default=True, help="Keep the original's pixels outside the mask.  [paste]"),
    click.option(
        "--posterior",
        type=click.Choice(["mode", "sample"]),
        default="mode",
        help="The image's latents: the middle of the VAE's distribution, or drawn from it as diffusers does.  [mode]",
    ),
)


def image_options(command: Callable) -> Callable:
    """Add the options of an image to begin with to a command."""
    for add in reversed(IMAGE_OPTIONS):
        command = add(command)
    return command


FILES = {  # in place of a model's parts
    "transformer": "A file with the transformer; without --model it is the model.",
    "text_encoder": "A file with CLIP (clip_l.safetensors), in place of the model's.",
    "text_encoder_2": "A file with T5 (t5xxl_fp16.safetensors), in place of the model's.",
    "vae": "A file with the VAE (ae.safetensors), in place of the model's.",
    "tokenizer": "A folder that holds tokenizer and tokenizer_2; unless given, the model's, or FLUX.1's from the Hub.",
    "comfy": "ComfyUI's folder models: its files are taken, and may be named as they are there.",
}


def with_files(command: Callable) -> Callable:
    """Add the options that name files in place of a model's parts."""
    for name, text in reversed(FILES.items()):
        metavar = "FOLDER" if name in ("tokenizer", "comfy") else "FILE"
        command = click.option(option(name), name, metavar=metavar, help=text)(command)
    return command


def take_files(given: dict[str, Any]) -> dict[str, str | None]:
    """Take the options of `with_files` out of a command's."""
    return {name: given.pop(name) for name in FILES}


def print_line(line: str) -> None:
    """Print a line of what was asked for."""
    click.echo(shown(line))


def print_note(line: str) -> None:
    """Print a line that is good to know, beside what was asked for."""
    click.echo(shown(line), err=True)


class ReadingBar:
    """A progress bar of reading weights, which appears when that takes more than a second."""

    def __init__(self):
        self.bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` weights are read."""
        if self.bar is None:
            self.bar = tqdm(total=total, desc="reading the transformer", unit="weight", delay=1, leave=False)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()
            self.bar = None


def check_output(path: Path, option: str, suffixes: tuple[str, ...]) -> Path:
    """Return the path if a file of one of these kinds can be written there; raise `ArgumentError` if not.

    Looked at before anything is computed, for an image may take minutes.
    """
    if path.suffix not in suffixes:
        raise ArgumentError(f"{option} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ArgumentError(f"{option}: the folder {str(path.parent)!r} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"{option}: the folder {str(path.parent)!r} can't be written to; choose another")
    return path
