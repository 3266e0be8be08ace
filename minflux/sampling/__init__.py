"""From noise to latents, given a velocity. Read the files in this order:

`noise`      normal numbers from a seed, PyTorch's own
`timesteps`  from 1, noise, to 0, the image
`solvers`    how a velocity is followed: Euler's method, Heun's, the midpoint's, DPM-Solver++
`display`    a step as Jupyter shows it
`ddpm`       networks that predict noise: their schedules, DDIM and DDPM's ancestral steps, by the same solvers
`guidance`   how strongly an image follows its prompt
"""
