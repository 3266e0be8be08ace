"""Stable Diffusion 1, SD3, FLUX.1 and FLUX.2 side by side, from their shapes alone: the table of docs/neighbours.md.

    python -m tools.family | python -m tools.insert family docs/neighbours.md

Operations of a pass, as in `minflux.model.flops`: 2 · n · r for a matrix or kernel of n numbers that meets r rows
(tokens of the image, of the text, both, latents of a level, or the one vector that says the time), and 4 · r · k · d
for an attention of r queries d wide over k keys. Memory is two bytes a number, as bfloat16 takes.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.decoder import TEXT_TOKENS, decoder_shapes
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.flux2 import flux2_shapes
from minflux.checkpoints.components.sd3 import sd3_shapes
from minflux.checkpoints.components.shapes import Shapes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.components.unet import unet_shapes
from minflux.checkpoints.components.vae import decoder_shapes as vae_decoder_shapes
from minflux.inference.pipeline import Defaults
from minflux.inference.sd3 import SD3_DEFAULTS
from minflux.inference.unet import SD1_DEFAULTS
from minflux.model.clip import CLIP_G, CLIP_L, CLIPConfig
from minflux.model.decoder import MISTRAL_SMALL, QWEN3_4B
from minflux.model.flux import DEV
from minflux.model.flux2 import FLUX2_DEV, KLEIN_4B
from minflux.model.sd3 import SD3_MEDIUM, SD35_LARGE
from minflux.model.t5 import T5_XXL
from minflux.model.unet import UNetConfig
from minflux.model.vae import FLUX2_VAE, FLUX_VAE, VAEConfig
from tools.model_card import table

SIDE = 1024  # pixels along each side of the image
BYTES = 2  # of a number in bfloat16
PARTS = {  # -> how the table calls it
    "image": "blocks: the image's own",
    "text": "blocks: the text's own",
    "both": "blocks: text and image alike",
    "convolutions": "convolutions",
    "modulation": "modulation",
    "ends": "into the model and out of it",
}
OF_VEC = re.compile(r"(time|vector|guidance)_in\.|time_embedding\.|time_emb_proj\.")  # meets one vector, as modulation
LEVEL = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?(\.(?:down|up)samplers)?")
Meets = Callable[[str, int, int], tuple[int, int]]  # (weight, image tokens, text tokens) -> (rows, keys)


# -- transformers ------------------------------------------------------------------------------------------------


def transformer_part(name: str) -> str:
    """Return which of `PARTS` a transformer's weight belongs to.

    >>> transformer_part("double_blocks.3.txt_mlp.0.weight"), transformer_part("single_blocks.3.modulation.lin.weight")
    ('text', 'modulation')
    """
    if "mod" in name:
        return "modulation"
    if not name.startswith(("double_blocks", "single_blocks")):
        return "ends"
    return "both" if name.startswith("single") else "text" if ".txt_" in name else "image"


def transformer_meets(name: str, image: int, text: int) -> tuple[int, int]:
    """Return how many rows a matrix meets, and how many keys the queries that it makes see: 0 where it makes none.

    >>> transformer_meets("double_blocks.0.txt_attn.qkv.weight", image=4096, text=512)
    (512, 4608)
    """
    part = transformer_part(name)
    if part == "modulation" or OF_VEC.match(name):
        return 1, 0
    if name == "pos_embed":  # a table, from which rows are added
        return 0, 0
    of_text = part == "text" or name.startswith("txt_in")
    rows = image + text if part == "both" else text if of_text else image
    if "attn2.qkv" in name:  # the image looks at itself once more
        return rows, image
    return rows, image + text if name.endswith(("attn.qkv.weight", "linear1.weight")) else 0


# -- the U-Net ---------------------------------------------------------------------------------------------------


def unet_part(name: str) -> str:
    """Return which of `PARTS` a weight of the U-Net belongs to: attention to the text is its text's, time modulates.

    >>> unet_part("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"), unet_part("conv_in.weight")
    ('text', 'ends')
    """
    if "time_emb_proj" in name:
        return "modulation"
    if name.startswith(("conv_", "time_embedding")):
        return "ends"
    if "attentions" in name:
        return "text" if "attn2" in name or "norm2" in name else "image"
    return "convolutions"


def unet_meets(levels: int) -> Meets:
    """Return what tells the rows and keys of a U-Net's weight, which depend on its level; `image` counts latents."""

    def meets(name: str, image: int, text: int) -> tuple[int, int]:
        if OF_VEC.search(name):
            return 1, 0
        rows = image // 4 ** halvings(name, levels)
        if "attn2.to_q" in name:
            return rows, text
        if "attn2.to_k" in name or "attn2.to_v" in name:
            return text, 0
        return rows, rows if "attn1.to_q" in name else 0

    return meets


