"""The training loop, the same for the VAE and for the flow.

What a step sees depends on (seed, step) alone, and a checkpoint holds weights, averages and moments: so a run that was
stopped, by Ctrl-C or by force, goes on from its last checkpoint to the very same weights as one that never stopped.
"""

import csv
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from minflux.arrays import Array, Tree
from minflux.backend import Backend, blas
from minflux.backend.malloc import keep_freed_memory
from minflux.checkpoints.formats.atomic import written_whole
from minflux.errors import MinfluxError
from minflux.train import checkpoint
from minflux.train.optimizer import AdamW, clip_by_global_norm, init_state, schedule, update
from minflux.train.workers import Team

LOG = "log.csv"
Batch = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Plan:
    """How long a run is and what it leaves behind in `folder`."""

    folder: Path
    steps: int
    seed: int = 0
    checkpoint_every: int = 200
    sample_every: int = 1000


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return what a run in `folder` has logged, a step an entry, by the columns of its log.csv."""
    with (folder / LOG).open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def compiled_step(nx: Backend, opt: AdamW, loss: Callable[..., Array], team: Team) -> Callable:
    """Make step(state, pace, batch) -> (state, loss, gradient norm), as one compiled function."""
    value_and_grad = nx.value_and_grad(loss)

    def step(state, now, batch):
        value, grads = team.mean(nx, list(value_and_grad(state["params"], *batch)))
        grads, norm = clip_by_global_norm(nx, grads, opt.clip)
        return update(nx, opt, state, grads, now), value, norm

    return nx.compile(step)


def _open_log(folder: Path, done: int) -> TextIO:
    """Open log.csv for appending, cut back to the steps that the checkpoint has."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOG
    rows = path.read_text().splitlines()[1:] if path.exists() else []
    kept = [row for row in rows if int(row.partition(",")[0]) <= done]
    with written_whole(path) as file:
        file.write("\n".join(["step,loss,gradient_norm,learning_rate,seconds", *kept, ""]).encode())
    return path.open("a", buffering=1)


def train(
    nx: Backend,
    team: Team,
    plan: Plan,
    opt: AdamW,
    params: Tree,
    batch: Callable[[np.random.Generator], Batch],
    loss: Callable[..., Array],
    on_sample: Callable[[Tree, int], None] | None = None,
) -> Tree:
    """Train from `params`, or from the run in plan.folder, to plan.steps; return the averaged weights.

    `batch(rng)` makes one step's NumPy arrays, `loss(params, *batch)` their loss; `on_sample(ema, step)` may draw
    images on the way. Logs every step to log.csv. Ctrl-C saves a checkpoint first. Raises `MinfluxError` when the
    loss or its gradient is no longer a number.
    """
    return run(nx, team, plan, opt, init_state(nx, params), compiled_step(nx, opt, loss, team), batch, on_sample)


def run(
    nx: Backend,
    team: Team,
    plan: Plan,
    opt: AdamW,
    state: dict[str, Tree],
    step: Callable,
    batch: Callable[[np.random.Generator], Batch],
    on_sample: Callable[[Tree, int], None] | None = None,
) -> Tree:
    """Train as `train` does, by a step of the caller's: step(state, pace, batch) -> (state, loss, gradient norm).

    `state` holds what a checkpoint must hold, and under "ema" the averaged weights, which are returned.
    """
    keep_freed_memory()
    state, done = checkpoint.load(plan.folder, nx) or (state, 0)
    log = _open_log(plan.folder, done) if team.rank == 0 else None
    bar = tqdm(
        range(done, plan.steps), initial=done, total=plan.steps, unit="step", smoothing=0.02, disable=team.rank > 0
    )
    if team.rank == 0 and not nx.on_gpu and blas.is_missing():
        bar.write(f"no fast BLAS found, so a step takes many times longer: {blas.INSTALL}", file=sys.stderr)
    try:
        for i in bar:
            rng = np.random.default_rng([plan.seed, i])
            arrays = tuple(nx.array(team.share(a)) for a in batch(rng))
            now = schedule(opt, i, plan.steps)
            began = time.perf_counter()
            after, value, norm = step(state, {k: nx.array(x, dtype=nx.float32) for k, x in now.items()}, arrays)
            nx.eval(after, value, norm)
            state, done = after, i + 1
            if not math.isfinite(float(value) + float(norm)):
                raise MinfluxError(
                    f"step {done}: the loss is {float(value)} and its gradient's norm {float(norm)}; "
                    "lower the learning rate and go on"
                )
            if log is None:  # another process logs and saves
                continue
            bar.set_postfix(loss=f"{float(value):.4f}", refresh=False)
            seconds = time.perf_counter() - began
            log.write(f"{done},{float(value):.6f},{float(norm):.4f},{now['lr']:.3e},{seconds:.3f}\n")
            if done % plan.checkpoint_every == 0:
                checkpoint.save(plan.folder, nx, state, done)
            if on_sample and done % plan.sample_every == 0:
                on_sample(state["ema"], done)
    except KeyboardInterrupt:
        checkpoint.save(plan.folder, nx, state, done)
        bar.write(f"stopped after step {done}; the same command goes on from there")
        raise
    finally:
        if log is not None:
            log.close()
    if team.rank == 0:
        checkpoint.save(plan.folder, nx, state, done)
    return state["ema"]
