"""Settings of a model that lie beside its weights as JSON, checked: of its scheduler, and others of our own."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from minflux.checkpoints.formats.json_files import read_json
from minflux.errors import CheckpointError, quoted
from minflux.sampling.timesteps import Schedule

PLAIN_SCHEDULE = {  # settings of diffusers' scheduler that would change the steps: these values alone are right
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "shift_terminal": None,
    "time_shift_type": "exponential",
}
LARGEST_SHIFT = 1000  # FLUX.1's are 1 to 3; float32 has no two timesteps for very large ones


def read_schedule(path: Path, kind: type[Schedule] = Schedule) -> Schedule:
    """Read the sampler's settings; those that are not there have their defaults."""
    values = read_json(path)
    for name, plain in PLAIN_SCHEDULE.items():
        if values.get(name, plain) not in (plain, None):
            raise CheckpointError(
                f"{path}: {name}: minflux supports {plain!r} alone, found {quoted(values[name])}; change it there, or "
                "use another model"
            )
    schedule = read_fields(kind, values, path)
    if not 0 < schedule.shift <= LARGEST_SHIFT or schedule.max_image_seq_len <= schedule.base_image_seq_len:
        raise CheckpointError(
            f"{path}: expected a shift above 0, at most {LARGEST_SHIFT}, and max_image_seq_len above base_image_seq_len"
        )
    return schedule


def read_fields(kind: type, values: dict[str, Any], path: Path) -> Any:
    """Make settings of what a file has of them; raises `CheckpointError` for one of another type than its default."""
    given = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    for name, value in given.items():
        default = type(getattr(kind, name))
        if not is_of(default, value):
            raise CheckpointError(f"{path}: {name}: expected a {default.__name__}, found {quoted(value)}")
    return kind(**given)


def is_of(kind: type, value: Any) -> bool:
    """Return whether a JSON value has a type; a float may be a whole number, and must be finite."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)
