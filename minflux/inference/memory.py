"""How much memory a model takes, and which of three ways of holding it fits.

- resident: all weights are read once and kept.
- staged: the text encoders, which are needed once a prompt, and what makes the modulations, needed once an image, are
  read from their files while they work, and forgotten. The rest of the transformer is read before the steps of an image
  and freed before it is decoded. The VAE is kept.
- streamed: of the transformer too no more than one matrix is held at a time (on MLX, one block). It is read again at
  every step.

Whichever is taken, the image is the same, to the bit.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection

from minflux.backend import Backend
from minflux.backend.machine import free_memory, readable
from minflux.checkpoints.components import Component
from minflux.checkpoints.components.base import block_of
from minflux.checkpoints.formats.dtypes import FLOATS
from minflux.checkpoints.lazy import When
from minflux.checkpoints.quantise import SCALES, is_packed, is_quantisation_parameter, stem_of
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import check_choice

Components = dict[str, StoredComponent]

MODES = ("resident", "staged", "streamed")
SPARE = 0.8  # of the free memory, what weights may take: the rest is for activations


def when_read(mode: str, component: Component, name: str) -> When:
    """Return the time at which a weight, by our name, is read in a mode."""
    if mode == "resident" or component.stage == "decode":
        return "kept"
    if mode == "streamed" or component.stage == "text":
        return "use"
    return "use" if component.once.search(name) else "steps"


# -- choosing ------------------------------------------------------------------------------------------------


def choose(
    mode: str,
    nx: Backend,
    components: Components,
    dtype: str | None = None,
    report: Callable[[str], None] | None = None,
    widened: Collection[str] = (),
) -> str:
    """Check a mode, or for "auto" choose the first that fits into the free memory.

    dtype: of the floats once they are read, None for each file's own. `report` is told when "auto" chose a slow mode,
    and why; without it, there is a warning. Where not even "streamed" fits, there is a warning in any case, for the
    system may still find room by swapping. widened: as in `stages`. On a GPU with memory of its own, which can't be
    asked for here, "auto" is "resident". Raises `ArgumentError` for an unknown mode.
    """
    check_mode(mode)
    if mode != "auto":
        return mode
    if nx.on_gpu and sys.platform != "darwin":
        return "resident"
    free, itemsize = free_memory(), itemsize_of(dtype)
    amounts = {mode: held(components, mode, itemsize, nx.name == "mlx", widened) for mode in MODES}
    fitting = [mode for mode in MODES if amounts[mode] <= SPARE * free]
    chosen = fitting[0] if fitting else "streamed"
    if chosen != "resident":
        tell(chosen, amounts, free, report)
    return chosen


def check_mode(mode: str) -> None:
    """Raise `ArgumentError` unless a mode is one of the three, or "auto"."""
    check_choice("memory", mode, ("auto", *MODES))


def itemsize_of(dtype: str | None) -> int | None:
    """Return the bytes of a float of this dtype, None for each file's own."""
    return {None: None, "float32": 4}.get(dtype, 2)


def tell(chosen: str, amounts: dict[str, int], free: int, report: Callable[[str], None] | None) -> None:
    """Report, or warn of, a slow mode that was chosen for want of memory; warn where even that is too large."""
    room = f"all weights take {readable(amounts['resident'])}, {readable(free)} are free"
    line = f"memory: {chosen}, which is slower and takes {readable(amounts[chosen])} ({room})"
    if amounts[chosen] > SPARE * free:
        line += ": too little even so; the system may swap, or end the process: close other programs"
        warnings.warn(line, stacklevel=3)
    elif report is None:
        warnings.warn(line, stacklevel=3)
    else:
        report(line)


# -- counting ------------------------------------------------------------------------------------------------


def held(
    components: Components, mode: str, itemsize: int | None = 4, blockwise: bool = False, widened: Collection[str] = ()
) -> int:
    """Return the bytes that weights take at most in a mode: those of its largest stage (see `stages`)."""
    return max(stages(components, mode, itemsize, blockwise, widened).values())


def stages(
    components: Components, mode: str, itemsize: int | None = 4, blockwise: bool = False, widened: Collection[str] = ()
) -> dict[str, int]:
    """Return the bytes of weights that are held while the "text" is encoded, in the "steps", and while they "decode".

    A stage's memory is the weights held throughout it plus the largest weight that is loaded temporarily: a matrix, or
    on MLX (`blockwise`) a block. For a moment such a weight is there twice: as it is stored, at most as wide, and as it
    is used. So is a matrix that is read for the steps; and a quantised one that is kept is a float one too while it is
    multiplied by. What is in GGUF's blocks is held as they are, and counts as loaded temporarily besides.
    itemsize: bytes of a loaded float; None keeps the file's own, except that float8 takes 2 and float64 takes 4. Of 2
    bytes, which may be float16, weights that stay float32 in its place count as 4. widened: the stems of matrices that
    LoRAs change, so that they can't stay packed.
    """
    kept = Counter[str]()
    temporary: dict[str, Counter[str]] = {"text": Counter(), "steps": Counter(), "decode": Counter()}
    for stored in components.values():
        loaded = temporary[stored.component.stage]
        for name, ours in stored.our_names.items():
            tensor, when = stored.tensors[name], when_read(mode, stored.component, ours)
            wide = stored.numbers(name) * loaded_itemsize(stored, name, itemsize)
            packed = tensor.in_blocks or (tensor.dtype not in FLOATS and stem_of(ours) not in widened)
            narrow = tensor.size if packed else wide
            kept[when] += narrow
            if when == "use" or tensor.in_blocks:
                loaded[f"{stored.name} {block_of(ours) if blockwise else ours}"] += 2 * wide
                continue
            unpacked = wide if is_packed(name, stored.tensors) else 0
            loaded[f"{stored.name} {name}"] = max(narrow if when == "steps" else 0, unpacked)
    return {
        stage: kept["kept"] + (kept["steps"] if stage == "steps" else 0) + max(loaded.values(), default=0)
        for stage, loaded in temporary.items()
    }


def loaded_itemsize(stored: StoredComponent, name: str, itemsize: int | None) -> int:
    """Return the bytes a loaded number takes, for `itemsize` as in `stages`."""
    if itemsize == 2:
        return 4 if stored.loaded_dtype(name, "float16") == "float32" else 2
    return itemsize or own_itemsize(stored, name)


def own_itemsize(stored: StoredComponent, name: str) -> int:
    """Return the bytes a loaded number takes in its own dtype; a quantised matrix counts in its scales' dtype."""
    counted = stored.tensors.get(f"{stem_of(name)}.{SCALES}", stored.tensors[name])
    return 4 if counted.dtype in ("F32", "F64") or stored.loaded_dtype(name, None) == "float32" else 2


def count_numbers(stored: StoredComponent) -> int:
    """Return how many numbers a component has, those of quantised matrices as before they were packed."""
    weights = [name for name in stored.tensors if not is_quantisation_parameter(name, stored.tensors)]
    return sum(stored.numbers(name) for name in weights)
