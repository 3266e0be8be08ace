"""The errors that minflux raises on purpose; everything else is a bug. And how strangers' words are shown in them."""

from collections.abc import Iterable

LONGEST = 2000  # characters of a message
QUOTED = 200  # characters of a value in a message


class MinfluxError(Exception):
    """The kind of every error that the user can mend: its message names what is wrong and what to do.

    The message is one line that can be printed, whatever a file or a caller has put into it.
    """

    def __init__(self, message: object = ""):
        super().__init__(shown(message))


class BackendError(MinfluxError):
    """A backend is unknown, or not installed here."""


class CheckpointError(MinfluxError):
    """A weight file or model folder can't be used: the message names file, key, expected and found."""


class ArgumentError(MinfluxError, ValueError):
    """An argument has a value that can't be honoured: the message names it, its value and the fix."""


def shown(text: object, longest: int = LONGEST) -> str:
    r"""Return text as one line to print: control characters escaped, and the middle of a long text left out.

    A name in a file may hold what a terminal takes for a command, so all that comes from files is printed by this.

    >>> print(shown("red: \x1b[31m"))
    red: \x1b[31m
    """
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]} … {text[-longest // 2 :]}"
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Raise `ArgumentError` unless an argument's value is one of some words."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{argument} must be one of {', '.join(map(repr, choices))}, got {quoted(value)}")


def quoted(value: object) -> str:
    """Return a value of any kind as Python writes it, in one short line; of one that can't be written, its type."""
    try:
        return shown(repr(value), QUOTED)
    except Exception:  # whatever a stranger's __repr__ raises, or a number of too many digits
        return f"a {type(value).__name__}"
