"""Training the transformer and both small text encoders together, as a rectified flow in the VAE's latents."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import Backend, backend_of
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.shapes import under
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.formats.atomic import written_whole
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import leaves, tree_map
from minflux.errors import CheckpointError
from minflux.inference.pipeline import Defaults
from minflux.inference.text import Tokenizer
from minflux.model.clip import CLIPConfig, clip_encoder
from minflux.model.flux import FluxConfig
from minflux.model.latents import pack
from minflux.model.t5 import T5Config, t5_encoder
from minflux.model.vae import VAEConfig, encode
from minflux.sampling.timesteps import Schedule
from minflux.train import scenes
from minflux.train.init_weights import init_weights
from minflux.train.loop import Batch, Plan, train
from minflux.train.objective import logit_normal, noised, velocity
from minflux.train.recipe import Training, optimizer, part, section
from minflux.train.vae import images
from minflux.train.workers import Team, assemble

CLIP_TOKENIZER, T5_TOKENIZER = "tokenizer", "tokenizer_2"


@shaped
def flow_loss(
    p: Tree,
    configs: tuple,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    clip_ids: Int[Array, "B S"],
    t5_ids: Int[Array, "B T"],
    pooled: Float[Array, "B"] | None = None,
) -> Array:
    """mean ‖v(x_t, t, text) - (noise - x₀)‖², with x_t = (1 - t) x₀ + t noise.

    x0: latents; t in (0, 1); p holds "transformer", "clip" and "t5"; pooled: by how much each sample's pooled text is
    multiplied, 0 to hide it. Source: Esser et al. 2024 (arXiv 2403.03206) §2.
    """
    txt, y = read_text(p, configs, clip_ids, t5_ids, pooled)
    return velocity_loss(p, configs, x0, noise, t, txt, y)


@shaped
def read_text(
    p: Tree,
    configs: tuple,
    clip_ids: Int[Array, "B S"],
    t5_ids: Int[Array, "B T"],
    pooled: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, "B T E"], Float[Array, "B P"]]:
    """Return T5's hidden states `txt` and CLIP's pooled output `y`, each sample's times its factor `pooled`."""
    _, clip_cfg, t5_cfg = configs
    txt = t5_encoder(p["t5"], t5_cfg, t5_ids)
    _, y = clip_encoder(p["clip"], clip_cfg, clip_ids)
    return txt, y if pooled is None else y * pooled[:, None]


@shaped
def velocity_loss(
    p: Tree,
    configs: tuple,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    txt: Float[Array, "B T E"],
    y: Float[Array, "B P"],
    **how: Any,
) -> Array:
    """mean ‖v(x_t, t, txt, y) - (noise - x₀)‖², for a text that has been read; `how` is for the transformer."""
    error = velocity(p["transformer"], configs[0], noised(x0, noise, t), t, txt, y, **how) - pack(noise - x0)
    return backend_of(x0, noise, t).mean(error * error)


def encode_scenes(
    vae: tuple[VAEConfig, Tree], drawn: list[scenes.Scene], folder: Path, nx: Backend, team: Team
) -> np.ndarray:
    """Encode every scene once, (N, h, w, C) float16, each process of the team its share.

    The shares are kept as files in `folder`, and read back by all and in later runs of the same VAE and scenes.
    """
    of = fingerprint(vae, drawn)
    paths = [folder / f"latents-{of}-{rank}-of-{team.size}.npy" for rank in range(team.size)]
    if not paths[team.rank].exists():
        latents = _encode(vae, team.share(drawn), nx, quiet=team.rank > 0)
        with written_whole(paths[team.rank]) as file:
            np.save(file, latents)
    team.wait(nx)
    shares = [np.load(path) for path in paths]
    whole = np.empty((len(drawn), *shares[0].shape[1:]), np.float16)
    for rank, latents in enumerate(shares):
        whole[rank :: team.size] = latents
    return whole


