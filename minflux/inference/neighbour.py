"""A neighbour of FLUX.1: all that is needed to load a model of another family, in one record, as `SD3_MODEL`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minflux.checkpoints.components import Family
from minflux.checkpoints.diffusionkit import what_is_lost
from minflux.checkpoints.open import Checkpoint, warn_of_unexpected
from minflux.checkpoints.redux import ReduxFiles
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.pipeline import Conditioning, Defaults
from minflux.inference.step_cache import StepCache
from minflux.inference.text import Tokenizer
from minflux.inference.with_vae import VAEPipeline

Configs = Mapping[str, Any]  # of components, by name
Size = tuple[str, int, int]  # what it is of, what the network takes, and what was found


@dataclass(frozen=True)
class Traits:
    """What a model can be asked for, known before a weight is read; the fields are `Pipeline`'s."""

    defaults: Defaults
    built_in_guidance: bool = False
    takes: str = ""
    takes_references: bool = False


def always(traits: Traits) -> Callable[[Path, Any], Traits]:
    """Return the `traits` of a family whose models can all be asked for the same."""
    return lambda folder, cfg: traits


@dataclass(frozen=True)
class Neighbour:
    """How a model of another family than FLUX.1's is loaded from a folder in diffusers' layout.

    tokenizers: each one's folder, and the text encoder that it is for; read_tokenizer: reads one of its folder, for so
    many embeddings. traits: what a model can be asked for, of its
    folder and the config of the network that runs in every step. sizes: what must fit together, of components' configs.
    make: the pipeline of the networks, (config, weights) by name, and the tokenizers in their order.
    """

    title: str
    family: Family
    tokenizers: Mapping[str, str]
    traits: Callable[[Path, Any], Traits]
    read_schedule: Callable[[Path], Any]
    sizes: Callable[[Configs], Sequence[Size]]
    make: Callable[..., VAEPipeline]
    read_tokenizer: Callable[..., Any] = Tokenizer.from_folder

    def check_alone(
        self,
        checkpoint: Checkpoint,
        lora: Sequence[str],
        redux: ReduxFiles | None,
        controlnets: Sequence[StoredComponent],
    ) -> None:
        """Raise `ArgumentError` for what only a FLUX.1 can be loaded with."""
        loose = sorted((checkpoint.loose.keys() | checkpoint.tokenizers.keys()) - {"transformer"})
        given = ["lora"] * bool(lora) + ["redux"] * (redux is not None) + ["controlnet"] * bool(controlnets) + loose
        if given:
            raise ArgumentError(
                f"{given[0]}: minflux loads {self.title} without; its own parts belong in {checkpoint.folder}"
            )

    def take(self, checkpoint: Checkpoint) -> dict[str, StoredComponent]:
        """Return the components of a model, by name; raises `CheckpointError` at the first thing that is wrong."""
        components = {name: checkpoint.take(name) for name in self.family}
        for name, stored in components.items():
            expected, found = (component.library[1] for component in (self.family[name], stored.component))
            if found != expected:
                raise CheckpointError(f"{stored.path}: expected the {expected} of {self.title}, found a {found}")
        for what, takes, found_size in self.sizes({name: stored.config for name, stored in components.items()}):
            if takes != found_size:
                raise CheckpointError(f"{checkpoint.path}: expected {what} {takes}, which it takes, found {found_size}")
        for path, note in ((stored.path, note) for stored in components.values() for note in what_is_lost(stored)):
            warnings.warn(f"{path}: {note}", stacklevel=3)
        used = {stored.path for stored in components.values()}
        warn_of_unexpected({path: names for path, names in checkpoint.unexpected_keys.items() if path in used})
        return components

    def read_tokenizers(self, folder: Path, configs: Configs) -> list[Any]:
        """Read the tokenizers of a model."""
        sizes = {name: configs[encoder].vocab_size for name, encoder in self.tokenizers.items()}
        return [self.read_tokenizer(folder / name, vocab_size=size) for name, size in sizes.items()]


def check_plain(text: Conditioning, step_cache: StepCache | None) -> None:
    """Raise `ArgumentError` for what FLUX.1 alone can be sampled with."""
    given = {"step_cache": step_cache, "regions": text.bias, "references": text.references or None}
    for name, value in given.items():
        if value is not None:
            raise ArgumentError(f"{name}: FLUX.1 alone takes them, and this is another model")
