"""The modulations of all steps at once, before the first of them: they depend on time, guidance and prompt alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minflux.arrays import Array, Tree
from minflux.backend import Backend
from minflux.checkpoints.tree import tree_map
from minflux.model.flux import condition


@dataclass(frozen=True, eq=False)
class Modulated:
    """Modulates a transformer's or a ControlNet's blocks: its weights, and the pooled text (B, P) of its prompts.

    of: makes modulations of the weights and `vec`. guidance: a number where the weights take one. vec_of: makes `vec`
    of the weights, timesteps, pooled text and guidance.
    """

    of: Callable[[Tree, Array], Tree]
    p: Tree
    y: Array
    guidance: float | None
    nx: Backend
    vec_of: Callable[..., Array] = condition

    def at(self, timesteps: Sequence[float]) -> dict[float, Tree]:
        """Compute the modulations of every timestep in one pass: {t: modulations}."""
        nx, batch = self.nx, len(self.y)
        t = nx.array(np.repeat(np.array(timesteps, np.float32), batch))  # (steps · B,)
        strength = None
        if self.guidance is not None:
            strength = nx.array(np.full(len(timesteps) * batch, self.guidance, np.float32))
        y = nx.concatenate([self.y] * len(timesteps), axis=0)
        every = self.of(self.p, self.vec_of(self.p, t, y, strength))

        def rows_of(step: int) -> Tree:
            rows = slice(step * batch, (step + 1) * batch)
            return tree_map(lambda x: x[rows], every)

        return {float(t): rows_of(step) for step, t in enumerate(timesteps)}

    def ahead(self, timesteps: Sequence[float]) -> Callable[[float], Tree]:
        """Return the modulations as a function of t: those of the timesteps are known, others are computed if asked."""
        known = self.at(timesteps) if len(timesteps) else {}
        return lambda t: known.get(float(t)) or self.at([t])[float(t)]