def fingerprint(vae: tuple[VAEConfig, Tree], drawn: Sequence[object]) -> str:
    """Return a name for encoded scenes by what made them: 12 hexadecimal digits of VAE and scenes."""
    cfg, p = vae
    digest = hashlib.sha256(repr((cfg, drawn)).encode())
    for name, x in sorted(leaves(p)):
        digest.update(name.encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:12]


def _encode(vae: tuple[VAEConfig, Tree], drawn: list[scenes.Scene], nx: Backend, quiet: bool) -> np.ndarray:
    cfg, p = vae
    chunks = [drawn[i : i + 64] for i in range(0, len(drawn), 64)]
    return np.concatenate([
        nx.to_numpy(encode(p, cfg, nx.array(images(chunk)))).astype(np.float16)
        for chunk in tqdm(chunks, desc="encoding scenes", unit="batch", disable=quiet)
    ])  # fmt: skip


def configs_of(recipe: dict[str, Any], clip_tokens: Tokenizer, t5_tokens: Tokenizer) -> tuple:
    """Make the three configs of a recipe, the vocabularies taken from the tokenizers."""
    clip = {
        **part(recipe, "flow.clip"),
        "vocab_size": clip_tokens.vocab_size,
        "eos_token_id": clip_tokens.vocab_size - 1,
    }
    t5 = {**part(recipe, "flow.t5"), "vocab_size": t5_tokens.vocab_size}
    return section(FluxConfig, part(recipe, "flow.model")), section(CLIPConfig, clip), section(T5Config, t5)


def shapes_of(configs: tuple) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that is trained: "transformer", "clip" and "t5"."""
    flux_cfg, clip_cfg, t5_cfg = configs
    return (
        under("transformer", flux_shapes(flux_cfg))
        | under("clip", clip_shapes(clip_cfg))
        | under("t5", t5_shapes(t5_cfg))
    )


def train_flow(
    recipe: dict[str, Any],
    folder: Path,
    vae_folder: Path,
    tokenizers: Path,
    nx: Backend,
    on_sample: Callable[..., None] | None = None,
) -> tuple[tuple, Tree]:
    """Train the recipe's transformer and text encoders in `folder`, or go on; return configs and averaged weights.

    `vae_folder` holds the trained VAE under "vae", `tokenizers` both tokenizers. Raises `CheckpointError` when
    the VAE is not there.
    """
    if not (vae_folder / "vae").is_dir():
        raise CheckpointError(
            f"{vae_folder / 'vae'}: expected a trained autoencoder, found none; run `minflux train vae` first"
        )
    how, drawing = section(Training, part(recipe, "flow.training")), section(Defaults, part(recipe, "defaults"))
    shift = section(Schedule, part(recipe, "schedule")).shift
    clip_tokens, t5_tokens = (Tokenizer.from_folder(tokenizers / name) for name in (CLIP_TOKENIZER, T5_TOKENIZER))
    configs = configs_of(recipe, clip_tokens, t5_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(how.seed)
    drawn = [scenes.sample(rng) for _ in range(how.scenes)]

    def batch(rng: np.random.Generator) -> Batch:
        chosen = rng.integers(len(drawn), size=how.batch)
        texts = [
            scenes.caption(drawn[i], rng, how.in_order) if rng.random() >= how.prompt_dropout else "" for i in chosen
        ]
        x0 = latents[chosen].astype(np.float32)
        noise = rng.standard_normal(x0.shape, np.float32)
        t = logit_normal(rng, how.batch, shift)
        return x0, noise, t, clip_tokens(texts), t5_tokens(texts, drawing.text_length)

    with assemble(how.workers) as team:
        latents = encode_scenes(load_component(vae_folder, "vae", nx), drawn, folder, nx, team)
        weights = train(
            nx,
            team,
            Plan(folder, how.steps, how.seed, how.checkpoint_every, how.sample_every),
            optimizer(part(recipe, "flow.optimizer")),
            tree_map(nx.array, init_weights(shapes_of(configs), how.seed)),
            batch,
            lambda p, *arrays: flow_loss(p, configs, *arrays),
            on_sample and (lambda p, step: on_sample(configs, p, step)),
        )
    return configs, weights
