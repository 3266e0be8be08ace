"""How much memory a model takes, and which of three ways of holding it fits.

- resident: all weights are read once and kept.
- staged: the transformer and the autoencoder are kept. The text encoders, which are needed once a prompt, are read
  from their files while they work, and forgotten.
- streamed: of the transformer too no more than one matrix is held at a time. It is read again at every step.

Whichever is taken, the picture is the same, to the bit.
"""

import math
import os
import warnings
from collections import Counter

from minflux.backend import Backend
from minflux.errors import ArgumentError
from minflux.weights.parts import Part, whole_name

STREAMED = {
    "resident": (),
    "staged": ("text_encoder", "text_encoder_2"),
    "streamed": ("text_encoder", "text_encoder_2", "transformer"),
}
MODES = tuple(STREAMED)
SPARE = 0.8  # of the free memory, what weights may take: the rest is for activations


def choose(mode: str, nx: Backend, parts: dict[str, Part]) -> str:
    """Check a mode, or for "auto" choose the first that fits into the free memory, with a warning if it is a slow one.

    Raises `ArgumentError` for an unknown mode, and for any but "resident" on MLX, which computes nothing before the end
    and would hold on to every weight until then.
    """
    if mode not in (*MODES, "auto"):
        raise ArgumentError(f"memory must be one of {', '.join(('auto', *MODES))}, got {mode!r}")
    if nx.name != "numpy":
        if mode not in ("auto", "resident"):
            raise ArgumentError(f"memory: {mode!r} works on NumPy alone so far; use backend 'numpy', or 'resident'")
        return "resident"
    if mode != "auto":
        return mode
    free = available()
    chosen = next((mode for mode in MODES if held(parts, mode) <= SPARE * free), MODES[-1])
    if chosen != MODES[0]:
        warnings.warn(
            f"memory: all weights take {held(parts, MODES[0]) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            f"{chosen} mode, which is slower, takes {held(parts, chosen) / 1e9:.1f} GB",
            stacklevel=2,
        )
    return chosen


def held(parts: dict[str, Part], mode: str, itemsize: int = 4) -> int:
    """Count the bytes that weights take at most in a mode: those that stay, and the largest of those that don't.

    A matrix that is read is held twice for a moment: as it is stored, at most as wide, and as it is used.
    """
    streamed = STREAMED[mode]
    stay = sum(count(part) for kind, part in parts.items() if kind not in streamed)
    passing = max((largest(parts[kind]) for kind in streamed if kind in parts), default=0)
    return itemsize * (stay + 2 * passing)


def count(part: Part) -> int:
    """Count a part's numbers."""
    return sum(math.prod(stored.shape) for stored in part.found.values())


def largest(part: Part) -> int:
    """Count the numbers of a part's largest matrix, with the parts of a joint one together."""
    sizes: Counter[str] = Counter()
    for name, stored in part.found.items():
        sizes[whole_name(part.kind, part.naming, name)] += math.prod(stored.shape)
    return max(sizes.values())


def available() -> int:
    """Tell how many bytes of memory are free to use: Linux's own estimate; elsewhere half of all there is."""
    try:
        with open("/proc/meminfo") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
