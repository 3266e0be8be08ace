"""diffusers' schedulers, told their timesteps as FluxPipeline does it."""

from dataclasses import asdict

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from minflux.sampling.timesteps import Schedule

DEV = Schedule(shift=3.0, use_dynamic_shifting=True)


def scheduler_at(schedule: Schedule, steps: int, tokens: int) -> FlowMatchEulerDiscreteScheduler:
    """diffusers' scheduler, told its times as FluxPipeline does it."""
    scheduler = FlowMatchEulerDiscreteScheduler(**asdict(schedule))
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(scheduler.config[name] for name in names))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler
