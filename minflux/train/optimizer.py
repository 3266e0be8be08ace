"""AdamW and Muon on weight trees, with what surrounds them: learning-rate schedule, clipping, averaged weights.

Adam scales each number's step by the size of its own past gradients. Muon takes a matrix as a whole: it steps along the
orthogonal matrix nearest to the gradient's running sum, so that every direction of the gradient is followed at one
pace, not the few largest alone. Written in ops that both backends share, so the same step can be followed on NumPy and
run compiled on MLX.
"""

import math
from dataclasses import dataclass

from minflux.arrays import Array, Tree
from minflux.backend import Backend
from minflux.checkpoints.tree import flatten, leaves, tree, tree_map


@dataclass(frozen=True)
class AdamW:
    """The optimiser's constants (Loshchilov & Hutter 2017, arXiv 1711.05101); `clip` bounds the gradient's norm.

    `muon` is the momentum of the weights that Muon moves (`by_muon`); 0 leaves all to Adam. `decay` is the share of the
    steps after the warm-up over which the learning rate falls.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 200
    ema: float = 0.999
    muon: float = 0.0
    decay: float = 1.0


def learning_rate(opt: AdamW, step: int, steps: int) -> float:
    """Rise linearly over `opt.warmup` steps; fall along half a cosine to a hundredth over the last `opt.decay` of them.

    Between the two it stays: with a small `decay` a run can be made longer until shortly before its end.
    """
    if step < opt.warmup:
        return opt.lr * (step + 1) / opt.warmup
    falling = opt.decay * (steps - opt.warmup)
    done = max(0.0, step - (steps - falling)) / max(1.0, falling)
    return opt.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def ema_decay(opt: AdamW, step: int) -> float:
    """Average over fewer steps while there are few: min(opt.ema, (1 + step) / (10 + step))."""
    return min(opt.ema, (1 + step) / (10 + step))


def clip_by_global_norm(nx: Backend, grads: Tree, limit: float) -> tuple[Tree, Array]:
    """Scale all gradients together so that their joint norm is at most `limit`; return them and the norm."""
    norm = nx.sqrt(sum(nx.sum(g * g) for _, g in leaves(grads)))
    scale = nx.minimum(limit / (norm + 1e-6), nx.array(1.0, dtype=nx.float32))
    return tree_map(lambda g: g * scale, grads), norm


def init_state(nx: Backend, params: Tree) -> dict[str, Tree]:
    """Make the state of a training run: weights, their average, and Adam's two moments (zero).

    They are sorted by name, as a checkpoint has them: the sum over all gradients depends on the order.
    """
    params = tree(dict(sorted(leaves(params))))
    zeros = tree_map(lambda p: nx.zeros(p.shape, dtype=p.dtype), params)
    return {"params": params, "ema": params, "m": zeros, "v": zeros}


def schedule(opt: AdamW, step: int, steps: int) -> dict[str, float]:
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
    """Take one step, and move the averaged weights along; `now` is what `schedule` gives, as arrays.

    p ← p - lr (direction + λ p); weight decay λ applies to matrices and kernels, not to biases and norm scales.
    """
    params, first, second, grads = (flatten(t) for t in (state["params"], state["m"], state["v"], grads))
    moved: dict[str, Array] = {}
    for name, p in params.items():
        turn = muon if opt.muon and by_muon(name, p.shape) else adam
        direction, first[name], second[name] = turn(nx, opt, first[name], second[name], grads[name], now)
        moved[name] = p - now["lr"] * (direction + opt.weight_decay * p if p.ndim > 1 else direction)
    ema = tree_map(lambda e, p: now["decay"] * e + (1 - now["decay"]) * p, state["ema"], tree(moved))
    return {"params": tree(moved), "ema": ema, "m": tree(first), "v": tree(second)}


def adam(nx: Backend, opt: AdamW, m: Array, v: Array, g: Array, now: dict[str, Array]) -> tuple[Array, Array, Array]:
    """m ← β₁ m + (1-β₁) g;  v ← β₂ v + (1-β₂) g²;  direction m̂ / (√v̂ + ε), m̂ and v̂ being divided by 1 - βᵗ."""
    m = opt.beta1 * m + (1 - opt.beta1) * g
    v = opt.beta2 * v + (1 - opt.beta2) * (g * g)
    return (m / now["unbias1"]) / (nx.sqrt(v / now["unbias2"]) + opt.eps), m, v


def muon(nx: Backend, opt: AdamW, m: Array, v: Array, g: Array, now: dict[str, Array]) -> tuple[Array, Array, Array]:
    """m ← μ m + g;  direction 0.2 √max(rows, columns) · orthogonal(g + μ m), a kernel being (out, all the rest).

    The factor gives the direction about the size of Adam's, so one learning rate serves both. Source: Jordan et al.
    2024 (https://kellerjordan.github.io/posts/muon/); the factor: Liu et al. 2025 (arXiv 2502.16982) §2.2.
    """
    m = opt.muon * m + g
    matrix = (g + opt.muon * m).reshape(g.shape[0], -1)
    return 0.2 * max(matrix.shape) ** 0.5 * orthogonal(nx, matrix).reshape(g.shape), m, v


def by_muon(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether Muon moves a weight: matrices and kernels, but no embeddings, and no first or last layer."""
    return len(shape) > 1 and min(shape[0], math.prod(shape[1:])) >= 8 and not any(part in name for part in ADAMS)


ADAMS = ("shared", "embedding", "relative_attention_bias", "conv_in", "conv_out", "final_layer", "img_in", "txt_in")


def orthogonal(nx: Backend, matrix: Array) -> Array:
    """Bring all singular values of (M, N) near 1 (0.7 to 1.2), keeping its directions, by Newton-Schulz steps.

    x ← a x + (b x xᵀ + c (x xᵀ)²) x five times, from x = matrix / its norm: an odd polynomial of every singular value.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (nx.sqrt(nx.sum(x * x)) + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.T if tall else x
