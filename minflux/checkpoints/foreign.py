"""Quantised weights of other programs, which minflux doesn't read: told by their names, so that an error can say so.

Such a file has a matrix as packed bytes, and what unpacks them beside it. Without a word about it, an error would speak
of a wrong shape.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minflux.checkpoints.formats.entry import Stored
from minflux.checkpoints.formats.json_files import parse_json
from minflux.errors import CheckpointError

# what a file's names end in, and who writes such files. Sources: bitsandbytes `functional.py`; optimum-quanto
# `tensor/weights/qbytes.py`; nunchaku `models/linear.py`.
MARKS = (
    (re.compile(r"\.quant_state\.bitsandbytes__nf4$"), "to NF4 by bitsandbytes"),
    (re.compile(r"\.quant_state\.bitsandbytes__fp4$"), "to FP4 by bitsandbytes"),
    (re.compile(r"\.SCB$"), "to int8 by bitsandbytes"),
    (re.compile(r"\.weight\._(data|scale)$"), "by quanto"),
    (re.compile(r"\.(wscales|smooth_factor|smooth)$"), "to 4 bits by nunchaku (SVDQuant)"),
    (re.compile(r"\.weight_scale_2$"), "to NVFP4"),
)
COMFY_MARK = ".comfy_quant"  # beside a layer's weight: a JSON object that says its format, as bytes
COMFY_READ = ("float8_e4m3fn", "float8_e5m2")
LONGEST_MARK = 4096  # bytes
ADVICE = (
    "minflux doesn't read it: take this model's bfloat16, float16 or float8 file; `minflux convert --quantize 4` makes "
    "4 bits of it"
)


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
    if stored.dtype != "U8" or stored.size > LONGEST_MARK:
        raise CheckpointError(f"{path}: {name}: expected JSON in at most {LONGEST_MARK} bytes")
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        method = parse_json(path, file.read(stored.size)).get("format")
    if method not in COMFY_READ:
        raise CheckpointError(f"{path}: {name}: the layer is quantised to {method!a} by ComfyUI; {ADVICE}")


def refuse_quantised_config(path: Path, config: dict[str, Any]) -> None:
    """Raise `CheckpointError` when a component's config.json says that another program quantised its weights."""
    how = config.get("quantization_config")
    if how is not None:
        method = how.get("quant_method", "an unnamed method") if isinstance(how, dict) else how
        raise CheckpointError(f"{path}: quantization_config: quantised by {method!a}; {ADVICE}")
