"""Image prompts: what Redux says of an image, as tokens beside T5's of the prompt.

"append": the tokens of every image follow T5's, each image's times its strength; the pooled vector stays the prompt's.
          So BFL has it for one image, and ComfyUI for several.
"sum":    T5's tokens with an image's after them, all of it times the image's strength, summed over the images; the
          pooled vector is summed too, without the strengths. So diffusers has it.

Sources: BFL `flux/sampling.py` (`prepare_redux`); diffusers `pipelines/flux/pipeline_flux_prior_redux.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from minflux.arrays import Array, Tree
from minflux.backend import Backend, backend_of
from minflux.edit.canvas import tell_stretched
from minflux.errors import ArgumentError, check_choice
from minflux.images import Preprocessing, read_image
from minflux.inference.arguments import check_strength, one_for_each
from minflux.model.hooks import OnBlock
from minflux.model.redux import redux
from minflux.model.siglip import SiglipConfig, siglip_encoder

MIXES = ("append", "sum")
GUIDANCE = 2.5  # BFL's and diffusers' with Redux, where FLUX.1-dev alone has 3.5


@dataclass(frozen=True, eq=False)
class ImagePrompts:
    """The image prompts of a call, in RGB, each with its strength, and how they are mixed; none of them by default."""

    images: tuple[Image.Image, ...] = ()
    strengths: tuple[float, ...] = ()
    mix: str = "append"


def read_image_prompts(given: Any, strength: Any, mix: Any) -> ImagePrompts:
    """Read the image prompts of a call, one or a list of them; raises `ArgumentError` for what is none."""
    listed = list(given) if isinstance(given, list | tuple) else [given]
    images = tuple(read_image(image, "image_prompt") for image in listed if image is not None)
    check_choice("image_prompt_mix", mix, MIXES)
    if not images and (strength is not None or mix != MIXES[0]):
        raise ArgumentError("image_prompt_strength and image_prompt_mix go with an image_prompt")
    strengths = one_for_each("image_prompt_strength", strength, len(images), 1.0, check_strength)
    return ImagePrompts(images, strengths, mix)


def usual_guidance(alone: float, is_dev_like: bool, prompts: Sequence) -> float | None:
    """Return the guidance that image prompts bring unless one is given, at most 2.5; None where they bring none.

    alone: the model's own without them. is_dev_like: whether that is built in, and the model takes nothing beside the
    latents; Fill stays at 30.
    """
    return min(alone, GUIDANCE) if is_dev_like and prompts else None


@dataclass(frozen=True, eq=False)
class Redux:
    """Redux and the vision encoder in front of it: configs, weights, and how the encoder wants its images."""

    encoder: tuple[SiglipConfig, Tree]
    embedder: Tree
    preprocessing: Preprocessing

    @property
    def count(self) -> int:
        """Return how many tokens an image becomes."""
        return self.encoder[0].grid ** 2

    def tokens(self, nx: Backend, image: Image.Image, on_block: OnBlock) -> Array:
        """Return an image's tokens (1, N, E); `on_block` is told of each of the encoder's layers."""
        cfg, p = self.encoder
        tell_stretched("image_prompt", image.size, (self.preprocessing.width, self.preprocessing.height))
        pixels = nx.array(self.preprocessing(image)).astype(p["post_layernorm"]["weight"].dtype)
        return redux(self.embedder, siglip_encoder(p, cfg, pixels, on_block))


def mixed(txt: Array, y: Array, tokens: Sequence[Array], prompts: ImagePrompts) -> tuple[Array, Array]:
    """Return txt (B, T, E) and y (B, P) of prompts with the tokens (1, N, E) of each image."""
    nx = backend_of(txt)
    shape = len(txt), *tokens[0].shape[1:]
    strong = [strength * nx.broadcast_to(one, shape) for strength, one in zip(prompts.strengths, tokens, strict=True)]
    strong = [one.astype(txt.dtype) for one in strong]
    if prompts.mix == "append":
        return nx.concatenate([txt, *strong], axis=1), y
    text = (sum(prompts.strengths) * txt).astype(txt.dtype)
    return nx.concatenate([text, sum(strong[1:], strong[0])], axis=1), (len(tokens) * y).astype(y.dtype)
