"""What is recorded is what the model does: its attention, its modulations, its steps, the image it draws anyway."""

import numpy as np
import pytest
from PIL import Image

from minflux.errors import ArgumentError
from minflux.explain import cost
from minflux.explain.data import unpack, unpack_shares, unpack_signed
from minflux.explain.modulations import of_block, sizes
from minflux.explain.motion import motion
from minflux.explain.record import check_explainable, record
from minflux.explain.write import attention, modulation
from minflux.model import flops
from minflux.model.attention import attention_weights
from tests import tiny_model

PROMPT, HOW = "a cat left of an apple", {"seed": 3, "steps": 3, "width": 48, "height": 80}


@pytest.fixture(scope="module")
def pipe():
    return tiny_model.pipeline()


@pytest.fixture(scope="module")
def drawn(pipe):
    return record(pipe, PROMPT, **HOW)


@pytest.fixture(scope="module")
def heard(pipe):
    """What a listener of one's own hears of the same drawing: (steps, blocks) of what a block shows; and the image."""
    blocks = []
    image = pipe(PROMPT, **HOW, on_block=lambda name, seen: blocks.append((name, dict(seen))))
    return [blocks[i : i + 3] for i in range(0, 9, 3)], image


def test_the_image_is_the_one_that_is_drawn_anyway(drawn, heard):
    np.testing.assert_array_equal(drawn.frames[-1], np.asarray(heard[1]))
    assert Image.fromarray(drawn.frames[-1]).size == (48, 80) == drawn.size


def test_the_attention_shown_is_attention_weights(drawn, heard):
    shown = unpack_shares(attention(drawn.seen))  # (steps, blocks, heads, M, M)
    words = len(drawn.seen.groups.labels)
    assert drawn.seen.groups.labels[-1] == "padding × 17"
    alone = [*range(words - 1), *range(24, 24 + 15)]  # each word, and 5 × 3 patches
    groups = [*range(words - 1), *range(words, words + 15)]
    for step, blocks in enumerate(heard[0]):
        for block, (_, seen) in enumerate(blocks):
            weights = attention_weights(seen["q"][:1], seen["k"][:1])[0]  # (H, L, L), of the prompt, not the negative
            levels = shown[step, block][:, groups].max(axis=-1, keepdims=True) / 509 + 1e-7
            found = shown[step, block][:, groups][:, :, groups]
            assert (np.abs(found - weights[:, alone][:, :, alone]) <= levels).all()
            padding = weights[:, alone, words - 1 : 24].sum(axis=-1)
            assert (np.abs(shown[step, block][:, groups, words - 1] - padding) <= levels[..., 0]).all()
            np.testing.assert_allclose(shown[step, block].sum(axis=-1), 1, atol=0.02)


def test_the_modulations_shown_are_the_blocks(drawn, heard):
    for kind, first in (("double", 0), ("single", 1)):
        packed = modulation(drawn, kind)
        size, channels = unpack(packed["sizes"]), unpack_signed(packed["channels"])
        for step, blocks in enumerate(heard[0]):
            for block, name in enumerate(packed["blocks"]):
                heard_name, seen = blocks[first + block]
                assert heard_name == name
                mod = of_block(seen["mod"])
                assert mod.shape == (len(packed["places"]), 3, 32)
                np.testing.assert_allclose(size[step, block], sizes(mod), rtol=1e-6)
                np.testing.assert_allclose(channels[step, block], mod, atol=np.abs(mod).max() / 250)


def test_a_place_s_three_are_those_that_the_block_takes(heard):
    _, seen = heard[0][0][0]
    mod = of_block(seen["mod"])
    shift, scale, gate, *_ = np.split(seen["mod"]["txt"][0], 6)
    np.testing.assert_array_equal(mod[2], [shift, scale, gate])  # of the text's attention


def test_x_hat_is_x_minus_t_v_and_velocities_are_those_of_the_steps(pipe, drawn):
    text = pipe.encode(PROMPT)
    steps = [*pipe.sample(text, 3, 3, width=48, height=80)]
    t = drawn.timesteps
    velocities = [(b.x - a.x) / (u - s) for a, b, s, u in zip(steps, steps[1:], t[1:], t[2:], strict=False)]
    found = [float(np.sqrt(np.mean(v**2))) for v in velocities]
    np.testing.assert_allclose(drawn.moved["velocity"][1:], found, rtol=1e-4)
    for i, step in enumerate(steps):
        np.testing.assert_array_equal(drawn.frames[3 + i], pipe.decode(step.denoised)[0])


def test_a_straight_way_is_straight():
    image, noise = np.zeros((1, 2, 2, 4)), np.ones((1, 2, 2, 4))
    x = [t * noise + (1 - t) * image for t in (1, 0.5, 0)]
    found = motion(x, [image, image], [1, 0.5, 0])
    assert found["straight"] == pytest.approx([1, 1])
    assert found["velocity"] == pytest.approx([1, 1])
    assert found["noisy"] == pytest.approx([1, 0.5])


def test_one_step_is_recorded_too(pipe):
    drawn = record(pipe, PROMPT, steps=1, guidance=1.0)
    assert (drawn.passes, drawn.seen.shown, len(drawn.frames)) == (1, (0,), 3)


def test_operations_are_those_of_the_model(pipe, drawn):
    each = {part.name: part.flops for part in drawn.cost}
    step = flops.flux(pipe.flux[0], 24, 15)
    in_steps = each["double blocks"] + each["single blocks"] + each["modulation, first and last maps"]
    assert in_steps == 3 * 2 * step  # three steps of two passes
    assert each["VAE, to pixels"] == flops.vae_decode(pipe.vae[0], 10, 6)
    assert all(part.seconds >= 0 for part in drawn.cost)


def test_a_block_counts_by_its_median():
    found = cost.seconds(1.0, {"double_blocks.0": [9.0, 2.0, 2.0], "single_blocks.0": [1.0, 1.0, 1.0]}, 0.5, 4.0)
    assert found["double blocks"] == 6
    assert found["single blocks"] == 3
    assert found["modulation, first and last maps"] == 7.5
    assert sum(found.values()) == 1 + 13 + 3 + 0.5 + 4


def test_flux_parts_add_up_to_a_step():
    assert sum(flops.flux_parts(tiny_model.FLUX, 5, 9).values()) == flops.flux(tiny_model.FLUX, 5, 9)


# -- what can't be shown ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [({"steps": 0}, "steps"), ({"seed": -1}, "seed"), ({"width": 50}, "width"), ({"guidance": -1}, "guidance")],
)
def test_settings_that_no_model_can_honour(pipe, how, words):
    with pytest.raises(ArgumentError, match=words):
        record(pipe, PROMPT, **how)


def test_models_that_need_an_image_and_lists_of_prompts_are_refused(pipe):
    with pytest.raises(ArgumentError, match="needs a control image"):
        check_explainable(tiny_model.pipeline(beside=16), PROMPT)
    with pytest.raises(ArgumentError, match="one string"):
        check_explainable(pipe, [PROMPT])
    with pytest.raises(ArgumentError, match="another model"):
        check_explainable(object(), PROMPT)
