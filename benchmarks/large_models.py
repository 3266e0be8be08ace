"""What the real models take in each memory mode, from their shapes alone: the tables of docs/large-models.md.

python -m benchmarks.large_models | python -m benchmarks.insert memory docs/large-models.md
"""

from pathlib import Path

from benchmarks.model_card import table
from minflux.memory import MODES, SPARE, held
from minflux.model.clip import CLIP_L
from minflux.model.flux import DEV, SCHNELL, FluxConfig
from minflux.model.t5 import T5_XXL
from minflux.model.vae import FLUX_VAE
from minflux.weights.files import Stored
from minflux.weights.parts import FOLDER_NAMING, Part, expected

MACHINES = (8, 16, 24, 32, 64, 96)  # GB
MODELS = {"schnell": SCHNELL, "dev": DEV}


def parts(cfg: FluxConfig) -> dict[str, Part]:
    """A whole model as headers would show it, without any file."""
    configs = {"transformer": cfg, "vae": FLUX_VAE, "text_encoder": CLIP_L, "text_encoder_2": T5_XXL}
    return {kind: ghost(kind, sizes) for kind, sizes in configs.items()}


def ghost(kind: str, cfg) -> Part:
    """A part whose weights have shapes, and no file."""
    shapes = expected(kind, FOLDER_NAMING[kind], cfg)
    found = {name: Stored(Path(), "BF16", shape, 0) for name, shape in shapes.items()}
    return Part(kind, FOLDER_NAMING[kind], "", found, {})


def rows() -> list[list[str]]:
    """For each model: GB of weights in each mode, float32 on NumPy; and in bfloat16, as on a GPU."""
    lines = [["model", *(f"{mode}, float32" for mode in MODES), "resident, bfloat16"]]
    for name, cfg in MODELS.items():
        model = parts(cfg)
        amounts = [held(model, mode) for mode in MODES] + [held(model, "resident", itemsize=2)]
        lines.append([name, *(f"{amount / 1e9:.1f} GB" for amount in amounts)])
    return lines


def machines() -> list[list[str]]:
    """For each size of memory, all of it free: the mode that `--memory auto` takes for FLUX.1-dev on NumPy."""
    model = parts(DEV)
    lines = [["free memory", "mode"]]
    for size in MACHINES:
        fits = [mode for mode in MODES if held(model, mode) <= SPARE * size * 1e9]
        lines.append([f"{size} GB", fits[0] if fits else "none"])
    return lines


if __name__ == "__main__":
    print(table(rows()), table(machines()), sep="\n\n")
