"""`minflux explain`: one drawing, opened up, as an HTML file."""

import click
from tqdm import tqdm

from minflux.commands.options import BACKEND, FILE, LORA, MODEL, SIZE, STEPS, ReadingBar, check_output, print_note
from minflux.inference.arguments import check_side, check_steps, check_strength
from minflux.inference.load import load
from minflux.inference.pipeline import Pipeline
from minflux.sampling.noise import check_seed


@click.command("explain", short_help="Draw an image, and write a page of what happened in the model.")
@click.argument("prompt")
@MODEL
@BACKEND
@STEPS
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
@click.option("--guidance", type=float, help="How strongly to follow the prompt; unless given, what suits the model.")
@SIZE
@LORA
@click.option("--out", type=FILE, default="minflux.html", show_default=True, help="The page, which a browser opens.")
def command(prompt, model, backend, steps, seed, guidance, size, lora, out):
    """Draw an image of PROMPT by a FLUX.1, and write a page of what happened in the model meanwhile.

    The page is one HTML file of at most 5 MB, which loads nothing: each step, who looks at whom, what steers the
    blocks, and what it cost.

    \b
    minflux explain "a cat left of an apple on a blue background" --seed 7 --out cat.html
    """
    check_output(out, "--out", (".html",))
    check_settings(steps, seed, guidance, size)
    pipe = load(model, backend, lora=lora, report=print_note, progress=ReadingBar())
    how = {"steps": steps, "seed": seed, "guidance": guidance, "width": size[0], "height": size[1]}
    with_progress(pipe, prompt, **how).save(out)
    click.echo(out)


def check_settings(steps: int | None, seed: int, guidance: float | None, size: tuple[int | None, int | None]) -> None:
    """Raise `ArgumentError` for a setting that no model can honour, before one is loaded."""
    check_seed(seed)
    if steps is not None:
        check_steps(steps)
    if guidance is not None:
        check_strength("guidance", guidance)
    for name, side in zip(("width", "height"), size, strict=True):
        if side is not None:
            check_side(name, side)


def with_progress(pipe: Pipeline, prompt: str, **how):
    """Explain a drawing under a progress bar."""
    total = pipe.defaults.steps if how["steps"] is None else how["steps"]
    with tqdm(total=total, desc="drawing", unit="step") as bar:
        return pipe.explain(prompt, **how, on_step=lambda step: bar.update())
