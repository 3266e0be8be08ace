"""AdamW on weight trees, with what surrounds it: learning-rate schedule, gradient clipping, averaged weights.

Written in ops that both backends share, so the same step can be followed on NumPy and run compiled on MLX.
"""

import math
from dataclasses import dataclass

from minflux.arrays import Array, Tree
from minflux.backend import Backend
from minflux.checkpoints.tree import leaves, tree_map


@dataclass(frozen=True)
class AdamW:
    """The optimiser's constants (Loshchilov & Hutter 2017, arXiv 1711.05101); `clip` bounds the gradient's norm."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 200
    ema: float = 0.999


def learning_rate(opt: AdamW, step: int, steps: int) -> float:
    """Rise linearly over `opt.warmup` steps, then fall along half a cosine to a hundredth at the last step."""
    if step < opt.warmup:
        return opt.lr * (step + 1) / opt.warmup
    done = (step - opt.warmup) / max(1, steps - opt.warmup)
    return opt.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def ema_decay(opt: AdamW, step: int) -> float:
    """Average over fewer steps while there are few: min(opt.ema, (1 + step) / (10 + step))."""
    return min(opt.ema, (1 + step) / (10 + step))


def clipped(nx: Backend, grads: Tree, limit: float) -> tuple[Tree, Array]:
    """Scale all gradients together so that their joint norm is at most `limit`; return them and the norm."""
    norm = nx.sqrt(sum(nx.sum(g * g) for _, g in leaves(grads)))
    scale = nx.minimum(limit / (norm + 1e-6), nx.array(1.0, dtype=nx.float32))
    return tree_map(lambda g: g * scale, grads), norm


def start(nx: Backend, params: Tree) -> dict[str, Tree]:
    """Make the state of a training run: weights, their average, and Adam's two moments (zero)."""
    zeros = tree_map(lambda p: nx.zeros(p.shape, dtype=p.dtype), params)
    return {"params": params, "ema": params, "m": zeros, "v": zeros}


def pace(opt: AdamW, step: int, steps: int) -> dict[str, float]:
    """Work out the numbers that change from step to step (counted from 0): what `update` takes beside the gradients.

    They are computed here, not among the arrays: a compiled step would raise β to the power t once for every weight.
    """
    return {
        "lr": learning_rate(opt, step, steps),
        "decay": ema_decay(opt, step),
        "unbias1": 1 - opt.beta1 ** (step + 1),
        "unbias2": 1 - opt.beta2 ** (step + 1),
    }


def update(nx: Backend, opt: AdamW, state: dict[str, Tree], grads: Tree, now: dict[str, Array]) -> dict[str, Tree]:
    """Take one AdamW step, and move the averaged weights along; `now` is `pace` as arrays.

    m ← β₁ m + (1-β₁) g;  v ← β₂ v + (1-β₂) g²;  p ← p - lr (m̂ / (√v̂ + ε) + λ p), where m̂ and v̂ are divided by
    1 - βᵗ. Weight decay applies to matrices and kernels, not to biases and norm scales.
    """
    m = tree_map(lambda m, g: opt.beta1 * m + (1 - opt.beta1) * g, state["m"], grads)
    v = tree_map(lambda v, g: opt.beta2 * v + (1 - opt.beta2) * (g * g), state["v"], grads)

    def moved(p, m, v):
        direction = (m / now["unbias1"]) / (nx.sqrt(v / now["unbias2"]) + opt.eps)
        return p - now["lr"] * (direction + opt.weight_decay * p if p.ndim > 1 else direction)

    params = tree_map(moved, state["params"], m, v)
    ema = tree_map(lambda e, p: now["decay"] * e + (1 - now["decay"]) * p, state["ema"], params)
    return {"params": params, "ema": ema, "m": m, "v": v}
