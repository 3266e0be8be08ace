"""What the real models take in each memory mode, from their shapes alone: the tables of docs/large-models.md.

python -m tools.large_models memory | python -m tools.insert memory docs/large-models.md
python -m tools.large_models split | python -m tools.insert split docs/large-models.md
"""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from minflux.backend.processes import Group
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.formats.safetensors import Stored
from minflux.checkpoints.shares import shared
from minflux.checkpoints.stored import StoredComponent
from minflux.commands.convert import Conversion
from minflux.inference.memory import MODES, SPARE, held
from minflux.model.clip import CLIP_L
from minflux.model.flux import DEV, SCHNELL, FluxConfig
from minflux.model.t5 import T5_XXL
from minflux.model.vae import FLUX_VAE
from tools.model_card import table

MACHINES = (8, 16, 24, 32, 64, 96)  # GB
MODELS = {"schnell": SCHNELL, "dev": DEV}
HOLDING = ("resident", "staged")
COUNTS = (1, 2, 4, 8)  # machines that share a model
WEIGHTS = {"bfloat16": None, "8 bits": 8, "4 bits": 4}  # as they are stored


def parts(cfg: FluxConfig, bits: int | None = None) -> dict[str, StoredComponent]:
    """A whole model as headers would show it, without any file."""
    configs = {"transformer": cfg, "vae": FLUX_VAE, "text_encoder": CLIP_L, "text_encoder_2": T5_XXL}
    return {kind: ghost(kind, sizes, bits) for kind, sizes in configs.items()}


def ghost(kind: str, cfg, bits: int | None) -> StoredComponent:
    """A part whose weights have shapes, and no file."""
    component = COMPONENTS[kind]
    naming = component.own_naming
    shapes = component.file_shapes(naming, cfg)
    tensors = {name: Stored(Path(), "BF16", shape, 0) for name, shape in shapes.items()}
    whole = StoredComponent(component, naming, Path(), tensors, cfg)
    entries = Conversion(whole, naming, bits=bits).entries()
    return replace(whole, tensors={name: Stored(Path(), dtype, shape, 0) for name, (dtype, shape) in entries.items()})


def gigabytes(model: dict[str, StoredComponent], mode: str, itemsize: int | None = 4, blockwise: bool = False) -> str:
    """Write down what a model takes in a mode."""
    return f"{held(model, mode, itemsize, blockwise) / 1e9:.1f} GB"


def rows() -> list[list[str]]:
    """For each model: GB of weights in each mode, computing in float32 (any CPU) and in bfloat16 (MLX on a GPU)."""
    lines = [["model", "stored in", *(f"{mode}, CPU" for mode in MODES), *(f"{mode}, GPU" for mode in MODES)]]
    for name, cfg in MODELS.items():
        for stored, bits in WEIGHTS.items():
            model = parts(cfg, bits)
            on_cpu = [gigabytes(model, mode) for mode in MODES]
            lines.append([name, stored, *on_cpu, *(gigabytes(model, mode, None, blockwise=True) for mode in MODES)])
    return lines


def machines() -> list[list[str]]:
    """For each size of memory, all of it free: the mode that `--memory auto` takes for FLUX.1-dev."""
    lines = [["free memory", *(f"{stored}, {where}" for where in ("CPU", "GPU") for stored in WEIGHTS)]]
    for size in MACHINES:
        lines.append([f"{size} GB"])
        for itemsize, blockwise in ((4, False), (None, True)):
            for bits in WEIGHTS.values():
                model = parts(DEV, bits)
                fits = [mode for mode in MODES if held(model, mode, itemsize, blockwise) <= SPARE * size * 1e9]
                lines[-1].append(fits[0] if fits else "too small")
    return lines


# -- several machines ----------------------------------------------------------------------------------------


@cache
def share(bits: int | None, count: int) -> dict[str, StoredComponent]:
    """Return what the first of `count` machines has of FLUX.1-dev; the others have no more."""
    return {kind: shared(stored, Group(0, count)) for kind, stored in parts(DEV, bits).items()}


@cache
def bytes_held(bits: int | None, count: int, mode: str, on_gpu: bool) -> int:
    """Count the bytes of FLUX.1-dev's weights that each of `count` machines holds."""
    return held(share(bits, count), mode, None if on_gpu else 4, blockwise=on_gpu)


def shares() -> list[list[str]]:
    """For FLUX.1-dev: GB of weights that each of several machines holds."""
    kinds = [(mode, on_gpu) for on_gpu in (False, True) for mode in HOLDING]
    lines = [["stored in", "machines", *(f"{mode}, {'GPU' if on_gpu else 'CPU'}" for mode, on_gpu in kinds)]]
    for stored, bits in WEIGHTS.items():
        for count in COUNTS:
            sizes = [bytes_held(bits, count, *kind) / 1e9 for kind in kinds]
            lines.append([stored, str(count), *(f"{size:.1f} GB" for size in sizes)])
    return lines


def fewest() -> list[list[str]]:
    """For each size of memory, all of it free: how many such machines hold FLUX.1-dev, and in which mode."""
    lines = [["free memory of each", *(f"{stored}, {where}" for where in ("CPU", "GPU") for stored in WEIGHTS)]]
    for size in MACHINES:
        fitting = [first_fitting(bits, on_gpu, size) for on_gpu in (False, True) for bits in WEIGHTS.values()]
        lines.append([f"{size} GB", *fitting])
    return lines


def first_fitting(bits: int | None, on_gpu: bool, size: int) -> str:
    """Say how many machines are the fewest that hold FLUX.1-dev, and in which mode."""
    for count in COUNTS:
        for mode in HOLDING:
            if bytes_held(bits, count, mode, on_gpu) <= SPARE * size * 1e9:
                return f"{count} {mode}"
    return "streamed"


def numbers_summed(cfg: FluxConfig, tokens: int) -> int:
    """Count the numbers that are summed over all machines in a step, for text and image tokens of one image.

    A double block has two sums of each token's D numbers, a single block one.
    """
    return (2 * cfg.depth + cfg.depth_single_blocks) * tokens * cfg.hidden_size


def bytes_sent(cfg: FluxConfig, tokens: int, count: int, itemsize: int) -> float:
    """Count the bytes that each machine of a ring of `count` sends in a step.

    A ring sums in pieces, one for each machine: a piece goes round once to be summed, and once more to be known.
    """
    return 2 * (count - 1) / count * numbers_summed(cfg, tokens) * itemsize


def traffic() -> list[list[str]]:
    """For FLUX.1-dev: GB that each machine sends in a step."""
    lines = [["image", "text", *(f"{count} machines, {kind}" for count in COUNTS[1:] for kind in ("CPU", "GPU"))]]
    for side in (512, 1024):
        tokens = 512 + (side // 16) ** 2
        sent = [bytes_sent(DEV, tokens, count, itemsize) / 1e9 for count in COUNTS[1:] for itemsize in (4, 2)]
        lines.append([f"{side}×{side}", "512 tokens", *(f"{size:.1f} GB" for size in sent)])
    return lines


TABLES = {"memory": (rows, machines), "split": (shares, fewest, traffic)}

if __name__ == "__main__":
    print("\n\n".join(table(make()) for make in TABLES[sys.argv[1]]))
