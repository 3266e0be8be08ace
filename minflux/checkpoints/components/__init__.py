"""Every network that minflux knows in files, a file each, and which of them make a model.

A family is one model's components, by name, in the order of a listing. `COMPONENTS` is FLUX.1's; `FAMILIES` has all of
them, by how the class of their pipelines begins, the longest beginning first: a FLUX.2's has FLUX.1's in it, and so
have its weights' names. Two families may have different networks of one name. `ADAPTERS` are
those that a model has no part in: Redux and its vision encoder, which are loaded beside it. So are ControlNets, of
which there may be several.
"""

from typing import Any

from minflux.checkpoints.components.base import Component, Naming
from minflux.checkpoints.components.clip import CLIP
from minflux.checkpoints.components.controlnet import CONTROLNET
from minflux.checkpoints.components.decoder import MISTRAL, QWEN3
from minflux.checkpoints.components.flux import TRANSFORMER
from minflux.checkpoints.components.flux2 import FLUX2_TRANSFORMER, FLUX2_VAE
from minflux.checkpoints.components.redux import REDUX
from minflux.checkpoints.components.sd3 import SD3_CLIP_G, SD3_CLIP_L, SD3_T5, SD3_TRANSFORMER, SD3_VAE
from minflux.checkpoints.components.siglip import SIGLIP
from minflux.checkpoints.components.t5 import T5
from minflux.checkpoints.components.unet import UNET
from minflux.checkpoints.components.vae import VAE

__all__ = [
    "ADAPTERS", "CLIP", "COMPONENTS", "CONTROLNET", "FAMILIES", "FLUX2", "FLUX2_KLEIN", "MISTRAL", "QWEN3", "REDUX",
    "SD1", "SD3", "SIGLIP", "T5", "TRANSFORMER", "UNET", "VAE", "Component", "Family", "Naming", "component_of",
    "network",
]  # fmt: skip

Family = dict[str, Component]


def family(*components: Component) -> Family:
    """Return a model's components by name."""
    return {component.name: component for component in components}


def network(of: Family) -> Component:
    """Return the component of a family that runs in every step, by which a family is told from others."""
    return next(component for component in of.values() if component.stage == "steps")


COMPONENTS = family(TRANSFORMER, VAE, CLIP, T5)
SD3 = family(SD3_TRANSFORMER, SD3_VAE, SD3_CLIP_L, SD3_CLIP_G, SD3_T5)
SD1 = family(UNET, VAE, CLIP)
FLUX2_KLEIN = family(FLUX2_TRANSFORMER, FLUX2_VAE, QWEN3)
FLUX2 = family(FLUX2_TRANSFORMER, FLUX2_VAE, MISTRAL)
FAMILIES = {
    "Flux2Klein": FLUX2_KLEIN,
    "Flux2": FLUX2,
    "Flux": COMPONENTS,
    "StableDiffusion3": SD3,
    "StableDiffusionPipeline": SD1,
}
ADAPTERS = family(REDUX, SIGLIP)


def component_of(name: str, config: Any) -> Component:
    """Return the first family's component of a name, and of a config's kind; raises `KeyError` where there is none."""
    named = [known[name] for known in FAMILIES.values() if name in known]
    for component in named:
        if isinstance(config, component.config):
            return component
    raise KeyError(name)
