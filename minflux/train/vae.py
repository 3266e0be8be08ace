"""The VAE's loss: redraw the image, and keep the latents near a normal distribution."""

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.vae import VAEConfig, decode, encode_moments


@shaped
def vae_loss(
    p: Tree, cfg: VAEConfig, image: Float[Array, "B H W 3"], noise: Float[Array, "B H8 W8 Z"], kl_weight: float
) -> Array:
    """mean |x - decode(z)| + kl_weight · mean KL(q(z|x) ‖ N(0, 1)), with z = mean + σ · noise.

    image in [-1, 1]; KL = (mean² + σ² - 1 - log σ²) / 2 a latent, in nats (Kingma & Welling 2013, arXiv 1312.6114).
    The shift and scale of the config are undone inside `decode`, so they have no part in training.
    """
    nx = backend_of(image, noise)
    mean, log_variance = encode_moments(p, cfg, image)
    log_variance = nx.maximum(log_variance, -20.0)
    z = mean + nx.exp(0.5 * log_variance) * noise
    drawn = decode(p, cfg, (z - cfg.shift_factor) * cfg.scale_factor)
    kl = 0.5 * nx.mean(mean * mean + nx.exp(log_variance) - 1 - log_variance)
    return nx.mean(nx.abs(image - drawn)) + kl_weight * kl
