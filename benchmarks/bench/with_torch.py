"""PyTorch's side of each work: diffusers' transformer and autoencoder, transformers' text encoders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from diffusers.utils import logging
from transformers import CLIPTextModel, T5EncoderModel

from benchmarks.bench.devices import of_torch
from benchmarks.bench.job import Contender, Job
from benchmarks.bench.peak import peak_memory
from benchmarks.bench.works import STEPS_COMPARED, Work, latent_sides, of_training
from minflux.model.latents import image_ids, text_ids

MODULES = {
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
}
logging.disable_progress_bar()


def job(contender: Contender, work: Work, folder: Path, device: str) -> Job:
    """Load the modules, and bind the function that the work is."""
    where = of_torch(device)
    dtype = getattr(torch, contender.dtype)
    tensors = {name: torch.from_numpy(x).to(where) for name, x in work.inputs().items()}
    modules = [load(folder, part, dtype, where) for part in work.parts]
    if work.kind == "train":
        return training(modules, **tensors)
    floats = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
    compute = FUNCTIONS[work.kind](work, *modules, **floats)
    compute = torch.compile(compute) if contender.compiled else compute

    @torch.no_grad
    def run() -> torch.Tensor:
        result = compute()
        getattr(torch, where).synchronize()
        return result

    peak = torch.cuda.max_memory_allocated if where == "cuda" else peak_memory
    return Job(run, lambda: run().float().cpu().numpy(), peak)


def load(folder: Path, part: str, dtype: torch.dtype, where: str) -> torch.nn.Module:
    """Load one module, for drawing."""
    return MODULES[part].from_pretrained(folder / part, torch_dtype=dtype).to(where).eval()


def product(work, a, b):
    """a b."""
    return lambda: a @ b


def transformer(work, module, img, txt, y, timesteps):
    """The velocity."""
    img_ids, txt_ids = ids_like(img, txt, *latent_sides(work))
    return lambda: module(img, txt, y, timesteps, img_ids, txt_ids, return_dict=False)[0]


def ids_like(img: torch.Tensor, txt: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the position ids (I, 3) and (T, 3) for latents of so many rows and columns."""
    both = image_ids(np.empty(img.shape), height, width), text_ids(np.empty(txt.shape))
    img_ids, txt_ids = (torch.from_numpy(ids[0].copy()).to(img.device) for ids in both)
    return img_ids, txt_ids


def vae(work, module, latents):
    """The picture, NHWC as ours."""
    z = latents.permute(0, 3, 1, 2).contiguous() / module.config.scaling_factor + module.config.shift_factor
    return lambda: module.decode(z, return_dict=False)[0].permute(0, 2, 3, 1)


def text(work, module, ids):
    """One vector a token."""
    ids = ids.long()
    return lambda: module(ids).last_hidden_state


FUNCTIONS: dict[str, Callable[..., Callable[[], torch.Tensor]]] = {
    "product": product, "transformer": transformer, "vae": vae, "text_encoder": text, "text_encoder_2": text
}  # fmt: skip


# -- training ----------------------------------------------------------------------------------------------------


def training(modules: list, **batch: torch.Tensor) -> Job:
    """minflux's training step in PyTorch: loss, gradients, clipping, AdamW, averaged weights."""
    opt = of_training().optimizer
    params = [p for module in modules for p in module.parameters()]
    averaged = [p.detach().clone() for p in params]
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": opt.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=opt.lr, betas=(opt.beta1, opt.beta2), eps=opt.eps, fused=True)

    def run() -> float:
        adam.zero_grad()
        loss = flow_loss(*modules, **batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, opt.clip)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, params, 1 - opt.ema)
        return float(loss.detach())

    return Job(run, lambda: np.array([run() for _ in range(STEPS_COMPARED)]))


def flow_loss(transformer, clip, t5, x0, noise, t, clip_ids, t5_ids) -> torch.Tensor:
    """mean ‖v(x_t, t, text) - (noise - x₀)‖², as `minflux.train.flow.flow_loss`."""
    at = t[:, None, None, None]
    img, txt = packed((1 - at) * x0 + at * noise), t5(t5_ids.long()).last_hidden_state
    img_ids, txt_ids = ids_like(img, txt, *x0.shape[1:3])
    y = clip(clip_ids.long()).pooler_output
    v = transformer(img, txt, y, t, img_ids, txt_ids, return_dict=False)[0]
    return ((v - packed(noise - x0)) ** 2).mean()


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Cut latents (B, h, w, C) into tokens."""
    channels_first = latents.permute(0, 3, 1, 2)
    return FluxPipeline._pack_latents(channels_first, *channels_first.shape)
