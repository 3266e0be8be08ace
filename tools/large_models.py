"""What the real models take in each memory mode, from their shapes alone: the tables of docs/large-models.md.

python -m tools.large_models | python -m tools.insert memory docs/large-models.md
"""

from dataclasses import replace
from pathlib import Path

from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.formats.safetensors import Stored
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


def gigabytes(model: dict[str, StoredComponent], mode: str, itemsize: int = 4, blockwise: bool = False) -> str:
    """Write down what a model takes in a mode."""
    return f"{held(model, mode, itemsize, blockwise) / 1e9:.1f} GB"


def rows() -> list[list[str]]:
    """For each model: GB of weights in each mode, computing in float32 (any CPU) and in bfloat16 (MLX on a GPU)."""
    lines = [["model", "stored in", *(f"{mode}, CPU" for mode in MODES), *(f"{mode}, GPU" for mode in MODES)]]
    for name, cfg in MODELS.items():
        for stored, bits in WEIGHTS.items():
            model = parts(cfg, bits)
            on_cpu = [gigabytes(model, mode) for mode in MODES]
            lines.append([name, stored, *on_cpu, *(gigabytes(model, mode, 2, blockwise=True) for mode in MODES)])
    return lines


def machines() -> list[list[str]]:
    """For each size of memory, all of it free: the mode that `--memory auto` takes for FLUX.1-dev."""
    lines = [["free memory", *(f"{stored}, {where}" for where in ("CPU", "GPU") for stored in WEIGHTS)]]
    for size in MACHINES:
        lines.append([f"{size} GB"])
        for itemsize, blockwise in ((4, False), (2, True)):
            for bits in WEIGHTS.values():
                model = parts(DEV, bits)
                fits = [mode for mode in MODES if held(model, mode, itemsize, blockwise) <= SPARE * size * 1e9]
                lines[-1].append(fits[0] if fits else "too small")
    return lines


if __name__ == "__main__":
    print(table(rows()), table(machines()), sep="\n\n")
