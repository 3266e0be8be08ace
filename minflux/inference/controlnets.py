"""ControlNets at work: what the control images of a call add inside the transformer, at every step.

Each adds after its own blocks' shares of the transformer's (see `spread`), so that ControlNets of different depths go
together; for equal ones that is diffusers' `FluxMultiControlNetModel`. With classifier-free guidance what is added is
that of the prompt, to the negative prompt's rows too, as diffusers has it; so a step asks each ControlNet once.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minflux.arrays import Array, Tree
from minflux.backend import Backend
from minflux.checkpoints.lazy import Progress, for_steps
from minflux.edit.controlnet import Control
from minflux.errors import ArgumentError
from minflux.inference.modulated import Modulated
from minflux.model.controlnet import ControlNetConfig, controlnet, embed_hint, spread
from minflux.model.flux import FluxConfig, Residuals
from minflux.model.hooks import OnBlock
from minflux.model.latents import image_ids, pack, text_ids
from minflux.model.modulation import block_modulations
from minflux.model.rope import rope

GUIDANCE = 3.5  # FLUX.1-dev's: of a ControlNet that takes guidance, beside a transformer that takes none


@dataclass(frozen=True, eq=False)
class ControlNet:
    """A ControlNet's config and weights."""

    config: ControlNetConfig
    weights: Tree


@dataclass(frozen=True, eq=False)
class Controlled:
    """What ControlNets are asked about: prompts, the size of the latents (h, w), the guidance, and the timesteps ahead.

    target: the sizes of the transformer that is added to. copies: how often its batch repeats the prompts'. compute:
    told of each block, after which MLX needs the block's weights no more.
    """

    nx: Backend
    target: FluxConfig
    txt: Array
    y: Array
    size: tuple[int, int]
    guidance: float | None
    timesteps: Sequence[float]
    copies: int
    compute: OnBlock

    def residuals(self, controls: Sequence[Control], nets: Sequence[ControlNet]) -> Callable[[Array, float], Residuals]:
        """Return r(x, t): what all control images that are at work at t add, by the block after which they do."""
        each = [self.residuals_of(control, nets[control.use.number]) for control in controls]

        def at_work(x: Array, t: float) -> Residuals:
            found = defaultdict(list)
            working = [predict for control, predict in zip(controls, each, strict=True) if control.is_at_work(t)]
            for predict in working:
                for name, residual in predict(x, t).items():
                    found[name].append(residual)
            return found

        return at_work

    def residuals_of(self, control: Control, net: ControlNet) -> Callable[[Array, float], dict[str, Array]]:
        """Return r(x, t): what one control image adds, {block: (copies · B, I, D)}."""
        cfg, p, use, nx = net.config, net.weights, control.use, self.nx
        hint = self.hint(p, control.shown)
        mod = self.modulated(cfg, p).ahead(self.timesteps)
        pe = rope(self.ids(use.mode), cfg.axes_dim, cfg.theta)

        def predict(x: Array, t: float) -> dict[str, Array]:
            found = controlnet(p, pack(x), hint, self.txt, mod(t), pe, use.mode, self.compute)
            scaled = {name: nx.concatenate([use.scale * r] * self.copies, axis=0) for name, r in found.items()}
            nx.eval(scaled)
            return spread(scaled, self.target, repeats=cfg.sees_pixels)

        return predict

    def hint(self, p: Tree, shown: Array) -> Array:
        """Embed a control image for every prompt: (B, I, D)."""
        hint = embed_hint(p, shown)
        hint = self.nx.broadcast_to(hint, (len(self.txt), *hint.shape[1:]))
        self.nx.eval(hint)
        return hint

    def modulated(self, cfg: ControlNetConfig, p: Tree) -> Modulated:
        """Return what modulates a ControlNet's blocks."""
        guidance = GUIDANCE if self.guidance is None else self.guidance
        return Modulated(
            lambda p, vec: block_modulations(p, vec, self.compute), p, self.y,
            guidance if cfg.guidance_embed else None, self.nx,
        )  # fmt: skip

    def ids(self, mode: int | None) -> Array:
        """Number the tokens: the mode's where there is one, the text's, the image's."""
        text, image = text_ids(self.txt), image_ids(self.txt, *self.size)
        before = [] if mode is None else [text[:, :1]]
        return self.nx.concatenate([*before, text, image], axis=1)


def held_nets(nets: Sequence[ControlNet], progress: Progress) -> tuple[ControlNet, ...]:
    """Return ControlNets with the weights read that their steps use; freed with them."""
    return tuple(replace(net, weights=for_steps(net.weights, progress)) for net in nets)


# -- checks ------------------------------------------------------------------------------------------------------


def check_controls(
    controls: Sequence[Control], nets: Sequence[ControlNet], shape: tuple[int, int, int, int], downscale: int
) -> None:
    """Raise `ArgumentError` unless each control image has a ControlNet, and the size of latents (B, C, h, w)."""
    count, channels, height, width = shape
    for control in controls:
        number, found = control.use.number, tuple(control.shown.shape)
        if number >= len(nets):
            raise ArgumentError(f"controls: ControlNet {number} is asked for, and the model has {len(nets)}")
        wanted: tuple[int, ...] = (height, width, channels)
        if nets[number].config.sees_pixels:
            wanted = (height * downscale, width * downscale, 3)
        if found[1:] != wanted or found[0] not in (1, count):
            raise ArgumentError(f"controls: must have shape (1, {', '.join(map(str, wanted))}), got {found}")


def memory_of_controls(controls: Sequence[Control], nets: Sequence[ControlNet], tokens: int, itemsize: int) -> int:
    """Return about how many bytes what is added at a step takes, for so many image tokens in the whole batch."""
    cfgs = [nets[control.use.number].config for control in controls]
    return sum(itemsize * tokens * cfg.hidden_size * (cfg.depth + cfg.depth_single_blocks) for cfg in cfgs)
