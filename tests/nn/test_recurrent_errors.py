"""What torch.nn's layers refuse is refused with the same exception and the same words."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bptt
from support.layers import CELLS, KERNELS, kernel, pair, tensors
from support.refusals import refused


def state(cell, *shape, **more):
    h = torch.zeros(*shape, **more)
    return (h, h.clone()) if cell == "LSTM" else h


def packed(*sizes, rows=2, dtype=torch.float32):
    return pack_sequence([torch.zeros(n, rows, dtype=dtype) for n in sizes])


CALLS = {
    "input size": lambda m, c: m(torch.zeros(8, 2, 4)),
    "input of 1 axis": lambda m, c: m(torch.zeros(3)),
    "input of 4 axes": lambda m, c: m(torch.zeros(1, 8, 2, 3)),
    "no steps": lambda m, c: m(torch.zeros(0, 2, 3)),
    "no steps, one sequence": lambda m, c: m(torch.zeros(0, 3)),
    "no rows": lambda m, c: m(torch.zeros(8, 0, 3)),
    "float64": lambda m, c: m(torch.zeros(8, 2, 3, dtype=torch.float64)),
    "float16": lambda m, c: m(torch.zeros(8, 2, 3, dtype=torch.float16)),
    "whole numbers": lambda m, c: m(torch.zeros(8, 2, 3, dtype=torch.int64)),
    "complex": lambda m, c: m(torch.zeros(8, 2, 3, dtype=torch.complex64)),
    "device": lambda m, c: m(torch.zeros(8, 2, 3, device="meta")),
    "sparse": lambda m, c: m(torch.zeros(8, 2, 3).to_sparse()),
    "no tensor": lambda m, c: m(None),
    "a list": lambda m, c: m([1.0]),
    "state of 2 axes": lambda m, c: m(torch.zeros(8, 2, 3), state(c, 2, 5)),
    "state of 3 axes": lambda m, c: m(torch.zeros(8, 3), state(c, 2, 1, 5)),
    "state's layers": lambda m, c: m(torch.zeros(8, 2, 3), state(c, 1, 2, 5)),
    "state's rows": lambda m, c: m(torch.zeros(8, 2, 3), state(c, 2, 3, 5)),
    "state's units": lambda m, c: m(torch.zeros(8, 2, 3), state(c, 2, 2, 4)),
    "state's dtype": lambda m, c: m(torch.zeros(8, 2, 3), state(c, 2, 2, 5, dtype=torch.float64)),
    "state's device": lambda m, c: m(torch.zeros(8, 2, 3), state(c, 2, 2, 5, device="meta")),
    "state of another cell": lambda m, c: m(torch.zeros(8, 2, 3), state("GRU" if c == "LSTM" else "LSTM", 2, 2, 5)),
    "one of two states": lambda m, c: m(torch.zeros(8, 2, 3), (torch.zeros(2, 2, 5),)),
    "three states": lambda m, c: m(torch.zeros(8, 2, 3), (torch.zeros(2, 2, 5),) * 3),
    "two unlike states": lambda m, c: m(torch.zeros(8, 2, 3), (torch.zeros(2, 2, 5), torch.zeros(2, 2, 4))),
    "a word for a state": lambda m, c: m(torch.zeros(8, 2, 3), "zeros"),
    "a number for a state": lambda m, c: m(torch.zeros(8, 2, 3), 3),
    "packed input size": lambda m, c: m(packed(8, 5, rows=4)),
    "packed float64": lambda m, c: m(packed(8, 5, rows=3, dtype=torch.float64)),
    "packed state's rows": lambda m, c: m(packed(8, 5, rows=3), state(c, 2, 3, 5)),
    "packed state's units": lambda m, c: m(packed(8, 5, rows=3), state(c, 2, 2, 4)),
    "packed rows missing": lambda m, c: m(PackedSequence(torch.zeros(3, 3), torch.tensor([2, 2]))),
}


def outcome(call):
    """The exception's type and words; the shapes of what comes back where none is raised."""
    try:
        return [tuple(v.shape) for v in tensors(call())]
    except Exception as error:
        return type(error), str(error).split("\n")[0]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_error(cell, call):
    theirs, ours = pair(cell, 3, 5, 2)
    assert outcome(lambda: CALLS[call](ours, cell)) == outcome(lambda: CALLS[call](theirs, cell))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("place", ["weight_ih_l0", "weight_hh_l1", "bias_ih_l1", "bias_hh_l0"])
