"""Burn-in against a loop by hand with an optimiser in between, and `advance` against calls of the model."""

import pytest
import torch
from torch import nn

import bptt

T, B = 29, 3
X, Y = torch.randn(2, T, B, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
STARTS = torch.zeros(T, B, dtype=torch.bool)
STARTS[5, 0] = STARTS[16, 1] = True
STARTS[9] = True
LOSS = bptt.per_step(nn.MSELoss())


def training():
    torch.manual_seed(1)
    model = nn.GRU(4, 4).double()
    return model, torch.optim.SGD(model.parameters(), 0.5)


def by_hand(k1, k2, burn_in, starts):
    """States are kept where the next window's burn-in will begin, and carried on with the parameters of then."""
    model, optimizer = training()

    def step(t, h):
        return model(X[t : t + 1], h if starts is None else torch.where(starts[t][None, :, None], 0.0, h))

    states = {0: torch.zeros(1, B, 4, dtype=torch.float64)}
    for a in range(0, T, k1):
        b, start = min(a + k1, T), max(0, a - (k2 - k1))
        h, outputs = states[max(0, start - burn_in)], []
        following = max(0, b - (k2 - k1) - burn_in)
        for t in range(max(0, start - burn_in), b):
            if t == following:
                states[t] = h.detach()
            with torch.set_grad_enabled(t >= start):
                y, h = step(t, h)
            outputs += [y] if t >= a else []
        states[b] = h.detach()
        optimizer.zero_grad()
        ((torch.cat(outputs) - Y[a:b]).square().mean((1, 2)).sum() / k1).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("starts", [None, STARTS], ids=["", "resets"])
@pytest.mark.parametrize(("k1", "k2", "burn_in"), [(3, 3, 2), (2, 5, 4), (4, 4, 10), (1, 1, 3), (3, 7, 40), (2, 2, 1)])
def test_as_a_loop_by_hand(k1, k2, burn_in, starts):
    wanted = by_hand(k1, k2, burn_in, starts)
    for memory in (None, bptt.Checkpoints(2, 2), "5KiB"):
        model, optimizer = training()
        chunks = [bptt.Chunk(X[a:b], Y[a:b], None if starts is None else starts[a:b]) for a, b in PIECES]
        strategy = bptt.TruncatedBPTT(k1, k2, burn_in=burn_in)
        for update in bptt.unroll(model, LOSS, chunks, strategy=strategy, memory=memory):
            optimizer.step()
            optimizer.zero_grad()
            assert update.start == max(0, update.t0 - (k2 - k1))
        found = torch.cat([p.detach().flatten() for p in model.parameters()])
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


PIECES = [(a, min(a + 7, T)) for a in range(0, T, 7)]


def test_without_a_burn_in_it_is_the_same_strategy():
    assert by_hand(3, 5, 0, None).equal(by_hand(3, 5, 0, None))
    assert bptt.TruncatedBPTT(3, 5, burn_in=0) == bptt.TruncatedBPTT(3, 5)
    assert repr(bptt.TruncatedBPTT(3)) == "TruncatedBPTT(k1=3, k2=None)"
    assert repr(bptt.TruncatedBPTT(3, burn_in=2)) == "TruncatedBPTT(k1=3, k2=None, burn_in=2)"


def test_windows_and_their_spec():
    strategy = bptt.strategies.parse("tbptt:2:4:3")
    assert strategy == bptt.TruncatedBPTT(2, 4, burn_in=3)
    assert strategy.spec == "tbptt:2:4:3"
    assert bptt.strategies.parse(bptt.TruncatedBPTT(5, burn_in=2).spec) == bptt.TruncatedBPTT(5, 5, burn_in=2)
    rows = [
        (w.start - w.burn_in, w.start, w.first, w.stop, w.keep) for w in strategy.windows(lambda t: min(t, 9), None)
    ]
    assert rows == [(0, 0, 0, 2, 0), (0, 0, 2, 4, 0), (0, 2, 4, 6, 1), (1, 4, 6, 8, 3), (3, 6, 8, 9, 4)]


def test_what_it_costs():
    model, _ = training()
    strategy = bptt.TruncatedBPTT(5, 10, burn_in=20)
    chunk = X.repeat(7, 1, 1)[:200], Y.repeat(7, 1, 1)[:200]
    steps = sum(update.forward_steps for update in bptt.unroll(model, LOSS, [chunk], strategy=strategy))
    assert steps == sum(w.stop - w.start + w.burn_in for w in strategy.windows(lambda t: min(t, 200), None))
    assert bptt.plan(model, LOSS, (X, Y), steps=200, strategies=[strategy]).best.forward_steps == steps


def test_batch_norm_sees_the_steps_of_a_burn_in_once_more():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.GRU(4, 4).double(), nn.BatchNorm1d(4).double()

        def forward(self, x, state):
            y, state = self.layer(x, state)
            return self.norm(y.flatten(0, 1)).unflatten(0, y.shape[:2]), state

    model = Normed()
    h0 = torch.zeros(1, B, 4, dtype=torch.float64)
    for _ in bptt.unroll(model, LOSS, [(X, Y)], h0, strategy=bptt.TruncatedBPTT(7, burn_in=3)):
        pass
    assert int(model.norm.num_batches_tracked) == 2 * 5 + 4  # windows are called in two parts, to keep a state inside


@pytest.mark.parametrize("value", [-1, 2.0, True, None])
def test_what_is_no_burn_in(value):
    with pytest.raises(ValueError, match=r"burn_in must be a whole number of steps, 0 or more"):
        bptt.TruncatedBPTT(3, burn_in=value)


def test_advance_is_the_model_without_a_graph():
    model, _ = training()
    h = bptt.advance(model, X[:20])
    h = bptt.advance(model, X[20:], h)
    assert not h.requires_grad
    torch.testing.assert_close(h, model(X)[1].detach(), rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        wanted = torch.zeros(1, B, 4, dtype=torch.float64)
        for t in range(T):
            wanted = model(X[t : t + 1], torch.where(STARTS[t][None, :, None], 0.0, wanted))[1]
    torch.testing.assert_close(bptt.advance(model, X, is_start=STARTS), wanted, rtol=1e-12, atol=1e-14)
    turned = nn.GRU(4, 4, batch_first=True).double()
    turned.load_state_dict(model.state_dict())
    torch.testing.assert_close(bptt.advance(turned, X.transpose(0, 1), time_dim=1), model(X)[1].detach())


def test_advance_says_what_is_wrong():
    model, _ = training()
    with pytest.raises(ValueError, match=r"state has shape \(1, 2, 4\), but these inputs need \(1, 3, 4\)"):
        bptt.advance(model, X, torch.zeros(1, 2, 4))
    with pytest.raises(TypeError, match=r"model=3|model must be a function"):
        bptt.advance(3, X)
