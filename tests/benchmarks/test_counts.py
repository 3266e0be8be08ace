"""What a block asks of a GPU: MLX's own graph and fusion, the layouts that need copies, and the figures of the page.

Counting replaces `mx.compile` for good, so the counts themselves come from a process of their own.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

mx = pytest.importorskip("mlx.core")

from benchmarks.counts import __main__ as counts  # noqa: E402
from benchmarks.counts import fusion, graph, kernels, limit  # noqa: E402

ROOT = Path(__file__).parents[2]


def counted(function, *shapes, dtype=mx.bfloat16):
    return kernels.count(graph.Tracer().graph(function, [mx.zeros(shape, dtype) for shape in shapes]))


def launched(function, *shapes):
    return [(kernel.kind, kernel.read, kernel.written) for kernel in counted(function, *shapes).kernels]


# -- kernels and bytes -------------------------------------------------------------------------------------------


def test_views_launch_nothing():
    def look(x):
        a, b = mx.split(x, [2], axis=-1)
        return a.swapaxes(0, 1), b[:, ::-1], mx.expand_dims(x, 1).reshape(2, 18), mx.broadcast_to(b[:1], (5, 4))

    assert launched(look, (6, 6)) == []


def test_a_shape_that_strides_cannot_have_is_a_copy():
    assert launched(lambda x: x.T.reshape(-1), (3, 5)) == [("copy", 30, 30)]
    assert launched(lambda x: x.reshape(3, 5, 1).reshape(-1), (3, 5)) == []


def test_an_op_reads_each_number_once_and_a_broadcast_one_too():
    assert launched(lambda x, y: x + y, (4, 8), (8,)) == [("elementwise", 2 * 40, 2 * 32)]
    assert launched(lambda x: x[:, :4] * x[:, 4:], (4, 8)) == [("elementwise", 2 * 32, 2 * 16)]
    assert launched(lambda x: x * x[:, ::-1], (4, 8)) == [("elementwise", 2 * 32, 2 * 32)]


def test_a_wider_dtype_is_a_kernel_and_a_float32_array():
    found = counted(lambda x: x.astype(mx.float32) + x, (4, 8))
    assert [(kernel.kind, kernel.written) for kernel in found.kernels] == [("cast", 128), ("elementwise", 128)]
    assert found.wide(32) == 2
    assert found.wide(33) == 0


def test_joining_copies_each_part():
    assert launched(lambda x, y: mx.concatenate([x, y]), (3, 4), (2, 4)) == [("join", 24, 24), ("join", 16, 16)]


def test_a_product_takes_transposed_matrices_and_adds_a_bias():
    assert launched(lambda x, w: x @ w.T, (2, 5, 8), (3, 8)) == [("product", 2 * (80 + 24), 2 * 30)]
    assert launched(lambda x, w, b: mx.addmm(b, x, w.T), (5, 8), (3, 8), (3,)) == [
        ("product", 2 * (40 + 24 + 3), 2 * 15)
    ]
    assert launched(lambda x, w: x[:, ::2] @ w, (5, 8), (4, 3))[0] == ("copy", 2 * 20, 2 * 20)


def test_norms_copy_rows_that_do_not_follow_each_other():
    def norm(x, scale):
        return mx.fast.rms_norm(x, scale, 1e-6)

    assert launched(norm, (6, 8), (8,)) == [("norm", 2 * 56, 2 * 48)]
    kinds = [kind for kind, *_ in launched(lambda x, scale: norm(x[:, :8], scale), (6, 16), (8,))]
    assert kinds == ["copy", "norm"]
    kinds = [kind for kind, *_ in launched(lambda x, scale: norm(x.swapaxes(0, 1), scale), (6, 3, 8), (8,))]
    assert kinds == ["copy", "norm"]


def test_attention_is_one_kernel_whose_heads_lie_side_by_side():
    def attend(q, k, v):
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0)
        return out.swapaxes(1, 2).reshape(1, 9, 16)

    assert launched(attend, *3 * [(1, 2, 9, 8)]) == [("attention", 2 * 3 * 144, 2 * 144)]


def test_fused_kernels_cast_to_the_common_dtype():
    found = counted(lambda x, y: mx.fast.layer_norm(x, y.astype(mx.float32), None, 1e-6), (6, 8), (8,))
    assert [kernel.kind for kernel in found.kernels] == ["cast", "cast", "norm"]
    assert found.wide(48) == 2


def test_an_op_that_is_unknown_is_named():
    with pytest.raises(NotImplementedError, match="ArgSort: say in benchmarks/counts/kernels"):
        counted(mx.argsort, (6,))


# -- fusion ------------------------------------------------------------------------------------------------------

MIXED = {
    "a chain": lambda x, y: mx.tanh(x * 2 + y) * x,
    "one that two need": lambda x, y: ((z := mx.exp(x)) @ y.T, z + 1),
    "a broadcast row": lambda x, y: (x * (1 + y[:1]) - y[:1]) @ y.T,
    "too deep": lambda x, y: chain(x, 30) + y,
    "a result inside": lambda x, y: ((z := mx.exp(x) + 1), mx.sqrt(z * y)),
    "casts and views": lambda x, y: (x[:, ::-1].astype(mx.float32) * 3).astype(mx.bfloat16).reshape(8, 4) + y[:1, :4],
}  # fmt: skip


def chain(x, length):
    for _ in range(length):
        x = mx.tanh(x)
    return x


@pytest.mark.parametrize("function", MIXED.values(), ids=MIXED)
def test_ops_are_fused_as_mlx_compiles_them(function, tmp_path):
    arrays = [mx.zeros((4, 8), mx.bfloat16), mx.zeros((4, 8), mx.bfloat16)]
    found = fusion.fused(graph.Tracer().graph(function, arrays))
    mx.export_to_dot(str(tmp_path / "graph.dot"), *graph.leaves(mx.compile(function)(*arrays)))
    named = [line.split('"')[1] for line in (tmp_path / "graph.dot").read_text().splitlines() if "label" in line]
    theirs = Counter("Compiled" if name.startswith("Compiled") else name for name in named)
    free = {"Broadcast", "Full"}
    assert +Counter(node.op for node in found.nodes if node.op not in free) == Counter(
        {name: count for name, count in theirs.items() if name not in free}
    )


# -- blocks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    command = [sys.executable, "-m", "benchmarks.counts", "--print"]
    rows = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    return {(row["who"], row["block"]): row for row in rows}


def test_the_page_has_the_counts_of_this_code(found):
    kept = json.loads(counts.RECORD.read_text())
    assert counts.markdown(kept) in counts.PAGE.read_text()
    assert {key: row for key, row in found.items() if key[0] in ("minflux", counts.LIMIT)} == {
        (row["who"], row["block"]): row for row in kept if row["who"] in ("minflux", counts.LIMIT)
    }


def test_minflux_has_fewer_kernels_and_bytes_than_each_peer(found):
    for row in json.loads(counts.RECORD.read_text()):
        ours = found["minflux", row["block"]]
        if row["who"] not in ("minflux", counts.LIMIT):
            assert ours["kernels"] < row["kernels"]
            assert ours["read"] + ours["written"] < row["read"] + row["written"]


def test_nothing_of_an_activation_s_size_is_float32(found):
    assert [found["minflux", block]["float32"] for block in ("double", "single")] == [0, 0]


@pytest.mark.parametrize(("block", "most"), [("double", 1.25), ("single", 1.43)])
def test_bytes_are_near_the_limit(found, block, most):
    """The single block's is higher for want of a kernel that writes attention's and GELU's results side by side."""
    ours, least = found["minflux", block], found[counts.LIMIT, block]
    assert 1 < (ours["read"] + ours["written"]) / (least["read"] + least["written"]) < most


