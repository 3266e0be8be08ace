"""NumPy's fast ops against the definitions: in chunks of a few numbers, on three threads, at odd shapes."""

import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minflux.backend import get_backend, numpy, threads
from minflux.errors import BackendError
from tests.compare import relative_error

FAST, READABLE = get_backend("numpy"), get_backend("numpy-readable")
TOLERANCE = 2e-6  # both are rounded: the worst of a thousand examples were 1.3e-6 apart
sizes, widths = st.integers(1, 40), st.integers(1, 12)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks that cut even small arrays, and three threads whatever the machine has."""
    for name, size in (("CHUNK", 24), ("SMALL", 24), ("LOGITS", 50), ("PIXELS", 16)):
        monkeypatch.setattr(numpy, name, size)
    monkeypatch.setenv("MINFLUX_THREADS", "3")
    monkeypatch.setattr(threads, "_pool", None)


def random(*shape, spread=1.0):
    return (spread * np.random.standard_normal(shape)).astype(np.float32)


def same(op, *args, **kwargs):
    """Assert that both give the same, in the same dtype and shape; return the fast one's."""
    got, expected = (getattr(nx, op)(*args, **kwargs) for nx in (FAST, READABLE))
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert relative_error(got, expected) < TOLERANCE
    return got


@given(st.integers(1, 3), sizes, widths, st.sampled_from([0.1, 3.0, 100.0]))
def test_activations(batch, length, width, spread):
    wide = random(batch, length, 2 * width, spread=spread)
    for x in (wide, wide[..., width:], wide[0, 0]):  # whole, a slice that lies apart, one row
        for op in ("silu", "gelu"):
            same(op, x)


@given(st.integers(1, 3), sizes, widths, st.booleans())
def test_norms(batch, length, width, wide):
    x = random(batch, length, width + 1)
    rows = (batch, 1) if wide else ()
    scale, bias = random(*rows, width + 1), random(*rows, width + 1)
    for affine in ((), (scale,), (scale, bias)):
        same("layer_norm", x, *affine)
    heads = random(batch, length, 2 * (width + 1)).reshape(batch, length, 2, -1).swapaxes(1, 2)
    same("rms_norm", heads, scale.reshape(-1)[: width + 1])


@given(st.integers(1, 3), sizes, widths, st.integers(1, 4), st.integers(1, 3))
def test_group_norm(batch, height, width, groups, per_group):
    channels = groups * per_group
    x = random(batch, height, width + 1, channels) + 1
    same("group_norm", x, groups, random(channels), random(channels))


def test_arrays_that_do_not_lie_in_one_piece():
    """Transposed, turned around, or one row seen many times."""
    square, row = random(6, 6), random(1, 1, 1, 6)
    many, angles = np.broadcast_to(row, (2, 3, 40, 6)), random(1, 1, 40, 3)
    for x in (square.T, square[:, ::-1], square[::2, 1::2], many):
        for op, more in {"gelu": (), "silu": (), "layer_norm": (), "rms_norm": (random(x.shape[-1]),)}.items():
            same(op, x, *more)
    for x in (many, many[..., ::-1]):
        same("rotate", x, np.cos(angles), np.sin(angles))
    q = np.broadcast_to(row, (1, 3, 9, 6))
    same("attention", q, q, q)
    picture = random(5, 5, 4)[None].transpose(0, 2, 1, 3)
    same("conv2d", picture, random(3, 3, 3, 4), random(3), 1, 1)
    same("group_norm", picture, 2, random(4), random(4))


def test_a_picture_of_a_batch_is_normalised_as_it_is_alone():
    x, scale, bias = random(4, 30, 30, 6), random(6), random(6)
    np.testing.assert_array_equal(FAST.group_norm(x, 2, scale, bias)[2:3], FAST.group_norm(x[2:3], 2, scale, bias))


@given(st.integers(1, 3), widths, sizes, widths)
def test_rotate(batch, heads, length, half):
    x = random(batch, length, heads, 2 * half).swapaxes(1, 2)  # as it comes out of the projection
    angles = random(batch, 1, length, half)
    same("rotate", x, np.cos(angles), np.sin(angles))


