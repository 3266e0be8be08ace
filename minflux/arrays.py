"""Shapes in signatures: `x: Float[Array, "B L D"]` reads as documentation and is checked when asked for.

With the environment variable MINFLUX_CHECK_SHAPES=1 (the tests set it) every function marked `@shaped` has the
shape and kind of its arguments and of its result checked by jaxtyping and beartype at each call: letters that
repeat must agree. Without it the annotations are inert and cost nothing (importing jaxtyping alone would take longer
than importing all of minflux). The letters are explained in docs/architecture.md, "Dimension key".
"""

import os
from typing import TYPE_CHECKING, Any

__all__ = ["Array", "Float", "Int", "Tree", "shaped"]

Array = Any  # a numpy.ndarray or an mlx.core.array
Tree = Any  # nested dicts and lists with arrays at the leaves

if TYPE_CHECKING or os.environ.get("MINFLUX_CHECK_SHAPES") != "1":
    from typing import Annotated as Float
    from typing import Annotated as Int

    def shaped(function):
        """Mark a function whose shapes are checked in the tests."""
        return function

else:
    import jaxtyping
    from beartype import BeartypeConf, beartype

    Float, Int = jaxtyping.Float, jaxtyping.Integer
    # an int is welcome where a float is asked for, as Python's typing has it (PEP 484)
    shaped = jaxtyping.jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))
