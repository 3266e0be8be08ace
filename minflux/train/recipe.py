"""A recipe: one TOML file with all that a shipped model depends on."""

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from minflux.errors import ArgumentError
from minflux.train.optimizer import AdamW

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Training:
    """How a model is trained: steps of `batch` images, shared among `workers`; the rest as the recipe explains."""

    steps: int
    batch: int
    workers: int = 1
    seed: int = 0
    checkpoint_every: int = 200
    sample_every: int = 1000
    kl_weight: float = 0.0
    scenes: int = 0
    prompt_dropout: float = 0.0
    in_order: float = 0.5
    crop: int = 0
    adversarial: float = 0.0

    def __post_init__(self):
        if self.batch % self.workers:  # unequal shares would weigh their images unequally
            raise ArgumentError(f"batch = {self.batch} can't be shared equally by workers = {self.workers}")


def read_recipe(name: str | Path) -> dict[str, Any]:
    """Read a recipe by name ("tiny") or from a file; raises `ArgumentError` when there is none."""
    path = FOLDER / f"{name}.toml" if (FOLDER / f"{name}.toml").exists() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise ArgumentError(f"recipe {str(name)!r} is no file, and none of the known ones: {known}")
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ArgumentError(f"{path} is not a TOML file: {error}") from None


def part(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """Find a section by its name in the file, "vae.model" for [vae.model]; raises `ArgumentError` if it is missing."""
    values: Any = recipe
    for key in name.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    if not isinstance(values, dict):
        raise ArgumentError(f"the recipe has no section [{name}]")
    return values


def stages(recipe: dict[str, Any], name: str) -> list[str]:
    """List the stages of a part of the recipe in the file's order: "sharp" for [vae.sharp.training]."""
    return [key for key, values in part(recipe, name).items() if isinstance(values, dict) and "training" in values]


def workers(recipe: dict[str, Any], name: str) -> int:
    """Return how many processes train a part of the recipe that has stages: `workers` in [vae] or [flow], or 1."""
    for stage in stages(recipe, name):
        if "workers" in part(recipe, f"{name}.{stage}.training"):
            raise ArgumentError(f"[{name}.{stage}.training] has workers: all stages share those of [{name}]")
    return part(recipe, name).get("workers", 1)


def section(kind: type, values: dict[str, Any]) -> Any:
    """Make a config dataclass of a recipe's section; raises `ArgumentError` at a name too many or missing."""
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise ArgumentError(f"the recipe has {', '.join(sorted(unknown))}, which {kind.__name__} has not")
    missing = {field.name for field in fields(kind) if field.default is MISSING} - set(values)
    if missing:
        raise ArgumentError(f"the recipe lacks {', '.join(sorted(missing))}, which {kind.__name__} needs")
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def optimizer(values: dict[str, Any]) -> AdamW:
    """Make the optimiser's constants of a recipe's section."""
    return section(AdamW, values)
