"""Huge, infinite and undefined numbers: what torch.nn's layers give, forward and backward."""

import pytest
import torch

from support.layers import CELLS, RUNS, StepByStep, kernel, pair

LAYERS = {cell: (cell, {}) for cell in CELLS} | {"RNN relu": ("RNN", {"nonlinearity": "relu"})}
PARAMETERS = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
T, B, SIZE, H = 7, 3, 2, 5
runs = pytest.mark.parametrize(("name", "dtype"), RUNS, ids=str)
layers = pytest.mark.parametrize("kind", LAYERS)


def results(layer, x, states, cell, **keywords):
    """Outputs, last states, and all gradients of a weighted sum of the outputs."""
    x = x.clone().requires_grad_()
    hx = None if states is None else tuple(s.clone().requires_grad_() for s in states[: 2 if cell == "LSTM" else 1])
    y, last = layer(x, hx if hx is None or cell == "LSTM" else hx[0], **keywords)
    last = last if cell == "LSTM" else (last,)
    weights = torch.linspace(-1, 1.5, y.numel(), dtype=y.dtype).view_as(y)
    wanted = [x, *(hx or ()), *layer.parameters()]
    return [y.detach(), *(s.detach() for s in last)], list(torch.autograd.grad((weights * y).sum(), wanted))


def assert_as(got, expected):
    """The outputs' numbers, NaN and infinities; of the gradients the finite numbers, and where there are others."""
    for a, e in zip(got[0], expected[0], strict=True):
        assert torch.equal(a.isnan(), e.isnan())
    for a, e in zip(got[0] + got[1], expected[0] + expected[1], strict=True):
        finite = e.isfinite()
        assert torch.equal(a.isfinite(), finite)
        scale = e[finite].abs().max().clamp_min(1e-3) if finite.any() else 1
        torch.testing.assert_close(a[finite] / scale, e[finite] / scale, rtol=1e-4, atol=2e-5)


def drawn(seed, dtype):
    torch.manual_seed(seed)
    return torch.randn(T, B, SIZE, dtype=dtype), [torch.randn(1, B, H, dtype=dtype) for _ in range(2)]


@runs
@layers
def test_huge_states_and_inputs(kind, dtype, name):
    """Gates that are saturated wholly: nothing of 1e-38 is left that the square of a state would make large."""
    cell, options = LAYERS[kind]
    for seed, (place, size) in enumerate(
        [("h", 1e18), ("h", -1e19), ("h", 1e20), ("c", 1e20), ("x", 1e20), ("x", 3e38), ("x", -3e38)]
    ):
        x, (h, c) = drawn(seed, dtype)
        at = {"x": x[3], "h": h[0], "c": c[0]}[place]
        at[1, 1] = size
        theirs, ours = pair(cell, SIZE, H, dtype=dtype, **options)
        with kernel(name):
            assert_as(results(ours, x, (h, c), cell), results(theirs, x, (h, c), cell))


@runs
@layers
def test_infinities_and_nan_show(kind, dtype, name):
    """In an input, a state or a parameter, with an initial state and without."""
    cell, options = LAYERS[kind]
    for seed, value in enumerate([float("inf"), -float("inf"), float("nan")]):
        for place in ["x", "h", "c", *PARAMETERS]:
            x, (h, c) = drawn(seed, dtype)
            theirs, ours = pair(cell, SIZE, H, dtype=dtype, **options)
            if place in PARAMETERS:
                for layer in (theirs, ours):
                    getattr(layer, place).data.flatten()[-1] = value  # the last gate of the last unit
            else:
                {"x": x[3], "h": h[0], "c": c[0]}[place][1, 1] = value
            with kernel(name):
                assert_as(results(ours, x, (h, c), cell), results(theirs, x, (h, c), cell))
                assert_as(results(ours, x, None, cell), results(theirs, x, None, cell))


@runs
@pytest.mark.parametrize("gate", range(4))
@layers
def test_an_infinite_weight_times_zeros(kind, gate, dtype, name):
    """It is NaN wherever a row starts: at the first step without a state, and where is_start sets one to zeros."""
    cell, options = LAYERS[kind]
    theirs, ours = pair(cell, SIZE, H, dtype=dtype, **options)
    if gate * H >= len(theirs.weight_hh_l0):
        return
    for layer in (theirs, ours):
        layer.weight_hh_l0.data[gate * H, 2] = float("inf")
    x, _ = drawn(0, dtype)
    start = torch.zeros(T, B, dtype=torch.bool)
    start[4, 1] = True
    h = torch.full((1, B, H), 0.5, dtype=dtype)
    states = (h, h.clone()) if cell == "LSTM" else h
    with torch.no_grad(), kernel(name):
        expected = theirs(x)[0]
        assert expected[0].isnan().any(1).all()
        torch.testing.assert_close(ours(x)[0], expected, equal_nan=True, rtol=1e-4, atol=1e-5)
        for given in (None, states):
            expected = StepByStep(theirs)(x, given, start)[0]
            assert expected[4, 1].isnan().any()
            torch.testing.assert_close(ours(x, given, start)[0], expected, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_an_infinite_cotangent_stops_at_a_unit_that_is_off():
    """Of a ReLU at 0 the vjp is 0, whatever comes: 0 · inf would be NaN."""
    theirs, ours = pair("RNN", 1, 1, nonlinearity="relu", dtype=torch.float64)
    for layer in (theirs, ours):
        layer.bias_ih_l0.data.fill_(-100)
        x = torch.zeros(4, 1, 1, dtype=torch.float64)
        layer(x)[0].backward(torch.full((4, 1, 1), float("inf"), dtype=torch.float64))
    assert ours.weight_hh_l0.grad == theirs.weight_hh_l0.grad == 0