@given(st.integers(1, 3), widths, sizes, sizes, widths, st.booleans(), st.sampled_from([None, 0.3]))
def test_attention(batch, heads, queries, keys, width, biased, scale):
    q, k, v = random(batch, heads, queries, width), random(batch, heads, keys, width), random(batch, heads, keys, width)
    bias = random(1, heads, 1, keys) if biased else None
    got = same("attention", q, k, v, scale, bias)
    assert got.swapaxes(1, 2).flags.c_contiguous


def test_attention_never_holds_all_logits(monkeypatch):
    """The largest product that is made has as many numbers as LOGITS says, or one row."""
    largest = []
    monkeypatch.setattr(np, "exp", lambda x, out: largest.append(x.size) or np.copyto(out, x))
    FAST.attention(*(random(1, 2, 30, 4) for _ in range(3)))
    assert max(largest) <= 50


@given(st.integers(1, 3), sizes, sizes, widths, widths, st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 1, 0), (3, 2, 1)]))
def test_conv2d(batch, height, width, inputs, outputs, how):
    size, stride, padding = how
    x = random(batch, height + 2, width + 2, inputs)
    same("conv2d", x, random(outputs, size, size, inputs), random(outputs), stride, padding)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes_are_left_to_the_definitions(dtype):
    x, one = random(1, 3, 4, 4).astype(dtype), np.ones(4, dtype)
    for op, args in (
        ("gelu", ()),
        ("silu", ()),
        ("layer_norm", (one, one)),
        ("rms_norm", (one,)),
        ("attention", (x, x)),
    ):
        np.testing.assert_array_equal(getattr(FAST, op)(x, *args), getattr(READABLE, op)(x, *args))


# -- threads ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 50))
def test_every_piece_is_done_once(pieces):
    done = []
    threads.parallel_for(done.append, range(pieces))
    assert sorted(done) == list(range(pieces))


def test_pieces_run_side_by_side():
    """Three pieces that wait for each other end only when three threads run them."""
    barrier = threading.Barrier(3, timeout=20)
    threads.parallel_for(lambda i: barrier.wait(), range(3))


def test_a_piece_does_not_fork_again():
    names = []

    def task(i):
        threads.parallel_for(lambda j: names.append((i, threading.get_ident())), range(4))

    threads.parallel_for(task, range(3))
    assert len(names) == 12
    assert all(len({thread for piece, thread in names if piece == i}) == 1 for i in range(3))


def test_an_error_in_a_piece_is_raised_here_and_ends_the_others():
    done = []

    def task(i):
        if i == 1:
            raise ValueError("piece 1")
        time.sleep(0.01)
        done.append(i)

    with pytest.raises(ValueError, match="piece 1"):
        threads.parallel_for(task, range(1000))
    assert len(done) < 999
    threads.parallel_for(done.append, range(3))  # and the next one works


def test_products_run_on_one_core_while_forked():
    inside = []

    def task(i):
        inside.append([library.num_threads for library in threads._blas.lib_controllers])

    threads.parallel_for(task, range(3))
    assert all(n == 1 for found in inside for n in found)


@pytest.mark.parametrize(("variables", "expected"), [({"MINFLUX_THREADS": "5"}, 5), ({"OMP_NUM_THREADS": "2,1"}, 2)])
def test_the_number_of_threads(monkeypatch, variables, expected):
    monkeypatch.delenv("MINFLUX_THREADS")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert threads.thread_count() == expected


def test_without_a_variable_there_are_as_many_threads_as_cores(monkeypatch):
    for name in ("MINFLUX_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if hasattr(os, "sched_getaffinity"):
        assert threads.thread_count() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_number_of_threads_that_is_none(monkeypatch, value):
    monkeypatch.setenv("MINFLUX_THREADS", value)
    with pytest.raises(BackendError, match=f"MINFLUX_THREADS must be a whole number of at least 1, got '{value}'"):
        FAST.gelu(random(2, 30))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    threads.parallel_for(lambda i: None, range(3))
    child = os.fork()
    if child == 0:
        threads.parallel_for(lambda i: None, range(3))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
