"""The table of neighbours: what the page shows is what the code counts, and the code counts what PyTorch does."""

from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

from minflux.checkpoints.components import flux, flux2, sd3, unet
from minflux.model import flops
from minflux.model.flux import DEV, FluxConfig
from minflux.model.flux2 import Flux2Config
from minflux.model.sd3 import SD3Config
from minflux.model.unet import UNetConfig
from tests.compare import operations
from tools import family
from tools.insert import insert

PAGE = Path(__file__).parents[2] / "docs" / "neighbours.md"
IMAGE, TEXT = 24, 5  # tokens, of 4 × 6 patches
FLUX = FluxConfig(
    vec_in_dim=12, context_in_dim=20, hidden_size=64, num_heads=2, axes_dim=(8, 12, 12), depth=2, depth_single_blocks=3
)
FLUX2 = Flux2Config(
    in_channels=16, out_channels=16, context_in_dim=20, hidden_size=64, num_heads=2, axes_dim=(8, 8, 8, 8), depth=2,
    depth_single_blocks=3, guidance_embed=True,
)  # fmt: skip
SD3 = SD3Config(
    vec_in_dim=12, context_in_dim=20, hidden_size=32, num_heads=2, depth=3, pos_embed_max_size=8, qk_norm=True,
    dual_attention_layers=(0, 1),
)  # fmt: skip
UNET = UNetConfig(block_out_channels=(16, 32, 64), attends=(True, False, True), cross_attention_dim=20, norm_groups=8)


def member(name: str) -> family.Member:
    (found,) = (each for each in family.FAMILY if each.name == name)
    return found


def run_flux() -> int:
    module = FluxTransformer2DModel.from_config(flux.write_config(FLUX))
    vectors = torch.zeros(1, 12), torch.zeros(1), torch.zeros(IMAGE, 3), torch.zeros(TEXT, 3), torch.ones(1)
    return operations(lambda: module(torch.zeros(1, IMAGE, 64), torch.zeros(1, TEXT, 20), *vectors))


def run_flux2() -> int:
    module = Flux2Transformer2DModel.from_config(flux2.write_config(FLUX2))
    vectors = torch.zeros(1), torch.zeros(IMAGE, 4), torch.zeros(TEXT, 4), torch.ones(1)
    return operations(lambda: module(torch.zeros(1, IMAGE, 16), torch.zeros(1, TEXT, 20), *vectors))


def run_sd3() -> int:
    module = SD3Transformer2DModel.from_config(sd3.write_config(SD3))
    inputs = torch.zeros(1, 16, 8, 12), torch.zeros(1, TEXT, 20), torch.zeros(1, 12), torch.zeros(1)
    return operations(lambda: module(*inputs))


def run_unet() -> int:
    module = UNet2DConditionModel.from_config(unet.write_config(UNET))
    return operations(lambda: module(torch.zeros(1, 4, 8, 12), torch.zeros(1), torch.zeros(1, TEXT, 20)))


@pytest.mark.parametrize(
    ("shapes", "meets", "image", "run"),
    [
        (flux.flux_shapes(FLUX), family.transformer_meets, IMAGE, run_flux),
        (flux2.flux2_shapes(FLUX2), family.transformer_meets, IMAGE, run_flux2),
        (sd3.sd3_shapes(SD3), family.transformer_meets, IMAGE, run_sd3),
        (unet.unet_shapes(UNET), family.unet_meets(3), 4 * IMAGE, run_unet),
    ],
    ids=["FLUX.1", "FLUX.2", "SD3", "U-Net"],
)
def test_operations_of_a_pass_are_those_that_torch_counts(shapes, meets, image, run):
    assert family.operations(shapes, meets, image, TEXT) == run()


def test_operations_of_flux_1_dev_are_those_of_the_package():
    dev = member("FLUX.1-dev")
    assert family.operations(dev.shapes, dev.meets, dev.image, dev.text) == flops.flux(DEV, dev.text, dev.image)


def test_parts_are_those_of_the_table_and_add_up_to_the_network():
    for each in family.FAMILY:
        parts = each.parts()
        assert parts.keys() <= family.PARTS.keys()
        assert parts.total() == family.numbers(each.shapes)


def test_the_parts_of_a_transformer_s_blocks_are_whole_squares_of_its_width():
    klein, large = member("FLUX.2-klein-4B").parts(), member("SD3.5-large").parts()
    d = family.KLEIN_4B.hidden_size
    norms = 2 * family.KLEIN_4B.head_dim
    assert klein["image"] == klein["text"] == 5 * (13 * d * d + norms)
    assert klein["both"] == 20 * (13 * d * d + norms)
    assert klein["modulation"] == (15 + 2) * d * d  # the last two are the final layer's
    assert large["image"] > large["text"]  # whose last block ends early


def test_the_page_s_table_is_what_the_code_prints():
    page = PAGE.read_text()
    assert insert(page, "family", family.table(family.rows())) == page
