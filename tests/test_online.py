"""RTRL, UORO and SnAp against the full gradient, an enumeration of all signs, and a recursion that is written out."""

import itertools

import pytest
import torch
from torch import nn

import bptt
from bptt._influence.product import Product

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("double")


class Words(nn.Module):
    """An embedding, layers, and a readout; its first state is None."""

    def __init__(self, layer):
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(5, 3), layer, nn.Linear(4, 2)

    def forward(self, ids, state=None):
        hidden, state = self.layer(self.table(ids), state)
        return self.head(hidden), state


class Step(nn.Module):
    """A step with a dict for a state: a complex and a real leaf, a count without a gradient, and weights of its own."""

    def __init__(self):
        super().__init__()
        self.rotate = nn.Parameter(torch.tensor([0.6 + 0.5j, 0.3 - 0.8j], dtype=torch.complex128))
        self.mix, self.loose = nn.Linear(4, 2), torch.randn(2, requires_grad=True)

    def forward(self, x, state):
        z = self.rotate * state["z"] + torch.complex(x, x * self.loose)
        h = torch.tanh(self.mix(torch.cat([state["h"], z.real], -1)))
        return h + z.imag, {"z": z, "h": h, "count": state["count"] + 1}


def learned():
    """A GRU with an initial state that a layer computes afresh, with rows that reset to it."""
    layer, encoder = nn.GRU(3, 4), nn.Linear(2, 4)
    return layer, {"initial_state": lambda: encoder(torch.ones(1, 2, 2))}, [*layer.parameters(), *encoder.parameters()]


def given():
    """A GRU that starts from a state that is learned, and resets to zeros."""
    state = torch.randn(1, 2, 4, requires_grad=True)
    layer = nn.GRU(3, 4)
    return layer, {"state": state}, [*layer.parameters(), state]


def dictionary():
    step = Step()
    state = {"z": torch.zeros(2, 2, dtype=torch.complex128), "h": torch.zeros(2, 2), "count": torch.tensor(0)}
    axes = {"z": 0, "h": 0, "count": None}
    return bptt.scan(step), {"state": state, "state_batch_dim": axes}, [*step.parameters(), step.loose]


def simple():
    model = bptt.nn.SimpleRNN(3, 4, 2, "tanh", bias=True)
    return model, {}, list(model.parameters())


def words(layer, dim=1):
    model = Words(layer)
    return model, {"state_batch_dim": dim}, list(model.parameters())


def plain(layer):
    return layer, {}, list(layer.parameters())


MAKERS = {
    "rnn": lambda: plain(nn.RNN(3, 4)),
    "gru": lambda: plain(nn.GRU(3, 4)),
    "lstm": lambda: plain(nn.LSTM(3, 4)),
    "lstm of two": lambda: plain(nn.LSTM(3, 4, num_layers=2)),
    "fused gru": lambda: plain(bptt.nn.GRU(3, 4)),
    "words": lambda: words(nn.GRU(3, 4)),
    "fused words": lambda: words(bptt.nn.LSTM(3, 4)),
    "learned": learned,
    "given": given,
    "dictionary": dictionary,
    "simple": simple,
}
T, B = 9, 2


def chunk_of(name, resets=False, mask=False):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(T, B, 2 if name == "dictionary" else 3, generator=generator, dtype=F64)
    if "words" in name:
        inputs = torch.randint(5, (T, B), generator=generator)
    width = 2 if "words" in name or name in ("dictionary", "simple") else 4
    targets = torch.randn(T, B, width, generator=generator, dtype=F64)
    starts, counted = None, None
    if resets:
        starts = torch.zeros(T, B, dtype=torch.bool)
        starts[2, 0] = starts[7, 1] = True
        starts[4] = True
    if mask:
        counted = torch.rand(T, B, generator=generator) < 0.6
        counted[3:6, 1] = False
    return bptt.Chunk(inputs, targets, starts, counted)


LOSS = bptt.per_step(nn.MSELoss())


def gradient(maker, strategy, chunk, cut=None, **more):
    """The gradient of a sequence, flat; by `unroll` in chunks of so many steps where `cut` says so."""
    torch.manual_seed(5)
    model, options, leaves = maker()
    options = {**options, **more, "reduction": "sum"}
    if cut is None:
        bptt.backward(model, LOSS, chunk, strategy=strategy, **options)
    else:
        parts = [bptt.Chunk(*(None if x is None else x[a : a + cut] for x in chunk)) for a in range(0, T, cut)]
        for _ in bptt.unroll(model, LOSS, parts, strategy=strategy, **options):
            pass
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves]
    return torch.cat([(torch.view_as_real(g) if g.is_complex() else g).flatten() for g in grads])


