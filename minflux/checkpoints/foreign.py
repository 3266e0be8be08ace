"""Quantised weights of other programs: what can be read becomes one entry a matrix, and the rest is named.

Such a file has a matrix as packed codes, and what widens them beside it. Without a word about it, an error would speak
of a wrong shape.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minflux.checkpoints.formats.bitsandbytes import join_bitsandbytes
from minflux.checkpoints.formats.entry import Stored
from minflux.checkpoints.formats.parts import read_settings
from minflux.checkpoints.formats.scaled import join_scaled
from minflux.errors import CheckpointError

# what is left of a file's names once all that can be read is, and who writes such files. Sources: optimum-quanto
# `tensor/weights/qbytes.py`; nunchaku `models/linear.py`; DiffusionKit `mlx/mmdit.py`.
MARKS = (
    (re.compile(r"\.(nested_)?(absmax|quant_map)$"), "to 4 bits by bitsandbytes, and lacks the settings beside it"),
    (re.compile(r"\.weight\._(data\._data|scale|shift)$"), "to 2 or 4 bits by quanto"),
    (
        re.compile(r"(^|\.)multimodal_transformer_blocks\.\d+\."),
        "by DiffusionKit, which leaves out the keys' biases, so that it draws other images than FLUX.1",
    ),
    (re.compile(r"\.(wscales|smooth_factor|smooth)$"), "to 4 bits by nunchaku (SVDQuant)"),
)
COMFY_MARK = ".comfy_quant"
READ_METHODS = ("bitsandbytes", "quanto", "torchao")  # quant_method of a config, whose weights are told by their names
ADVICE = (
    "minflux doesn't read it: take this model's bfloat16, float16 or float8 file; `minflux convert --quantize 4` makes "
    "4 bits of it"
)


def join_quantised(path: Path, found: dict[str, Stored]) -> dict[str, Stored]:
    """Return a file's contents with one entry for each matrix that another program quantised.

    Raises `CheckpointError` when the file's names show a program whose files can't be read.
    """
    joined = join_scaled(join_bitsandbytes(without_float8_marks(found)))
    refuse_quantised(path, joined)
    return joined


def without_float8_marks(found: dict[str, Stored]) -> dict[str, Stored]:
    """Return contents without ComfyUI's marks of float8 weights, whose scales are read as those of any other file.

    Raises `CheckpointError` for a mark of another format.
    """
    for name in (name for name in found if name.endswith(COMFY_MARK)):
        kind = read_settings(found[name], name).get("format")
        if kind not in ("float8_e4m3fn", "float8_e5m2"):
            raise CheckpointError(f"{found[name].path}: {name}: quantised to {kind!a} by ComfyUI; {ADVICE}")
    return {name: stored for name, stored in found.items() if not name.endswith(COMFY_MARK)}


def refuse_quantised(path: Path, names: Iterable[str]) -> None:
    """Raise `CheckpointError` when a file's names show that another program quantised it."""
    for name in names:
        for mark, by in MARKS:
            if mark.search(name):
                raise CheckpointError(f"{path}: {name}: the file is quantised {by}; {ADVICE}")


def refuse_quantised_config(path: Path, config: dict[str, Any]) -> None:
    """Raise `CheckpointError` when a component's config.json says that a program quantised it which isn't read."""
    how = config.get("quantization_config")
    method = how.get("quant_method", "an unnamed method") if isinstance(how, dict) else how
    if method is not None and method not in READ_METHODS:
        raise CheckpointError(f"{path}: quantization_config: quantised by {method!a}; {ADVICE}")
