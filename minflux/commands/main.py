"""The command line: `minflux generate`, `inspect`, `convert`, `evaluate`, `train`, `doctor`."""

import sys
import warnings
from pathlib import Path

import click
from click.core import ParameterSource

from minflux import __version__
from minflux.errors import ArgumentError, MinfluxError

FORMATS = click.Choice(["bfl", "diffusers", "minflux"])
COMPONENTS = click.Choice(["transformer", "vae", "text_encoder", "text_encoder_2"])
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
MODEL_HELP = "A model that ships here, a folder or file, or on the Hugging Face Hub schnell, dev or OWNER/NAME."
BACKENDS = click.Choice(["auto", "numpy", "mlx"])


class Group(click.Group):
    """Commands whose expected errors end in one line and exit code 2, and Ctrl-C in exit code 130."""

    def invoke(self, ctx):
        """Run the command."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (BrokenPipeError, click.exceptions.NoArgsIsHelpError):
                raise  # click's own: it ends in silence, or shows the help
            except click.UsageError as error:
                _end(ctx, error.format_message(), 2)
            except (MinfluxError, OSError) as error:
                _end(ctx, str(error), 2)
            except KeyboardInterrupt:
                _end(ctx, "stopped", 130)


def _end(ctx: click.Context, message: str, code: int):
    click.echo(f"minflux: {message}", err=True)
    ctx.exit(code)


def _show_warning(message, category, filename, lineno, file=None, line=None):
    from tqdm import tqdm

    tqdm.write(f"minflux: warning: {message}", file=sys.stderr)  # on a line of its own, above a progress bar


def _tell(line: str) -> None:
    """Say what is good to know, beside what was asked for."""
    click.echo(line, err=True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main():
    """FLUX.1 from scratch: draw with it, measure it, train it."""


def size(ctx, param, value: str | None) -> tuple[int | None, int | None]:
    """Read WxH."""
    if value is None:
        return None, None
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ArgumentError(f"--size must be WIDTHxHEIGHT in pixels, like 64x64, got {value!r}")
    return int(width), int(height)


LORA = click.option("--lora", multiple=True, metavar="FILE[:SCALE]", help="Add a LoRA; repeat for several.")


@main.command()
@click.argument("prompt", required=False)
@click.option("--model", default="tiny", show_default=True, help=MODEL_HELP)
@click.option("--backend", type=BACKENDS, default="auto", show_default=True, help="auto: MLX on a GPU, else NumPy.")
@click.option("--steps", type=int, help="Denoising steps; unless given, what suits the model.")
@click.option(
    "--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True, help="Repeat for several pictures."
)
@click.option("--guidance", type=float, help="How strictly to follow the prompt; 1 for none.")
@click.option("--negative-prompt", help="What to lead away from (models without built-in guidance).")
@click.option("--size", "size_", callback=size, metavar="WxH", help="Pixels; unless given, what suits the model.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="minflux.png",
    show_default=True,
    help="Several seeds: a number is added.",
)
@click.option(
    "--preview",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Each step's predicted picture: a .gif, or a .png strip.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw a picture of minflux again, to the bit.",
)
@LORA
@click.option(
    "--memory",
    type=click.Choice(["auto", "resident", "staged", "streamed"]),
    default="auto",
    show_default=True,
    help="How weights are held: all at once, each part while it is at work, or each matrix while it is.",
)
@click.option("--cache", is_flag=True, help="Keep what the text encoders say of a prompt, for the next time.")
def generate(
    prompt, model, backend, steps, seeds, guidance, negative_prompt, size_, out, preview, source, lora, memory, cache
):
    """Draw PROMPT to a PNG that carries its own settings.

    \b
    minflux generate "a cat left of an apple on a blue background" --seed 7 --out cat.png
    """
    from minflux.commands import generate as g
    from minflux.inference.cache import default_folder
    from minflux.inference.load import load

    how = {"memory": memory, "report": _tell, "cache": default_folder() if cache else None}
    g.check_target(out, "--out", (".png",))
    if preview is not None:
        g.check_target(preview, "--preview", (".gif", ".png"))
        if preview.resolve() == out.resolve():
            raise ArgumentError(f"--preview must be another file than --out, got {str(preview)!r} for both")
    if source is not None:
        _check_nothing_beside(source)
        jobs = [g.read_settings(source)]
        pipe = load(jobs[0].model, jobs[0].backend, lora=jobs[0].lora, **how)
    elif prompt is None:
        raise ArgumentError('give a prompt, as in: minflux generate "a cat on a blue background"')
    else:
        pipe = load(model, backend, lora=lora, **how)
        given = {"steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
        given |= {"width": size_[0], "height": size_[1]}
        jobs = [g.complete(pipe, prompt, seed, **given) for seed in seeds]
    text = None  # the jobs differ in their seeds alone
    for job in jobs:
        image, frames, text = g.draw(pipe, job, preview is not None, text)
        g.save_picture(image, path := _numbered(out, job.seed, len(jobs)), job)
        click.echo(path)
        if preview is not None:
            g.save_preview(frames, path := _numbered(preview, job.seed, len(jobs)))
            click.echo(path)


def _numbered(path: Path, seed: int, count: int) -> Path:
    """Add the seed to a picture's name when there are several."""
    return path.with_stem(f"{path.stem}-{seed}") if count > 1 else path


