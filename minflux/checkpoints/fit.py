"""Whether components belong together, told from their sizes: a transformer takes text and latents of certain widths."""

from collections.abc import Mapping
from typing import Any

from minflux.checkpoints.components import CLIP, REDUX, T5, TRANSFORMER, VAE
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import CheckpointError
from minflux.model.flux import FluxConfig

USUAL = {  # which files a transformer of FLUX.1's sizes takes
    CLIP.name: "CLIP-L (clip_l.safetensors)",
    T5.name: "T5-XXL's encoder (t5xxl_fp16.safetensors)",
    VAE.name: "FLUX.1's own VAE (ae.safetensors)",
}
SHARED = {  # what a ControlNet has as its transformer has it
    "hidden_size": "a width of",
    "in_channels": "tokens of length",
    "context_in_dim": "text of width",
    "vec_in_dim": "pooled text of width",
}


def misfit(flux: FluxConfig, name: str, config: Any) -> str | None:
    """Say why a component does not go with a transformer; return None where it does.

    CLIP is as wide as the transformer's input of one vector, T5 as its input of tokens, and a token of the image is a
    2×2 patch of the VAE's latents.
    """
    if name == TRANSFORMER.name:
        return None
    expected, found, what = {
        CLIP.name: lambda: (flux.vec_in_dim, config.hidden_size, "CLIP of width"),
        T5.name: lambda: (flux.context_in_dim, config.d_model, "T5 of width"),
        REDUX.name: lambda: (flux.context_in_dim, config.txt_in_features, "Redux whose tokens' width is"),
        VAE.name: lambda: (flux.out_channels // 4, config.z_channels, "a VAE whose latents' channels are"),
    }[name]()
    if found == expected:
        return None
    usual = f": FLUX.1 takes {USUAL[name]}" if name in USUAL and flux.hidden_size == FluxConfig.hidden_size else ""
    return f"expected {what} {expected}, which the transformer takes, found {found}{usual}"


def check_fit(components: Mapping[str, StoredComponent]) -> None:
    """Raise `CheckpointError` at the first component that does not go with the transformer."""
    flux = components[TRANSFORMER.name].config
    for name, stored in components.items():
        reason = misfit(flux, name, stored.config)
        if reason:
            raise CheckpointError(f"{stored.path}: {reason}")


def check_controlnet(flux: FluxConfig, stored: StoredComponent) -> None:
    """Raise `CheckpointError` for a ControlNet whose inputs are not the transformer's, or whose width is another."""
    for name, what in SHARED.items():
        wanted, found = getattr(flux, name), getattr(stored.config, name)
        if wanted != found:
            raise CheckpointError(
                f"{stored.path}: expected a ControlNet with {what} {wanted}, as the transformer has, found {found}"
            )
