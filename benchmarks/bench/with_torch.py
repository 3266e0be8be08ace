"""PyTorch's side of each work: diffusers' transformer and autoencoder, transformers' text encoders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.utils import logging
from transformers import CLIPTextModel, T5EncoderModel

from benchmarks.bench.contenders import Contender, Job
from benchmarks.bench.works import Work
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
    where = {"cpu": "cpu", "gpu": "cuda" if torch.cuda.is_available() else "mps"}[device]
    dtype = getattr(torch, contender.dtype)
    tensors = {name: torch.from_numpy(x).to(where) for name, x in work.inputs().items()}
    floats = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
    modules = [load(folder, part, dtype, where) for part in work.parts]
    compute = FUNCTIONS[work.kind](work, *modules, **floats)
    compute = torch.compile(compute) if contender.compiled else compute

    @torch.no_grad
    def run() -> torch.Tensor:
        result = compute()
        if where != "cpu":
            getattr(torch, where).synchronize()
        return result

    return Job(run, to_numpy, torch.cuda.max_memory_allocated if where == "cuda" else None)


def load(folder: Path, part: str, dtype: torch.dtype, where: str) -> torch.nn.Module:
    """Load one module, for drawing."""
    return MODULES[part].from_pretrained(folder / part, torch_dtype=dtype).to(where).eval()


def to_numpy(x: torch.Tensor) -> Any:
    """Copy to NumPy, in float32."""
    return x.detach().float().cpu().numpy()


def product(work, a, b):
    """a b."""
    return lambda: a @ b


def transformer(work, module, img, txt, y, timesteps):
    """The velocity."""
    rows = 2 * work.sizes["rows"]
    img_ids, txt_ids = (
        torch.from_numpy(ids[0]).to(img.device)
        for ids in (image_ids(img.float().cpu().numpy(), rows, rows), text_ids(txt.float().cpu().numpy()))
    )
    return lambda: module(img, txt, y, timesteps, img_ids, txt_ids, return_dict=False)[0]


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
