"""The errors that minflux raises on purpose; everything else is a bug."""


class MinfluxError(Exception):
    """The kind of every error that the user can mend: its message names what is wrong and what to do."""


class BackendError(MinfluxError):
    """A backend is unknown, or not installed here."""


class CheckpointError(MinfluxError):
    """A weight file or model folder can't be used: the message names file, key, expected and found."""


class ArgumentError(MinfluxError, ValueError):
    """An argument has a value that can't be honoured: the message names it, its value and the fix."""
