"""minflux's side of each work, on NumPy or MLX."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench.contenders import Contender, Job
from benchmarks.bench.works import Work
from minflux.backend import Backend, blas, get_backend
from minflux.model.clip import clip_encoder
from minflux.model.flux import flux
from minflux.model.latents import image_ids, text_ids
from minflux.model.t5 import t5_encoder
from minflux.model.vae import decode
from minflux.weights.parts import load_component


def job(contender: Contender, work: Work, folder: Path, device: str) -> Job:
    """Load the weights, and bind the function that the work is."""
    nx = backend(contender.library, device)
    arrays = {name: nx.array(x) for name, x in work.inputs().items()}
    loaded = [load_component(folder, part, nx, contender.dtype) for part in work.parts]
    compute = FUNCTIONS[work.kind](nx, work, contender.dtype, *loaded, **arrays)

    def run() -> Any:
        result = compute()
        nx.eval(result)
        return result

    return Job(run, nx.to_numpy, nx.xp.get_peak_memory if nx.on_gpu else None)


def backend(library: str, device: str) -> Backend:
    """Make the backend on the device that is asked for; MLX takes its choice on import."""
    if library == "mlx":
        blas.load_fast_blas()
        import mlx.core as mx

        mx.set_default_device(mx.Device(getattr(mx, device)))
    return get_backend(library)


def product(nx, work, dtype, a, b):
    """a b."""
    a, b = (x.astype(getattr(nx.xp, dtype)) for x in (a, b))
    return lambda: a @ b


def transformer(nx, work, dtype, model, img, txt, y, timesteps):
    """The velocity, from tokens and conditioning."""
    cfg, p = model
    rows = 2 * work.sizes["rows"]
    return lambda: flux(p, cfg, img, image_ids(img, rows, rows), txt, text_ids(txt), timesteps, y)


def vae(nx, work, dtype, model, latents):
    """The picture, NHWC."""
    cfg, p = model
    latents = latents.astype(getattr(nx.xp, dtype))
    return lambda: decode(p, cfg, latents)


def t5(nx, work, dtype, model, ids):
    """One vector a token."""
    cfg, p = model
    return lambda: t5_encoder(p, cfg, ids)


def clip(nx, work, dtype, model, ids):
    """One vector a token; the pooled one is among them."""
    cfg, p = model
    return lambda: clip_encoder(p, cfg, ids)[0]


FUNCTIONS: dict[str, Callable[..., Callable[[], Any]]] = {
    "product": product, "transformer": transformer, "vae": vae, "text_encoder": clip, "text_encoder_2": t5
}  # fmt: skip
