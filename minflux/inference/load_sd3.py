"""Load an SD3 or SD3.5: its five networks, three tokenizers and settings, from a folder in diffusers' layout.

model_index.json, transformer/, vae/, text_encoder/ (CLIP-L), text_encoder_2/ (CLIP-G), text_encoder_3/ (T5),
tokenizer/, tokenizer_2/, tokenizer_3/, scheduler/
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minflux.backend import Backend
from minflux.checkpoints.components import SD3 as FAMILY
from minflux.checkpoints.lazy import Progress
from minflux.checkpoints.open import Checkpoint
from minflux.checkpoints.redux import ReduxFiles
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.sd3 import SD3
from minflux.inference.text import Tokenizer
from minflux.sampling.timesteps import Schedule

TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2", "tokenizer_3": "text_encoder_3"}


def check_alone(checkpoint: Checkpoint, lora: Sequence[str], redux: ReduxFiles | None) -> None:
    """Raise `ArgumentError` for what only a FLUX.1 can be loaded with."""
    loose = sorted((checkpoint.loose.keys() | checkpoint.tokenizers.keys()) - {"transformer"})
    given = ["lora"] * bool(lora) + ["redux"] * (redux is not None) + loose
    if given:
        raise ArgumentError(f"{given[0]}: minflux loads an SD3 without; its own parts belong in {checkpoint.folder}")


def take_sd3(checkpoint: Checkpoint) -> dict[str, StoredComponent]:
    """Return the five components of an SD3, by name; raises `CheckpointError` at the first thing that is wrong."""
    components = {name: checkpoint.take(name) for name in FAMILY}
    for name, stored in components.items():
        if stored.component.library != FAMILY[name].library:
            expected, found = (component.library[1] for component in (FAMILY[name], stored.component))
            raise CheckpointError(f"{stored.path}: expected a {expected}, which an SD3 has there, found a {found}")
    check_fit({name: stored.config for name, stored in components.items()}, checkpoint.path)
    return components


def check_fit(configs: Mapping[str, Any], path: Path) -> None:
    """Raise `CheckpointError` unless the text and the latents have the sizes that the transformer takes."""
    sd3, clips = configs["transformer"], [configs["text_encoder"], configs["text_encoder_2"]]
    side_by_side, pooled = (sum(getattr(cfg, name) for cfg in clips) for name in ("hidden_size", "projection_dim"))
    rows = (
        ("pooled numbers of both CLIPs", sd3.vec_in_dim, pooled),
        ("numbers a token of T5", sd3.context_in_dim, configs["text_encoder_3"].d_model),
        ("channels of the VAE's latents", sd3.in_channels, configs["vae"].z_channels),
        ("channels that the transformer gives", sd3.in_channels, sd3.out_channels),
    )
    for what, expected, found in rows:
        if expected != found:
            raise CheckpointError(f"{path}: expected {expected} {what}, which the transformer takes, found {found}")
    if side_by_side > sd3.context_in_dim:
        raise CheckpointError(f"{path}: expected CLIPs of {sd3.context_in_dim} together at most, found {side_by_side}")


def read_sd3_tokenizers(folder: Path, configs: Mapping[str, Any]) -> list[Tokenizer]:
    """Read the tokenizers of both CLIPs and of T5."""
    return [Tokenizer.from_folder(folder / name, configs[part].vocab_size) for name, part in TOKENIZERS.items()]


def make_sd3(
    nx: Backend,
    parts: Mapping[str, tuple[Any, Any]],
    tokenizers: Sequence[Tokenizer],
    schedule: Schedule,
    progress: Progress,
    **rest: Any,
) -> SD3:
    """Put an SD3 together of its networks, (config, weights) each, and its tokenizers; `rest` as for `Pipeline`."""
    clip_l, clip_g, t5 = tokenizers
    return SD3(
        nx=nx,
        mmdit=parts["transformer"],
        vae=parts["vae"],
        clips=(parts["text_encoder"], parts["text_encoder_2"]),
        t5=parts["text_encoder_3"],
        clip_tokenizers=(clip_l, clip_g),
        t5_tokenizer=t5,
        schedule=schedule,
        progress=progress,
        **rest,
    )
