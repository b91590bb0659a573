"""The kernels behind the layers: which ones run, on how many threads, and what they leave as it was."""

import os
import subprocess
import sys

import pytest
import torch

import bptt
from bptt.nn import kernels
from bptt.nn.kernels import eager
from bptt.nn.kernels.native import load
from bptt.nn.kernels.sequence import Sequence
from layers import CELLS, F64, KERNELS, NATIVE, assert_equal, cast, gradients, kernel, pair, state_of

needs_native = pytest.mark.skipif(not NATIVE, reason="built without a C++ compiler")
BIG = {"RNN": 96, "GRU": 64, "LSTM": 64}  # units at which 20 steps of 24 rows wake threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_native
def test_the_last_one_is_chosen():
    assert NATIVE[0] == "generic"
    assert len(set(NATIVE)) == len(NATIVE)
    if "BPTT_KERNELS" not in os.environ:
        assert kernels.chosen is kernels.natives[-1]
        assert kernels.reason == ""
    assert kernels.implementation(torch.zeros(1)) is kernels.chosen
    assert kernels.implementation(torch.zeros(1, dtype=torch.float64)) is eager
    assert kernels.implementation(torch.zeros(1, device="meta")) is eager


SCRIPT = """
import torch, bptt.nn
from bptt.nn import kernels
used = []
from bptt.nn.kernels import eager
for one in [*kernels.natives, eager]:
    forward = one.forward
    setattr(one, "forward", lambda q, one=one, forward=forward: (used.append(one.name), forward(q))[1])
bptt.nn.GRU(3, 4)(torch.zeros(9, 2, 3))
print(used, kernels.reason, "|", kernels.describe())
"""


