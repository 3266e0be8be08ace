"""Does the suite see an error of 1%? This script puts one into every op and component in turn, and looks.

    python -m tests.mutants                  all of them: a table, and exit code 1 if one is missed
    python -m tests.mutants --sample 20      20 of them, the same every time
    python -m tests.mutants rope modulate    those whose name holds one of these words

A mutant is a function whose result is multiplied by 1.01 (a whole number: plus 1). Where a scale makes no
difference, every other entry is raised by 0.01 instead. Of several results, the first and the last make a
mutant each. For each mutant the tests of its file run, in a process of their own, until one fails.

tests/conftest.py calls `break_on_request`, which takes the mutant's name from the environment.
"""

import argparse
import functools
import importlib
import inspect
import os
import random
import subprocess
import sys
import time
import typing
import warnings
from pathlib import Path

REQUESTED = os.environ.get("MINFLUX_MUTANT")
HERE = Path(__file__).parent

# module -> the tests that ought to notice, and the backends to run them on
WATCHED = {
    "minflux.backend.base": ("backend/test_ops.py", "numpy-readable"),
    "minflux.backend.numpy": ("backend/test_ops.py", "numpy"),
    "minflux.backend.mlx": ("backend/test_ops.py", "mlx-readable,mlx-fused,mlx"),
    "minflux.backend.linux_cpu": ("backend/test_ops.py backend/test_linux_cpu.py", "mlx"),
    "minflux.backend.convolution": ("backend/test_ops.py", "mlx"),
    "minflux.backend.polynomial": ("backend/test_polynomial.py", "mlx"),
    "minflux.model.linear": ("model/test_parity_linear.py", "numpy"),
    "minflux.model.linear.dense": ("model/test_parity_linear.py", "numpy"),
    "minflux.model.linear.packed": ("model/test_parity_linear.py", "numpy"),
    "minflux.model.linear.lora": ("model/test_parity_linear.py", "numpy"),
    "minflux.model.embeddings": ("model/test_parity_layers.py", "numpy"),
    "minflux.model.rope": ("model/test_parity_layers.py", "numpy"),
    "minflux.model.modulation": ("model/test_parity_layers.py", "numpy"),
    "minflux.model.attention": ("model/test_parity_layers.py", "numpy"),
    "minflux.model.blocks": ("model/test_parity_layers.py", "numpy"),
    "minflux.model.flux": ("model/test_parity_flux.py", "numpy"),
    "minflux.model.flux2": ("model/test_parity_flux2.py", "numpy"),
    "minflux.model.sd3": ("model/test_parity_sd3.py", "numpy"),
    "minflux.model.latents": ("model/test_parity_flux.py", "numpy"),
    "minflux.model.vae": ("model/test_parity_vae.py", "numpy"),
    "minflux.model.vae_bands": ("model/test_vae_bands.py", "numpy"),
    "minflux.model.unet": ("model/test_parity_unet.py", "numpy"),
    "minflux.model.t5": ("model/test_parity_text.py", "numpy"),
    "minflux.model.clip": ("model/test_parity_text.py", "numpy"),
    "minflux.model.decoder": ("model/test_parity_decoder.py", "numpy"),
    "minflux.model.siglip": ("model/test_parity_siglip.py", "numpy"),
    "minflux.model.redux": ("model/test_parity_siglip.py", "numpy"),
    "minflux.sampling.ddpm": ("sampling/test_ddpm.py", "numpy"),
    "minflux.model.controlnet": ("model/test_parity_controlnet.py", "numpy"),
    "minflux.model.concepts": ("model/test_concepts.py", "numpy"),
    "minflux.sampling.guidance": ("sampling/test_guidance.py", "numpy"),
    "minflux.sampling.noise": ("sampling/test_noise.py", "numpy"),
    "minflux.sampling.solvers": ("sampling/test_solvers.py", "numpy"),
    "minflux.sampling.timesteps": ("sampling/test_timesteps.py", "numpy"),
}
NOTHING_COMPUTED = (
    "minflux.backend",
    "minflux.backend.bfloat16",
    "minflux.backend.blas",
    "minflux.backend.device",
    "minflux.backend.machine",
    "minflux.backend.malloc",
    "minflux.backend.processes",
    "minflux.backend.metal",
    "minflux.backend.threads",
    "minflux.model.flops",
    "minflux.model.hooks",
    "minflux.sampling.display",
)  # modules of these rooms that compute nothing
SLOW_IMPORTS = (
    "torch",
    "diffusers.pipelines.flux.pipeline_flux",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
    "transformers.models.siglip.modeling_siglip",
    "hypothesis",
    "jaxtyping",
    "beartype",
    "pytest",
)
NO_NUMBERS = (
    "eval",
    "in_float32",
    "by_numpy",
    "can_evaluate",
    "is_possible",
    "elementwise",
    "differentiable",
    "can_compile",
    "suits",
    "halves",
    "compile",
    "value_and_grad",
    "ignore",
    "use_up",
    "euler",
    "check_seed",
)  # what they return is no number
SCALE_FREE = ("causal_mask", "zeros")  # a hundredth more of 0, or of a mask's huge number, changes nothing


# -- breaking ------------------------------------------------------------------------------------------------


def wrong(x, scale_free: bool):
    """Return x with an error of 1%; see the top of this file."""
    if isinstance(x, int) or "int" in str(getattr(x, "dtype", "")):
        return x + 1
    if not scale_free:
        return x * 1.01
    from minflux.backend import backend_of

    every_other = backend_of(x).arange(x.shape[-1]) % 2 == 0
    return x + 0.01 * every_other.astype(x.dtype)


