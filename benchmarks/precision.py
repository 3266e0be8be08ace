"""What bfloat16 costs: one step of a transformer of FLUX.1's full depth, in bfloat16 and in float32, block by block.

    python -m benchmarks.precision | python -m tools.insert precision docs/benchmarks.md

The weights are bfloat16 numbers in both, as in FLUX.1's files, random, and narrower than FLUX.1's, so that it runs
anywhere. In bfloat16 minflux holds weights, products and what passes from block to block in it; norms' statistics,
softmax's sums, RoPE and the times stay in float32, and so do the sampler's latents. diffusers does the same step in
bfloat16 with PyTorch, on the same weights. It rounds the times too: of 1000 t = 500 bfloat16 makes 500, of 750 it makes
752, another time.
"""

from dataclasses import replace

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.block_by_block import Inputs, random_inputs, relative_error
from minflux.arrays import Tree
from minflux.backend import get_backend
from minflux.checkpoints.components.flux import from_diffusers as flux_to_bfl
from minflux.checkpoints.components.flux import write_config as write_flux_config
from minflux.checkpoints.tree import tree, tree_map
from minflux.model.flux import FluxConfig, condition, velocity
from minflux.model.modulation import modulations
from minflux.model.rope import rope
from tools.model_card import table

CFG = FluxConfig(vec_in_dim=256, context_in_dim=512, hidden_size=384, num_heads=3, guidance_embed=False)  # 19 + 38
SIDE, TEXT_LENGTH = 256, 64
SHOWN = (1, 10, 19, 38, 57)  # blocks, counted from the first
TIMES = (0.5, 0.75)


def random_model(cfg: FluxConfig) -> FluxTransformer2DModel:
    """Make diffusers' model with weights of variance 1 / inputs, rounded to bfloat16, held as float32."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel.from_config(write_flux_config(cfg)).eval()
    for weight in model.parameters():
        weight.copy_((torch.randn_like(weight) / weight.shape[-1] ** 0.5 if weight.ndim > 1 else weight).bfloat16())
    return model


def ours(p: Tree, cfg: FluxConfig, inputs: Inputs, dtype: str) -> list[np.ndarray]:
    """Run the step on MLX with all weights as `dtype`; return what each block gave, and last the velocity."""
    nx = get_backend("mlx")
    p = tree_map(lambda x: nx.array(x).astype(getattr(nx.xp, dtype)), p)
    img, txt, y, timesteps, ids = (nx.array(x) for x in vars(inputs).values())
    states: list[np.ndarray] = []

    def note(name: str, seen: dict) -> None:
        streams = ("img",) if name.startswith("double") else ("txt", "img")
        states.append(nx.to_numpy(nx.concatenate([seen[stream] for stream in streams], axis=1)))

    mod, pe = modulations(p, condition(p, timesteps, y)), rope(ids, cfg.axes_dim, cfg.theta)
    out = velocity(p, img, txt, mod, pe, note)
    return [*states, nx.to_numpy(out)]


def theirs(model: FluxTransformer2DModel, inputs: Inputs, dtype: torch.dtype) -> np.ndarray:
    """Run the step in diffusers with all weights as `dtype`; return the velocity."""
    text = inputs.txt.shape[1]
    img, txt, y, timesteps = (torch.from_numpy(x).to(dtype) for x in list(vars(inputs).values())[:4])
    ids = torch.from_numpy(np.array(inputs.ids[0]))
    out = model.to(dtype)(img, txt, y, timesteps, ids[text:], ids[:text], return_dict=False)[0]
    return out.float().numpy()


@torch.no_grad()
def errors(cfg: FluxConfig, side: int, text_length: int, time: float) -> tuple[list[float], float]:
    """Return the relative errors of bfloat16 against float32: ours after each block and at the end; diffusers'."""
    model = random_model(cfg)
    inputs = replace(random_inputs(cfg, side, text_length), timesteps=np.array([time], np.float32))
    p = tree(flux_to_bfl({name: weight.numpy() for name, weight in model.state_dict().items()}))
    exact, narrow = (ours(p, cfg, inputs, dtype) for dtype in ("float32", "bfloat16"))
    reference = theirs(model, inputs, torch.float32)
    if not relative_error(exact[-1], reference) < 1e-4:
        raise SystemExit("in float32, minflux and diffusers differ")
    pairs = zip(narrow, exact, strict=True)
    return [relative_error(*pair) for pair in pairs], relative_error(theirs(model, inputs, torch.bfloat16), reference)


def main() -> None:
    """Print the table."""
    rows = []
    for time in TIMES:
        ours_after, diffusers = errors(CFG, SIDE, TEXT_LENGTH, time)
        blocks = len(ours_after) - 1
        if not rows:
            rows += [[f"after block {n} of {blocks}", f"{ours_after[n - 1]:.1e}", ""] for n in SHOWN]
        rows.append([f"the velocity, t = {time}", f"{ours_after[-1]:.1e}", f"{diffusers:.1e}"])
    print(table([["bfloat16 against float32: relative error", "minflux, MLX", "diffusers, PyTorch"], *rows]))


if __name__ == "__main__":
    main()
