"""Timesteps: those of diffusers' scheduler, number by number."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from minflux.sampling.timesteps import Schedule
from tests.sampling.schedulers import DEV, scheduler_at

schedules = st.one_of(
    st.builds(Schedule, shift=st.floats(0.3, 6)),
    st.builds(
        Schedule,
        shift=st.floats(0.3, 6),
        use_dynamic_shifting=st.just(True),
        base_shift=st.floats(0.1, 1),
        max_shift=st.floats(1, 2),
        base_image_seq_len=st.integers(1, 500),
        max_image_seq_len=st.integers(1000, 5000),
    ),
)


@given(schedules, st.integers(1, 60), st.integers(1, 6000))
@example(Schedule(), 4, 4096)
@example(DEV, 28, 4096)
@example(DEV, 28, 256)
def test_timesteps_are_the_schedulers(schedule, steps, tokens):
    got = schedule.timesteps(steps, tokens)
    assert got.dtype == np.float32
    expected = scheduler_at(schedule, steps, tokens).sigmas.numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-6, strict=True)


def test_without_shift_the_steps_are_even():
    np.testing.assert_array_equal(Schedule().timesteps(4, tokens=16), [1, 0.75, 0.5, 0.25, 0])


def test_a_larger_image_spends_more_steps_near_the_noise():
    assert (DEV.timesteps(10, tokens=4096)[1:-1] > DEV.timesteps(10, tokens=256)[1:-1]).all()
