"""What is carried of ∂s/∂θ: unit by unit, through saves and several processes, within a budget, and what is refused."""

import copy

import numpy
import pytest
import torch
from torch import nn

import bptt
import bptt.nn
from bptt._influence.by_unit import ByUnit
from bptt.distributed import _joined
from support import ranks
from support.refusals import first, refused

LOSS = bptt.per_step(nn.MSELoss())
T, B = 11, 2


class Headed(nn.Module):
    """A layer with a readout, whose first state is None."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 4)

    def forward(self, x, state=None):
        hidden, state = self.layer(x, state)
        return self.head(hidden), state


LAYERS = {
    "rnn": lambda: bptt.nn.RNN(3, 4),
    "relu": lambda: bptt.nn.RNN(3, 4, nonlinearity="relu"),
    "gru": lambda: bptt.nn.GRU(3, 4),
    "without bias": lambda: bptt.nn.GRU(3, 4, bias=False),
    "rate": lambda: bptt.nn.CTRNN(3, 4, alpha=0.3),
    "voltage": lambda: bptt.nn.CTRNN(3, 4, alpha=0.3, form="voltage", nonlinearity="softplus"),
    "noisy": lambda: bptt.nn.CTRNN(3, 4, alpha=0.3, sigma=0.1),
    "headed": lambda: Headed(bptt.nn.GRU(3, 4)),
}


def data(resets):
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[3, 0] = starts[7, 1] = starts[5, 1] = True
    starts[8] = True
    return bptt.Chunk(torch.randn(T, B, 3), torch.randn(T, B, 4), starts if resets else None)


def gradient(model, chunk, strategy, **options):
    model.zero_grad()
    torch.manual_seed(3)
    bptt.backward(model, LOSS, chunk, strategy=strategy, reduction="sum", **options)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def by_unit_and_by_masks(model, chunk, strategy, monkeypatch, **options):
    """The gradient both ways, each seen to have been taken."""
    taken = []
    absorb = ByUnit.absorb
    monkeypatch.setattr(ByUnit, "absorb", lambda self, *args: (taken.append(1), absorb(self, *args)))
    found = gradient(model, chunk, strategy, **options)
    assert taken
    taken.clear()
    monkeypatch.setattr(ByUnit, "of", lambda *args: None)
    masked = gradient(model, chunk, strategy, **options)
    assert not taken
    return found, masked


@pytest.mark.parametrize("k1", [1, 3])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_unit_by_unit_is_the_mask(name, resets, k1, monkeypatch, double):
    options = {"state_batch_dim": (1, None, None) if name == "noisy" else 1}
    found, want = by_unit_and_by_masks(LAYERS[name](), data(resets), bptt.SnAp(1, k1), monkeypatch, **options)
    assert (found - want).abs().max() < 1e-13 * want.abs().max()


@pytest.mark.parametrize("name", ["gru", "lstm", "rate"])
def test_unit_by_unit_on_the_kernels_of_float32(name, monkeypatch):
    model = bptt.nn.LSTM(3, 4) if name == "lstm" else LAYERS[name]()
    chunk = data(True)
    found = gradient(model, chunk, bptt.SnAp(1, 3))
    chunk = chunk._replace(inputs=chunk.inputs.double(), targets=chunk.targets.double())
    want = gradient(model.double(), chunk, bptt.SnAp(1, 3))
    assert (found - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("k1", [1, 4])
def test_of_an_lstm_the_block_of_each_unit_is_kept(k1, double):
    """h and c of a unit stay together: the recursion by full Jacobians, all but the blocks zeroed after every step."""
    H, layer = 3, bptt.nn.LSTM(2, 3)
    torchs = nn.LSTM(2, 3)
    torchs.load_state_dict(layer.state_dict())
    theta = list(torchs.parameters())
    xs, ys = torch.randn(6, 1, 2), torch.randn(6, 1, H)

    def step(x, s, steps=1):
        y, (h, c) = torchs(x.reshape(steps, 1, 2), (s[:H].reshape(1, 1, H), s[H:].reshape(1, 1, H)))
        return torch.cat([h.flatten(), c.flatten()]), y

    unit = torch.arange(2 * H) % H
    writes = torch.cat([(torch.arange(p.numel()) // (p.numel() // (4 * H))) % H for p in theta])
    mask = (unit[:, None] == writes).double()
    s, influence, total = torch.zeros(2 * H), torch.zeros(2 * H, len(writes)), 0
    for a in range(0, 6, k1):
        start, b = s.clone().requires_grad_(), min(a + k1, 6)
        loss = (step(xs[a:b], start, b - a)[1] - ys[a:b]).square().sum() / H
        c, *inside = torch.autograd.grad(loss, [start, *theta])
        total = total + torch.cat([g.flatten() for g in inside]) + c @ influence
        for t in range(a, b):
            d = torch.autograd.functional.jacobian(lambda v, t=t: step(xs[t], v)[0], s)
            end = step(xs[t], s)[0]
            rows = [torch.cat([g.flatten() for g in torch.autograd.grad(e, theta, retain_graph=True)]) for e in end]
            influence = mask * (d @ influence + torch.stack(rows))
            s = end.detach()
    found = gradient(layer, (xs, ys), bptt.SnAp(1, k1))
    assert (found - total).abs().max() < 1e-13 * total.abs().max()


def test_in_a_stack_the_masks_are_those_of_the_whole_state(monkeypatch, double):
    """Layer 1 writes layer 2 within the step, so that SnAp-1 keeps that, by the general way."""
    model, taken = bptt.nn.GRU(3, 4, num_layers=2), []
    monkeypatch.setattr(ByUnit, "absorb", lambda *args: taken.append(1))
    gradient(model, data(False), bptt.SnAp(1))
    assert not taken


@pytest.mark.parametrize("strategy", [bptt.RTRL(3), bptt.SnAp(1, 3)], ids=str)
@pytest.mark.parametrize("kind", [pytest.param("ddp", marks=pytest.mark.deep), "average"])
def test_two_ranks_are_one_with_all_rows(pair, kind, strategy):
    want, steps = ranks.alone(strategy, {})
    for got, same in pair(ranks.train, kind, strategy, {}):
        assert same == steps
        for a, b in zip(got, want, strict=True):
            numpy.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_parameters_in_pieces_are_refused(pair):
    for kind, message, *_ in pair(ranks.refused, "fsdp", bptt.RTRL(3), {}):
        assert kind == "ValueError"
        assert "use DDP" in message


def saved_and_loaded(layer, strategy, stop, **other):
    """A run that is left after some updates, and another one that loads what it saved."""
    chunk = data(True)
    updates = bptt.unroll(layer, LOSS, [chunk], strategy=strategy)
    for _ in range(stop):
        next(updates)
    state = copy.deepcopy(updates.state_dict())
    rows = other.pop("rows", B)
    again = bptt.unroll(
        other.pop("model", layer), LOSS, [bptt.Chunk(*(x[:, :rows] for x in chunk[:3]))], strategy=strategy, **other
    )
    again.load_state_dict(state)
    return state, again


@pytest.mark.parametrize("strategy", [bptt.RTRL(2), bptt.UORO(2), bptt.SnAp(2, 2), bptt.SnAp(1, 2)], ids=str)
def test_what_is_carried_is_saved_by_name_and_must_fit(strategy):
    state, again = saved_and_loaded(bptt.nn.GRU(3, 4), strategy, 2)
    names = set().union(*(part for part in state["influence"].values() if isinstance(part, dict)))
    assert names == {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
    assert next(again).t0 == 4
    _, again = saved_and_loaded(bptt.nn.GRU(3, 4), strategy, 2, model=bptt.nn.GRU(3, 4, bias=False))
    refused(lambda: next(again), "bias_", "has none", "params=")
    _, again = saved_and_loaded(bptt.nn.GRU(3, 4), strategy, 2, rows=1)
    refused(lambda: next(again), "batch rows")


@pytest.mark.parametrize("strategy", [bptt.RTRL(2), bptt.SnAp(2, 2), bptt.SnAp(1, 2)], ids=str)
def test_what_is_carried_moves_with_its_rows(strategy, double):
    """Saved with four rows, gone on with by two and two: the same gradient; and joined again, the same state."""
    model, xs, ys = bptt.nn.GRU(3, 4), torch.randn(T, 4, 3), torch.randn(T, 4, 4)

    def run(rows):
        return bptt.unroll(model, LOSS, [(xs[:, rows], ys[:, rows])], strategy=strategy, reduction="sum")

    def rest(updates):
        model.zero_grad()
        for _ in updates:
            pass
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = run(slice(None))
    next(whole), next(whole)
    saved, want, found, parts = whole.state_dict(), rest(whole), 0.0, []
    for rows in (slice(0, 2), slice(2, 4)):
        part = run(rows)
        parts.append(bptt.distributed.narrow_state(saved, rows))
        part.load_state_dict(parts[-1])
        found += rest(part) / 2  # losses are means over the rows
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    again = _joined([part["influence"] for part in parts])
    assert again.keys() == saved["influence"].keys()
    for name, part in saved["influence"].items():
        torch.testing.assert_close(again[name], part, rtol=0, atol=0)


def test_what_uoro_carries_is_not_divided():
    updates = bptt.unroll(nn.GRU(3, 4), LOSS, [data(False)[:2]], strategy=bptt.UORO(2))
    next(updates)
    with pytest.raises(ValueError, match=r"UORO .* neither joined nor divided: continue with as many ranks as before"):
        bptt.distributed.narrow_state(updates.state_dict(), slice(0, 1))


def test_a_parameter_without_a_name_is_not_saved():
    hidden = torch.randn(3, 3, requires_grad=True)

    class Hidden(nn.Module):
        def forward(self, x, state):
            h = torch.tanh(x + state @ hidden)
            return h, h

    updates = bptt.unroll(bptt.scan(Hidden()), LOSS, [tuple(torch.randn(2, 4, 2, 3))], torch.zeros(2, 3),
                          strategy=bptt.RTRL(2), state_batch_dim=0)  # fmt: skip
    next(updates)
    refused(updates.state_dict, "(3, 3)", "params=")


@pytest.mark.parametrize("strategy", [bptt.RTRL(2), bptt.UORO(2), bptt.SnAp(2, 2), bptt.SnAp(1, 2)], ids=str)
def test_a_budget_holds_what_is_carried(strategy):
    model, chunk = bptt.nn.GRU(3, 8), (torch.randn(9, 2, 3), torch.randn(9, 2, 8))
    with pytest.raises(bptt.BudgetError, match="influence") as info:
        bptt.backward(model, LOSS, chunk, strategy=strategy, memory="1KiB")
    least = info.value.least
    update = bptt.backward(model, LOSS, chunk, strategy=strategy, memory=least)
    numbers = sum(p.numel() for p in model.parameters())
    rows = {"RTRL": 2 * 8, "UORO": 1, "SnAp": 2 * 8 if strategy.carries.order == 2 else 2}[type(strategy).__name__]
    assert 4 * rows * numbers < update.memory_bytes <= least
    with pytest.raises(bptt.BudgetError):
        bptt.backward(model, LOSS, chunk, strategy=strategy, memory=least - 1)


CARRYING = [bptt.RTRL(), bptt.UORO(), bptt.SnAp()]


@pytest.mark.parametrize("strategy", CARRYING, ids=str)
def test_what_cannot_be_carried_is_refused(strategy):
    layer, chunk = nn.GRU(3, 4), (torch.randn(5, 2, 3), torch.randn(5, 2, 4))
    name = type(strategy).__name__

    def backward(*args, **keywords):
        return lambda: bptt.backward(*args, strategy=strategy, **keywords)

    refused(backward(layer, LOSS, chunk, clip_cotangent=1.0), "clip_cotangent", name)
    refused(backward(lambda x, s: layer(x, s), LOSS, chunk, torch.zeros(1, 2, 4)), "plain function", "params=")
    refused(backward(layer, LOSS, chunk, params=[layer.weight_ih_l0 * 2]), "leaves")
    refused(backward(layer, LOSS, chunk, nn.Linear(2, 4)(torch.ones(1, 2, 2))), "state carries a graph", "FullBPTT")
    inputs = chunk[0].clone().requires_grad_()
    refused(backward(layer, LOSS, (inputs, chunk[1])), "inputs", "detach")
    refused(backward(layer, LOSS, (inputs * 2, chunk[1])), "inputs", "detach")
    counter = bptt.scan(lambda x, n: (x, n + 1))
    refused(backward(counter, LOSS, chunk, torch.tensor(0), params=[layer.weight_ih_l0]), "no floating leaf", "carry")


@pytest.mark.parametrize("strategy", CARRYING, ids=str)
def test_parameters_that_are_exchanged_between_updates_are_refused(strategy):
    for change in (
        lambda layer: setattr(layer, "weight_hh_l0", nn.Parameter(layer.weight_hh_l0.detach().clone())),
        lambda layer: layer.weight_hh_l0.requires_grad_(False),
    ):
        layer = nn.GRU(3, 4)
        updates = bptt.unroll(layer, LOSS, [(torch.randn(5, 2, 3), torch.randn(5, 2, 4))], strategy=strategy)
        next(updates)
        change(layer)
        refused(lambda updates=updates: next(updates), "replaced, frozen or unfrozen", "in place")


class Normed(nn.Module):
    """A step whose rows are not independent."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x, state):
        h = torch.tanh(self.norm(self.layer(state) + x))
        return h, h