def halvings(name: str, levels: int) -> int:
    """Return how often the image's sides have been halved where a weight of the U-Net meets it.

    >>> [halvings(f"{name}.weight", 4) for name in ("conv_in", "down_blocks.1.downsamplers.0.conv", "up_blocks.0.x")]
    [0, 2, 3]
    """
    found = LEVEL.match(name)
    if not found:
        return 0
    way, number, resampled = found[1], int(found[2] or 0), bool(found[3])
    places = {"down": number + resampled, "mid": levels - 1, "up": levels - 1 - number - resampled}
    return places[way]


# -- the family --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Member:
    """A model's network, text encoders and VAE by their shapes and sizes, and in words what no shape says.

    text: tokens of it that the network is given; token: pixels along the side of an image token.
    """

    name: str
    shapes: Shapes
    encoders: dict[str, Shapes]
    vae: VAEConfig
    text: int
    token: int
    enters: str
    shares: str
    guidance: str
    part: Callable[[str], str] = transformer_part
    meets: Meets = transformer_meets

    @property
    def image(self) -> int:
        """Tokens of an image of `SIDE` pixels."""
        return (SIDE // self.token) ** 2

    def parts(self) -> Counter[str]:
        """Count the network's numbers by part."""
        counts: Counter[str] = Counter()
        for name, shape in self.shapes.items():
            counts[self.part(name)] += math.prod(shape)
        return counts


def numbers(shapes: Shapes) -> int:
    """Count the numbers in weights of these shapes.

    >>> numbers({"weight": (3, 4), "bias": (3,)})
    15
    """
    return sum(map(math.prod, shapes.values()))


def attending(shapes: Shapes, meets: Meets, image: int, text: int) -> int:
    """Count the operations of attention itself: q kᵀ and the mixing of values, 2 · rows · keys · width each."""
    found = ((meets(name, image, text), shape) for name, shape in shapes.items() if len(shape) > 1)
    return sum(4 * rows * keys * shape[-1] for (rows, keys), shape in found)


def operations(shapes: Shapes, meets: Meets, image: int, text: int) -> int:
    """Count the operations of one pass, those of matrices and kernels and those of attention itself."""
    matrices = ((name, shape) for name, shape in shapes.items() if len(shape) > 1)
    products = sum(2 * math.prod(shape) * meets(name, image, text)[0] for name, shape in matrices)
    return products + attending(shapes, meets, image, text)


def projected(cfg: CLIPConfig) -> Shapes:
    """Return the shapes of one of SD3's CLIPs, whose pooled output is projected to its own width."""
    return clip_shapes(replace(cfg, projection_dim=cfg.hidden_size))


CLIP_T5 = {"CLIP-L": clip_shapes(CLIP_L), "T5-XXL": t5_shapes(T5_XXL)}
CLIPS_T5 = {"CLIP-L": projected(CLIP_L), "CLIP-G": projected(CLIP_G), "T5-XXL": t5_shapes(T5_XXL)}
SD3: dict[str, Any] = {
    "encoders": CLIPS_T5, "vae": FLUX_VAE, "text": CLIP_L.max_position_embeddings + SD3_DEFAULTS.text_length,
    "token": 2 * FLUX_VAE.downscale, "enters": "joint attention; pooled text in every modulation",
    "shares": "nothing", "guidance": "a second pass",
}  # fmt: skip
FLUX2: dict[str, Any] = {
    "vae": FLUX2_VAE, "text": TEXT_TOKENS, "token": 2 * FLUX2_VAE.downscale, "enters": "joint attention",
    "shares": "single blocks' matrices, by text and image; three modulations, each by all blocks of a kind",
}  # fmt: skip
UNET = UNetConfig()
SD1_VAE = replace(FLUX_VAE, z_channels=UNET.in_channels, quant_conv=True)
FAMILY = (
    Member(
        name="SD 1.5", shapes=unet_shapes(UNET), encoders={"CLIP-L": clip_shapes(CLIP_L)}, vae=SD1_VAE,
        text=SD1_DEFAULTS.text_length, token=SD1_VAE.downscale, enters="cross-attention: pixels ask, text stays",
        shares="nothing", guidance="a second pass", part=unet_part,
        meets=unet_meets(len(UNET.block_out_channels)),
    ),
    Member(name="SD3-medium", shapes=sd3_shapes(SD3_MEDIUM), **SD3),
    Member(name="SD3.5-large", shapes=sd3_shapes(SD35_LARGE), **SD3),
    Member(
        name="FLUX.1-dev", shapes=flux_shapes(DEV), encoders=CLIP_T5, vae=FLUX_VAE, text=Defaults().text_length,
        token=2 * FLUX_VAE.downscale, enters="joint attention; pooled text in every modulation",
        shares="single blocks' matrices, by text and image", guidance="an input",
    ),
    Member(
        name="FLUX.2-klein-4B", shapes=flux2_shapes(KLEIN_4B), encoders={"Qwen3-4B": decoder_shapes(QWEN3_4B)},
        guidance="none: distilled", **FLUX2,
    ),
    Member(
        name="FLUX.2-dev", shapes=flux2_shapes(FLUX2_DEV), encoders={"Mistral-Small": decoder_shapes(MISTRAL_SMALL)},
        guidance="an input", **FLUX2,
    ),
)  # fmt: skip


# -- the table ---------------------------------------------------------------------------------------------------


def billions(count: int) -> str:
    """Write a count in billions, one more digit where it is small, a dash for none.

    >>> billions(3_247_448_064), billions(2_060_000), billions(0)
    ('3.25', '0.002', '–')
    """
    return f"{count / 1e9:.{2 if count >= 1e7 else 3}f}" if count else "–"


def gigabytes(count: int) -> str:
    """Write how much memory so many numbers take."""
    return f"{BYTES * count / 1e9:.1f} GB"


def column(member: Member) -> dict[str, str]:
    """Write a model's column of the table: what each row is called, and what stands in it."""
    parts, network = member.parts(), numbers(member.shapes)
    encoders = {name: numbers(shapes) for name, shapes in member.encoders.items()}
    sizes = member.shapes, member.meets, member.image, member.text
    work, looks = operations(*sizes), attending(*sizes)
    each = ", ".join(f"{name} {billions(count)}" for name, count in encoders.items())
    return {
        "numbers in the network, billions": billions(network),
        **{f"… {title}": billions(parts[part]) for part, title in PARTS.items()},
        "share of modulation": f"{parts['modulation'] / network:.1%}",
        f"image tokens at {SIDE}²": str(member.image),
        "text tokens": str(member.text),
        f"TFLOP of a pass at {SIDE}²": f"{work / 1e12:.1f}",
        "… in attention itself": f"{looks / work:.0%}",
        "where the text enters": member.enters,
        "what is shared": member.shares,
        "guidance": member.guidance,
        "text encoders, billions": f"{billions(sum(encoders.values()))} ({each})",
        "VAE's decoder, billions": billions(numbers(vae_decoder_shapes(member.vae))),
        "network in bfloat16": gigabytes(network),
        "text encoders in bfloat16": gigabytes(sum(encoders.values())),
    }


def rows() -> list[list[str]]:
    """Put the columns side by side, a heading first."""
    columns = [column(member) for member in FAMILY]
    return [["", *(member.name for member in FAMILY)], *([row, *(c[row] for c in columns)] for row in columns[0])]


if __name__ == "__main__":
    print(table(rows()))
