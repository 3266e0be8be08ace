"""A model in several processes: each reads its share of the weights, and no more."""

import re
from dataclasses import replace

import numpy as np
import pytest

from minflux.backend import get_backend
from minflux.backend.processes import Group
from minflux.checkpoints.components import T5, TRANSFORMER, Component
from minflux.checkpoints.formats.entry import Coded, Stored
from minflux.checkpoints.formats.safetensors import contents, read_array, write_safetensors
from minflux.checkpoints.formats.slices import Slice, sliced
from minflux.checkpoints.open import open_component, open_model
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.shares import share_model, shared
from minflux.checkpoints.stored import StoredComponent
from minflux.checkpoints.tree import flatten
from minflux.commands.convert import convert
from minflux.errors import ArgumentError, CheckpointError
from minflux.model.flux import DEV
from minflux.model.t5 import T5_XXL
from tests import tiny_model
from tools.large_models import ghost


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A transformer of four heads in diffusers' names, where q, k and v lie apart."""
    folder = tiny_model.make(tmp_path_factory.mktemp("shared") / "model", hidden_size=64, num_heads=4)
    return open_component(folder, "transformer")


def weights(stored: StoredComponent) -> dict[str, np.ndarray]:
    return flatten(read_tree(stored, get_backend("numpy")))


def test_shares_are_the_whole(stored):
    """Put together again, rows under rows and columns beside columns, the shares are the weights of the file."""
    whole = weights(stored)
    shares = [weights(shared(stored, Group(rank, 2))) for rank in range(2)]
    for name, x in whole.items():
        pieces = [share[name] for share in shares if name in share]
        np.testing.assert_array_equal(put_together(name, pieces, x.shape), x, strict=True, err_msg=name)


