"""gradcheck and gradgradcheck in float64; create_graph in float32; what the engine of autograd may ask for."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
from support.layers import (
    CELLS,
    F64,
    KERNELS,
    RUNS,
    StepByStep,
    assert_equal,
    draw_keywords,
    gradients,
    kernel,
    pair,
    state_of,
    tensors,
    torchs_own_operators,
    weighted,
)
from support.oracle import leaves

OPTIONS = {
    "plain": {},
    "both": {"bidirectional": True, "num_layers": 2},
    "no-bias": {"bias": False},
    "batch-first": {"batch_first": True},
}


def function(layer, x, hx, packed=None, **keywords):
    """(call, leaves): the outputs and states as a function of inputs, states and weights."""
    names, weights = zip(*((n, p.detach().clone().requires_grad_()) for n, p in layer.named_parameters()), strict=True)
    given = [x.detach().requires_grad_(), *(s.detach().requires_grad_() for s in leaves(hx))]

    def call(x, *rest):
        state = rest[: len(given) - 1]
        x = x if packed is None else PackedSequence(x, *packed[1:])
        state = state if layer.mode == "LSTM" else state[0]
        values = dict(zip(names, rest[len(given) - 1 :], strict=True))
        return tuple(tensors(torch.func.functional_call(layer, values, (x, state), keywords)))

    return call, [*given, *weights]


@pytest.mark.deep
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("cell", [*CELLS, "relu", "identity"])
def test_gradcheck(cell, option):
    more = dict(OPTIONS[option])
    if cell in ("relu", "identity"):
        cell, more["nonlinearity"] = "RNN", cell
    layer = getattr(bptt.nn, cell)(2, 3, dtype=F64, **more)
    hx = state_of(cell, 4 if option == "both" else 1, 2, 3, dtype=F64)
    with kernel("eager"):
        call, given = function(layer, torch.randn(2, 2, 2, dtype=F64), hx)
        assert any("Layer" in type(n).__name__ for n in nodes(call(*given)))
        assert torch.autograd.gradcheck(call, given, fast_mode=len(given) > 8)
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck_packed(cell):
    layer = getattr(bptt.nn, cell)(2, 3, bidirectional=True, dtype=F64)
    packed = pack_padded_sequence(torch.randn(3, 3, 2, dtype=F64), torch.tensor([1, 3, 2]), enforce_sorted=False)
    call, given = function(layer, packed.data, state_of(cell, 2, 3, 3, dtype=F64), packed)
    with kernel("eager"):
        assert torch.autograd.gradcheck(call, given, fast_mode=len(given) > 8)
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck_with_resets(cell):
    layer = getattr(bptt.nn, cell)(2, 3, 2, dtype=F64)
    start = torch.tensor([[False, True], [True, False], [False, False]])
    hx = state_of(cell, 2, 2, 3, dtype=F64)
    call, given = function(layer, torch.randn(3, 2, 2, dtype=F64), hx, is_start=start, cotangent_weight=torch.ones(3))
    with kernel("eager"):
        assert torch.autograd.gradcheck(call, given, fast_mode=len(given) > 8)
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


def nodes(values) -> list:
    """All nodes of the graph behind `values`."""
    seen, waiting = [], [v.grad_fn for v in values]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.append(node)
            waiting.extend(n for n, _ in node.next_functions)
    return seen


def second_order(layer, x, hx, **keywords):
    """Gradients of the squared norm of the gradient, by everything, cotangents included."""
    x = x.detach().requires_grad_()
    hx = tuple(s.detach().requires_grad_() for s in leaves(hx))
    values = tensors(layer(x, hx if len(hx) == 2 else hx[0], **keywords))
    cotangents = [torch.cos(torch.arange(v.numel()).to(v)).view_as(v).requires_grad_() for v in values]
    wanted = [x, *hx, *layer.parameters()]
    first = torch.autograd.grad(values, wanted, cotangents, create_graph=True)
    penalty = sum(g.square().sum() for g in first)
    return [*(g.detach() for g in first), *torch.autograd.grad(penalty, [*wanted, *cotangents])]


@pytest.mark.parametrize(("name", "dtype"), RUNS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_create_graph(cell, option, dtype, name):
    theirs, ours = pair(cell, 3, 5, dtype=dtype, **OPTIONS[option])
    x, hx = torch.randn(6, 6, 3, dtype=dtype), state_of(cell, 4 if option == "both" else 1, 6, 5, dtype=dtype)
    with torchs_own_operators():
        expected = second_order(theirs, x, hx)
    with kernel(name):
        assert_equal(second_order(ours, x, hx), expected, 1e-12 if dtype == F64 else 1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_create_graph_with_keywords(cell):
    theirs, ours = pair(cell, 3, 5, 2, dtype=F64)
    start, weight = draw_keywords(6, 4, 1)
    x, hx = torch.randn(6, 4, 3, dtype=F64), state_of(cell, 2, 4, 5, dtype=F64)
    keywords = {"is_start": start, "cotangent_weight": weight}
    # A weight makes the first gradient no derivative, and the second one of what was computed: both go by the gate.
    with kernel("eager"), torchs_own_operators():
        expected = gradients(StepByStep(theirs), x, hx, **keywords)
        x = x.requires_grad_()
        values = tensors(ours(x, hx, **keywords))
        first = torch.autograd.grad(weighted(values), [x, *ours.parameters()], create_graph=True)
        assert all(g.requires_grad for g in first)
        states = len(leaves(hx))
        assert_equal([g.detach() for g in first], [expected[len(values)], *expected[len(values) + 1 + states :]], 1e-12)
        resets = second_order(ours, x, hx, is_start=start)
        assert_equal(resets, second_order(StepByStep(theirs), x, hx, is_start=start), 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_a_parameter_given_twice(cell):
    """Tied weights in one node: each place has its own gradient, and the sum is counted once."""
    size = {"RNN": 1, "GRU": 3, "LSTM": 4}[cell]
    theirs, ours = pair(cell, 5, 5)
    for layer in (theirs, ours):
        layer.weight_hh_l0, layer.bias_hh_l0 = layer.weight_ih_l0, layer.bias_ih_l0
    ours.load_state_dict(theirs.state_dict())
    assert [tuple(p.shape) for p in ours.parameters()] == [(5 * size, 5), (5 * size,)]
    x, hx = torch.randn(6, 4, 5), state_of(cell, 1, 4, 5)
    assert_equal(gradients(ours, x, hx), gradients(theirs, x, hx))
    with torchs_own_operators():
        assert_equal(second_order(ours, x, hx), second_order(theirs, x, hx), 1e-5)
        ours.double(), theirs.double()
        same = torch.randn(1, 4, 5, dtype=F64, requires_grad=True)
        hx = (same, same) if cell == "LSTM" else same
        x = same.expand(6, 4, 5)
        results = []
        for layer in (theirs, ours):
            (first,) = torch.autograd.grad(weighted(tensors(layer(x, hx))), same, create_graph=True)
            results.append([first.detach(), *torch.autograd.grad(first.square().sum(), [same, *layer.parameters()])])
    assert_equal(results[1], results[0], 1e-12)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_any_subset_of_results_and_of_leaves(cell, name):
    """Cotangents of the outputs alone, of a state alone, of none; gradients by one leaf at a time."""
    theirs, ours = pair(cell, 3, 5)
    x, hx = torch.randn(6, 4, 3), state_of(cell, 1, 4, 5)
    with kernel(name):
        for create_graph in (False, True):
            for i in range(3 if cell == "LSTM" else 2):
                found = []
                for layer in (theirs, ours):
                    with torchs_own_operators():
                        leaf = x.clone().requires_grad_()
                        value = tensors(layer(leaf, hx))[i]
                        wanted = [leaf, *layer.parameters()]
                        grads = torch.autograd.grad(weighted([value]), wanted, create_graph=create_graph)
                        found.append([g.detach() for g in grads])
                assert_equal(found[1], found[0], 4e-6)
        for p in [None, *ours.parameters()]:
            for q in ours.parameters():
                q.requires_grad_(q is p)
            leaf = x.clone().requires_grad_(p is None)
            values = tensors(ours(leaf, hx))
            (alone,) = torch.autograd.grad(weighted(values), [leaf if p is None else p])
            for q in ours.parameters():
                q.requires_grad_(True)
            leaf = x.clone().requires_grad_()
            (among,) = torch.autograd.grad(weighted(tensors(ours(leaf, hx))), [leaf if p is None else p])
            assert torch.equal(alone, among)


class Cut(torch.autograd.Function):
    """The identity without a gradient: the node before it is asked with nothing."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, c):
        return None


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_no_cotangent_at_all(cell, create_graph):
    _, ours = pair(cell, 3, 5)
    y, _ = ours(torch.randn(6, 4, 3))
    grads = torch.autograd.grad(
        Cut.apply(y).sum(), list(ours.parameters()), create_graph=create_graph, allow_unused=True
    )
    assert all(g is None or not g.any() for g in grads)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_strided_weights_and_cotangents(cell, name):
    theirs, ours = pair(cell, 3, 5)
    x, hx = torch.randn(6, 4, 3), state_of(cell, 1, 4, 5)

    def strided(layer):
        values = {n: p.detach().repeat_interleave(2, -1)[..., ::2] for n, p in layer.named_parameters()}
        leaf = x.clone().requires_grad_()
        y, last = torch.func.functional_call(layer, values, (leaf, hx))
        c = torch.arange(y.numel() * 2.0).cos().view(4, 6, 10).transpose(0, 1)[..., ::2]
        ends = [torch.arange(s.numel() * 1.0).sin().view(1, 5, 4).transpose(1, 2) for s in leaves(last)]
        return [y.detach(), *torch.autograd.grad([y, *leaves(last)], leaf, [c, *ends])]

    with kernel(name), torchs_own_operators():
        assert_equal(strided(ours), strided(theirs))


def test_the_reference_is_the_layer_where_no_keyword_is_given():
    layer = nn.GRU(3, 5, 2, dtype=F64)
    x, hx = torch.randn(6, 4, 3, dtype=F64), torch.randn(2, 4, 5, dtype=F64)
    assert_equal(gradients(StepByStep(layer), x, hx), gradients(layer, x, hx), 1e-12)
