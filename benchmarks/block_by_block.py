"""One step of the transformer beside diffusers', block by block, for a model too large to be held twice, or once.

Each block of diffusers is built when its turn comes, in float32, its weights read by the safetensors library; ours
reads its own, as `streamed` mode does. Two rows go through our blocks at once: the first is our step, from the inputs
to the velocity; the second takes, at every block, diffusers' state. The first shows the error of the whole step, in
which all blocks' errors add up, the second the error of each block alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from safetensors import safe_open
from tqdm import tqdm

from minflux.arrays import Tree
from minflux.backend import get_backend
from minflux.checkpoints.components.flux import write_config as write_flux_config
from minflux.checkpoints.lazy import stream
from minflux.checkpoints.open import open_component
from minflux.checkpoints.stored import StoredComponent
from minflux.model.blocks import double_block, final_layer, single_block
from minflux.model.flux import FluxConfig, condition
from minflux.model.latents import image_ids, text_ids
from minflux.model.linear import linear
from minflux.model.modulation import modulations
from minflux.model.rope import rope

TEXT_LENGTH = 256  # schnell's
TIME = 0.75


@dataclass
class Inputs:
    """What the transformer takes, on NumPy: img (1, I, C), txt (1, T, E), y (1, P), timesteps (1,), ids (1, L, 3)."""

    img: np.ndarray
    txt: np.ndarray
    y: np.ndarray
    timesteps: np.ndarray
    ids: np.ndarray


def random_inputs(cfg: FluxConfig, side: int, text_length: int = TEXT_LENGTH) -> Inputs:
    """Draw inputs for a picture of `side` pixels, eight to a latent."""
    rng = np.random.default_rng(0)
    img = rng.standard_normal((1, (side // 16) ** 2, cfg.in_channels), np.float32)
    txt = rng.standard_normal((1, text_length, cfg.context_in_dim), np.float32)
    ids = np.concatenate([text_ids(txt), image_ids(img, side // 8, side // 8)], axis=1)
    return Inputs(img, txt, rng.standard_normal((1, cfg.vec_in_dim), np.float32), np.array([TIME], np.float32), ids)


def step_errors(folder: Path, side: int, text_length: int = TEXT_LENGTH) -> dict[str, float]:
    """Run one step both ways; return the relative error of every part by itself, then of the whole step."""
    part = open_component(folder, "transformer")
    cfg = part.config
    inputs = random_inputs(cfg, side, text_length)
    with torch.no_grad():
        return compare(cfg, stream(part, get_backend("numpy")), Reference(cfg, part), inputs)


def compare(cfg: FluxConfig, p: Tree, theirs: "Reference", inputs: Inputs) -> dict[str, float]:
    """Take our tree `p` and diffusers' blocks through one step; errors as in `step_errors`."""
    found = {}

    def note(name: str, ours: np.ndarray, their: torch.Tensor) -> np.ndarray:
        """Note the error of the last row, and return both rows, diffusers' own state in the last."""
        found[name] = relative_error(ours[-1:], their.numpy())
        return np.concatenate([ours[:1], their.numpy()])

    their = theirs.embed(inputs)
    vec = note("time and pooled text", condition(p, inputs.timesteps, inputs.y), their.vec)
    img = note("img_in", linear(inputs.img, **p["img_in"]), their.img)
    txt = note("txt_in", linear(inputs.txt, **p["txt_in"]), their.txt)
    pe = rope(inputs.ids, tuple(cfg.axes_dim), cfg.theta)
    mod = modulations(p, vec)
    for i, block in enumerate(tqdm(p["double_blocks"], "beside diffusers, double")):
        img, txt = double_block(block, img, txt, mod["double"][i], pe)
        their = theirs.double(i, their)
        x = note(f"double_blocks.{i}", np.concatenate([txt, img], axis=1), their.joint())
        txt, img = np.split(x, [txt.shape[1]], axis=1)
    x = np.concatenate([txt, img], axis=1)
    for i, block in enumerate(tqdm(p["single_blocks"], "beside diffusers, single")):
        their = theirs.single(i, their)
        x = note(f"single_blocks.{i}", single_block(block, x, mod["single"][i], pe), their.joint())
    velocity = final_layer(p["final_layer"], x[:, txt.shape[1] :], mod["final"])
    note("final layer", velocity, theirs.final(their))
    found["the whole step"] = relative_error(velocity[:1], theirs.final(their).numpy())
    return found


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """|got - expected| / |expected|, in float64."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


# -- diffusers -----------------------------------------------------------------------------------------------


@dataclass
class State:
    """Where diffusers' step has come to."""

    img: torch.Tensor
    txt: torch.Tensor
    vec: torch.Tensor
    pe: tuple[torch.Tensor, torch.Tensor]

    def joint(self) -> torch.Tensor:
        """The joint sequence, text first."""
        return torch.cat([self.txt, self.img], dim=1)


class Reference:
    """diffusers' transformer, of which no more than one block is held."""

    def __init__(self, cfg: FluxConfig, part: StoredComponent):
        self.part = part
        self.sizes = (cfg.hidden_size, cfg.num_heads, cfg.hidden_size // cfg.num_heads)
        frame = write_flux_config(cfg) | {"num_layers": 0, "num_single_layers": 0}
        self.frame = self.filled(lambda: FluxTransformer2DModel.from_config(frame), "")

    def filled(self, make: Callable[[], torch.nn.Module], prefix: str) -> torch.nn.Module:
        """Build a module and give it the weights under `prefix`, in float32; without a prefix, all but the blocks'."""
        with torch.device("meta"):
            module = make()
        names = [n for n in self.part.tensors if n.startswith(prefix) and (prefix or "transformer_blocks." not in n)]
        module.load_state_dict({n.removeprefix(prefix): self.read(n) for n in names}, assign=True)
        return module.eval()

    def read(self, name: str) -> torch.Tensor:
        """Read one weight with the safetensors library."""
        with safe_open(self.part.tensors[name].path, "pt") as file:
            return file.get_tensor(name).float()

    def embed(self, inputs: Inputs) -> State:
        """Bring the inputs into the model's width; diffusers takes times multiplied by 1000."""
        img, txt, y, timesteps = map(torch.from_numpy, (inputs.img, inputs.txt, inputs.y, inputs.timesteps))
        frame = self.frame
        vec, pe = frame.time_text_embed(1000 * timesteps, y), frame.pos_embed(torch.from_numpy(inputs.ids[0]))
        return State(frame.x_embedder(img), frame.context_embedder(txt), vec, pe)

    def double(self, i: int, state: State) -> State:
        """Run double block i."""
        block = self.filled(lambda: FluxTransformerBlock(*self.sizes), f"transformer_blocks.{i}.")
        return self.run(block, state)

    def single(self, i: int, state: State) -> State:
        """Run single block i."""
        block = self.filled(lambda: FluxSingleTransformerBlock(*self.sizes), f"single_transformer_blocks.{i}.")
        return self.run(block, state)

    def run(self, block: torch.nn.Module, state: State) -> State:
        """Run a block of either kind."""
        txt, img = block(state.img, state.txt, state.vec, state.pe)
        return State(img, txt, state.vec, state.pe)

    def final(self, state: State) -> torch.Tensor:
        """Give the velocity."""
        return self.frame.proj_out(self.frame.norm_out(state.img, state.vec))
