"""The kernels behind the layers: which ones run, on how many threads, and what they leave as it was."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bptt
from bptt.nn import kernels
from bptt.nn.kernels import eager
from bptt.nn.kernels.native import load
from support.layers import CELLS, F64, KERNELS, NATIVE, assert_equal, cast, errors, gradients, kernel, pair, state_of

needs_native = pytest.mark.skipif(not NATIVE, reason="built without a C++ compiler")
BIG = {"RNN": 96, "GRU": 64, "LSTM": 64}  # units at which 20 steps of 24 rows wake threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_compiler_means_kernels():
    """Without the library every other check of it is skipped: where it could be built, it must be here and load."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    assert NATIVE, f"{compiler} is here, but bptt.nn runs on PyTorch alone: {kernels.reason}"
    instructions = torch.backends.cpu.get_cpu_capability().lower()  # what torch's own kernels use
    assert instructions not in ("avx2", "avx512") or instructions in NATIVE


@pytest.mark.parametrize("name", KERNELS)
def test_what_each_parameter_does_to_its_own_unit(name):
    """E ← D E + I and c · E, where a unit starts anew with infinite entries too: the recursion in float64."""
    for T, B, d, G, H, J in ((1, 1, 1, 3, 17, 70), (35, 2, 1, 2, 5, 1), (40, 3, 2, 4, 19, 37), (2, 70, 2, 1, 33, 16)):
        keep, factor, x = torch.randn(T, B, d, d, H) / 2, torch.randn(T, B, d, G, H), torch.randn(T, B, J)
        entries, c = torch.randn(B, d, G, H, J), torch.randn(B, d, H)
        want = entries.double()
        keep[T // 2, 0, ..., 2], entries[0, :, :, 2], want[0, :, :, 2] = 0, torch.inf, 0
        for t in range(T):
            moved = torch.einsum("bklh,blghj->bkghj", keep[t].double(), want)
            want = moved + factor[t].double()[..., None] * x[t, :, None, None, None].double()
        with kernel(name):
            kernels.implementation(keep).absorb(keep, [(entries, factor, x)])
            assert (entries - want).abs().max() < 1e-5 * want.abs().max()
            c[0, 0, 2], entries[0, 0, :, 2], want[0, 0, :, 2] = 0, torch.inf, 0
            (found,) = kernels.implementation(c).pull(c, [entries])
        want = (c[:, :, None, :, None] * want).sum((0, 1))
        assert (found - want).abs().max() < 1e-5 * want.abs().max()


@needs_native
def test_the_last_one_is_chosen():
    assert NATIVE[0] == "generic"
    assert len(set(NATIVE)) == len(NATIVE)
    if "BPTT_KERNELS" not in os.environ:
        assert kernels.chosen is kernels.natives[-1]
        assert kernels.reason == ""
    assert kernels.implementation(torch.zeros(1)) is (kernels.chosen or eager)
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


@needs_native
def test_a_library_that_is_cut_short(tmp_path):
    """By a full disk, say; the loader maps what isn't there, and the process is killed."""
    path = next(Path(folder) / "libbptt.so" for folder in kernels.__path__ if (Path(folder) / "libbptt.so").exists())
    whole = path.read_bytes()
    for length in (0, 50, 5000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "libbptt.so").write_bytes(whole[:length])
        natives, reason = load([tmp_path])
        assert natives == []
        assert "cut short" in reason or "doesn't load" in reason
    (tmp_path / "libbptt.so").unlink()
    (tmp_path / "libbptt.so").mkdir()
    assert "doesn't load" in load([tmp_path])[1]


PASSES = ("bptt_forward", "bptt_backward", "bptt_readout", "bptt_absorb", "bptt_pull")


def stale(numbers, lacks=""):
    """A library as ctypes shows it, of so many numbers a struct, without one of its functions."""

    class Function:
        def __init__(self, value):
            self.value = value

        def __call__(self, *args):
            return self.value

    passes = dict.fromkeys(PASSES, 0)
    names = {"bptt_numbers": numbers, "bptt_use_openmp": None, "bptt_isa": None, **passes}
    return type("Library", (), {name: Function(value) for name, value in names.items() if name != lacks})()


@pytest.mark.parametrize("lacks", ["bptt_numbers", "bptt_use_openmp", "bptt_isa", *PASSES])
def test_a_library_that_lacks_a_function(tmp_path, monkeypatch, lacks):
    (tmp_path / "libbptt.so").touch()
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode=0: stale(48, lacks))
    natives, reason = load([tmp_path])
    assert natives == []
    assert "libbptt.so is of another version. Install bptt again" in reason


