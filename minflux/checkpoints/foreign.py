"""Quantised weights of other programs, which minflux doesn't read: told by their names, so that an error can say so.

Such a file has a matrix as packed bytes, and what unpacks them beside it. Without a word about it, an error would speak
of a wrong shape.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minflux.errors import CheckpointError

# what a file's names end in, and who writes such files. Sources: bitsandbytes `functional.py`; optimum-quanto
# `tensor/weights/qbytes.py`; nunchaku `models/linear.py`.
MARKS = (
    (re.compile(r"\.quant_state\.bitsandbytes__nf4$"), "to NF4 by bitsandbytes"),
    (re.compile(r"\.quant_state\.bitsandbytes__fp4$"), "to FP4 by bitsandbytes"),
    (re.compile(r"\.SCB$"), "to int8 by bitsandbytes"),
    (re.compile(r"\.weight\._(data|scale)$"), "by quanto"),
    (re.compile(r"\.(wscales|smooth_factor|smooth)$"), "to 4 bits by nunchaku (SVDQuant)"),
)
ADVICE = (
    "minflux doesn't read it: take this model's bfloat16, float16 or float8 file; `minflux convert --quantize 4` makes "
    "4 bits of it"
)


def refuse_quantised(path: Path, names: Iterable[str]) -> None:
    """Raise `CheckpointError` when a file's names show that another program quantised it."""
    for name in names:
        for mark, by in MARKS:
            if mark.search(name):
                raise CheckpointError(f"{path}: {name}: the file is quantised {by}; {ADVICE}")


def refuse_quantised_config(path: Path, config: dict[str, Any]) -> None:
    """Raise `CheckpointError` when a component's config.json says that another program quantised its weights."""
    how = config.get("quantization_config")
    if how is not None:
        method = how.get("quant_method", "an unnamed method") if isinstance(how, dict) else how
        raise CheckpointError(f"{path}: quantization_config: quantised by {method!a}; {ADVICE}")
