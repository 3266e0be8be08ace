"""NumPy: the readable definitions as they stand."""

import numpy as np

from minflux.backend.base import Backend


class NumPyBackend(Backend):
    """Runs `base.py` on NumPy arrays; nothing is overridden but the making of arrays."""

    name = module = "numpy"

    def array(self, x, dtype=None):
        """Make a NumPy array; Python floats and MLX's bfloat16 become float32."""
        if type(x).__module__.startswith("mlx"):
            from minflux.backend import get_backend

            x = get_backend("mlx").to_numpy(x)
        if dtype is None and not isinstance(x, np.ndarray):
            x = np.asarray(x)
            dtype = np.float32 if x.dtype == np.float64 else x.dtype
        return np.asarray(x, dtype=dtype)

    def from_bfloat16(self, bits):
        """Widen to float32, exactly: a bfloat16 is a float32's upper half."""
        wide = bits.astype(np.uint32)
        wide <<= 16  # in place: matrices are large
        return wide.view(np.float32)

    def to_numpy(self, x):
        """Return `x` itself."""
        return x
