"""Read what a checkpoint holds: its weights' names, shapes and dtypes, without reading the weights.

A safetensors file begins with the length of its header, then the header itself, in JSON; the numbers come after.
`minflux inspect MODEL` does this for files and folders, and compares with what FLUX.1 should have.
"""

import json
import math
from collections import Counter
from pathlib import Path

from minflux import zoo
from minflux.checkpoints.open import open_model

path = zoo.FOLDER / "tiny" / "transformer" / "diffusion_pytorch_model.safetensors"


def header(path: Path) -> dict:
    """Read a file's header by hand."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length))


weights = {name: entry for name, entry in header(path).items() if name != "__metadata__"}
numbers = sum(math.prod(entry["shape"]) for entry in weights.values())
print(f"{path.name}: {len(weights)} weights, {numbers:,} numbers, {Counter(e['dtype'] for e in weights.values())}")
for name, entry in list(weights.items())[:4]:
    print(f"  {name} {entry['shape']}")

for stored in open_model("tiny").found:  # as minflux sees it: every network, and what is wrong with it
    wrong = f"missing {stored.missing_keys}, unexpected {stored.unexpected_keys}"
    print(f"{stored.name}: {stored.naming.title}, {len(stored.tensors)} weights, {wrong}")
