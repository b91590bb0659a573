"""Inputs that are rows of an embedding: layer(ids, embedding=E) is layer(E[ids]), and only the cost differs."""

import pytest
import torch

import bptt
from bptt.nn import kernels
from support.layers import (
    CELLS,
    F64,
    KERNELS,
    RUNS,
    StepByStep,
    assert_equal,
    draw_keywords,
    kernel,
    pair,
    tensors,
    weighted,
)
from support.refusals import refused

V, T, B, WIDE, UNITS = 7, 9, 5, 3, 19


def drawn(cell, dtype=F64, **options):
    """(torch.nn's layer, ours), ids (T, B), an embedding."""
    torch.manual_seed(1)
    layers = pair(cell, WIDE, UNITS, dtype=dtype, **options)
    return *layers, torch.randint(V, (T, B)), torch.randn(V, WIDE, dtype=dtype, requires_grad=True)


def found(layer, result, embedding):
    """Outputs, state, gradients by the embedding and the weights."""
    values = tensors(result)
    wanted = [embedding, *layer.parameters()]
    return [*(v.detach() for v in values), *torch.autograd.grad(weighted(values), wanted)]


@pytest.mark.parametrize(("name", "dtype"), RUNS)
@pytest.mark.parametrize("cell", CELLS)
def test_with_both_keywords(cell, name, dtype):
    """Against the definition, a step a call, in float64."""
    for options in ({}, {"num_layers": 2}, {"bias": False}):
        theirs, ours, ids, embedding = drawn(cell, dtype, **options)
        start, weight = draw_keywords(T, B, 3)
        with kernel(name):
            got = found(ours, ours(ids, None, start, weight, embedding), embedding)
        exact, table = StepByStep(theirs.double()), embedding.detach().double().requires_grad_()
        assert_equal(got, found(exact, exact(table[ids], None, start, weight), table), 1e-12 if dtype == F64 else 1e-5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_products_are_taken_of_the_rows_of_what_is_shorter(cell, name, monkeypatch):
    """Of the embedding's where it has fewer than the input, and only in the first layer; else rows are looked up."""
    rows = []
    with kernel(name):
        chosen = kernels.implementation(torch.zeros(1))
        forward = chosen.forward
        monkeypatch.setattr(chosen, "forward", lambda q: (rows.append(q.given.x.flatten(0, -2).shape[0]), forward(q)))
        for size, expected in ((T * B - 1, [T * B - 1, T * B]), (T * B, [T * B, T * B])):
            layer = getattr(bptt.nn, cell)(WIDE, UNITS, 2)
            layer(torch.randint(size, (T, B)), embedding=torch.randn(size, WIDE))
            assert rows == expected
            rows.clear()


@pytest.mark.parametrize("cell", CELLS)
def test_ids_of_any_kind(cell):
    """int32, not contiguous, on any layout of the embedding: the same numbers."""
    _, ours, ids, embedding = drawn(cell, torch.float32)
    expected = found(ours, ours(ids, embedding=embedding), embedding)
    for same in (ids.int(), ids.t().contiguous().t(), ids.repeat_interleave(2, 1)[:, ::2]):
        assert_equal(found(ours, ours(same, embedding=embedding), embedding), expected, 0)
    turned = embedding.detach().t().contiguous().t().requires_grad_()
    assert_equal(found(ours, ours(ids, embedding=turned), turned), expected, 0)
    with torch.no_grad():
        exact = bptt.nn.kernels.chosen is not None  # else torch.nn's own forward runs, which rounds differently
        torch.testing.assert_close(ours(ids, embedding=embedding)[0], expected[0], rtol=0, atol=0 if exact else 1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_frequent_ids_are_no_long_sums(name):
    """65536 rows of two ids, cotangents of one sign: an error of a few roundings, not of thousands."""
    layer, table = bptt.nn.RNN(WIDE, 16, nonlinearity="identity"), (torch.randn(2, WIDE) + 1).requires_grad_()
    torch.nn.init.zeros_(layer.weight_hh_l0)
    ids = (torch.rand(8, 8192) < 0.3).long()
    with kernel(name):
        y, _ = layer(ids, embedding=table)
        cotangents = torch.rand(y.shape)
        got = torch.autograd.grad(y, [table, layer.weight_ih_l0, layer.bias_ih_l0], cotangents)
    c, exact = cotangents.double().flatten(0, 1), table.double()
    sums = torch.stack([c[ids.flatten() == i].sum(0) for i in (0, 1)])
    assert_equal(list(got), [sums @ layer.weight_ih_l0.double(), sums.T @ exact, sums.sum(0)], 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_double_backward(cell):
    _, ours, ids, embedding = drawn(cell)
    start, _ = draw_keywords(T, B, 3)

    def outputs(table, w):
        with kernel("eager"):
            return torch.func.functional_call(ours, {"weight_hh_l0": w}, (ids, None, start, None, table))[0]

    given = (embedding, ours.weight_hh_l0)
    assert torch.autograd.gradcheck(outputs, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, given, fast_mode=True)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_ids_that_are_no_row(cell, name):
    _, ours, ids, embedding = drawn(cell, torch.float32)
    for wrong in (-1, V, 2**40):
        ids[-1, -1] = wrong
        with kernel(name), pytest.raises(IndexError):
            ours(ids, embedding=embedding)


@pytest.mark.parametrize("cell", CELLS)
def test_ids_changed_before_backward(cell):
    """Never a gradient of other ids, as torch.nn.functional.embedding has it."""
    _, ours, ids, embedding = drawn(cell, torch.float32)
    y, _ = ours(ids, embedding=embedding)
    ids.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("cell", CELLS)
def test_refused(cell):
    layer, ids, table = getattr(bptt.nn, cell)(WIDE, UNITS), torch.zeros(T, B).long(), torch.zeros(V, WIDE)
    refused(lambda: layer(ids, embedding=torch.zeros(V, WIDE + 1)), cell, "embedding", "(7, 4)", "(V, 3)")
    refused(lambda: layer(ids, embedding=torch.zeros(0, WIDE)), cell, "embedding", "(0, 3)")
    refused(lambda: layer(ids, embedding=torch.nn.Embedding(V, WIDE)), cell, "Embedding(7, 3)", "weight")
    refused(lambda: layer(ids.float(), embedding=table), cell, "ids", "torch.float32")
    refused(lambda: layer(None, embedding=table), cell, "ids", "NoneType")
    refused(lambda: layer(ids, embedding=table, is_start=torch.zeros(T + 1)), cell, "is_start", "(10,)", "(9, 5)")
    h = torch.zeros(1, 2, 2)
    for refused_too in ((ids, table.double()), (ids[None], table), (ids, table, (h, h) if cell == "LSTM" else h)):
        refused_as_by_torch(cell, *refused_too)


def refused_as_by_torch(cell, ids, table, state=None):
    """The layer raises what torch.nn's raises for the rows that the ids stand for, in the same words."""
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        getattr(torch.nn, cell)(WIDE, UNITS)(torch.nn.functional.embedding(ids, table), state)
    with pytest.raises(theirs.type) as ours:
        getattr(bptt.nn, cell)(WIDE, UNITS)(ids, state, embedding=table)
    assert str(ours.value) == str(theirs.value)
