"""Redux: what a vision encoder says of an image, as tokens that the transformer reads beside T5's.

    tokens = W_down · silu(W_up · states + b_up) + b_down

Source: BFL `flux/modules/image_embedders.py`; diffusers `pipelines/flux/modeling_flux.py`.
"""

from dataclasses import dataclass

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.linear import linear


@dataclass(frozen=True)
class ReduxConfig:
    """The sizes of Redux, under the names of its config.json: the width of the encoder's states, and of T5's tokens."""

    redux_dim: int = 1152
    txt_in_features: int = 4096


@shaped
def redux(p: Tree, states: Float[Array, "B L D"]) -> Float[Array, "B L E"]:
    """Map the states (B, L, D) of an image's patches to text tokens (B, L, E)."""
    hidden = linear(states, **p["redux_up"])  # (B, L, 3 E)
    hidden = backend_of(states).silu(hidden)
    return linear(hidden, **p["redux_down"])
