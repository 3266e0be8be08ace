"""The VAE's second stage: a judge learns to tell redrawn images from originals, and the decoder to pass.

The mean absolute error alone is smallest where every uncertain edge is drawn halfway, which looks blurred. The judge
(`discriminator.py`) sees that, and its gradient, added to the error's, sharpens. How much of it is added is measured
at every step, at the decoder's last convolution W, for the next step:

    loss = |x - x̂| + kl_weight · KL - share · λ · mean D(x̂),    λ = ‖∂|x - x̂|/∂W‖ / (‖∂ mean D(x̂)/∂W‖ + 1e-4)

so that neither drowns the other, however large the judge's numbers grow. (A λ for the same step would take a second
pass through the decoder.) Source: Esser et al. 2020 (arXiv 2012.09841) §3.1 eq. 7, Rombach et al. 2021 (arXiv
2112.10752) §G.
"""

from collections.abc import Callable

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import Backend, backend_of
from minflux.model.vae import VAEConfig, conv3, decode_features, encode_moments
from minflux.train.discriminator import JudgeConfig, hinge, judge
from minflux.train.optimizer import AdamW, clip_by_global_norm, init_state, update
from minflux.train.workers import Team

MOST = 1e4  # that λ may be


def redraw(p: Tree, cfg: VAEConfig, image: Array, noise: Array) -> tuple[Array, Array]:
    """Encode with noise and decode up to the last convolution: its input, and the mean KL of a latent in nats."""
    nx = backend_of(image, noise)
    mean, log_variance = encode_moments(p, cfg, image)
    log_variance = nx.maximum(log_variance, -20.0)
    z = mean + nx.exp(0.5 * log_variance) * noise
    kl = 0.5 * nx.mean(mean * mean + nx.exp(log_variance) - 1 - log_variance)
    return decode_features(p, cfg, (z - cfg.shift_factor) * cfg.scale_factor), kl


@shaped
def adversarial_loss(
    p: Tree,
    cfg: VAEConfig,
    critic: Tree,
    critic_cfg: JudgeConfig,
    image: Float[Array, "B H W 3"],
    noise: Float[Array, "B h w Z"],
    kl_weight: float,
    weight: Array,
) -> tuple[Array, Array]:
    """Give the loss |x - x̂| + kl_weight · KL - weight · mean D(x̂), and what went into the last convolution."""
    nx = backend_of(image, noise)
    features, kl = redraw(p, cfg, image, noise)
    drawn = conv3(p["decoder"]["conv_out"], features)
    error = nx.mean(nx.abs(image - drawn))
    praise = nx.mean(judge(critic, critic_cfg, drawn))
    return error + kl_weight * kl - weight * praise, features


@shaped
def balanced(
    last: Tree, features: Float[Array, "B H W C"], critic: Tree, critic_cfg: JudgeConfig, image: Float[Array, "B H W 3"]
) -> Array:
    """Measure λ: the norm of the error's gradient at the last convolution's kernel against that of the praise."""
    nx = backend_of(features, image)

    def error(weight):
        return nx.mean(nx.abs(image - conv3({**last, "weight": weight}, features)))

    def praise(weight):
        return nx.mean(judge(critic, critic_cfg, conv3({**last, "weight": weight}, features)))

    of_error, of_praise = (norm(nx, nx.value_and_grad(f)(last["weight"])[1]) for f in (error, praise))
    return nx.minimum(of_error / (of_praise + 1e-4), MOST)


def norm(nx: Backend, x: Array) -> Array:
    """√Σx²."""
    return nx.sqrt(nx.sum(x * x))


def begin(nx: Backend, params: Tree, critic: Tree) -> dict[str, Tree]:
    """Make the state of a run: the VAE's as in `optimizer.init_state`, the judge's as "critic", and λ = 0."""
    return init_state(nx, params) | {"critic": init_state(nx, critic), "balance": nx.zeros((), dtype=nx.float32)}


def adversarial_step(
    nx: Backend, opt: AdamW, cfg: VAEConfig, critic_cfg: JudgeConfig, kl_weight: float, share: float, team: Team
) -> Callable:
    """Make step(state, pace, batch) -> (state, loss, gradient norm): the VAE moves, then the judge."""

    def fool(p, critic, image, noise, weight):
        return adversarial_loss(p, cfg, critic, critic_cfg, image, noise, kl_weight, weight)

    def tell_apart(critic, image, drawn):
        return hinge(nx, judge(critic, critic_cfg, image), judge(critic, critic_cfg, drawn))

    def step(state, now, batch):
        image, noise = batch
        p, critic, weight = state["params"], state["critic"], share * state["balance"]
        (value, features), grads = nx.value_and_grad(fool)(p, critic["params"], image, noise, weight)
        last = p["decoder"]["conv_out"]
        _, critic_grads = nx.value_and_grad(tell_apart)(critic["params"], image, conv3(last, features))
        balance = balanced(last, features, critic["params"], critic_cfg, image)
        value, grads, critic_grads, balance = team.mean(nx, [value, grads, critic_grads, balance])
        grads, size = clip_by_global_norm(nx, grads, opt.clip)
        critic_grads, _ = clip_by_global_norm(nx, critic_grads, opt.clip)
        moved = update(nx, opt, {k: state[k] for k in ("params", "ema", "m", "v")}, grads, now)
        judged = update(nx, opt, critic, critic_grads, now)
        return moved | {"critic": judged, "balance": balance}, value, size

    return nx.compile(step)