def close(one, other, tolerance=1e-12):
    assert other.abs().max() > 1e-3
    assert (one - other).abs().max() <= tolerance * other.abs().max()


WAYS = {"plain": {}, "resets": {"resets": True}, "masked": {"mask": True}, "both": {"resets": True, "mask": True}}


@pytest.mark.thin
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAKERS)
def test_rtrl_is_the_full_gradient_for_every_k1(name, way):
    if name == "dictionary" and "resets" in WAYS[way]:
        pytest.skip("a leaf without rows can't be reset row by row")
    chunk = chunk_of(name, **WAYS[way])
    want = gradient(MAKERS[name], bptt.FullBPTT(), chunk)
    for k1 in (1, 2, 4, 9):
        close(gradient(MAKERS[name], bptt.RTRL(k1), chunk), want)
    if len(chunk.inputs.shape) > 2 and name != "dictionary":  # truncation isn't, or nothing would be shown
        off = gradient(MAKERS[name], bptt.TruncatedBPTT(1), chunk)
        assert (off - want).norm() > 0.01 * want.norm()


@pytest.mark.parametrize("strategy", [bptt.RTRL(2), bptt.UORO(2), bptt.SnAp(1, 2)], ids=str)
@pytest.mark.parametrize("name", ["gru", "words", "learned"])
def test_chunks_and_budgets_change_nothing(name, strategy):
    chunk = chunk_of(name, resets=True)

    def run(**more):
        return gradient(MAKERS[name], strategy, chunk, generator=torch.Generator().manual_seed(1), **more)

    want = run(cut=9)
    for cut in (1, 2, 4):
        close(run(cut=cut), want)
    close(run(), want)
    for memory in (bptt.Checkpoints(2, 1), "1MiB"):
        close(run(cut=4, memory=memory), want)


def mean_over_signs(maker, strategy, chunk, monkeypatch, bits):
    """The mean of a run's gradient over all signs of all windows but the last, which reach no gradient."""
    total, count = 0, 0
    for pattern in itertools.product([-1.0, 1.0], repeat=bits):
        signs = iter((*pattern, *[1.0] * bits))
        monkeypatch.setattr(Product, "signs", lambda self, *shape, signs=signs: torch.tensor(
            [next(signs) for _ in range(shape[0] * shape[1])]).reshape(shape))  # fmt: skip
        total, count = total + gradient(maker, strategy, chunk), count + 1
    return total / count


ENUMERATED = {  # what is run, T, B, k1, resets
    "rnn": (lambda: plain(nn.RNN(2, 2)), 4, 1, 1, False),
    "gru": (lambda: plain(nn.GRU(2, 2)), 6, 1, 2, False),
    "lstm": (lambda: plain(nn.LSTM(2, 1)), 4, 1, 1, False),
    "fused lstm": (lambda: plain(bptt.nn.LSTM(2, 1)), 4, 1, 1, False),
    "rows that reset": (lambda: plain(nn.RNN(2, 1)), 4, 2, 1, True),
    "learned": (lambda: small_learned(), 4, 2, 1, True),
}


def small_learned():
    layer, start = nn.RNN(2, 1), nn.Parameter(torch.randn(1, 2, 1))
    return layer, {"initial_state": lambda: torch.tanh(start)}, [*layer.parameters(), start]


