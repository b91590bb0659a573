"""Outputs that are changed in place, overwritten or freed before the backward pass: torch.nn.GRU's gradient."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bptt
from bptt.nn.kernels.native import FEW
from support.layers import CELLS, RUNS, StepByStep, assert_equal, draw_keywords, kernel, pair, torchs_own_operators

T, B, SIZE = 9, 3, 4
CHANGES = {
    "relu_": torch.relu_,
    "mul_": lambda y: y.mul_(2),
    "a step": lambda y: y[3].zero_(),
    "some units": lambda y: y[..., :2].zero_(),
    "twice": lambda y: y.mul_(2).add_(1),
    "without a graph": torch.no_grad()(lambda y: y.mul_(2)),
    "detached": lambda y: y.detach().mul_(2),
    "as numpy's out": lambda y: torch.add(y.detach(), 1, out=y.detach()),
    "other memory": torch.no_grad()(lambda y: y.set_(torch.zeros_like(y))),
}
runs = pytest.mark.parametrize(("name", "dtype"), RUNS, ids=str)


def found(layer, x, change, **keywords):
    """The gradients of a loss on the changed outputs, with respect to inputs and parameters."""
    leaf = x.data.clone().requires_grad_()
    y, _ = layer(x._replace(data=leaf) if isinstance(x, PackedSequence) else leaf, **keywords)
    y = y.data if isinstance(y, PackedSequence) else y
    change(y)
    return list(torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()]))


def expected(layer, x, change, **keywords):
    """The same of torch.nn's layer, whose outputs are copied before: its LSTM forbids changes."""

    class Copied(nn.Module):
        def forward(self, x, **more):
            y, last = layer(x, **more)
            return (y._replace(data=y.data.clone()) if isinstance(y, PackedSequence) else y.clone()), last

    copied = Copied()
    copied.layer = layer
    with torchs_own_operators():
        return found(copied, x, change, **keywords)


@pytest.mark.parametrize("change", CHANGES)
@runs
@pytest.mark.parametrize("cell", CELLS)
def test_changes_in_place(cell, dtype, name, change):
    """In a small buffer, in a call of few steps and rows, and in a buffer that is used again."""
    for steps, rows, units in ((T, B, 5), (FEW, B, 5), (T, 128, 64)):
        theirs, ours = pair(cell, SIZE, units, dtype=dtype)
        x = torch.randn(steps, rows, SIZE, dtype=dtype)
        with kernel(name):
            got = found(ours, x, CHANGES[change])
        assert_equal(got, expected(theirs, x, CHANGES[change]))


OPTIONS = [{"bidirectional": True}, {"num_layers": 2, "batch_first": True}, {"bias": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_any_options(cell, options):
    theirs, ours = pair(cell, SIZE, 5, **options)
    x = torch.randn(T, 6, SIZE)  # 6 steps at least: shorter ones are torch.nn's own
    packed = pack_sequence([torch.randn(n, SIZE) for n in (9, 6, 6, 2)])
    for change in (CHANGES["relu_"], CHANGES["a step"], CHANGES["without a graph"]):
        assert_equal(found(ours, x, change), expected(theirs, x, change))
        assert_equal(found(ours, x[:, 0], change), expected(theirs, x[:, 0], change))
        assert_equal(found(ours, packed, change), expected(theirs, packed, change))


@runs
@pytest.mark.parametrize("cell", CELLS)
def test_with_keywords(cell, dtype, name):
    theirs, ours = pair(cell, SIZE, 5, dtype=dtype)
    x = torch.randn(T, B, SIZE, dtype=dtype)
    start, weight = draw_keywords(T, B, 0)
    keywords = {"is_start": start, "cotangent_weight": weight}
    with kernel(name):
        got = found(ours, x, torch.relu_, **keywords)
    assert_equal(got, found(StepByStep(theirs), x, torch.relu_, **keywords))
    ids, embedding = torch.randint(4, (T, B)), torch.randn(4, SIZE, dtype=dtype)
    with kernel(name):
        y, _ = ours(ids, embedding=embedding)
        y.relu_()
        got = list(torch.autograd.grad(y.square().sum(), list(ours.parameters())))
    assert_equal(got, expected(theirs, embedding[ids], torch.relu_)[1:])


@runs
@pytest.mark.parametrize("cell", CELLS)
def test_freed_before_the_backward_pass(cell, dtype, name):
    """As programs do that shard a model: no read of memory that is gone."""
    theirs, ours = pair(cell, SIZE, 5, dtype=dtype)
    x = torch.randn(T, B, SIZE, dtype=dtype)
    c = torch.randn(T, B, 5, dtype=dtype)
    with kernel(name):
        y, _ = ours(x)
        y.untyped_storage().resize_(0)
        got = list(torch.autograd.grad(y, list(ours.parameters()), c))
    assert_equal(got, list(torch.autograd.grad(theirs(x)[0], list(theirs.parameters()), c)))


@pytest.mark.parametrize("steps", [T, FEW])
@pytest.mark.parametrize("cell", CELLS)
def test_more_than_one_pass_and_a_checkpoint(cell, steps):
    if cell == "LSTM" and bptt.nn.kernels.chosen is None:
        pytest.skip("without kernels an LSTM is torch.nn's own, whose outputs may not be changed")
    theirs, ours = pair(cell, SIZE, 5)
    x = torch.randn(steps, B, SIZE)

    def relu(layer):
        return lambda x: torch.relu_(layer(x)[0]).square()

    wanted = list(theirs.parameters())
    true = list(torch.autograd.grad(theirs(x)[0].relu().square().sum(), wanted))
    y = relu(ours)(x).sum()
    for retain in (True, False):
        assert_equal(list(torch.autograd.grad(y, list(ours.parameters()), retain_graph=retain)), true)
    y = torch.utils.checkpoint.checkpoint(relu(ours), x, use_reentrant=False)
    assert_equal(list(torch.autograd.grad(y.sum(), list(ours.parameters()))), true)
    (first,) = torch.autograd.grad(relu(ours)(x).sum(), ours.weight_hh_l0, create_graph=True)
    assert_equal([first.detach()], [true[1]])


@pytest.mark.parametrize("keyword", ["is_start", "cotangent_weight"])
def test_keywords_that_are_changed_are_refused(keyword):
    start, weight = draw_keywords(T, B, 0)
    given = {"is_start": start, "cotangent_weight": weight}[keyword]
    y, _ = bptt.nn.GRU(SIZE, 5)(torch.randn(T, B, SIZE), **{keyword: given})
    given.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
