"""The kernels' large buffers: memory that comes back, is never shared, and stays under its limit."""

import gc
import itertools
import threading

import pytest
import torch

from bptt.nn.kernels import buffers

LARGE = buffers.SMALL // 4  # floats


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing free at the beginning."""
    gc.collect()
    monkeypatch.setattr(buffers, "_free", {})
    monkeypatch.setattr(buffers, "_held", 0)


def empty(*shape: int) -> torch.Tensor:
    return buffers.empty(shape, torch.zeros(1))


def held() -> int:
    assert buffers._held == sum(block.numel() for block in buffers._free.values())
    return buffers._held


def test_shapes_and_dtypes():
    for shape in ((LARGE,), (64, LARGE // 64), (3, 5), (2, 3, LARGE), (0, 4), ()):
        for dtype in (torch.float32, torch.float64, torch.int16):
            x = buffers.empty(shape, torch.zeros(1, dtype=dtype))
            assert (tuple(x.shape), x.dtype, x.is_contiguous()) == (shape, dtype, True)
            assert not x._is_view()
            assert x.data_ptr() % 64 == 0 or not x.numel()
            assert x.untyped_storage().nbytes() == x.numel() * x.element_size()
            x.fill_(1)
    assert buffers.empty((LARGE,), torch.zeros(1, device="meta")).is_meta


def test_it_comes_back_when_the_last_view_goes():
    x = empty(4, LARGE)
    place = x.data_ptr()
    views = [x[1:], x.view(-1)[5:].detach(), x.numpy()]
    del x
    while views:
        assert held() == 0
        assert empty(4, LARGE).data_ptr() != place
        buffers._free.clear()
        buffers._held = 0
        views.pop()
    assert held() == 16 * LARGE
    assert empty(4, LARGE).data_ptr() == place


def test_autograd_holds_it_too():
    x = torch.ones(4, LARGE, requires_grad=True)
    y = empty(4, LARGE)
    z = x * y
    del y
    assert held() == 0
    del z
    assert held() == 16 * LARGE


def test_which_one_is_used_again():
    """The last one given back that is large enough, and not far too large."""
    blocks = [empty(n * LARGE) for n in (40, 8, 10, 2)]
    places = [x.data_ptr() for x in blocks]
    while blocks:
        blocks.pop(0)
    assert held() == 240 * LARGE
    first, second = empty(7 * LARGE), empty(7 * LARGE)
    assert [first.data_ptr(), second.data_ptr()] == [places[2], places[1]]
    assert first.untyped_storage().nbytes() == 28 * LARGE  # what it holds too much isn't the tensor's
    third = empty(LARGE)
    assert third.data_ptr() == places[3]
    fourth = empty(9 * LARGE)  # 40 are more than four times as many
    assert fourth.data_ptr() not in places
    assert held() == 160 * LARGE
    fifth = empty(10 * LARGE)
    assert fifth.data_ptr() == places[0]
    assert held() == 0


def test_small_ones_are_torchs():
    x = empty(LARGE - 1)
    assert x.untyped_storage().resizable()
    del x
    assert held() == 0


def test_the_limit(monkeypatch):
    """Those given back first go first, and one that is too large itself goes at once."""
    monkeypatch.setattr(buffers, "LIMIT", 40 * LARGE)
    blocks = [empty(n * LARGE) for n in (2, 4, 3)]
    while blocks:
        blocks.pop(0)
    assert held() == 36 * LARGE
    x = empty(LARGE * 13)
    del x
    assert held() == 0
    blocks = [empty(n * LARGE) for n in (2, 4, 3, 5)]
    while blocks:
        blocks.pop(0)
    assert [block.numel() for block in buffers._free.values()] == [12 * LARGE, 20 * LARGE]
    assert held() == 32 * LARGE


def test_no_two_share_memory():
    """Random allocations that live for random times: each keeps what was written into it."""
    g = torch.Generator().manual_seed(0)
    alive = {}
    for i in range(300):
        n = int(torch.randint(LARGE, 3 * LARGE, (1,), generator=g))
        x = empty(n)
        x[::997] = i
        alive[i] = x
        for j in [j for j in alive if torch.rand(1, generator=g) < 0.3]:
            assert (alive.pop(j)[::997] == j).all()
    spans = sorted((x.data_ptr(), x.data_ptr() + 4 * x.numel()) for x in alive.values())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_threads():
    """Taken and given back by several threads at once, garbage collection included."""
    wrong = []

    def work(seed):
        g = torch.Generator().manual_seed(seed)
        kept = []
        for i in range(150):
            x = empty(LARGE + int(torch.randint(0, LARGE, (1,), generator=g)))
            x[::4099] = seed * 1000 + i
            kept.append((x, seed * 1000 + i))
            if i % 40 == 0:
                cycle = [empty(LARGE)]
                cycle.append(cycle)
                gc.collect(0)
            while len(kept) > 3:
                y, value = kept.pop(0)
                if not (y[::4099] == value).all():
                    wrong.append(value)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong
    assert 0 < held() <= buffers.LIMIT
