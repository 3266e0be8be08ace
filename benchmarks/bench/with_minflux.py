"""minflux's side of each work, on NumPy or MLX."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench.devices import choose_for_mlx
from benchmarks.bench.job import Contender, Job
from benchmarks.bench.peak import peak_memory
from benchmarks.bench.works import STEPS_COMPARED, Work, latent_sides, of_training
from minflux.backend import Backend, blas, get_backend
from minflux.backend.malloc import keep_freed_memory
from minflux.checkpoints.read import load_component
from minflux.inference.compiled import block_runner
from minflux.model.clip import clip_encoder
from minflux.model.flux import flux
from minflux.model.latents import image_ids, text_ids
from minflux.model.t5 import t5_encoder
from minflux.model.vae_bands import decode_any


def job(contender: Contender, work: Work, folder: Path, device: str) -> Job:
    """Load the weights, and bind the function that the work is."""
    nx = backend(contender.library, device)
    if not nx.on_gpu:
        keep_freed_memory()  # as drawing and training do
    arrays = {name: nx.array(x) for name, x in work.inputs().items()}
    loaded = [load_component(folder, part, nx, contender.dtype) for part in work.parts]
    if work.kind == "train":
        return training(nx, work, loaded, arrays)
    compute = FUNCTIONS[work.kind](nx, work, contender.dtype, *loaded, **arrays)

    def run() -> Any:
        result = compute()
        nx.eval(result)
        return result

    return Job(run, lambda: nx.to_numpy(run()), nx.xp.get_peak_memory if nx.on_gpu else peak_memory)


def backend(library: str, device: str) -> Backend:
    """Make the backend on the device that is asked for."""
    if library == "mlx":
        blas.load_fast_blas()
        choose_for_mlx(device)
    return get_backend(library)


def product(nx, work, dtype, a, b):
    """a b."""
    a, b = (x.astype(getattr(nx.xp, dtype)) for x in (a, b))
    return lambda: a @ b


def transformer(nx, work, dtype, model, img, txt, y, timesteps):
    """The velocity, from tokens and conditioning."""
    cfg, p = model
    sides = latent_sides(work)
    run = block_runner(nx)
    return lambda: flux(p, cfg, img, image_ids(img, *sides), txt, text_ids(txt), timesteps, y, run_block=run)


def vae(nx, work, dtype, model, latents):
    """The picture, NHWC."""
    cfg, p = model
    latents = latents.astype(getattr(nx.xp, dtype))
    return lambda: decode_any(p, cfg, latents)


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


def training(nx: Backend, work: Work, loaded: list, batch: dict[str, Any]) -> Job:
    """The training loop's own step, in as many processes as the recipe has workers.

    Each process but this one takes a step whenever this one does, and never returns from here.
    """
    from minflux.train.flow import flow_loss
    from minflux.train.loop import compiled_step
    from minflux.train.optimizer import init_state, schedule
    from minflux.train.workers import assemble

    how = of_training()
    team = assemble(how.workers)
    configs, trees = zip(*loaded, strict=True)
    step = compiled_step(nx, how.optimizer, lambda p, *arrays: flow_loss(p, configs, *arrays), team)
    arrays = tuple(team.share(x) for x in batch.values())
    state, done = init_state(nx, dict(zip(("transformer", "clip", "t5"), trees, strict=True))), 0

    def run() -> float:
        nonlocal state, done
        team.wait(nx)
        now = schedule(how.optimizer, done, how.steps) | {"lr": how.optimizer.lr}
        state, loss, norm = step(state, {k: nx.array(x, dtype=nx.float32) for k, x in now.items()}, arrays)
        nx.eval(state, loss, norm)
        done += 1
        return float(loss)

    while team.rank > 0:
        run()
    others = [other.pid for other in team.others]
    return Job(run, lambda: np.array([run() for _ in range(STEPS_COMPARED)]), lambda: peak_memory(*others))