@pytest.mark.parametrize("asked", ["generic", "none"])
def test_the_environment_chooses(asked):
    environment = {**os.environ, "BPTT_KERNELS": asked, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    expected = asked if asked in NATIVE else "pytorch"
    assert done.stdout.startswith(f"['{expected}']")
    if NATIVE:
        assert f"BPTT_KERNELS={asked}" in done.stdout
    assert ("PyTorch alone" in done.stdout) == (expected == "pytorch")


def test_without_a_library(tmp_path):
    assert load([tmp_path]) == ([], "no C++ compiler was found when bptt was installed")
    (tmp_path / "libbptt.so").write_bytes(b"no library")
    natives, reason = load([tmp_path])
    assert natives == []
    assert "doesn't load" in reason
    assert "libbptt.so" in reason


def results(cell, seed=0):
    """Outputs, states and gradients of a layer that is large enough for threads."""
    torch.manual_seed(seed)
    layer = getattr(bptt.nn, cell)(40, BIG[cell])
    q = Sequence(CELLS.index(cell), 0, False, 20, 24, BIG[cell], *[torch.empty(0)] * 3)
    assert q.threads == torch.get_num_threads()
    return gradients(layer, torch.randn(20, 24, 40), state_of(cell, 1, 24, BIG[cell]))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_two_threads_compute_what_one_does(cell, name, two_threads):
    with kernel(name):
        two = results(cell)
        torch.set_num_threads(1)
        assert_equal(two, results(cell))


@needs_native
@pytest.mark.parametrize("rows", [1, 3, 8, 17])
@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("cell", CELLS)
def test_columns_are_divided_where_rows_are_few(cell, name, rows, two_threads):
    theirs, ours = pair(cell, 9, 300)
    x, hx = torch.randn(40, rows, 9), state_of(cell, 1, rows, 300)
    with kernel(name):
        two = gradients(ours, x, hx)
        torch.set_num_threads(1)
        assert_equal(two, gradients(ours, x, hx))
    assert_equal(two, gradients(theirs.double(), cast(x, F64), cast(hx, F64)), 1e-5)


@needs_native
@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("cell", CELLS)
def test_fewer_threads_than_asked(cell, name, two_threads):
    """Without a runtime to take threads from: one, and the same result."""
    library = kernels.natives[0].library
    with kernel(name):
        expected = results(cell)
        library.bptt_use_openmp(None, None, None)
        try:
            assert_equal(results(cell), expected)
        finally:
            assert kernels.native._share_threads(library) == kernels.natives[0].threaded
        assert all(torch.equal(a, b) for a, b in zip(results(cell), expected, strict=True))


def denormals() -> torch.Tensor:
    """Over many numbers, so that every worker of torch has some: 1 where half of the smallest normal one is not 0."""
    tiny = torch.full((400_000,), torch.finfo(torch.float32).tiny)
    return ((tiny * 0.5) * 2 == tiny).float().min()


@needs_native
@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("cell", CELLS)
def test_denormals_stay_as_they_were(cell, name, two_threads):
    """The kernels flush them; torch, before and after, on all threads, does what it was told."""
    assert denormals() == 1
    with kernel(name):
        results(cell)
    assert denormals() == 1
    if torch.set_flush_denormal(True):
        try:
            with kernel(name):
                results(cell)
            assert (torch.full((3,), torch.finfo(torch.float32).tiny) * 0.5 == 0).all()
        finally:
            torch.set_flush_denormal(False)


@needs_native
@pytest.mark.parametrize("name", NATIVE)
def test_vanishing_states_and_cotangents_are_flushed(name):
    """Inside they count as zero: far below the smallest normal number nothing is left."""
    layer = bptt.nn.RNN(1, 8, nonlinearity="identity", bias=False)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(torch.eye(8) * 0.5)
    with kernel(name):
        y, _ = layer(torch.zeros(200, 1, 1), torch.ones(1, 1, 8))
    assert torch.equal(y[:120, 0, 0], 0.5 ** torch.arange(1, 121, dtype=torch.float32))
    assert not y[150:].any()


def implementation(name: str):
    """The kernels of that name; "eager" is PyTorch's."""
    return next((native for native in kernels.natives if native.name == name), eager)


def matrix(m: int, n: int, turned: bool) -> torch.Tensor:
    """(m, n), rows apart, or columns."""
    return torch.randn(n, m + 3)[:, 2 : m + 2].t() if turned else torch.randn(m, n + 3)[:, 1 : n + 1]


SIZES = [(1, 1, 1), (13, 7, 33), (1, 256, 17), (25, 257, 1), (97, 513, 31), (200, 3, 64), (5, 700, 130)]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_products(transposed, name):
    """All sizes around a tile, a panel and a block; strides that BLAS would refuse."""
    kind = implementation(name)

    def product(a, b, into=None, **more):
        out = torch.empty(len(a), b.shape[1]) if into is None else into
        kind.product(out, a, b, **more)
        return [out]

    for m, k, n in SIZES:
        a, b = matrix(m, k, transposed[0]), matrix(k, n, transposed[1])
        bias, c, sums = torch.randn(n), torch.randn(m, n), torch.empty(m)
        exact = a.double() @ b.double()
        assert_equal(product(a, b), [exact], 2e-6)
        assert_equal(product(a, b, bias=bias), [exact + bias], 2e-6)
        assert_equal(product(a, b, into=c.clone(), add=True), [exact + c], 2e-6)
        if transposed[0]:
            product(a, b, sums=sums)
            assert_equal([sums], [a.double().sum(1)], 4e-6)
        strange = torch.randn(m, 2 * k)[:, ::2]
        assert_equal(product(strange, b), [strange.double() @ b.double()], 2e-6)
        into = torch.full((m, n + 5), 7.0)
        product(a, b, into=into[:, 2 : n + 2])
        assert_equal([into[:, 2 : n + 2]], [exact], 2e-6)
        assert (into[:, :2] == 7).all()
        assert (into[:, n + 2 :] == 7).all()


@pytest.mark.parametrize("name", KERNELS)
def test_long_sums_are_short_ones(name):
    """65536 rows: an error of a few roundings, not of thousands."""
    rows, others = torch.randn(65536, 16) + 1, torch.randn(65536, 3)
    sums, out = torch.empty(16), torch.empty(16, 3)
    implementation(name).product(out, rows.t(), others, sums=sums)
    assert_equal([sums], [rows.double().sum(0)], 1e-6)
    assert_equal([out], [rows.t().double() @ others.double()], 4e-6)
