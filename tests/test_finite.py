"""A gradient that isn't finite though the losses are: found at its update, named with its step, and taken back."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle

F64 = torch.float64
BUDGETS = [None, bptt.Checkpoints(2, 2), "64KiB"]


def identity(outputs, _):
    return outputs


def singular(at, steps=12):
    """h ← h / 2 + √(w x): at x = 0 the root is 0, and its derivative by w 0/0."""
    weight = nn.Parameter(torch.tensor(0.5, dtype=F64))

    def step(x, h):
        h = h / 2 + torch.sqrt(weight * x)
        return h, h

    xs = torch.rand(steps, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.1
    xs[at] = 0.0
    return weight, bptt.scan(step), (xs, None), torch.zeros((), dtype=F64)


@pytest.mark.parametrize("before", [None, 7.0], ids=["no gradient yet", "accumulating"])
@pytest.mark.parametrize("memory", BUDGETS, ids=str)
@pytest.mark.parametrize("strategy", [bptt.TruncatedBPTT(4), bptt.TruncatedBPTT(2, 5)], ids=str)
def test_named_at_its_update_and_taken_back(strategy, memory, before):
    weight, model, chunk, zero = singular(at=9)
    updates = bptt.unroll(model, identity, [chunk], zero, strategy=strategy, memory=memory)
    while (last := next(updates)).t1 < 8:  # windows that end before step 9 are no worse for it
        assert weight.grad.isfinite()
    weight.grad = None if before is None else torch.tensor(before, dtype=F64)
    with pytest.raises(bptt.NonFiniteGradientError, match="step 9") as info:
        next(updates)
    assert last.t1 == 8
    assert info.value.step == 9
    assert "\n" not in str(info.value)
    assert (weight.grad is None) if before is None else weight.grad.item() == before


@pytest.mark.parametrize("memory", BUDGETS, ids=str)
@pytest.mark.parametrize("strategy", [None, bptt.TruncatedBPTT(3, 7), bptt.ARTBP(bptt.ConstantLaw(4))], ids=str)
def test_backward_leaves_no_part_of_a_sum(strategy, memory):
    weight, model, chunk, zero = singular(at=9)
    weight.grad = grad = torch.tensor(3.0, dtype=F64)
    with pytest.raises(bptt.NonFiniteGradientError, match="step 9"):
        bptt.backward(model, identity, chunk, zero, strategy=strategy, memory=memory)
    assert weight.grad is grad
    assert grad.item() == 3.0


def test_a_bad_loss_under_a_budget_is_taken_back_too():
    model = nn.GRU(3, 4, dtype=F64)
    xs, ys = torch.randn(12, 2, 3, dtype=F64), torch.randn(12, 2, 4, dtype=F64)
    ys[2, 0, 0] = torch.nan
    with pytest.raises(bptt.NonFiniteLossError) as info:
        bptt.backward(model, bptt.per_step(nn.MSELoss()), (xs, ys), memory=bptt.Checkpoints(2, 2))
    assert info.value.step == 2
    assert [p.grad for p in model.parameters()] == [None] * 4


def test_a_product_that_overflows_on_the_way_back():
    """Finite losses, a cotangent that grows by 1e10 per step: past the range of float32 after four."""
    weight = nn.Parameter(torch.tensor(1e10))

    def step(x, h):
        h = weight * (h - h.detach()) + x * weight.detach().sign()
        return h, h

    with pytest.raises(bptt.NonFiniteGradientError) as info:
        bptt.backward(bptt.scan(step), identity, (torch.ones(8), None), torch.zeros((), requires_grad=True))
    assert info.value.step == 4  # c_4 = 1e30, and the vjp of step 4 makes 1e40 of it
    assert weight.grad is None


def test_finite_gradients_whose_sum_overflows_are_fine():
    weight = nn.Parameter(torch.zeros(4))

    def step(x, h):
        return (x * weight).sum(), h

    bptt.backward(bptt.scan(step), identity, (torch.full((1,), 3e38), None), torch.zeros(()))
    oracle.assert_close([weight.grad], [torch.full((4,), 3e38)], 1e-6)


def test_sparse_gradients():
    table = nn.Embedding(5, 1, sparse=True, dtype=F64)

    def step(ids, h):
        h = h / 2 + torch.sqrt(table(ids)[:, 0] * (ids > 0))
        return h, h

    nn.init.constant_(table.weight, 1.0)
    chunk, zero = (torch.tensor([[1], [2], [0], [3]]), None), torch.zeros(1, dtype=F64)
    with pytest.raises(bptt.NonFiniteGradientError) as info:
        bptt.backward(bptt.scan(step), identity, chunk, zero, params=[table.weight])
    assert info.value.step == 2
    assert table.weight.grad is None
    chunk = (torch.tensor([[1], [2], [4], [3]]), None)
    bptt.backward(bptt.scan(step), identity, chunk, zero, params=[table.weight])
    assert table.weight.grad.is_sparse


def test_the_scaler_looks_for_itself():
    weight, model, chunk, zero = singular(at=9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    start = weight.item()
    for _ in bptt.unroll(model, identity, [chunk], zero, strategy=bptt.FullBPTT(), scale=scaler.scale):
        scaler.step(optimizer)
        scaler.update()
    assert weight.item() == start  # the step was skipped
    assert scaler.get_scale() == 2.0
