"""`minflux train`: train the small model, first its VAE, then its flow."""

from pathlib import Path

import click


@click.group("train", short_help="Train the small model.")
def command():
    """Train the small model: first the VAE, then the flow. Stop with Ctrl-C and go on as you like.

    \b
    minflux train vae --folder runs/tiny
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
def flow(recipe, folder):
    """Train the transformer and text encoders on the trained VAE, and write all to FOLDER/model."""
    from minflux.train.run import run_flow

    run_flow(recipe, folder)


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