def _check_nothing_beside(source: Path) -> None:
    """Raise `ArgumentError` when --from comes with an option that the picture has an answer to already."""
    ctx = click.get_current_context()
    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
        if given and param.name not in ("source", "out", "preview", "memory", "cache"):
            name = param.opts[0] if param.opts[0].startswith("-") else "PROMPT"
            raise ArgumentError(f"{name} can't be given with --from, which takes all settings from {source}")


@main.command()
@click.option("--model", default="tiny", show_default=True, help="A model that ships here, or a folder.")
@click.option("--backend", type=BACKENDS, default="auto", show_default=True)
@click.option("--prompts", type=int, default=500, show_default=True, help="How many held-out prompts.")
@click.option("--steps", type=int, help="Denoising steps; unless given, what suits the model.")
@click.option("--guidance", type=float, help="Guidance scale; unless given, what suits the model.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts and of the noise.")
@click.option(
    "--grid", type=click.Path(path_type=Path, dir_okay=False), help="Write the first pictures, uncurated, as a .png."
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures as a .json."
)
def evaluate(model, backend, prompts, steps, guidance, seed, grid, json_path):
    """Measure how often the model draws what held-out prompts say."""
    from minflux.commands.generate import check_target
    from minflux.inference.load import load
    from minflux.train import evaluate as e

    for path, option, suffix in ((grid, "--grid", ".png"), (json_path, "--json", ".json")):
        if path is not None:
            check_target(path, option, (suffix,))
    result = e.evaluate(load(model, backend, report=_tell), prompts, steps=steps, guidance=guidance, seed=seed)
    click.echo(e.table(result))
    if grid is not None:
        e.save_grid(result, grid)
    if json_path is not None:
        e.save_json(result, json_path)


@main.group()
def train():
    """Train the small model: first the autoencoder, then the flow. Stop and go on as you like."""


RECIPE = click.option("--recipe", default="tiny", show_default=True, help="A known recipe, or a .toml file.")
FOLDER = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs/tiny",
    show_default=True,
    help="Checkpoints, logs and samples.",
)


@train.command()
@RECIPE
@FOLDER
def vae(recipe, folder):
    """Train the autoencoder, and write it to FOLDER/model."""
    from minflux.train.run import run_vae

    run_vae(recipe, folder)


@train.command()
@RECIPE
@FOLDER
def flow(recipe, folder):
    """Train the transformer and text encoders on the trained autoencoder, and write all to FOLDER/model."""
    from minflux.train.run import run_flow

    run_flow(recipe, folder)


@main.command()
@click.argument("model")
def inspect(model):
    """Say what MODEL is, a folder or a .safetensors file: its parts, their sizes, and every weight that is not right.

    Reads headers only, and fetches nothing: a name on the Hugging Face Hub is looked up in the cache. Exit
    code 1 when a weight is missing, unexpected or of a wrong shape.
    """
    from minflux.commands.inspect import inspect

    report = inspect(model)
    click.echo(report.text())
    if not report.ok:
        click.get_current_context().exit(1)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(["bfl", "diffusers", "minflux"]), required=True, help="Whose names."
)
@click.option("--part", type=COMPONENTS, help="This part alone; for bfl the transformer unless given.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Unless given, as in SOURCE (of float8: bf16).")
@click.option("--quantize", "bits", type=click.Choice(["4", "8"]), help="Bits a weight (minflux's format only).")
@LORA
def convert(source, target, format_, part, dtype, bits, lora):
    """Write the model in SOURCE to TARGET: a file under BFL's names, or a folder under diffusers' or minflux's own.

    \b
    minflux convert FLUX.1-dev flux1-dev.safetensors --format bfl
    minflux convert flux1-dev.safetensors FLUX.1-dev --format diffusers --dtype f16 --lora style.safetensors:0.8
    minflux convert FLUX.1-dev FLUX.1-dev-4bit --format minflux --quantize 4

    Quantised weights take a quarter of the memory that bfloat16 takes, or half; what that changes is measured and said.
    """
    from minflux.commands.convert import convert

    for path in convert(
        source, target, format_, part, DTYPES.get(dtype), lora, int(bits) if bits else None, click.echo
    ):
        click.echo(path)


@main.command()
def doctor():
    """Show backends, devices and BLAS with their measured speed, and what to install to be faster."""
    from minflux.commands.doctor import report

    click.echo(report())


if __name__ == "__main__":
    sys.exit(main())
