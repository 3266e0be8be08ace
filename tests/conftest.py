"""What all tests share: shapes checked at every call, each backend in turn, few and repeatable random
examples.

Three runs of MLX tell a wrong primitive ("mlx-readable": the definitions of backend/base.py) from a wrong
kernel ("mlx-fused": Metal's and CUDA's) and from what the device at hand gets ("mlx"). The environment
variable MINFLUX_TEST_BACKENDS, names with commas between, leaves out the others. MINFLUX_MUTANT breaks one
function on purpose: see tests/mutants.py.
"""

import os
import shutil
import warnings

os.environ["MINFLUX_CHECK_SHAPES"] = "1"  # before minflux is imported

import pytest
from hypothesis import HealthCheck, Phase, register_random, settings

with warnings.catch_warnings():  # what PyTorch's libraries say about themselves on import is not ours to mend
    warnings.simplefilter("ignore")
    import diffusers
    import torch
    import transformers

from minflux.backend import BACKENDS, blas, serving
from minflux.errors import BackendError
from tests import compare, mutants, tiny_model

blas.load_fast_blas()  # before a test imports MLX
torch.set_num_threads(1)
torch.set_grad_enabled(False)
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()


class TorchRandom:
    """PyTorch's generator, for Hypothesis to seed: each example draws the same numbers in every run."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()
register_random(TORCH_RANDOM)

UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # fixtures here hold no state
settings.register_profile(
    "minflux", max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=UNCHECKED
)
settings.register_profile("search", settings.get_profile("minflux"), max_examples=100, derandomize=False)
settings.register_profile(
    "mutants", settings.get_profile("minflux"), max_examples=5, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("minflux")  # `pytest --hypothesis-profile=search` looks for new examples instead

CHOSEN = os.environ.get("MINFLUX_TEST_BACKENDS", ",".join(BACKENDS)).split(",")
WITH_BFLOAT16 = [name for name in CHOSEN if not name.startswith("numpy")]
PRECISIONS = [(name, "float32") for name in CHOSEN] + [(name, "bfloat16") for name in WITH_BFLOAT16]


def pytest_configure(config):
    mutants.break_on_request()


@pytest.fixture(params=CHOSEN)
def nx(request):
    """Each backend in turn; it serves its library's arrays while the test runs."""
    yield from served(request.param)


@pytest.fixture(params=PRECISIONS, ids="-".join)
def trial(request):
    """Each backend in turn, in each precision it has: a `compare.Trial`."""
    name, dtype = request.param
    for nx in served(name):
        yield compare.Trial(nx, name, dtype)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of the small random model (tests/tiny_model.py); nobody writes into it."""
    yield from kept(tiny_model.make(tmp_path_factory.mktemp("small") / "model"))


@pytest.fixture(scope="session")
def dev_model(tmp_path_factory):
    """The folder of the small random model that has guidance built in, as FLUX.1-dev has."""
    yield from kept(tiny_model.make(tmp_path_factory.mktemp("small-dev") / "model", guidance=True))


@pytest.fixture
def model_copy(model, tmp_path):
    """A copy of the small model for one test, which may change it."""
    return shutil.copytree(model, tmp_path / "model")


def kept(folder):
    """Yield a folder that tests share, and see at the end that none has changed it."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}, f"{folder} was changed"


def served(name):
    try:
        with serving(name) as backend:
            yield backend
    except BackendError as error:
        pytest.skip(str(error))


def pytest_sessionfinish(session):
    """Hand this worker's parity figures to the process that started it, or write them down."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = compare.worst
    elif mutants.REQUESTED is None:  # figures of a mutants' run, of few examples, are not kept
        compare.write_parity()


class Workers:
    """Collects the figures of pytest-xdist's workers; registered only where that is installed."""

    def pytest_testnodedown(self, node):
        compare.merge(getattr(node, "workeroutput", {}).get("parity", {}))


def pytest_plugin_registered(plugin, manager):
    if type(plugin).__name__ == "DSession" and not manager.has_plugin("parity-workers"):
        manager.register(Workers(), "parity-workers")
