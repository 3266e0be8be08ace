"""Drawing to a file: progress, previews, and a PNG that remembers how it was made."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from minflux import __version__
from minflux.checkpoints.formats.atomic import written_whole
from minflux.errors import ArgumentError
from minflux.images import grid
from minflux.inference.pipeline import Conditioning, Pipeline
from minflux.sampling.noise import check_seed
from minflux.sampling.solvers import Step

KEY = "minflux"  # of the PNG's text chunk


@dataclass(frozen=True)
class Settings:
    """All that a picture depends on."""

    prompt: str
    model: str
    backend: str
    seed: int
    steps: int
    guidance: float
    negative_prompt: str | None
    width: int
    height: int
    lora: tuple[str, ...] = ()


def complete(pipe: Pipeline, prompt: str, seed: int, **given) -> Settings:
    """Fill in what was not given from the model's defaults; raises `ArgumentError` for what is no seed."""
    defaults = {name: getattr(pipe.defaults, name) for name in ("steps", "guidance", "width", "height")}
    chosen = defaults | {name: value for name, value in given.items() if value is not None}
    return Settings(
        prompt=prompt,
        seed=check_seed(seed),
        model=pipe.name,
        backend=pipe.nx.name,
        lora=pipe.lora,
        **{"negative_prompt": None, **chosen},
    )


def draw(
    pipe: Pipeline, settings: Settings, previews: bool = False, text: Conditioning | None = None
) -> tuple[Image.Image, list[np.ndarray], Conditioning | None]:
    """Draw one picture under a progress bar; return it, each step's predicted picture when asked for, and the text.

    text: what was returned for the same prompts before, so as not to encode them again.
    """
    chosen = {k: v for k, v in asdict(settings).items() if k not in ("model", "backend", "prompt", "lora")}
    frames = []
    x, items = None, pipe.generate(settings.prompt, text=text, **chosen)
    with tqdm(total=settings.steps, desc="reading the prompt", unit="step") as bar:
        for item in items:
            if isinstance(item, Step):
                x = item.x
                if previews:
                    frames.append(pipe.decode(item.predicted)[0])
                bar.update()
            else:
                text = item
                bar.set_description(f"seed {settings.seed}")
    return Image.fromarray(pipe.decode(x)[0]), frames, text


def save_picture(image: Image.Image, path: Path, settings: Settings) -> None:
    """Write a PNG, whole or not at all, with its settings inside."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(KEY, json.dumps({**asdict(settings), "version": __version__}))
    with written_whole(path) as file:
        image.save(file, format="PNG", pnginfo=info)


def save_preview(frames: list[np.ndarray], path: Path) -> None:
    """Write each step's prediction: an animation (.gif, the last frame held) or a strip side by side (.png)."""
    with written_whole(path) as file:
        if path.suffix == ".gif":
            images = [Image.fromarray(f) for f in frames]
            durations = [120] * (len(images) - 1) + [1500]
            images[0].save(file, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
        else:
            grid(frames, columns=len(frames)).save(file, format="PNG")


def check_target(path: Path, option: str, suffixes: tuple[str, ...]) -> Path:
    """Return the path if a file of one of these kinds can be written there; raise `ArgumentError` if not.

    Looked at before anything is computed, for a picture may take minutes.
    """
    if path.suffix not in suffixes:
        raise ArgumentError(f"{option} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ArgumentError(f"{option}: the folder {str(path.parent)!r} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"{option}: the folder {str(path.parent)!r} can't be written to; choose another")
    return path


def read_settings(path: Path) -> Settings:
    """Read the settings that a PNG was drawn with; raises `ArgumentError` when it holds none."""
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY)
    except (OSError, UnidentifiedImageError) as error:
        raise ArgumentError(f"--from: {path} can't be read as a picture ({error})") from None
    if text is None:
        raise ArgumentError(f"--from: {path} was not drawn by minflux: it holds no settings")
    try:
        values = json.loads(text)
        lora = tuple(values.pop("lora", ()))  # pictures of minflux 0.1 have none
        return Settings(**{f.name: values[f.name] for f in fields(Settings) if f.name != "lora"}, lora=lora)
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"--from: the settings inside {path} are damaged ({error!r})") from None
