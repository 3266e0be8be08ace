"""The array library that computes, found from the arrays themselves.

    nx = backend_of(x)          # NumPy's or MLX's, whichever x belongs to
    y = nx.softmax(x @ w)       # the same line on both

Model code never names a backend. It asks `backend_of` and uses the ops of the backend that it gets: those that NumPy
and MLX share under one name, and those that minflux defines itself (`minflux/backend/base.py`).
"""

from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from minflux.arrays import Array
from minflux.backend.base import Backend
from minflux.errors import BackendError, quoted

__all__ = ["BACKENDS", "Backend", "available", "backend_of", "best_backend", "get_backend", "serving"]

# name -> (module, class or function that makes it). "mlx" chooses the class for the device at hand. The names with a
# second word are for the tests, which also run everything with the readable definitions and with MLX's fused kernels.
BACKENDS = {
    "numpy": ("minflux.backend.numpy", "NumPyBackend"),
    "mlx": ("minflux.backend.device", "mlx_backend"),
    "numpy-readable": ("minflux.backend.numpy", "ReadableNumPyBackend"),
    "mlx-fused": ("minflux.backend.mlx", "MLXBackend"),
    "mlx-readable": ("minflux.backend.mlx", "ReadableMLXBackend"),
}

_made: dict[str, Backend] = {}
_serving = {"numpy": "numpy", "mlx": "mlx"}  # library -> the entry of BACKENDS that serves its arrays


def get_backend(name: str) -> Backend:
    """Return the backend called "numpy" or "mlx", made on first use; "auto" stands for `best_backend`.

    Raises `BackendError` when the name is unknown, or its library is not installed (the message says how to).
    """
    if not isinstance(name, str) or name not in (*BACKENDS, "auto"):
        raise BackendError(f"unknown backend {quoted(name)}: choose 'auto', 'mlx' or 'numpy'")
    if name in _made:
        return _made[name]
    if name == "auto":
        return get_backend(best_backend())
    module, maker = BACKENDS[name]
    _made[name] = getattr(import_module(module), maker)()
    return _made[name]


def best_backend() -> str:
    """Return the name of the faster backend here: "mlx" where MLX has a GPU, "numpy" on a CPU (docs/log.md)."""
    if find_spec("mlx") is None:
        return "numpy"
    return "mlx" if get_backend("mlx").on_gpu else "numpy"


def backend_of(*arrays: Array) -> Backend:
    """Return the backend that all `arrays` belong to; `None` among them is skipped.

    Raises `TypeError` when the arrays are of different libraries, or one is no array at all.
    """
    found = None
    for array in arrays:
        if array is not None:
            library = library_of(array)
            if found not in (None, library):
                raise TypeError(
                    f"arrays of both {found} and {library} in one call: convert one side first, "
                    f"with get_backend({library!r}).array(...) or get_backend({found!r}).array(...)"
                )
            found = library
    if found is None:
        raise TypeError("backend_of needs at least one array")
    return get_backend(_serving[found])


def library_of(array: Array) -> str:
    """Return the library of an array, "numpy" or "mlx"; raises `TypeError` for anything else."""
    library = type(array).__module__.partition(".")[0]
    if library not in _serving or not hasattr(array, "dtype"):
        raise TypeError(f"expected a NumPy or MLX array, got {type(array).__name__}")
    return library


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

    A test runs the same model with "mlx-fused" kernels and with "mlx-readable" definitions by this.
    """
    backend = get_backend(name)
    before = _serving[backend.name]
    _serving[backend.name] = name
    try:
        yield backend
    finally:
        _serving[backend.name] = before