def test_the_limit_reads_each_weight_once():
    width = limit.CONFIG.hidden_size
    weights = {kind: sum(op.weights for op in ops if op.name != "q, k") for kind, ops in limit.limits().items()}
    assert weights == {"double": 24 * width**2 + 18 * width, "single": 12 * width**2 + 8 * width}


def test_rows_of_peers_that_are_not_here_stay(tmp_path, capsys):
    page, record = tmp_path / "page.md", tmp_path / "counts.json"
    page.write_text("<!-- counts: begin --><!-- counts: end -->")
    row = {"block": "double", "kernels": 2, "copies": 1, "read": 10**9, "written": 10**9, "float32": 0}
    counts.keep([row | {"who": who} for who in ("minflux", "a peer", counts.LIMIT)], page, record)
    counts.keep([row | {"who": who, "kernels": 3} for who in ("minflux", counts.LIMIT)], page, record)
    assert "| double | a peer | 2 | 1 | 1.00 GB | 1.00 GB | 1.00 | 0 |" in page.read_text()
    assert "| double | minflux | 3 | 1 |" in page.read_text()
    assert capsys.readouterr().err == "not here, and left as they were: a peer\n"


# -- peers -------------------------------------------------------------------------------------------------------

BORROWED = """
import mlx.core as mx
from mlx import nn

class EmbedND:
    def __init__(self, width, theta, axes): self.width = width
    def __call__(self, ids): return mx.zeros((1, 1, ids.shape[1], self.width // 2, 2, 2))

class SingleStreamBlock(nn.Module):
    def __init__(self, width, heads, ratio): super().__init__(); self.out = nn.Linear(width, width)
    def __call__(self, x, vec, pe): return x + nn.gelu_approx(self.out(x))

class DoubleStreamBlock(SingleStreamBlock):
    def __init__(self, width, heads, ratio, qkv_bias): super().__init__(width, heads, ratio)
    def __call__(self, img, txt, vec, pe): return self.out(img), self.out(txt)
"""


def test_a_peer_s_compiled_functions_are_one_kernel(tmp_path):
    """By a stand-in for mlx-examples, whose code isn't here."""
    path = tmp_path / "flux" / "flux" / "layers.py"
    path.parent.mkdir(parents=True)
    path.write_text(BORROWED)
    command = [sys.executable, "-m", "benchmarks.counts", "--print", "--mlx-examples", str(tmp_path)]
    rows = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    kernels_of = {row["block"]: row["kernels"] for row in rows if row["who"] == "mlx-examples"}
    assert kernels_of == {"double": 2, "single": 3}  # a product, GELU, a sum
