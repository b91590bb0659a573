"""Many cotangents at once: is_grads_batched, vectorised Jacobians, torch.func."""

import pytest
import torch
from torch.autograd import functional
from torch.nn.utils.rnn import pack_sequence

from support.layers import CELLS, F64, StepByStep, assert_equal, draw_keywords, pair, tensors

T, B, SIZE, H = 6, 2, 3, 4
OPTIONS = [{}, {"bidirectional": True}, {"num_layers": 2, "batch_first": True}, {"bias": False}]


def one_by_one(y, wanted, cotangents):
    """The gradients for each cotangent, stacked."""
    each = [torch.autograd.grad(y, wanted, c, retain_graph=True) for c in cotangents]
    return [torch.stack(column) for column in zip(*each, strict=True)]


def batched(y, wanted, cotangents):
    return list(torch.autograd.grad(y, wanted, cotangents, is_grads_batched=True, retain_graph=True))


def mapped(y, wanted, cotangents):
    return list(torch.func.vmap(lambda c: torch.autograd.grad(y, wanted, c, retain_graph=True))(cotangents))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("way", [batched, mapped])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_many_cotangents(cell, options, way):
    theirs, ours = pair(cell, SIZE, H, **options)
    x = torch.randn(T, B, SIZE)
    for given in (x, x[:, 0], pack_sequence([torch.randn(n, SIZE) for n in (6, 4, 4)])):
        y, true = (tensors(layer(given))[0] for layer in (ours, theirs))
        cotangents = torch.randn(3, *y.shape)
        expected = one_by_one(true, list(theirs.parameters()), cotangents)
        assert_equal(way(y, list(ours.parameters()), cotangents), expected, 5e-6)


@pytest.mark.parametrize("way", [batched, mapped])
@pytest.mark.parametrize("cell", CELLS)
def test_with_keywords(cell, way):
    """The outputs and the states, whose weights they cut, from a state that has a gradient; float64 and ids too."""
    theirs, ours = pair(cell, SIZE, H, dtype=F64)
    x = torch.randn(T, B, SIZE, dtype=F64)
    start, weight = draw_keywords(T, B, 1)
    y, last = tensors(ours(x, None, start, weight))[:2]
    true = StepByStep(theirs)(x, None, start, weight)
    cotangents = torch.randn(3, *y.shape, dtype=F64)
    wanted, of = list(ours.parameters()), list(theirs.parameters())
    assert_equal(way(y, wanted, cotangents), one_by_one(true[0], of, cotangents))
    assert_equal(way(last, wanted, cotangents[:, :1]), one_by_one(tensors(true)[1], of, cotangents[:, :1]))
    table = torch.randn(3, SIZE, dtype=F64, requires_grad=True)
    ids = torch.randint(3, (T, B))
    y, _ = ours(ids, embedding=table)
    assert_equal(way(y, [table], cotangents), one_by_one(theirs(table[ids])[0], [table], cotangents))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("cell", CELLS)
def test_jacobians(cell):
    theirs, ours = pair(cell, SIZE, H)
    x = torch.randn(T, B, SIZE)
    expected = functional.jacobian(lambda x: theirs(x)[0], x)
    assert_equal([functional.jacobian(lambda x: ours(x)[0], x, vectorize=True)], [expected])
    assert_equal([torch.func.jacrev(lambda x: ours(x)[0])(x).detach()], [expected])
    _, pull = torch.func.vjp(lambda x: ours(x)[0], x)
    c = torch.randn(T, B, H)
    assert_equal([pull(c)[0].detach()], [torch.tensordot(c, expected, 3)], 5e-6)
    if cell != "LSTM":  # oneDNN's has no forward mode
        assert_equal([torch.func.jacfwd(lambda x: ours(x)[0])(x).detach()], [expected], 5e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_batched_and_differentiated_again(cell):
    found = []
    for layer in pair(cell, SIZE, H, dtype=F64):
        y, c = (
            layer(torch.linspace(-1, 1, T * B * SIZE, dtype=F64).view(T, B, SIZE))[0],
            torch.ones(2, T, B, H, dtype=F64),
        )
        c[1] *= torch.linspace(0, 1, H, dtype=F64)
        wanted = list(layer.parameters())
        first = torch.autograd.grad(y, wanted, c, is_grads_batched=True, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    assert_equal(list(found[1]), list(found[0]), 1e-12)


@pytest.mark.parametrize("keyword", ["is_start", "cotangent_weight"])
def test_vmap_over_a_keyword_is_refused(keyword):
    _, ours = pair("GRU", SIZE, H)
    x = torch.randn(T, B, SIZE)
    with pytest.raises(TypeError, match=f"vmap over {keyword}= is impossible") as error:
        torch.func.vmap(lambda given: ours(x, **{keyword: given})[0])(torch.ones(3, T, B))
    assert "\n" not in str(error.value)
