"""Time and batch axes that a module turns: found in the first window; a module that turns them itself stays quiet."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.refusals import refused

F64 = torch.float64


class Net(nn.Module):
    """A layer and a head; `turn` makes it the other way round outside. own: it starts from zeros by itself."""

    def __init__(self, kind="GRU", batch_first=True, turn=False, own=False, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        make = getattr(bptt.nn if kind.startswith("bptt") else nn, kind.removeprefix("bptt."))
        self.layer = make(3, 4, batch_first=batch_first, dtype=F64)
        self.head, self.drop = nn.Linear(4, 2, dtype=F64), nn.Dropout(dropout)
        self.turn, self.own, self.calls = turn, own, []

    def forward(self, x, state):
        self.calls.append(x.shape)
        h, after = self.layer(x.transpose(0, 1) if self.turn else x, *([] if self.own else [state]))
        return self.head(self.drop(h.transpose(0, 1) if self.turn else h)), state if self.own else after


def zeros(kind, rows):
    h = torch.zeros(1, rows, 4, dtype=F64)
    return (h, h.clone()) if kind.endswith("LSTM") else h


def loss(outputs, targets):
    return (outputs - targets).square().mean(2)


ENTRIES = {
    "unroll": lambda m, c, s, **o: list(bptt.unroll(m, loss, [c], s, strategy=bptt.TruncatedBPTT(2, 3), **o)),
    "budget": lambda m, c, s, **o: bptt.backward(m, loss, c, s, memory=bptt.Checkpoints(2, 2), **o),
    "evaluate": lambda m, c, s, **o: bptt.evaluate(m, loss, [c], s, **o),
    "compare": lambda m, c, s, **o: bptt.compare(m, loss, c, s, strategies=[bptt.FullBPTT()], **o),
    "diagnose": lambda m, c, s, **o: bptt.diagnose(m, loss, c, s, **o),
    "plan": lambda m, c, s, **o: bptt.plan(m, loss, c, s, strategies=[bptt.FullBPTT()], **o),
}
KINDS = ["RNN", "GRU", "LSTM", "bptt.GRU", "bptt.LSTM"]


def data(B, T, batch_first):
    torch.manual_seed(1)
    x, y = torch.randn(B, T, 3, dtype=F64), torch.randn(B, T, 2, dtype=F64)
    return (x, y) if batch_first else (x.transpose(0, 1).contiguous(), y.transpose(0, 1).contiguous())


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "T"), [(4, 9), (5, 5), (9, 4), (1, 7)])
def test_time_dim_forgotten(entry, kind, B, T):
    refused(lambda: entry(Net(kind), data(B, T, True), zeros(kind, B)), "time_dim=1", "(B, T, ...)")
    refused(lambda: entry(Net(kind, False), data(B, T, False), zeros(kind, B), time_dim=1), "time_dim=0")


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "T"), [(4, 6), (3, 3), (1, 5), (3, 1)])
@pytest.mark.thin
def test_what_is_right_stays_quiet(entry, kind, B, T):
    for model, batch_first, time_dim in (
        (Net(kind), True, 1),
        (Net(kind, turn=True), False, 0),
        (Net(kind, False, turn=True), True, 1),
        (Net(kind, False), False, 0),
        (Net(kind, dropout=0.5), True, 1),
    ):
        entry(model, data(B, T, batch_first), zeros(kind, B), time_dim=time_dim)


def test_a_module_that_starts_by_itself():
    """No state says which axis is the batch: memory along it does."""
    state = torch.zeros(())
    refused(lambda: bptt.backward(Net(own=True), loss, data(4, 6, True), state), "time_dim=1")
    bptt.backward(Net(own=True), loss, data(4, 6, True), state, time_dim=1)
    bptt.backward(Net(own=True, turn=True), loss, data(4, 6, False), state)


def test_the_run_is_untouched():
    """Noise, attributes and gradients are those of a run without the question."""
    model, (x, y) = Net(dropout=0.5), data(4, 6, True)
    torch.manual_seed(3)
    bptt.backward(model, loss, (x, y), zeros("GRU", 4), time_dim=1, reduction="sum")
    got = oracle.gradients(model.parameters())
    assert model.calls == [x.shape]
    torch.manual_seed(3)
    loss(model(x, zeros("GRU", 4))[0], y).mean(0).sum().backward()
    oracle.assert_close(got, oracle.gradients(model.parameters()))
    turned = Net(turn=True)
    bptt.backward(turned, loss, data(4, 6, False), zeros("GRU", 4))
    assert len(turned.calls) == 1
