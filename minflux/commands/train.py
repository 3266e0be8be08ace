"""`minflux train`: the small model from nothing, or any model on one's own images."""

from pathlib import Path

import click

from minflux.commands.options import FILE, MODEL, check_output


@click.group("train", short_help="Train the small model, or any model on your own images.")
def command():
    """Train a model. Stop with Ctrl-C and go on as you like: the same command goes on where it stopped.

    \b
    on your own images, with captions:
    minflux train lora --images photos --output mine.safetensors
    minflux train finetune --images photos --output runs/mine
    the small model, from nothing:
    minflux train vae --folder runs/tiny
    minflux train text --folder runs/tiny
    minflux train flow --folder runs/tiny
    """


RECIPE = click.option("--recipe", default="tiny", show_default=True, help="A known recipe, or a .toml file.")
FOLDER = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs/tiny",
    show_default=True,
    help="Checkpoints, logs and samples.",
)


@command.command()
@RECIPE
@FOLDER
def vae(recipe, folder):
    """Train the VAE, and write it to FOLDER/model."""
    from minflux.train.run import run_vae

    run_vae(recipe, folder)


@command.command()
@RECIPE
@FOLDER
def text(recipe, folder):
    """Teach T5 to read captions, and write it to FOLDER/model; `train flow` then begins with it."""
    from minflux.train.run import run_text

    run_text(recipe, folder)


@command.command()
@RECIPE
@FOLDER
@click.option(
    "--start",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A model's folder to begin from: its VAE as it is, its other weights in place of random ones.",
)
def flow(recipe, folder, start):
    """Train the transformer and text encoders on the trained VAE, and write all to FOLDER/model."""
    from minflux.train.run import run_flow

    run_flow(recipe, folder, start)


@command.command("prediction")
@click.option("--recipe", default="unet", show_default=True, help="A known recipe, or a .toml file.")
@FOLDER
def prediction(recipe, folder):
    """Train a U-Net, or the transformer, to predict noise or velocity, on the trained VAE in FOLDER/model.

    \b
    minflux train prediction --recipe unet --folder runs/unet
    """
    from minflux.train.run import run_prediction

    run_prediction(recipe, folder)


@command.command("distill-guidance")
@RECIPE
@FOLDER
def distill_guidance(recipe, folder):
    """Teach a copy of FOLDER/model to follow its guidance in one pass a step, and write it to FOLDER/dev."""
    from minflux.train.siblings import run_guidance

    run_guidance(recipe, folder)


@command.command("distill-steps")
@RECIPE
@FOLDER
def distill_steps(recipe, folder):
    """Teach a copy of FOLDER/dev to draw in one to four steps, and write it to FOLDER/schnell."""
    from minflux.train.siblings import run_steps

    run_steps(recipe, folder)


@command.command("editing")
@click.argument("kind", type=click.Choice(("kontext", "fill", "canny")))
@RECIPE
@FOLDER
def editing(kind, recipe, folder):
    """Teach a copy of FOLDER/model to edit, and write it to FOLDER/KIND.

    kontext changes a reference image as it is told; fill redraws what a mask shows; canny draws along edges.
    """
    from minflux.train.siblings import run_editing

    run_editing(kind, recipe, folder)


# -- one's own images ----------------------------------------------------------------------------------------


def own_options(learning_rate: float):
    """Add the options of training on one's own images to a command."""
    options = [
        MODEL,
        click.option(
            "--images",
            type=click.Path(path_type=Path, file_okay=False),
            required=True,
            help="A folder of images, each with a caption in a .txt beside it, or all in a metadata.jsonl.",
        ),
        click.option(
            "--known",
            type=click.Path(path_type=Path, file_okay=False),
            help="Images with captions of what the model shall not forget, drawn as often as yours.",
        ),
        click.option("--steps", type=int, default=1000, show_default=True, help="Training steps."),
        click.option("--lr", type=float, default=learning_rate, show_default=True, help="The learning rate."),
        click.option("--batch", type=int, default=1, show_default=True, help="Images a step."),
        click.option(
            "--size",
            "side",
            type=int,
            default=0,
            help="Images get as many pixels as a square of this side; unless given, the model's own, at most 512.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn in training."),
        click.option(
            "--empty-captions",
            type=float,
            default=0.0,
            show_default=True,
            help="The share of samples trained without their caption, for models with classifier-free guidance.",
        ),
        click.option("--prompt", "prompts", multiple=True, help="Generate this on the way; repeat for several."),
        click.option("--every", type=int, default=200, show_default=True, help="Steps between what is written."),
        click.option(
            "--recompute/--no-recompute",
            default=None,
            help="Compute each block twice to save memory, or keep its inside; unless given, what suits the model.",
        ),
        click.option(
            "--cache",
            type=click.Path(path_type=Path, file_okay=False),
            help="Where encoded images and captions are kept; unless given, in the user's caches.",
        ),
    ]

    def add(function):
        for option in reversed(options):
            function = option(function)
        return function

    return add


@command.command()
@own_options(learning_rate=1e-4)
@click.option("--rank", type=int, default=16, show_default=True, help="Of the change to each matrix.")
@click.option("--alpha", type=float, help="How strongly changes count: alpha/rank; unless given, the rank.")
@click.option("--targets", help="Which matrices, by the ends of diffusers' names, with commas between.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the frozen model; unless given, its own on a GPU, float32 elsewhere.",
)
@click.option("--output", type=FILE, required=True, help="The LoRA; its run has a folder of the same name.")
def lora(rank, alpha, targets, dtype, output, **given):
    """Train a LoRA on a folder of images with captions, and write it to a file that diffusers reads too.

    \b
    minflux train lora --images photos --output mine.safetensors
    minflux train lora --images photos --output mine.safetensors --model dev --prompt "a sks dog" --rank 4
    minflux generate "a sks dog" --model dev --lora mine.safetensors

    Before the first step all images and captions are looked at, encoded and kept, so that text encoders and VAE take no
    memory in training. Ctrl-C writes down where it is; the same command goes on from there, to the same LoRA, to the
    bit. A model is kept in fewer bits if it is: minflux convert FOLDER SMALLER --format minflux --quantize 4.
    """
    from minflux.train.own_run import LoraSettings, train_lora

    check_output(output, "--output", (".safetensors",))
    chosen = {"targets": tuple(part.strip() for part in targets.split(","))} if targets else {}
    settings = LoraSettings(rank, float(rank if alpha is None else alpha), base=dtype, **chosen)
    train_lora(as_task(**given), settings, output)


@command.command()
@own_options(learning_rate=1e-5)
@click.option("--from-nothing", is_flag=True, help="Begin with random weights, under the model's encoders and VAE.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="The run's folder.")
def finetune(from_nothing, output, **given):
    """Train a model's whole transformer on a folder of images with captions, and write it to OUTPUT/model.

    \b
    minflux train finetune --images photos --output runs/mine
    minflux train finetune --images photos --output runs/mine --from-nothing --lr 1e-3 --steps 5000 --batch 16
    minflux generate "a cat" --model runs/mine/model

    Its text encoders and its VAE stay as they are.
    """
    from minflux.train.own_run import finetune as run

    run(as_task(**given), output, from_nothing)


def as_task(model, images, known, prompts, every, recompute, cache, **how):
    """Make a task of a command's options."""
    from minflux.checkpoints.loose import SHIPPED
    from minflux.inference.cache_files import default_folder
    from minflux.train.own_data import OwnTraining
    from minflux.train.own_run import Task

    folder = cache or default_folder()
    return Task(model or SHIPPED, images, folder, OwnTraining(**how), known, prompts, every, recompute)