@pytest.mark.parametrize("strategy", [bptt.RTRL(), bptt.SnAp()], ids=str)
def test_rows_that_depend_on_each_other_are_refused(strategy):
    chunk = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    refused(
        first(bptt.scan(Normed()), LOSS, [chunk], torch.randn(3, 4), strategy=strategy, state_batch_dim=0),
        "another row",
    )


class Varying(nn.GRU):
    """Draws a factor once a call."""

    def forward(self, x, state):
        return super().forward(x * torch.rand(()), state)


def test_snap_of_windows_that_draw_numbers_is_refused():
    layer = Varying(3, 4)
    chunk = torch.randn(6, 2, 3), torch.randn(6, 2, 4)
    refused(first(layer, LOSS, [chunk], strategy=bptt.SnAp(1, 3)), "draws random numbers", "k1=1")
    bptt.backward(layer, LOSS, chunk, strategy=bptt.SnAp(1))


def test_rtrl_sees_the_noise_that_the_window_saw(double):
    """Dropout between two layers: the same noise, window by window, as in a pass that backward takes whole."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.RNNCell(3, 4)

        def forward(self, x, state):
            h = torch.nn.functional.dropout(self.layer(x, state), 0.5)
            return h, h

    model, chunk = bptt.scan(Noisy()), (torch.randn(6, 1, 3), torch.randn(6, 1, 4))
    options = {"state": torch.zeros(1, 4), "state_batch_dim": 0}
    want = gradient(model, chunk, bptt.FullBPTT(), **options)
    for k1 in (1, 2, 4):
        found = gradient(model, chunk, bptt.RTRL(k1), **options)
        assert (found - want).abs().max() < 1e-12 * want.abs().max()


def test_padding_that_is_not_finite_stays_where_it_is(double):
    """Rows that end in NaN, as a mask allows: the gradient of the others is what it was."""
    layer, chunk = nn.GRU(3, 4), data(False)
    mask = torch.ones(T, B, dtype=torch.bool)
    mask[6:, 1] = False
    spoiled = chunk.inputs.clone()
    spoiled[6:, 1] = torch.nan
    want = gradient(layer, bptt.Chunk(chunk.inputs, chunk.targets, None, mask), bptt.FullBPTT())
    for k1 in (1, 4):
        found = gradient(layer, bptt.Chunk(spoiled, chunk.targets, None, mask), bptt.RTRL(k1))
        assert (found - want).abs().max() < 1e-12 * want.abs().max()
        for strategy in (bptt.UORO(k1), bptt.SnAp(1, k1)):
            assert gradient(layer, bptt.Chunk(spoiled, chunk.targets, None, mask), strategy).isfinite().all()


def test_plan_counts_what_is_carried():
    """Bytes as a run reports them, and the kind of gradient."""
    model, chunk = bptt.nn.GRU(3, 8), (torch.randn(12, 2, 3), torch.randn(12, 2, 8))
    wanted = [bptt.RTRL(2), bptt.UORO(2), bptt.SnAp(2, 2), bptt.SnAp(1, 2), bptt.TruncatedBPTT(2)]
    rows = bptt.plan(model, LOSS, chunk, strategies=wanted).rows
    assert [row.gradient for row in rows] == ["exact", "unbiased", "biased", "biased", "biased"]
    assert [row.reach for row in rows[:2]] == [6.5, 6.5]
    for row in rows:
        ran = max(update.memory_bytes for update in bptt.unroll(model, LOSS, [chunk], strategy=row.strategy))
        assert row.memory_bytes == pytest.approx(ran, rel=0.02)
    refused(
        lambda: bptt.plan(bptt.scan(lambda x, s: (x * s, s)), LOSS, chunk, torch.ones(2, 1), strategies=[bptt.RTRL()]),
        "plain function",
    )