def broken(function, which: int, scale_free: bool):
    """Wrap a function so that its result, or number `which` of several, is wrong."""

    @functools.wraps(function)
    def mutant(*args, **kwargs):
        result = function(*args, **kwargs)
        if not isinstance(result, tuple | list):
            return wrong(result, scale_free)
        parts = list(result)
        parts[which] = wrong(parts[which], scale_free)
        return type(result)(parts)

    return mutant


def break_on_request() -> None:
    """Break what MINFLUX_MUTANT names: "module:function" or "module:Class.method", either with "@-1"."""
    if not REQUESTED:
        return
    module_name, _, target = REQUESTED.partition(":")
    path, _, which = target.partition("@")
    owner_name, _, name = path.rpartition(".")
    for watched in WATCHED:
        if watched.startswith("minflux.model") or watched == module_name:
            importlib.import_module(watched)
    module = sys.modules[module_name]
    how = int(which or 0), name in SCALE_FREE
    if not owner_name:
        replace_everywhere(getattr(module, name), broken(getattr(module, name), *how))
    elif hasattr(owner := getattr(module, owner_name), name):
        setattr(owner, name, broken(getattr(owner, name), *how))
    else:  # an op that the library itself has
        library = importlib.import_module(owner.module)
        setattr(owner, name, staticmethod(broken(getattr(library, name), *how)))


def replace_everywhere(old, new) -> None:
    """Put `new` in the place of `old` in every module of minflux that holds it, by name or in a table."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "minflux":
            tables = [value for key, value in vars(module).items() if isinstance(value, dict) and key.isupper()]
            for table in [vars(module), *tables]:
                table.update({key: new for key, value in table.items() if value is old})


# -- listing -------------------------------------------------------------------------------------------------


def mutants() -> list[str]:
    """Name every mutant that this machine can run."""
    names = []
    for module_name in WATCHED:
        try:
            module = importlib.import_module(module_name)
        except ImportError:  # no MLX here
            continue
        for path, function in public_functions(module):
            names.append(f"{module_name}:{path}")
            returned = typing.get_origin(getattr(function, "__annotations__", {}).get("return"))
            names += [f"{names[-1]}@-1"] * (returned in (tuple, list))
    return names


def public_functions(module):
    """Yield (name, function) of a module's functions, and of its classes' methods."""
    for name, value in vars(module).items():
        if name.startswith("_") or name in NO_NUMBERS:
            continue
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            yield name, value
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            yield from ((f"{name}.{op}", function) for op, function in methods(value))


def methods(owner: type):
    """Yield a class's own methods; for the NumPy backend, the ops that come from the library as well."""
    from minflux.backend.base import SHARED
    from minflux.backend.numpy import NumPyBackend, ReadableNumPyBackend

    if owner.__name__ == "LinuxCPUBackend" and sys.platform != "linux":
        return
    for name, method in vars(owner).items():
        replaced = owner.__name__ == "Backend" and name in vars(ReadableNumPyBackend)
        if inspect.isfunction(method) and not name.startswith("_") and name not in NO_NUMBERS and not replaced:
            yield name, method
    if owner is NumPyBackend:
        yield from ((name, None) for name in SHARED if not name.startswith(("float", "int")))


# -- looking -------------------------------------------------------------------------------------------------


class FirstFailure:
    """A pytest plugin that remembers the first test that failed."""

    name = ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.name:
            self.name = report.nodeid.rpartition("::")[2]


def run_tests(mutant: str | None, tests: str, backends: str) -> tuple[int, str]:
    """Run tests in a child process, to which all is loaded already; return pytest's code and the failed test."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1), os.dup2(nowhere, 2)
            os.environ |= {"MINFLUX_MUTANT": mutant or "", "MINFLUX_TEST_BACKENDS": backends}
            code, failed = pytest_here(tests)
            os.write(writing, failed.encode())
            os._exit(code)
        finally:
            os._exit(99)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        failed = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), failed


def pytest_here(tests: str) -> tuple[int, str]:
    """Run tests in this process until one fails; return pytest's code and that test's name."""
    import pytest

    first = FirstFailure()
    options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "--hypothesis-profile=mutants"]
    return pytest.main([*options, *(str(HERE / file) for file in tests.split())], plugins=[first]), first.name


def look(names: list[str]) -> int:
    """Run every mutant, print the table, and return how many were missed."""
    missed = 0
    for tests, backends in dict.fromkeys(WATCHED[name.partition(":")[0]] for name in names):
        code, failed = run_tests(None, tests, backends)
        if code != 0:
            raise SystemExit(f"with nothing broken, {tests} fails on {backends} ({failed or code}): mend that first")
    for name in names:
        code, failed = run_tests(name, *WATCHED[name.partition(":")[0]])
        missed += code != 1
        print(f"{'caught' if code == 1 else 'MISSED':7} {name.removeprefix('minflux.'):45} {failed}", flush=True)
    return missed


def load_libraries() -> None:
    """Import what takes seconds, once, for all the child processes to come; not MLX, whose threads a fork loses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in SLOW_IMPORTS:
            importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutants whose name holds one of these")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, the same every time")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args()
    if args.list:
        print("\n".join(mutants()))
        return 0
    # listed elsewhere: MLX must not be loaded in a process that forks
    listed = subprocess.run([sys.executable, "-m", "tests.mutants", "--list"], capture_output=True, check=True)
    names = [n for n in listed.stdout.decode().split() if not args.words or any(w in n for w in args.words)]
    if args.sample and args.sample < len(names):
        names = sorted(random.Random(0).sample(names, args.sample), key=names.index)
    start = time.time()
    load_libraries()
    missed = look(names)
    print(f"{len(names) - missed} of {len(names)} caught, in {time.time() - start:.0f} s")
    return min(missed, 1)


if __name__ == "__main__":
    os.environ["MINFLUX_CHECK_SHAPES"] = "1"
    sys.exit(main())
