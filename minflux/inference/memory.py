"""How much memory a model takes, and which of three ways of holding it fits.

- resident: all weights are read once and kept.
- staged: the text encoders, which are needed once a prompt, and what steers the blocks, needed once a picture, are read
  from their files while they work, and forgotten. The rest of the transformer is read before the steps of a picture and
  freed before it is decoded. The autoencoder is kept.
- streamed: of the transformer too no more than one matrix is held at a time (on MLX, one block). It is read again at
  every step.

Whichever is taken, the picture is the same, to the bit.
"""

import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable

from minflux.backend import Backend
from minflux.backend.machine import available
from minflux.checkpoints.formats.dtypes import FLOATS
from minflux.checkpoints.lazy import When
from minflux.checkpoints.parts import Part, whole_name
from minflux.checkpoints.quantise import SCALES, is_beside, is_packed, matrix_shape, stem_of
from minflux.errors import ArgumentError

TEXT = ("text_encoder", "text_encoder_2")
STEERING = re.compile(r"(^(time|guidance|vector)_in|_mod\.lin|modulation\.lin|adaLN_modulation\.1)\.")
WHEN: dict[str, Callable[[str, str], When]] = {  # the time when a weight, by its part and name, is read
    "resident": lambda kind, name: "kept",
    "staged": lambda kind, name: (
        "kept" if kind == "vae" else "use" if kind in TEXT or STEERING.search(name) else "steps"
    ),
    "streamed": lambda kind, name: "kept" if kind == "vae" else "use",
}
MODES = tuple(WHEN)
SPARE = 0.8  # of the free memory, what weights may take: the rest is for activations


def choose(
    mode: str,
    nx: Backend,
    parts: dict[str, Part],
    dtype: str | None = None,
    report: Callable[[str], None] | None = None,
) -> str:
    """Check a mode, or for "auto" choose the first that fits into the free memory.

    dtype: of the floats once they are read, None for each file's own. Where "auto" chooses a slow mode, `report` is
    told so and why; without it, there is a warning. Where not even "streamed" fits, there is a warning in any
    case, for the system may still find room by swapping. On a GPU with memory of its own, which can't be asked for
    here, "auto" is "resident". Raises `ArgumentError` for an unknown mode.
    """
    if mode not in (*MODES, "auto"):
        raise ArgumentError(f"memory must be one of {', '.join(('auto', *MODES))}, got {mode!r}")
    if mode != "auto":
        return mode
    if nx.on_gpu and sys.platform != "darwin":
        return "resident"
    free, itemsize = available(), None if dtype is None else 4 if dtype == "float32" else 2
    amounts = {mode: held(parts, mode, itemsize, blockwise=nx.name == "mlx") for mode in MODES}
    chosen = next((mode for mode in MODES if amounts[mode] <= SPARE * free), None)
    if chosen == "resident":
        return chosen
    room = f"all weights take {size_text(amounts['resident'])}, {size_text(free)} are free"
    slow = chosen or "streamed"
    line = f"memory: {slow}, which is slower and takes {size_text(amounts[slow])} ({room})"
    if chosen is None:
        warnings.warn(
            f"{line}: too little even so; the system may swap, or end the process: close other programs", stacklevel=2
        )
    elif report is None:
        warnings.warn(line, stacklevel=2)
    else:
        report(line)
    return slow


def size_text(count: int) -> str:
    """Write a number of bytes for reading.

    >>> size_text(26_900_000), size_text(24_000_000_000)
    ('27 MB', '24.0 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def held(parts: dict[str, Part], mode: str, itemsize: int | None = 4, blockwise: bool = False) -> int:
    """Count the bytes that weights take at most in a mode: those of its largest stage (see `stages`)."""
    return max(stages(parts, mode, itemsize, blockwise).values())


def stages(parts: dict[str, Part], mode: str, itemsize: int | None = 4, blockwise: bool = False) -> dict[str, int]:
    """Count the bytes of weights that are held while the "text" is encoded, in the "steps", and while they "decode".

    In each stage it is those that stay, and the most that pass through at a time. What passes is a matrix, or on MLX
    (`blockwise`) a block. It is held twice for a moment: as it is stored, at most as wide, and as it is used. So is a
    matrix that is read for the steps; and a quantised one that stays is also a float one while it is multiplied by.
    itemsize: of a float once it is read, None for as many bytes as in the file (two for float8, of an eight-byte one
    four).
    """
    stay = Counter[str]()
    passing: dict[str, Counter[str]] = {"text": Counter(), "steps": Counter(), "decode": Counter()}
    for kind, part in parts.items():
        passes = passing["text" if kind in TEXT else "decode" if kind == "vae" else "steps"]
        for name, stored in part.found.items():
            whole, size = whole_name(kind, part.naming, name), numbers(part, name)
            wide = size * (itemsize or own_itemsize(part, name))
            own = wide if stored.code in FLOATS else stored.size
            when = WHEN[mode](kind, whole)
            if when == "use":
                passes[f"{kind} {block(whole) if blockwise else whole}"] += 2 * wide
            else:
                stay[when] += own
                passes[f"{kind} {name}"] = max(own * (when == "steps"), wide * is_packed(name, part.found))
    most = {stage: max(sizes.values(), default=0) for stage, sizes in passing.items()}
    return {stage: stay["kept"] + (stay["steps"] if stage == "steps" else 0) + most[stage] for stage in passing}


def own_itemsize(part: Part, name: str) -> int:
    """Tell how many bytes a number takes when it is read in its file's own dtype; a quantised one's is its scales'."""
    beside = part.found.get(f"{stem_of(name)}.{SCALES}", part.found[name])
    return 4 if beside.code in ("F32", "F64") else 2


def block(name: str) -> str:
    """Name the block that a weight is in, or the weight itself if it is in none.

    >>> block("double_blocks.3.img_attn.qkv.weight"), block("encoder.block.7.layer.0.layer_norm.weight")
    ('double_blocks.3', 'encoder.block.7')
    """
    match = re.match(r"(.*?(?:blocks?|layers)\.\d+)\.", name)
    return match[1] if match else name


def count(part: Part) -> int:
    """Count a part's numbers, those of quantised matrices as before they were packed."""
    return sum(numbers(part, name) for name in part.found if not is_beside(name, part.found))


def numbers(part: Part, name: str) -> int:
    """Count a weight's numbers, a quantised one's as before it was packed."""
    return math.prod(matrix_shape(name, part.found) if is_packed(name, part.found) else part.found[name].shape)
