"""Shapes of weights by name: how they are put together for a config, and how sizes are read off them."""

import re

from minflux.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]


def under(prefix: str, *parts: Shapes) -> Shapes:
    """Put `prefix` and a dot before every name of the parts, and join them.

    >>> under("a", {"weight": (2, 3)}, {"bias": (2,)})
    {'a.weight': (2, 3), 'a.bias': (2,)}
    """
    return {f"{prefix}.{name}": shape for part in parts for name, shape in part.items()}


def linear_shapes(outputs: int, inputs: int, bias: bool = True) -> Shapes:
    """Return the shapes of a linear map: weight (out, in), and a bias unless told otherwise."""
    return {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if bias else {})


def norm_shapes(width: int, bias: bool = True) -> Shapes:
    """Return the shapes of a norm's weight and, unless told otherwise, its bias."""
    shapes: Shapes = {"weight": (width,), "bias": (width,)}
    return shapes if bias else {"weight": (width,)}


def clip_layer_shapes(width: int, inner: int) -> Shapes:
    """Return the shapes of a layer of CLIP's or SigLIP's: attention with a bias on every projection, and an MLP."""
    shapes = under("layer_norm1", norm_shapes(width)) | under("layer_norm2", norm_shapes(width))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= under(f"self_attn.{name}", linear_shapes(width, width))
    return shapes | under("mlp.fc1", linear_shapes(inner, width)) | under("mlp.fc2", linear_shapes(width, inner))


class Sizes:
    """Sizes of a component, asked for by the name of a weight and an axis; a missing weight raises."""

    def __init__(self, title: str, shapes: Shapes):
        self.title = title
        self.shapes = shapes

    def __call__(self, name: str, axis: int) -> int:
        """Return the size of a weight along an axis."""
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(f"{self.title}: {name}: found no such weight, and the sizes can't be told without it")
        if len(shape) <= axis:
            raise CheckpointError(f"{self.title}: {name}: expected at least {axis + 1} axes, found shape {shape}")
        return shape[axis]

    def count(self, prefix: str) -> int:
        """Return how many numbers n there are with a weight "prefix.n.…"."""
        pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
        return len({match[1] for match in map(pattern.match, self.shapes) if match})

    def has(self, name: str) -> bool:
        """Return whether there is a weight of this name."""
        return name in self.shapes
