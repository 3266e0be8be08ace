"""Quantised weights of other programs: what can be read becomes one entry a matrix, and the rest is named.

Such a file has a matrix as packed codes, and what widens them beside it. Without a word about it, an error would speak
of a wrong shape.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minflux.checkpoints.diffusionkit import as_ours
from minflux.checkpoints.formats.bitsandbytes import join_bitsandbytes
from minflux.checkpoints.formats.entry import Stored
from minflux.checkpoints.formats.parts import read_settings
from minflux.checkpoints.formats.scaled import join_scaled
from minflux.errors import CheckpointError

# what is left of a file's names once all that can be read is, and who writes such files. Sources: optimum-quanto
# `tensor/weights/qbytes.py`; nunchaku `models/linear.py`.
MARKS = (
    (re.compile(r"\.(nested_)?(absmax|quant_map)$"), "to 4 bits by bitsandbytes, and lacks the settings beside it"),
    (re.compile(r"\.weight\._(data\._data|scale|shift)$"), "to 2 or 4 bits by quanto"),
    (re.compile(r"\.(wscales|smooth_factor|smooth)$"), "to 4 bits by nunchaku (SVDQuant)"),
    (re.compile(r"\.weight_scale_2$"), "to NVFP4"),
)
COMFY_MARK = ".comfy_quant"  # beside a layer's weight: a JSON object that says its format, as bytes
COMFY_READ = ("float8_e4m3fn", "float8_e5m2")
READ_METHODS = ("bitsandbytes", "quanto", "torchao")  # quant_method of a config, whose weights are told by their names
ADVICE = (
    "minflux doesn't read it: take this model's bfloat16, float16 or float8 file; `minflux convert --quantize 4` makes "
    "4 bits of it"
)


def join_quantised(path: Path, found: dict[str, Stored]) -> dict[str, Stored]:
    """Return a file's contents with one entry for each matrix that another program quantised.

    Raises `CheckpointError` when the file's names show a program whose files can't be read.
    """
    joined = as_ours(join_scaled(join_bitsandbytes(found)))
    refuse_quantised(path, joined)
    return joined


def refuse_quantised(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Raise `CheckpointError` when a file's names, or ComfyUI's marks in it, show that another program quantised it."""
    for name, stored in tensors.items():
        for mark, by in MARKS:
            if mark.search(name):
                raise CheckpointError(f"{path}: {name}: the file is quantised {by}; {ADVICE}")
        if name.endswith(COMFY_MARK):
            check_comfy_mark(path, name, stored)


def check_comfy_mark(path: Path, name: str, stored: Stored) -> None:
    """Raise `CheckpointError` unless ComfyUI's mark of a layer says that its weight is float8 with one scale.

    Source: ComfyUI, QUANTIZATION.md.
    """
    method = read_settings(stored, name).get("format")
    if method not in COMFY_READ:
        raise CheckpointError(f"{path}: {name}: the layer is quantised to {method!a} by ComfyUI; {ADVICE}")


def refuse_quantised_config(path: Path, config: dict[str, Any]) -> None:
    """Raise `CheckpointError` when a component's config.json says that a program quantised it which isn't read."""
    how = config.get("quantization_config")
    method = how.get("quant_method", "an unnamed method") if isinstance(how, dict) else how
    if method is not None and method not in READ_METHODS:
        raise CheckpointError(f"{path}: quantization_config: quantised by {method!a}; {ADVICE}")
