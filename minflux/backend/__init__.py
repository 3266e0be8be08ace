"""Which array library computes: found from the arrays themselves.

    nx = backend_of(x)          # NumPy's or MLX's, whichever x belongs to
    y = nx.softmax(x @ w)       # the same line on both

Model code never names a backend. It asks `backend_of` and uses what it gets: the ops that NumPy and MLX share under
one name, and the few that minflux defines itself (`minflux/backend/base.py`).
"""

from contextlib import contextmanager
from importlib import import_module

from minflux.arrays import Array
from minflux.backend.base import Backend
from minflux.errors import BackendError

__all__ = ["BACKENDS", "Backend", "available", "backend_of", "get_backend", "serving"]

# name -> (module, class). "mlx" picks the class for the device at hand. Those with a second word are there for the
# tests, which run everything with the readable definitions, and with MLX's fused kernels, as well.
BACKENDS = {
    "numpy": ("minflux.backend.numpy", "NumPyBackend"),
    "mlx": ("minflux.backend.mlx", "mlx_backend"),
    "numpy-readable": ("minflux.backend.numpy", "ReadableNumPyBackend"),
    "mlx-fused": ("minflux.backend.mlx", "MLXBackend"),
    "mlx-readable": ("minflux.backend.mlx", "ReadableMLXBackend"),
}

_made: dict[str, Backend] = {}
_serving = {"numpy": "numpy", "mlx": "mlx"}  # library -> the entry of BACKENDS that serves its arrays


def get_backend(name: str) -> Backend:
    """Return the backend called "numpy" or "mlx", made on first use.

    Raises `BackendError` when the name is unknown, or its library is not installed (the message says how to).
    """
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: choose one of {', '.join(map(repr, BACKENDS))}")
    if name not in _made:
        module, maker = BACKENDS[name]
        _made[name] = getattr(import_module(module), maker)()
    return _made[name]


def backend_of(*arrays: Array) -> Backend:
    """Return the backend that all `arrays` belong to; `None` among them is skipped.

    Raises `TypeError` when the arrays are of different libraries, or one is no array at all.
    """
    found = None
    for array in arrays:
        if array is None:
            continue
        library = type(array).__module__.partition(".")[0]
        if library not in ("numpy", "mlx") or not hasattr(array, "dtype"):
            raise TypeError(f"expected a NumPy or MLX array, got {type(array).__name__}")
        if found not in (None, library):
            raise TypeError(
                f"arrays of both {found} and {library} in one call: convert one side first, "
                f"with get_backend({library!r}).array(...) or get_backend({found!r}).array(...)"
            )
        found = library
    if found is None:
        raise TypeError("backend_of needs at least one array")
    return get_backend(_serving[found])


def available() -> list[str]:
    """Return the names of the backends that work here, best first: ["mlx", "numpy"] or ["numpy"]."""
    try:
        get_backend("mlx")
    except BackendError:
        return ["numpy"]
    return ["mlx", "numpy"]


@contextmanager
def serving(name: str):
    """Let the backend `name` serve its library's arrays inside the `with` block, and yield it.

    This is how a test runs the same model with "mlx-fused" kernels and with "mlx-readable" definitions.
    """
    backend = get_backend(name)
    before = _serving[backend.name]
    _serving[backend.name] = name
    try:
        yield backend
    finally:
        _serving[backend.name] = before