def test_a_library_of_another_struct(tmp_path, monkeypatch):
    (tmp_path / "libbptt.so").touch()
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode=0: stale(49))
    assert "of another version" in load([tmp_path])[1]


def test_a_library_without_kernels_says_so(tmp_path, monkeypatch):
    (tmp_path / "libbptt.so").touch()
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode=0: stale(48))
    natives, reason = load([tmp_path])
    assert natives == []
    assert "no kernels for this machine" in reason
    monkeypatch.setattr(kernels, "chosen", None)
    monkeypatch.setattr(kernels, "reason", reason)
    assert kernels.describe() == f"PyTorch alone, slower ({reason})"


def results(cell, seed=0):
    """Outputs, states and gradients of a layer that is large enough for threads."""
    torch.manual_seed(seed)
    layer = getattr(bptt.nn, cell)(40, BIG[cell])
    return gradients(layer, torch.randn(20, 24, 40), state_of(cell, 1, 24, BIG[cell]))


@needs_native
@pytest.mark.parametrize("cell", CELLS)
def test_threads_are_asked_for_where_they_pay(cell, two_threads):
    """By a runtime that counts them, and gives one."""
    library, asked = kernels.natives[0].library, []

    @ctypes.CFUNCTYPE(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(body, data, threads, flags):
        asked.append(threads)
        body(data)

    number, count = (ctypes.CFUNCTYPE(ctypes.c_int)(lambda n=n: n) for n in (0, 1))
    with kernel(NATIVE[-1]):
        expected = results(cell)
        library.bptt_use_openmp(*(ctypes.cast(f, ctypes.c_void_p) for f in (parallel, number, count)))
        try:
            assert_equal(results(cell), expected)
            many, asked[:] = asked[:], []
            gradients(getattr(bptt.nn, cell)(3, 4), torch.randn(9, 2, 3))
        finally:
            assert kernels.native._share_threads(library) == kernels.natives[0].threaded
    assert asked == []
    assert len(many) >= 4  # both passes over the steps, the inputs' product, one of gradients at least
    assert set(many) == {2}


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
@pytest.mark.thin
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


SIZES = [(1, 1, 1, 1), (13, 1, 7, 33), (1, 5, 256, 17), (25, 11, 257, 1), (97, 1, 31, 97), (513, 1, 3, 64)]
SIZES += [(7, 100, 130, 5)]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_around_a_tile_a_panel_and_a_block(cell, name):
    """T, B, inputs, H: the products of all steps, of the inputs with the weights and of the cotangents with both."""
    for T, B, wide, H in SIZES:
        theirs, ours = pair(cell, wide, H)
        x, hx = torch.randn(T, B, wide), state_of(cell, 1, B, H)
        with kernel(name):
            found = gradients(ours, x, hx)
        torchs = gradients(theirs, x, hx)
        exact = gradients(theirs.double(), cast(x, F64), cast(hx, F64))
        for error, own in zip(errors(found, exact, few=64), errors(torchs, exact, few=64), strict=True):
            assert error <= max(3 * own, 2e-6), (T, B, wide, H)


@pytest.mark.parametrize("name", KERNELS)
def test_long_sums_are_short_ones(name):
    """Weight gradients over 65536 rows, most of one sign: an error of a few roundings, not of thousands."""
    layer = bptt.nn.RNN(3, 16, nonlinearity="identity")
    torch.nn.init.zeros_(layer.weight_hh_l0)
    x = torch.randn(8, 8192, 3) + 1
    with kernel(name):
        (layer(x)[0]).backward(torch.ones(8, 8192, 16))
    assert layer.weight_ih_l0.grad is not None
    assert layer.bias_ih_l0.grad is not None
    assert_equal([layer.weight_ih_l0.grad], [x.double().sum((0, 1)).expand(16, 3)], 1e-6)
    assert_equal([layer.bias_ih_l0.grad], [torch.full((16,), 65536.0)], 1e-6)