def put_together(name: str, pieces: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Undo the sharing of a weight, by what its name and its shapes show."""
    if pieces[0].shape == shape:
        assert len(pieces) == 1 or (pieces[0] == pieces[1]).all()
        return pieces[0]
    axis = next(axis for axis, (a, b) in enumerate(zip(pieces[0].shape, shape, strict=True)) if a != b)
    width = 64 // 2  # of q's share, of k's and of v's
    cuts = {"qkv": [width, 2 * width], "linear1": [width, 2 * width, 3 * width], "linear2": [width]}
    at = next((at for module, at in cuts.items() if f".{module}." in name), [])
    parts = zip(*(np.split(piece, at, axis=axis) for piece in pieces), strict=True)
    return np.concatenate([piece for part in parts for piece in part], axis=axis)


def test_what_the_tree_says(stored):
    tree = read_tree(shared(stored, Group(1, 2)), get_backend("numpy"))
    double, single = tree["double_blocks"][0], tree["single_blocks"][0]
    summed = double["img_attn"]["proj"], double["txt_mlp"]["2"], single["linear2"]
    gathered = double["img_mod"]["lin"], single["modulation"]["lin"]
    assert [layer["summed"] for layer in summed] == [2, 2, 2]
    assert [layer["gathered"] for layer in gathered] == [2, 2]
    assert all("bias" not in layer for layer in summed)  # the first process has it
    assert "summed" not in double["img_attn"]["qkv"]
    assert "gathered" not in tree["final_layer"]["linear"]


@pytest.mark.parametrize(
    ("axis", "ranges"), [(0, [(1, 3)]), (0, [(0, 1), (4, 6)]), (1, [(2, 5)]), (1, [(0, 2), (3, 7)])]
)
def test_a_slice_reads_its_bytes_alone(tmp_path, axis, ranges):
    x = np.arange(42, dtype=np.float32).reshape(6, 7)
    write_safetensors(tmp_path / "x.safetensors", {"a": x + 100, "x": x, "z": x})
    whole = contents(tmp_path / "x.safetensors")["x"]
    part = sliced(whole, axis, ranges)
    expected = np.concatenate([x[a:b] if axis == 0 else x[:, a:b] for a, b in ranges], axis=axis)
    np.testing.assert_array_equal(read_array(part, get_backend("numpy")), expected, strict=True)
    np.testing.assert_array_equal(read_array(part.hold(), get_backend("numpy")), expected, strict=True)
    assert part.size == part.read_bytes().size == expected.nbytes
    if axis == 0:
        assert sum(piece.size for piece in part.pieces) == part.size


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised(tmp_path, bits):
    """Of a matrix in 4 or 8 bits a process has whole groups of 64, of its numbers, scales and biases."""
    folder = tiny_model.make(tmp_path / "model", hidden_size=256, num_heads=2, axes_dim=(32, 48, 48))
    convert(folder, tmp_path / "small", "minflux", part="transformer", bits=bits)
    stored = open_component(tmp_path / "small", "transformer")
    nx = get_backend("numpy")
    whole, shares = read_tree(stored, nx), [read_tree(shared(stored, Group(rank, 2)), nx) for rank in range(2)]

    def matrix(tree, name):
        layer = tree["single_blocks"][1][name]
        return nx.dequantized(layer["weight"], layer["scales"], layer["biases"])

    left, right = (matrix(share, "linear2") for share in shares)
    halves = [np.split(part, [128], axis=1) for part in (left, right)]
    together = np.concatenate([part for pair in zip(*halves, strict=True) for part in pair], axis=1)
    np.testing.assert_array_equal(together, matrix(whole, "linear2"))
    assert matrix(shares[0], "linear1").shape == (7 * 128, 256)


def test_groups_that_would_be_cut():
    stored = ghost("transformer", tiny_cfg(hidden_size=256, num_heads=8, axes_dim=(8, 12, 12)), bits=4)
    with pytest.raises(CheckpointError, match="64 columns at a time are quantised together, and 8 processes"):
        shared(stored, Group(0, 8))


def test_gguf_blocks_are_cut_between_blocks(tmp_path):
    pytest.importorskip("gguf")
    folder = tiny_model.make(tmp_path / "model", hidden_size=256, num_heads=2, axes_dim=(32, 48, 48))
    convert(folder, tmp_path / "x.gguf", "gguf", gguf_type="q8_0")
    stored = open_model(tmp_path / "x.gguf").take("transformer")
    whole, shares = weights(stored), [weights(shared(stored, Group(rank, 2))) for rank in range(2)]
    name = "double_blocks.0.img_mlp.2.weight"
    np.testing.assert_array_equal(np.concatenate([s[name] for s in shares], axis=1), whole[name], strict=True)


def test_a_scale_for_each_row_is_shared_as_the_rows_are(stored):
    """As float8 weights have them; one for the whole weight, or beside columns, is whole."""
    of_rows, single, of_columns = "ff.net.0.proj.weight", "attn.to_q.weight", "ff.net.2.weight"
    sizes = {of_rows: (256,), single: (1,), of_columns: (64,)}
    names = {name: f"transformer_blocks.0.{name}" for name in sizes}
    scales = {names[name]: Stored(stored.path, "F32", shape, 0) for name, shape in sizes.items()}
    part = shared(replace(stored, scales=scales), Group(1, 2)).scales
    assert {name: part[names[name]].shape for name in sizes} == sizes | {of_rows: (128,)}
    assert part[names[of_rows]].ranges == ((128, 256),)


def tiny_cfg(**sizes):
    return replace(tiny_model.FLUX, **sizes)


def test_what_another_program_quantised_is_refused(stored):
    name = next(name for name in stored.tensors if name.endswith("ff.net.2.weight"))
    part = stored.tensors[name]
    coded = Coded(part.path, "NF4", part.shape, part.start, parts={"codes": part}, widen=lambda parts: parts["codes"])
    other = replace(stored, tensors=stored.tensors | {name: coded})
    with pytest.raises(CheckpointError, match=r"ff.net.2.weight: is stored as NF4, which can't be split"):
        shared(other, Group(0, 2))


@pytest.mark.parametrize(
    ("size", "uneven"),
    [(3, "4 heads (transformer) and 256 channels of the MLP (transformer)"), (8, "4 heads (transformer)")],
)
def test_uneven(stored, size, uneven):
    words = f"split: {size} processes can't have equal shares of {uneven}: start 2 or 4"
    with pytest.raises(ArgumentError, match=re.escape(words)):
        shared(stored, Group(0, size))


def test_the_real_models():
    """FLUX.1's 24 heads and T5's 64 are shared by 2, 4 or 8 processes, quantised or not."""
    for bits in (None, 8, 4):
        for component, cfg in ((TRANSFORMER, DEV), (T5, T5_XXL)):
            whole = ghost(component.name, cfg, bits)
            for size in (2, 4, 8):
                part = shared(whole, Group(size - 1, size))
                matrices = [x for name, x in part.tensors.items() if is_shared(component, part.our_names[name], x)]
                assert all(isinstance(x, Slice) for x in matrices)


def test_how_many_can_share_the_real_models():
    """What 3 machines can have of the transformer they can't have of T5, which is told with what both allow."""
    both = {component.name: ghost(component.name, cfg, None) for component, cfg in ((TRANSFORMER, DEV), (T5, T5_XXL))}
    words = "3 processes can't have equal shares of 64 heads (T5) and 10240 channels of the MLP (T5): start 2 or 4 or 8"
    with pytest.raises(ArgumentError, match=re.escape(words)):
        share_model(both, Group(0, 3))


def is_shared(component: Component, name: str, x: Stored) -> bool:
    return len(x.shape) == 2 and component.in_blocks.match(name) is not None
