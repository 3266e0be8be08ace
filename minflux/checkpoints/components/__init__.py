"""Every network that minflux knows in files, a file each, by name.

`COMPONENTS` are the parts of a FLUX.1, in the order of a listing; `EVERY` has the neighbours too, whose folders are
opened and saved alone.
"""

from minflux.checkpoints.components.base import Component, Naming
from minflux.checkpoints.components.clip import CLIP
from minflux.checkpoints.components.flux import TRANSFORMER
from minflux.checkpoints.components.t5 import T5
from minflux.checkpoints.components.unet import UNET
from minflux.checkpoints.components.vae import VAE

__all__ = ["CLIP", "COMPONENTS", "EVERY", "T5", "TRANSFORMER", "UNET", "VAE", "Component", "Naming"]

COMPONENTS = {component.name: component for component in (TRANSFORMER, VAE, CLIP, T5)}
EVERY = COMPONENTS | {UNET.name: UNET}
