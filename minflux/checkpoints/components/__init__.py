"""Every network that minflux knows in files, a file each; `COMPONENTS` has them by name, in the order of a listing.

`ADAPTERS` are those that a model has no part in: Redux and its vision encoder, which are loaded beside it. `EVERY` has
a FLUX.1's components and its neighbours', whose folders are opened and saved alone.
"""

from minflux.checkpoints.components.base import Component, Naming
from minflux.checkpoints.components.clip import CLIP
from minflux.checkpoints.components.flux import TRANSFORMER
from minflux.checkpoints.components.redux import REDUX
from minflux.checkpoints.components.siglip import SIGLIP
from minflux.checkpoints.components.t5 import T5
from minflux.checkpoints.components.unet import UNET
from minflux.checkpoints.components.vae import VAE

__all__ = [
    "ADAPTERS", "CLIP", "COMPONENTS", "EVERY", "REDUX", "SIGLIP", "T5", "TRANSFORMER", "UNET", "VAE", "Component",
    "Naming",
]  # fmt: skip

COMPONENTS = {component.name: component for component in (TRANSFORMER, VAE, CLIP, T5)}
ADAPTERS = {component.name: component for component in (REDUX, SIGLIP)}
EVERY = COMPONENTS | {UNET.name: UNET}
