"""Sampling: noise, timesteps, the solvers that follow a velocity, guidance."""
