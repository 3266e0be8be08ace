"""What a file holds, told from its names and shapes: every format and variant, at full size, without weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.components import flux as flux_files
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.detect import find_components
from minflux.checkpoints.formats.safetensors import Stored
from minflux.checkpoints.stored import Mismatch, StoredComponent
from minflux.errors import CheckpointError
from minflux.model.clip import CLIP_L
from minflux.model.flux import DEV, SCHNELL
from minflux.model.t5 import T5_XXL
from minflux.model.vae import FLUX_VAE
from tests import tiny_model
from tools import synthetic_checkpoint as synthetic

PREFIXES = {
    "transformer": "model.diffusion_model.", "vae": "vae.", "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
}  # fmt: skip

FULL = {"transformer": DEV, "vae": FLUX_VAE, "text_encoder": CLIP_L, "text_encoder_2": T5_XXL}

NAMING = {"transformer": "bfl", "vae": "bfl", "text_encoder": "transformers", "text_encoder_2": "transformers"}


def ghosts(kind: str, naming: str, cfg, prefix: str = "") -> dict[str, Stored]:
    """A file's header, without the file."""
    component = COMPONENTS[kind]
    shapes = component.file_shapes(component.naming(naming), cfg)
    return {prefix + name: Stored(Path("ghost"), "BF16", shape, 0) for name, shape in shapes.items()}


def the_part(found: dict[str, Stored]) -> StoredComponent:
    (part,), unknown = find_components(Path("ghost"), found)
    assert unknown == []
    return part


@pytest.mark.parametrize("naming", ["bfl", "diffusers"])
@pytest.mark.parametrize("variant", synthetic.VARIANTS)
def test_a_transformer_s_sizes_are_read_off_its_shapes(variant, naming):
    cfg = synthetic.VARIANTS[variant]
    part = the_part(ghosts("transformer", naming, cfg))
    assert (part.name, part.naming.name) == ("transformer", naming)
    assert part.read_sizes() == cfg
    assert replace(part, config=cfg).mismatches == []


@pytest.mark.parametrize("kind", FULL)
def test_the_sizes_of_every_part(kind):
    for naming in {NAMING[kind], "diffusers" if kind == "vae" else NAMING[kind]}:
        part = the_part(ghosts(kind, naming, FULL[kind]))
        assert (part.name, part.naming.name, part.read_sizes()) == (kind, naming, FULL[kind])
        assert replace(part, config=FULL[kind]).mismatches == []


def test_a_file_of_all_parts_is_taken_apart():
    found = {}
    for kind, prefix in PREFIXES.items():
        found |= ghosts(kind, NAMING[kind], FULL[kind], prefix)
    stray = Stored(Path("ghost"), "F32", (), 0)
    found |= {"scaled_fp8": stray, "somewhere.else": stray}
    held, unknown = find_components(Path("ghost"), found)
    assert {part.name: part.read_sizes() for part in held} == FULL
    assert {part.name: part.prefix for part in held} == PREFIXES
    assert unknown == ["somewhere.else"]


def test_every_wrong_weight_is_listed():
    found = ghosts("transformer", "bfl", SCHNELL)
    del found["double_blocks.3.img_mlp.2.bias"]
    found["txt_in.bias"] = replace(found["txt_in.bias"], shape=(3071,))
    found["img_in.lora"] = found["img_in.bias"]
    part = the_part(found)
    part = replace(part, config=part.read_sizes())
    assert part.mismatches == [
        Mismatch("txt_in.bias", (3072,), (3071,)),
        Mismatch("double_blocks.3.img_mlp.2.bias", (3072,), None),
        Mismatch("img_in.lora", None, (3072,)),
    ]
    assert part.missing_keys == ["double_blocks.3.img_mlp.2.bias"]
    assert part.unexpected_keys == ["img_in.lora"]


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ({"img_in.weight": (3072, 64)}, "single_blocks.0.norm.query_norm.scale: found no such weight"),
        (flux_shapes(SCHNELL) | {"txt_in.weight": (3072,)}, "txt_in.weight: expected at least 2 axes"),
        (flux_shapes(tiny_model.FLUX), "32 channels in heads of 16: can't tell RoPE's axes_dim"),
    ],
)
def test_sizes_that_cannot_be_told(shapes, complaint):
    part = the_part({name: Stored(Path("ghost"), "F32", shape, 0) for name, shape in shapes.items()})
    with pytest.raises(CheckpointError, match=complaint):
        part.read_sizes()


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (SCHNELL, "schnell"),
        (DEV, "dev (Krea-dev's"),
        (replace(DEV, in_channels=384), "Fill"),
        (replace(DEV, in_channels=128), "Canny or Depth"),
        (tiny_model.FLUX, "of its own size, without guidance"),
    ],
)
def test_variants_have_names(cfg, said):
    assert flux_files.variant(cfg).startswith(said)