@pytest.mark.parametrize("cell", ["RNN", "GRU"])  # torch.nn's LSTM doesn't look at the sizes of its weights
def test_weights_that_were_replaced(cell, place, name):
    """By another size, dtype or device: torch.nn's error, and no memory that is not ours."""
    for change in (
        lambda p: p[..., :-1].contiguous(),
        lambda p: torch.cat([p, p]),
        lambda p: p.double(),
        lambda p: p.to("meta"),
    ):
        found = []
        for layer in pair(cell, 3, 5, 2):
            broken = copy.deepcopy(layer)
            setattr(broken, place, nn.Parameter(change(getattr(broken, place).detach())))
            with kernel(name):
                found.append(outcome(lambda broken=broken: broken(torch.zeros(8, 2, 3))))
        assert found[0] == found[1]
        assert isinstance(found[0][0], type)


CONSTRUCTIONS = [
    ((0, 5), {}),
    ((3, 0), {}),
    ((3, 5, 0), {}),
    ((3.0, 5), {}),
    ((3, 5.0), {}),
    ((3,), {}),
    ((3, 5), {"dropout": 2}),
    ((3, 5), {"dropout": True}),
    ((3, 5), {"proj_size": -1}),
    ((3, 5), {"proj_size": 5}),
    ((3, 5), {"nonlinearity": "gelu"}),
    ((3, 5), {"units": 1}),
]


@pytest.mark.parametrize(("arguments", "keywords"), CONSTRUCTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_constructor(cell, arguments, keywords):
    def made(module):
        try:
            return repr(getattr(module, cell)(*arguments, **keywords))
        except Exception as error:
            return type(error), str(error)

    assert made(bptt.nn) == made(nn)


@pytest.mark.parametrize("cell", CELLS)
def test_one_layer_with_dropout_warns(cell):
    with pytest.warns(UserWarning, match="dropout option adds dropout"):
        getattr(bptt.nn, cell)(3, 5, dropout=0.5)


@pytest.mark.parametrize("cell", CELLS)
def test_changes_in_place_before_backward(cell):
    """A weight or the input changed in place after the forward pass: never a wrong gradient."""
    for change in (lambda m, x: m.weight_hh_l0.mul_(2), lambda m, x: m.weight_ih_l0.mul_(2), lambda m, x: x.mul_(2)):
        ours = getattr(bptt.nn, cell)(3, 64)
        for rows in (2, 32):  # small and large buffers
            x = torch.randn(40, rows, 3)
            y, _ = ours(x)
            with torch.no_grad():
                change(ours, x)
            refused_in_place(lambda y=y: y.sum().backward())


def refused_in_place(call):
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        call()


@pytest.mark.parametrize("cell", CELLS)
def test_results_may_be_changed_in_place(cell):
    """Where no backward pass comes, and the state always."""
    ours = getattr(bptt.nn, cell)(3, 64)
    x = torch.randn(40, 32, 3)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y, _ = ours(x)
            expected = y + 1
            assert torch.equal(y.add_(1), expected)
    y, last = ours(x)
    expected = torch.autograd.grad(y.sum(), ours.weight_hh_l0)[0]
    y, last = ours(x)
    (last[0] if cell == "LSTM" else last).add_(1)
    assert torch.equal(torch.autograd.grad(y.sum(), ours.weight_hh_l0)[0], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_no_steps_and_no_rows_with_keywords(cell):
    """The first an error, as without keywords; the second nothing to do."""
    ours = getattr(bptt.nn, cell)(3, 5, batch_first=True)
    for keywords in ("is_start",), ("cotangent_weight",), ("is_start", "cotangent_weight"):
        for shape in ((2, 0), (0, 0)):
            given = {keyword: torch.zeros(*shape) for keyword in keywords}
            refused(lambda shape=shape, given=given: ours(torch.zeros(*shape, 3), **given), "no steps", kind=ValueError)
        given = {keyword: torch.zeros(0) for keyword in keywords}
        refused(lambda given=given: ours(torch.zeros(0, 3), **given), "no steps", kind=ValueError)
        x = torch.zeros(0, 8, 3, requires_grad=True)
        for shape in ((8, 0), (8,)):
            y, last = ours(x, **{keyword: torch.zeros(*shape) for keyword in keywords})
            y.sum().backward()
            assert (y.shape, tensors((y, last))[1].shape) == ((0, 8, 5), (1, 0, 5))
            assert all(not p.grad.any() for p in ours.parameters())


def test_convert_refuses_what_is_no_module():
    refused(lambda: bptt.nn.convert("model"), "convert(model='model')", kind=TypeError)
