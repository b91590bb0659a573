"""`diagnose` and what else only looks, on models whose tables are sparse or bounded, or whose state no loss sees."""

import pytest
import torch
from torch import nn

import bptt
from bptt._rows import Rows

F64 = torch.float64
mse = bptt.per_step(nn.MSELoss())
ZEROS, ONES = torch.zeros(2, 3, dtype=F64), torch.ones(2, 1, dtype=F64)


def data(T=30):
    torch.manual_seed(0)
    return torch.randn(T, 2, 3, dtype=F64) / 10, torch.randn(T, 2, 3, dtype=F64)


W = nn.Parameter(torch.eye(3, dtype=F64) * 0.7 + 0.1)


def alone(x, h):
    h = torch.tanh(h @ W + x)
    return h, h


def pair(x, s):
    y, h = alone(x, s[0])
    return y, (h, s[1] * 2)


def first(x, s):
    y, h = alone(x, s["h"])
    return y, {"a": s["a"] * 2, "h": h}


def fed(x, s):
    """What no loss sees may see what one does, and what no loss sees."""
    y, h = alone(x, s[0])
    return y, (h, (s[1][0] * 3 + h.sum(1, keepdim=True), s[1][1] + s[1][0].float()))


UNSEEN = {
    "a tuple": (pair, (ZEROS, ONES)),
    "first in a dict": (first, {"a": ONES, "h": ZEROS}),
    "a nest": (fed, (ZEROS, (ONES, ONES.float()))),
}


def same(found, true):
    for name in ("rows", "state_size", "memory_length", "regime"):
        assert getattr(found, name) == getattr(true, name), name
    assert found.gradient_norm == pytest.approx(true.gradient_norm, rel=1e-9)
    assert found.dropped == pytest.approx(true.dropped, rel=1e-9, abs=1e-12)
    for name in ("norms", "exponents", "growth_rates", "singular_values"):
        torch.testing.assert_close(getattr(found, name), getattr(true, name), equal_nan=True)


@pytest.mark.parametrize("name", UNSEEN)
def test_what_no_loss_sees_does_not_count(name):
    step, start = UNSEEN[name]
    true = bptt.diagnose(bptt.scan(alone), mse, data(), ZEROS, state_batch_dim=0, params=[W])
    assert true.regime == "vanishing"
    same(bptt.diagnose(bptt.scan(step), mse, data(), start, state_batch_dim=0, params=[W]), true)


def test_a_leaf_that_is_seen_steps_later_counts():
    """A delay line: the loss sees the last of three leaves, which holds what the first was two steps ago."""
    xs, ys = data()

    def delayed(x, s):
        a, b, c = s
        return c, (0.9 * a + 0.1 * c + x, b.flip(1) * 0.1 + a, b)

    def packed(x, s):
        y, after = delayed(x, s.split(3, 1))
        return y, torch.cat(after, 1)

    three = bptt.diagnose(bptt.scan(lambda x, s: delayed(x * W[0, 0], s)), mse, (xs, ys), (ZEROS,) * 3, params=[W])
    one = bptt.diagnose(
        bptt.scan(lambda x, s: packed(x * W[0, 0], s)), mse, (xs, ys), torch.cat((ZEROS,) * 3, 1), params=[W]
    )
    assert three.state_size == one.state_size == 18
    torch.testing.assert_close(three.norms, one.norms, equal_nan=True)


def test_a_state_that_no_loss_sees_is_refused():
    def step(x, h):
        return x * W[0], h * 2

    with pytest.raises(ValueError, match="no loss depends on the state"):
        bptt.diagnose(bptt.scan(step), mse, data(), ZEROS, params=[W])


def test_a_leaf_without_rows_ties_the_rows_together():
    rows = Rows((ZEROS, torch.zeros(())), (0, None))
    assert (rows.count, rows.size) == (1, 7)
    rows = Rows((ZEROS, torch.zeros(())), (0, None), seen={0})
    assert (rows.count, rows.size) == (2, 3)


class Net(nn.Module):
    def __init__(self, kind=nn.Embedding, tied=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer = kind(9, 4, dtype=F64, **options), nn.GRU(4, 4, dtype=F64)
        self.tied = tied

    def forward(self, ids, state):
        shape = ids.shape
        x = self.table(ids if isinstance(self.table, nn.Embedding) else ids.reshape(-1, 1)).reshape(*shape, 4)
        y, state = self.layer(x, state)
        return y @ self.table.weight.T if self.tied else y, state


def words(width, T=16):
    torch.manual_seed(1)
    return torch.randint(9, (T, 2)), torch.randn(T, 2, width, dtype=F64)


def looked(net):
    return bptt.diagnose(net, mse, words(9 if net.tied else 4), torch.zeros(1, 2, 4, dtype=F64), state_batch_dim=1)


def by_autograd(net):
    """The norm of the gradient of one call over all steps."""
    ids, targets = words(9 if net.tied else 4)
    (net(ids, torch.zeros(1, 2, 4, dtype=F64))[0] - targets).square().mean((1, 2)).sum().backward()
    return torch.cat([p.grad.to_dense().flatten() for p in net.parameters()]).norm().item()


@pytest.mark.parametrize("bound", [{}, {"max_norm": 1.0}])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_sparse_table_is_diagnosed_as_a_dense_one(kind, bound):
    dense, sparse = (looked(Net(kind, sparse=sparse, **bound)) for sparse in (False, True))
    same(sparse, dense)
    assert dense.gradient_norm == pytest.approx(by_autograd(Net(kind, **bound)), rel=1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_with_a_bound_is_left_as_it_was(tied):
    net = Net(tied=tied, max_norm=1.0)
    before = net.table.weight.detach().clone()
    found = looked(net)
    assert found.gradient_norm == pytest.approx(by_autograd(Net(tied=tied, max_norm=1.0)), rel=1e-9)
    assert net.table.max_norm == 1.0
    torch.testing.assert_close(net.table.weight.detach(), before, rtol=0, atol=0)


def test_compare_plan_and_probes_leave_a_bounded_table_as_it_was():
    net, (ids, targets), state = Net(max_norm=1.0), words(4), torch.zeros(1, 2, 4, dtype=F64)
    before = net.table.weight.detach().clone()
    bptt.compare(net, mse, (ids, targets), state, strategies=[bptt.TruncatedBPTT(4)])
    assert torch.equal(net.table.weight, before)
    bptt.plan(net, mse, (ids, targets), state, strategies=[bptt.TruncatedBPTT(4)])
    assert torch.equal(net.table.weight, before)
    ids = ids % 8
    ids[6:] = 8  # read by the probe, not by the first window
    strategy = bptt.AdaptiveTruncatedBPTT(0.5, k_min=1, k_max=2, window=3)
    update = next(bptt.unroll(net, mse, [(ids, targets)], state, strategy=strategy))
    assert update.decision is not None
    assert torch.equal(net.table.weight[8], before[8])
    assert not torch.equal(net.table.weight, before)  # the window's own rows are bounded, as in training
