"""What `bptt.equations` refuses, in one line that names what was passed."""

import dataclasses
import math

import pytest
import torch

from bptt import equations
from support.refusals import refused
from support.textbook import make, trace

U, W, V = torch.ones(3, 2), torch.ones(3, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 2), (3, 3), (4, 3)],
        [(3, 2), (3, 4), (4, 3)],
        [(3, 2), (3, 3), (4, 2)],
        [(3,), (3, 3), (4, 3)],
        [(3, 2), (), (4, 3)],
        [(3, 2), (3, 3), (4, 3, 1)],
        [(3, 0), (3, 3), (4, 3)],
    ],
)
def test_mismatched_matrices_are_all_named(shapes):
    refused(lambda: equations.Network(*(torch.ones(s) for s in shapes)), *(str(s) for s in shapes), kind=ValueError)


@pytest.mark.parametrize(("field", "size"), [("b", 4), ("c", 3)])
def test_biases_fit(field, size):
    bad = {field: torch.ones(size)}
    refused(lambda: equations.Network(U, W, V, **bad), f"{field} has shape ({size},)", kind=ValueError)


def test_names():
    refused(lambda: equations.Network(U, W, V, nonlinearity="gelu"), "'gelu'", '"sigmoid"', kind=ValueError)
    refused(lambda: equations.Network(U, W, V, loss="mse"), "'mse'", '"squared_error"', kind=ValueError)


def test_types():
    refused(lambda: equations.Network([[1.0]], W, V), "U", "list", kind=TypeError)
    refused(lambda: equations.Network(U, W.long(), V), "W", "int64", kind=TypeError)
    refused(lambda: equations.Network(U, None, V), "W", "NoneType", kind=TypeError)
    refused(lambda: equations.Network.of(torch.nn.RNN(2, 3)), "SimpleRNN", "RNN", kind=TypeError)


def test_sequences():
    network, x, y, h0 = make(T=5)
    refused(lambda: equations.forward(network, x[:0], y[:0], h0), "(0, 2)", "T >= 1", kind=ValueError)
    refused(lambda: equations.forward(network, x[:, :1], y, h0), "x has shape (5, 1)", "(T, 2)", kind=ValueError)
    refused(lambda: equations.forward(network, x[:, None], y, h0), "(5, 1, 2)", kind=ValueError)
    refused(lambda: equations.forward(network, x, y[:4], h0), "y has shape (4, 4)", "(5, 4)", kind=ValueError)
    refused(lambda: equations.forward(network, x, y, h0[:2]), "h0 has shape (2,)", "(3,)", kind=ValueError)
    refused(lambda: equations.forward(network, x.tolist(), y, h0), "x", "list", kind=TypeError)
    refused(lambda: equations.forward(network, x, y.long(), h0), "y", "int64", kind=TypeError)


def test_classes():
    network, x, y, h0 = make(loss="softmax_cross_entropy", T=5)
    refused(lambda: equations.forward(network, x, y.double(), h0), "y", "float64", "int64", kind=TypeError)
    refused(lambda: equations.forward(network, x, y[:3], h0), "(3,)", "(5,)", kind=ValueError)
    refused(lambda: equations.forward(network, x, torch.full((5,), 4), h0), "4 .. 4", "0 .. 3", kind=ValueError)
    refused(lambda: equations.forward(network, x, torch.full((5,), -1), h0), "-1", kind=ValueError)


def test_steps_and_lags_beyond_the_sequence():
    of = trace(T=5)
    refused(lambda: equations.jacobian(of, 5, 0), "t=5", "T=5", "0 .. 4", kind=ValueError)
    refused(lambda: equations.jacobian(of, -1, -1), "t=-1", kind=ValueError)
    refused(lambda: equations.jacobian(of, 2, 3), "k=3", kind=ValueError)
    refused(lambda: equations.jacobian(of, 2, -2), "k=-2", "lag", kind=ValueError)
    refused(lambda: equations.step_jacobian(of, 5), "t=5", kind=ValueError)
    refused(lambda: equations.pair_term(of, 7, 0), "t=7", "T=5", kind=ValueError)
    refused(lambda: equations.pair_term(of, 2, -1), "k=-1", kind=ValueError)
    refused(lambda: equations.lag_term(of, 5), "lag=5", "T=5", kind=ValueError)
    refused(lambda: equations.lag_term(of, -1), "lag=-1", kind=ValueError)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True])
def test_counts(bad):
    of = trace(T=5)
    for call in (
        lambda: equations.truncated_gradient(of, bad),
        lambda: equations.subsequence_gradient(of, bad),
        lambda: equations.full_weights(bad),
        lambda: equations.costs(of.network, bad),
        lambda: equations.ARTBPPattern(bad, (), lambda k: 0.5),
        lambda: equations.ARTBPPattern(5, (), lambda k: 0.5, every=bad),
    ):
        refused(call, repr(bad), kind=ValueError)


def test_weights_fit():
    of = trace(T=5)
    refused(lambda: equations.gradient_by_double_sum(of, torch.ones(4, 4)), "(4, 4)", "T = 5", kind=ValueError)
    refused(lambda: equations.gradient_by_recursion(of, torch.ones(4)), "(4,)", "(5,)", kind=ValueError)
    other = equations.ARTBPPattern(4, (), lambda k: 0.5)
    refused(lambda: equations.artbp_gradient(of, other), "(4,)", "(5,)", kind=ValueError)


def test_patterns():
    half = lambda k: 0.5  # noqa: E731
    refused(lambda: equations.ARTBPPattern(5, (0,), half), "boundary 0", "1 .. 4", kind=ValueError)
    refused(lambda: equations.ARTBPPattern(5, (5,), half), "boundary 5", kind=ValueError)
    refused(lambda: equations.ARTBPPattern(5, (3,), half, every=2), "boundary 3", "multiples of 2", kind=ValueError)
    for p in (1.0, -0.1, math.nan):
        refused(lambda p=p: equations.ARTBPPattern(5, (), lambda k: p), repr(p), "k=1", kind=ValueError)


def test_values_are_frozen():
    of = trace()
    for value, field in ((of, "x"), (of.network, "W"), (equations.ARTBPPattern(2, (), lambda k: 0.5), "cuts")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)
