"""mflux's side: its own transformer and autoencoder for FLUX.1, filled with the same weights by its own mapping.

Its sizes are FLUX.1's, written out in its layers. Weights of any shape go in; what else holds a size is set here.
"""

from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.common.weights.mapping.weight_mapper import WeightMapper
from mflux.models.flux.model.flux_transformer.ada_layer_norm_zero import AdaLayerNormZero
from mflux.models.flux.model.flux_transformer.transformer import Transformer
from mflux.models.flux.model.flux_vae.vae import VAE
from mflux.models.flux.weights.flux_weight_mapping import FluxWeightMapping

from benchmarks.bench.devices import choose_for_mlx
from benchmarks.bench.job import Contender, Job
from benchmarks.bench.peak import peak_memory
from benchmarks.bench.works import Work, latent_sides

WIDTH = 3072


def job(contender: Contender, work: Work, folder: Path, device: str) -> Job:
    """Load the weights, and bind the function that the work is."""
    choose_for_mlx(device)
    ModelConfig.precision = dtype = getattr(mx, contender.dtype)
    (part,) = work.parts
    compute = {"transformer": transformer, "vae": vae}[part](work, weights(folder / part, dtype), dtype)

    def run() -> mx.array:
        result = compute()
        mx.eval(result)
        return result

    return Job(run, lambda: np.array(run().astype(mx.float32)), mx.get_peak_memory if device == "gpu" else peak_memory)


def weights(folder: Path, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Read all files of a component."""
    files = [mx.load(str(path)) for path in sorted(folder.glob("*.safetensors"))]
    return {name: x.astype(dtype) for file in files for name, x in file.items()}


def transformer(work, flat, dtype):
    """The velocity; the rotary embeddings are made anew in each step, as it does."""
    cfg = work.cfg
    module = Transformer(ModelConfig.schnell(), cfg.depth, cfg.depth_single_blocks)
    module.update(WeightMapper.apply_mapping(flat, FluxWeightMapping.get_transformer_mapping()))
    resize(module, cfg)
    mx.eval(module.parameters())
    inputs = work.inputs()
    img, txt, y = (mx.array(inputs[name]).astype(dtype) for name in ("img", "txt", "y"))
    height, width = (8 * side for side in latent_sides(work))
    how = SimpleNamespace(
        scheduler=SimpleNamespace(sigmas=mx.array(inputs["timesteps"])), num_train_steps=1000, guidance=0.0,
        precision=dtype, height=height, width=width,
    )  # fmt: skip
    return lambda: module(0, how, img, txt, y)


def resize(module: Transformer, cfg) -> None:
    """Set the sizes that aren't in the weights: heads, RoPE's axes, and a width in the code of one layer norm."""
    module.pos_embed.axes_dim = list(cfg.axes_dim)
    for block in [*module.transformer_blocks, *module.single_transformer_blocks]:
        block.attn.num_heads, block.attn.head_dimension = cfg.num_heads, cfg.hidden_size // cfg.num_heads
    for block in module.single_transformer_blocks:
        block.norm.dim = cfg.hidden_size
    module.norm_out.embedding_dim = cfg.hidden_size
    code = AdaLayerNormZero.__call__.__code__
    constants = tuple(cfg.hidden_size if x == WIDTH else x for x in code.co_consts)
    AdaLayerNormZero.__call__.__code__ = code.replace(co_consts=constants)


def vae(work, flat, dtype):
    """The picture, NHWC as ours."""
    module = VAE()
    module.update(WeightMapper.apply_mapping(flat, FluxWeightMapping.get_vae_mapping()))
    mx.eval(module.parameters())
    latents = mx.array(work.inputs()["latents"]).astype(dtype).transpose(0, 3, 1, 2)
    return lambda: module.decode(latents)[:, :, 0].transpose(0, 2, 3, 1)