@pytest.mark.parametrize("name", ENUMERATED)
@pytest.mark.thin
def test_the_mean_of_uoro_over_all_signs_is_the_full_gradient(name, monkeypatch):
    maker, steps, rows, k1, resets = ENUMERATED[name]
    torch.manual_seed(2)
    layer = maker()[0]
    width, n = layer.hidden_size, layer.hidden_size * rows * (1 + isinstance(layer, nn.LSTM))
    inputs, targets = torch.randn(steps, rows, 2), torch.randn(steps, rows, width)
    starts = None
    if resets:
        starts = torch.zeros(steps, rows, dtype=torch.bool)
        starts[2, 0] = True
    chunk = bptt.Chunk(inputs, targets, starts)
    bits = n * (-(-steps // k1) - 1)
    assert bits <= 12
    want = gradient(maker, bptt.FullBPTT(), chunk)
    close(mean_over_signs(maker, bptt.UORO(k1), chunk, monkeypatch, bits), want)


def test_without_a_derivative_in_forward_mode_uoro_takes_two_vjps(monkeypatch):
    """The same signs give the same gradient; operators of oneDNN and a silent loss are both seen."""
    chunk = chunk_of("lstm")

    def run():
        return gradient(MAKERS["lstm"], bptt.UORO(2), chunk, generator=torch.Generator().manual_seed(1))

    want = run()

    def none(self, *args):
        raise NotImplementedError

    monkeypatch.setattr(Product, "_by_forward_mode", none)
    close(run(), want)
    pushed = Product._by_two_vjps

    def lost(self, segment, carried, tangent):
        moved, after = pushed(self, segment, carried, tangent)
        return torch.zeros_like(moved), after

    monkeypatch.setattr(Product, "_by_forward_mode", lost)
    close(run(), want)


def test_uoro_draws_from_its_generator_alone():
    chunk = chunk_of("gru")
    before = torch.get_rng_state()
    model = nn.GRU(3, 4)
    after = torch.get_rng_state()
    for _ in range(2):
        bptt.backward(model, LOSS, chunk, strategy=bptt.UORO(2), generator=torch.Generator().manual_seed(4))
    assert not torch.equal(before, after)
    assert torch.equal(torch.get_rng_state(), after)


def jacobians(cell, x, h, theta):
    """∂h'/∂h (n, n) and ∂h'/∂θ (n, P) of one step at one row."""
    d, end = torch.autograd.functional.jacobian(lambda s: cell(x, s), h), cell(x, h)
    return d, torch.stack([flat_gradient(unit, theta) for unit in end])


def flat_gradient(number, theta):
    """∂number/∂θ (P,)."""
    found = torch.autograd.grad(number, theta, retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def recursion(cell, xs, ys, theta, order, mask_of):
    """SnAp with k1 = 1, one row, written out: the gradient, flat; a step's own loss goes through the step exactly."""
    h = torch.zeros(len(ys[0]))
    influence, total = torch.zeros(len(h), sum(p.numel() for p in theta)), 0
    for x, y in zip(xs, ys, strict=True):
        d, new = jacobians(cell, x, h, theta)
        influence = d @ influence + new
        h = cell(x, h).detach()
        total = total + 2 / len(y) * (h - y) @ influence
        influence = mask_of(order) * influence
    return total


@pytest.mark.parametrize("k1", [1, 3])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_snap_is_the_masked_recursion(order, k1):
    """A network of 3 units whose pattern is a cycle: SnAp-n keeps 1/3, 2/3, 1 of what a weight does, and 3 is RTRL."""
    torch.manual_seed(1)
    pattern = torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 0, 1]])
    u, w = torch.randn(3, 2, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    xs, ys = torch.randn(6, 2), torch.randn(6, 3)

    def cell(x, h):
        return torch.tanh(u @ x + (w * pattern) @ h)

    def mask_of(order):
        reached = torch.linalg.matrix_power(pattern, order - 1) > 0
        each = torch.eye(3)
        writes = torch.cat([each.repeat_interleave(2, 1), each.repeat_interleave(3, 1) * pattern.flatten()], 1)
        return (reached.double() @ writes > 0).double()

    entries = mask_of(order)[:, (mask_of(3) > 0).any(0)]
    assert entries.mean().item() == pytest.approx(order / 3)
    step = bptt.scan(lambda x, h: (cell(x, h), cell(x, h)))
    chunk = (xs, ys)

    def found(strategy):
        u.grad = w.grad = None
        bptt.backward(step, LOSS, chunk, torch.zeros(3), strategy=strategy, params=[u, w], reduction="sum")
        return torch.cat([u.grad.flatten(), w.grad.flatten()])

    if k1 == 1:
        close(found(bptt.SnAp(order)), recursion(cell, xs, ys, [u, w], order, mask_of))
    want = found(bptt.FullBPTT())
    if order == 3:
        close(found(bptt.SnAp(3, k1)), want)
    else:
        assert (found(bptt.SnAp(order, k1)) - want).norm() > 1e-4 * want.norm()


@pytest.mark.parametrize("k1", [1, 4])
def test_snap_1_of_a_diagonal_network_is_exact(k1):
    a, u = torch.rand(4, requires_grad=True), torch.randn(4, 3, requires_grad=True)

    def step(x, h):
        h = torch.relu(a * h + x @ u.T)
        return h, h

    chunk = chunk_of("gru")
    found = []
    for strategy in (bptt.SnAp(1, k1), bptt.FullBPTT(), bptt.TruncatedBPTT(k1)):
        a.grad = u.grad = None
        options = {"params": [a, u], "state_batch_dim": 0, "reduction": "sum"}
        bptt.backward(bptt.scan(step), LOSS, chunk, torch.zeros(B, 4), strategy=strategy, **options)
        found.append(torch.cat([a.grad.flatten(), u.grad.flatten()]))
    close(found[0], found[1])
    assert (found[2] - found[1]).norm() > 1e-3 * found[1].norm()
