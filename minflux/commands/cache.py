"""`minflux cache`: what minflux keeps on disk between runs, and how to clear it."""

import click

from minflux.backend.machine import readable
from minflux.commands.doctor import as_text
from minflux.errors import shown
from minflux.inference.cache_files import LIMIT, default_folder, kept_files, prompts, remove, size_limit, total_size


def report() -> str:
    """Return a text of two columns: the cache's folder, what is in it, and where models are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    files = kept_files(default_folder())
    held = f"{prompts(len(files))}, {readable(total_size(files))} of at most {readable(size_limit())} ({LIMIT})"
    rows = [
        ("prompts", f"{default_folder()} (MINFLUX_CACHE)"),
        ("prompts", held),
        ("models", f"{HF_HUB_CACHE} (HF_HUB_CACHE)"),
        ("models", "shared with other programs; `hf cache --help` says how to look into it and clear it"),
    ]
    return as_text([(label, shown(value)) for label, value in rows])


def clear() -> str:
    """Remove every encoded prompt; return a line that says how many, and how much room that made."""
    files = kept_files(default_folder())
    remove(files)
    return f"{prompts(len(files))} removed, {readable(total_size(files))}"


@click.command("cache", short_help="Look at what is kept on disk between runs, or clear it.")
@click.option("--clear", "clears", is_flag=True, help="Remove all encoded prompts. Models stay.")
def command(clears):
    """Say what minflux keeps on disk between runs: prompts that `minflux generate --cache` has encoded, and models.

    MINFLUX_CACHE is the folder of encoded prompts, MINFLUX_CACHE_GB how many gigabytes they may take (2 unless set):
    those that were not used for the longest time are removed first. A prompt that was removed is encoded again.
    Models from the Hugging Face Hub are in the cache of huggingface_hub, which has commands of its own.

    \b
    minflux cache
    minflux cache --clear
    """
    click.echo(clear() if clears else report())
