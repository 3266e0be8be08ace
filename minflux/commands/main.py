"""The command line: `minflux generate`, `explain`, `inspect`, `convert`, `cache` and others, a file each.

A command's file is imported when the command is called, so that none waits for what it doesn't need.
"""

import sys
import warnings
from importlib import import_module

import click

from minflux.errors import MinfluxError, shown
from minflux.version import __version__

WIDEST = 120  # columns of help on a wide terminal
COMMANDS = ("generate", "vocabulary", "explain", "inspect", "convert", "cache", "doctor", "evaluate", "train")


class Commands(click.Group):
    """The commands of `COMMANDS`: an expected error is one line and exit code 2, Ctrl-C is exit code 130."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands' names, the first to use first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command from its file."""
        return import_module(f"minflux.commands.{cmd_name}").command if cmd_name in COMMANDS else None

    def invoke(self, ctx: click.Context):
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
            except RuntimeError as error:
                if not _is_loss(error):
                    raise
                _end(ctx, "another process has ended, and this one can't go on without it", 2)


def _is_loss(error: RuntimeError) -> bool:
    from minflux.backend.processes import is_loss

    return is_loss(error)


def _end(ctx: click.Context, message: str, code: int):
    click.echo(f"minflux: {shown(message)}", err=True)
    ctx.exit(code)


def _show_warning(message, category, filename, lineno, file=None, line=None):
    from tqdm import tqdm

    tqdm.write(f"minflux: warning: {shown(message)}", file=sys.stderr)  # on a line of its own, above a progress bar


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST})
@click.version_option(__version__)
def main():
    """FLUX.1 from scratch: generate images with it, look into it, measure it, train it.

    \b
    minflux generate "a cat left of an apple on a blue background"
    minflux generate --help
    """


if __name__ == "__main__":
    sys.exit(main())
