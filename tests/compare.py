"""Comparing with PyTorch: one measure of error, the same checks of dtype, shape and library, and a record
of it all.

The record, .parity.json, holds the worst error seen for every component on every backend;
`python -m tools.parity_table` makes the README's table of it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minflux.backend import Backend
from minflux.checkpoints.tree import tree

RECORD = Path(__file__).parent.parent / ".parity.json"
COMPONENT, MODEL = 1e-5, 1e-4  # float32's tolerances: for a component, for a full model
BFLOAT16 = 2e-2

worst: dict[str, dict[str, float]] = {}  # component -> "numpy-float32", … -> relative error


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """|got - expected| / |expected|, Euclidean norms over all entries, in float64."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30))


def operations(run) -> int:
    """Floating-point operations as PyTorch counts them, its attention taken apart into products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def assert_close(nx: Backend, got, expected: torch.Tensor, tolerance: float, dtype: str = "float32") -> float:
    """Assert library, dtype, shape and values of `got`; return the relative error."""
    assert type(got).__module__.partition(".")[0] == nx.name
    assert str(got.dtype).rpartition(".")[2] == dtype
    assert tuple(got.shape) == tuple(expected.shape)
    error = relative_error(nx.to_numpy(got), expected.detach().float().numpy())
    assert error <= tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"
    return error


@dataclass
class Trial:
    """A component's run on one backend in one precision.

    PyTorch always computes in float32; in a bfloat16 trial it is given weights and inputs already rounded to
    bfloat16, so that the error is what computing in bfloat16 adds.
    """

    nx: Backend
    backend: str
    dtype: str

    def randn(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Draw normal numbers that the trial's dtype can hold."""
        return self.rounded(torch.randn(*shape) * scale)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """Round to what the trial's dtype can hold."""
        return x.to(getattr(torch, self.dtype)).float()

    def tensor(self, x) -> torch.Tensor:
        """Turn one of the trial's arrays into a tensor."""
        return torch.from_numpy(np.array(self.nx.to_numpy(x)))

    def array(self, x: torch.Tensor, dtype: str | None = None):
        """Turn a tensor into the trial's array: integers to int32, floats to `dtype` or the trial's own."""
        if not x.is_floating_point():
            return self.nx.array(x.numpy().astype(np.int32))
        return self.nx.array(x.detach().numpy()).astype(getattr(self.nx.xp, dtype or self.dtype))

    def random(self, module: torch.nn.Module) -> torch.nn.Module:
        """Give every weight of a module a random value: no zeros or ones to hide a forgotten bias or scale.

        Matrices and kernels get 1/√(inputs), so that what goes in and what comes out are of one size.
        """
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                narrow = weight.ndim > 1 and not isinstance(part, torch.nn.Embedding)
                spread = weight[0].numel() ** -0.5 if narrow else 1.0 if weight.ndim > 1 else 0.3
                centre = 1.0 if weight.ndim == 1 and name == "weight" else 0.0
                weight.data = self.rounded(centre + spread * torch.randn(weight.shape))
        return module.eval()

    def flat(self, module: torch.nn.Module, prefix: str = "") -> dict:
        """Return a module's weights as arrays, under its own names."""
        return {f"{prefix}{name}": self.array(w) for name, w in module.state_dict().items()}

    def tree(self, module: torch.nn.Module):
        """Return a module's weights as a tree, for modules whose names are ours."""
        return tree(self.flat(module))

    def check(self, got, expected: torch.Tensor, tolerance: float = COMPONENT, dtype: str | None = None) -> float:
        """Assert that `got` equals `expected`; 0 asks for equality, anything else is 2e-2 in bfloat16."""
        dtype = dtype or self.dtype
        tolerance = BFLOAT16 if dtype == "bfloat16" and tolerance > 0 else tolerance
        return assert_close(self.nx, got, expected, tolerance, dtype)

    def close(self, component: str, *comparison) -> None:
        """The same for PyTorch's result, and the error goes on record."""
        merge({component: {f"{self.backend}-{self.dtype}": self.check(*comparison)}})


def merge(figures: dict[str, dict[str, float]]) -> None:
    """Keep the worst of what is on record and `figures`."""
    for component, errors in figures.items():
        kept = worst.setdefault(component, {})
        for backend, error in errors.items():
            kept[backend] = max(error, kept.get(backend, 0.0))


def write_parity() -> None:
    """Write the record; what this run didn't measure keeps its figures."""
    if worst:
        before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record = before | {component: before.get(component, {}) | errors for component, errors in worst.items()}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
