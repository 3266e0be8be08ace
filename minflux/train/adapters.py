"""A LoRA in training: which matrices get one, where it begins, how it acts, and its file.

The weights that are trained have the names that they have in the file, diffusers' with PEFT's endings:

    transformer_blocks.0.attn.to_q.lora_A.weight  (r, in)     down, from random numbers
    transformer_blocks.0.attn.to_q.lora_B.weight  (out, r)    up, from zeros: the model begins as it was

diffusers keeps q, k and v apart where our tree has one matrix. So the LoRAs of a joint matrix become one for the
product: their A's one above the other, each B in its own rows and columns. Gradients go back through that to each A
and B. Source: Hu et al. 2021 (arXiv 2106.09685); the start is PEFT's.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array, Float, shaped
from minflux.backend import Backend, backend_of
from minflux.checkpoints.components import TRANSFORMER
from minflux.checkpoints.components.renaming import exchanged
from minflux.checkpoints.formats.safetensors import write_safetensors
from minflux.checkpoints.lora_names import Module, modules
from minflux.checkpoints.quantise import SCALES, stem_of
from minflux.errors import ArgumentError
from minflux.model.flux import FluxConfig

DOWN, UP = "lora_A.weight", "lora_B.weight"
TARGETS = (  # attention and MLPs of both streams, attention of the single blocks: diffusers' own choice
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)

Flat = dict[str, Array]


@dataclass(frozen=True)
class Adapter:
    """A matrix that gets a LoRA: its name in diffusers, its shape there, and its rows in ours of so many."""

    name: str
    module: Module
    outputs: int
    inputs: int
    first: int
    total: int


# -- which matrices ------------------------------------------------------------------------------------------


def find_adapters(cfg: FluxConfig, targets: Sequence[str] = TARGETS) -> list[Adapter]:
    """List the matrices whose names in diffusers are a target, or end in one after a dot, as PEFT has it.

    Raises `ArgumentError` for a target that fits none.
    """
    naming = TRANSFORMER.folder_naming
    matrices = {n: s for n, s in TRANSFORMER.file_shapes(naming, cfg).items() if n.endswith(".weight") and len(s) == 2}
    names = [stem_of(name) for name in matrices]
    for target in targets:
        if not any(fits(name, target) for name in names):
            raise ArgumentError(f"targets: {target!r} fits no matrix of this model; it has {', '.join(kinds(names))}")
    chosen = [name for name in names if any(fits(name, target) for target in targets)]
    table, ours = modules(TRANSFORMER, cfg), TRANSFORMER.shapes(cfg)
    return [as_adapter(name, table[name], matrices[f"{name}.weight"], ours) for name in chosen]


def fits(name: str, target: str) -> bool:
    """Return whether a matrix is meant by a target."""
    return name == target or name.endswith(f".{target}")


def kinds(names: Sequence[str]) -> list[str]:
    """List what may be a target: names without the number of a block."""
    return list(dict.fromkeys(".".join(name.split(".")[2:]) if "blocks." in name else name for name in names))


def as_adapter(name: str, module: Module, shape: tuple[int, ...], ours: dict[str, tuple[int, ...]]) -> Adapter:
    """Find the place of a matrix of diffusers in our tree."""
    total, columns = ours[f"{module.stem}.weight"]
    outputs, inputs = shape
    return Adapter(name, module, outputs, inputs, module.rows(columns).start or 0, total)


# -- the weights ---------------------------------------------------------------------------------------------


def init_adapters(adapters: Sequence[Adapter], rank: int, seed: int) -> Flat:
    """Draw the weights to begin with, float32: A uniform in ±1/√in, B zero."""
    rng = np.random.default_rng(seed)
    flat: Flat = {}
    for adapter in adapters:
        bound = adapter.inputs**-0.5
        flat[f"{adapter.name}.{DOWN}"] = rng.uniform(-bound, bound, (rank, adapter.inputs)).astype(np.float32)
        flat[f"{adapter.name}.{UP}"] = np.zeros((adapter.outputs, rank), np.float32)
    return flat


def as_branches(adapters: Sequence[Adapter], flat: Flat, scale: float, base: Flat) -> Flat:
    """Make the branches beside our matrices of the trained weights: "….lora.down" and "….lora.up".

    scale: α / r, by which the ups are multiplied. base: the model's weights, whose dtype each branch gets.
    """
    joint = defaultdict(list)
    for adapter in adapters:
        joint[adapter.module.stem].append(adapter)
    branches: Flat = {}
    for stem, parts in joint.items():
        dtype = dtype_of(stem, base)
        downs = [flat[f"{part.name}.{DOWN}"] for part in parts]
        ups = [scale * placed_up(part, flat[f"{part.name}.{UP}"]) for part in parts]
        nx = backend_of(*downs)
        branches[f"{stem}.lora.down"] = nx.concatenate(downs, axis=0).astype(dtype)
        branches[f"{stem}.lora.up"] = nx.concatenate(ups, axis=1).astype(dtype)
    return branches


def dtype_of(stem: str, base: Flat) -> Any:
    """Return the dtype that a matrix is computed with: of a quantised one, its scales'."""
    name = f"{stem}.{SCALES}"
    return base[name if name in base else f"{stem}.weight"].dtype


@shaped
def placed_up(adapter: Adapter, up: Float[Array, "O R"]) -> Float[Array, "J R"]:
    """Put the rows of an up-projection into their place among those of our joint matrix, the others being zero."""
    up = exchanged(up) if adapter.module.exchanged else up
    behind = adapter.total - adapter.first - adapter.outputs
    return backend_of(up).pad(up, [(adapter.first, behind), (0, 0)])


# -- the file ------------------------------------------------------------------------------------------------


def save_lora(path: Path, nx: Backend, flat: Flat, scale: float, dtype: str | None = None) -> None:
    """Write a LoRA under PEFT's names with diffusers' prefix, for `load_lora_weights` and whatever else reads LoRAs.

    α / r is multiplied into B, and the header says α = r: some programs look for α there, some beside each pair, and
    some not at all.
    """
    arrays = {f"{TRANSFORMER.name}.{n}": x * scale if n.endswith(UP) else x for n, x in flat.items()}
    write_safetensors(path, arrays, {"lora_adapter_metadata": json.dumps(peft_settings(flat))}, dtype)


def peft_settings(flat: Flat) -> dict:
    """Return PEFT's settings of a LoRA, as diffusers writes them into the header."""
    names = sorted(name.removesuffix(f".{DOWN}") for name in flat if name.endswith(DOWN))
    rank = len(flat[f"{names[0]}.{DOWN}"])
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": names}
    return {f"{TRANSFORMER.name}.{key}": value for key, value in settings.items()}
