"""Compare solvers: how far are their latents from the exact path's end, for the same number of questions to the model?

Euler's method and dpm++ ask the model for a velocity once a step, Heun's and the midpoint method twice. The exact path
is taken to be that of many small steps. Which solver comes nearest, with how many questions, depends on the model; and
an image needs no exact path, so look at images too.
"""

import numpy as np

import minflux

pipe = minflux.load("tiny")
text = pipe.encode(["a cat left of an apple on a blue background"])


def end(solver: str, steps: int) -> np.ndarray:
    """Return the latents that a solver ends at."""
    *_, last = pipe.sample(text, seed=7, steps=steps, guidance=1.0, solver=solver)
    return last.x


exact = end("midpoint", 30)
for questions in (4, 8):
    errors = {}
    for solver, asked in {"euler": 1, "dpm++": 1, "heun": 2, "midpoint": 2}.items():
        difference = end(solver, questions // asked) - exact
        errors[solver] = np.linalg.norm(difference) / np.linalg.norm(exact)
    print(f"{questions:2} questions:", *(f"{solver} {error:.3f} " for solver, error in errors.items()))
