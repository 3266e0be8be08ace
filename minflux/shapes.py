"""Shapes in signatures: `x: Float["B L D"]` reads as documentation and is checked when asked for.

With the environment variable MINFLUX_CHECK_SHAPES=1 (the tests set it) every function marked `@shaped` has the
shape and kind of its arguments and of its result checked by jaxtyping and beartype at each call: letters that
repeat must agree. Without it the annotations are inert and cost nothing. The letters are explained in
docs/architecture.md, "Dimension key".
"""

import os
from typing import TYPE_CHECKING, Any

__all__ = ["Array", "Float", "Int", "Tree", "shaped"]

Array = Any  # a numpy.ndarray or an mlx.core.array
Tree = Any  # nested dicts and lists with arrays at the leaves

if TYPE_CHECKING:

    class _Inert:
        """What a type checker sees: any array."""

        def __class_getitem__(cls, dims: str) -> Any: ...

    Float = Int = _Inert

    def shaped(function):
        """Mark a function whose shapes are checked in the tests."""
        return function

elif os.environ.get("MINFLUX_CHECK_SHAPES") == "1":
    import jaxtyping
    from beartype import BeartypeConf, beartype

    class Float:
        """A floating-point array of the named dimensions, on either backend."""

        def __class_getitem__(cls, dims):
            return jaxtyping.Float[Any, dims]

    class Int:
        """An integer array of the named dimensions, on either backend."""

        def __class_getitem__(cls, dims):
            return jaxtyping.Integer[Any, dims]

    # an int is welcome where a float is asked for, as Python's typing has it (PEP 484)
    shaped = jaxtyping.jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))

else:

    class Float:
        """A floating-point array of the named dimensions, on either backend."""

        def __class_getitem__(cls, dims):
            return Any

    Int = Float

    def shaped(function):
        """Mark a function whose shapes are checked in the tests."""
        return function
