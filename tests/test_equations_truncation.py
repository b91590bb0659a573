"""The truncated sums against the engine under the same truncation, and against the definition term by term."""

import itertools

import pytest
import torch

import bptt
from bptt import equations
from bptt.nn import SimpleRNN
from support import oracle
from support.oracle import assert_close
from support.strategies_under_test import scripted
from support.textbook import EVERY_KIND, F64, LOSSES, NONLINEARITIES, autograd_by_pair, make, trace

T = 7
LAWS = {"constant": bptt.ConstantLaw(3), "polynomial": bptt.PolynomialLaw(3, 4), "function": lambda k: 0.6 / k}
PATTERNS = [cuts for n in range(T) for cuts in itertools.combinations(range(1, T), n)]


def model_of(network):
    """A SimpleRNN with the network's parameters."""
    O, H = network.V.shape  # noqa: E741
    model = SimpleRNN(network.U.shape[1], H, O, network.nonlinearity, network.b is not None, dtype=F64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(getattr(network, name))
    return model


def engine(case, strategy) -> list:
    """The engine's gradient in the order of a `Gradient`: losses summed over components, reduction "sum"."""
    network, x, y, h0 = case
    model = model_of(network)
    loss = equations.LOSSES[network.loss].value
    bptt.backward(model, loss, (x, y), h0, strategy=strategy, reduction="sum")
    grads = [getattr(model, name) for name in equations.Gradient._fields]
    return [None if parameter is None else parameter.grad for parameter in grads]


def weighted(case, weights):
    """The definition: every autograd term times its weight."""
    return [None if term is None else torch.einsum("tk,tk...->...", weights, term) for term in autograd_by_pair(*case)]


@pytest.mark.parametrize(("nonlinearity", "loss", "bias"), EVERY_KIND)
def test_truncated_sums_are_the_engines(nonlinearity, loss, bias):
    case = make(nonlinearity, loss, bias, T)
    of = equations.forward(*case)
    assert_close(equations.gradient_by_recursion(of), engine(case, bptt.FullBPTT()))
    for n in range(1, T + 3):
        assert_close(equations.truncated_gradient(of, n), engine(case, bptt.TruncatedBPTT(1, n)))
        assert_close(equations.subsequence_gradient(of, n), engine(case, bptt.TruncatedBPTT(n, n)))


@pytest.mark.parametrize("T", [1, 2, 5, 30])
def test_truncated_sums_are_those_of_the_definition(T):
    case = make("tanh", T=T)
    of = equations.forward(*case)
    steps = range(T)
    for n in {1, 2, 3, 7, T, T + 1}:
        last = torch.tensor([[float(t - n < k <= t) for k in steps] for t in steps], dtype=F64)
        block = torch.tensor([[float(k <= t and t // n == k // n) for k in steps] for t in steps], dtype=F64)
        assert torch.equal(equations.truncated_weights(T, n), last)
        assert torch.equal(equations.subsequence_weights(T, n), block)
        assert torch.equal(equations.pair_weights(equations.subsequence_boundaries(T, n)), block)
        assert_close(equations.truncated_gradient(of, n), weighted(case, last))
        assert_close(equations.subsequence_gradient(of, n), weighted(case, block))
        first_lags = [term if term is None else term[:n].sum(0) for term in equations.lag_terms(of)]
        assert_close(equations.truncated_gradient(of, n), first_lags)
        assert_close(equations.gradient_by_double_sum(of, block), equations.subsequence_gradient(of, n))


@pytest.mark.parametrize("bias", [False, True])
def test_any_weights(bias):
    """Zeros in the middle of a row and weights on the diagonal too."""
    case = make("tanh", bias=bias, T=T)
    weights = (torch.randn(T, T, dtype=F64) * (torch.rand(T, T) < 0.7)).tril()
    assert_close(equations.gradient_by_double_sum(equations.forward(*case), weights), weighted(case, weights))


def test_truncation_changes_the_gradient_until_it_reaches_back_far_enough():
    of = trace(T=T)
    full = equations.gradient_by_recursion(of)
    for n in range(1, T):
        assert not torch.allclose(equations.truncated_gradient(of, n).W, full.W, rtol=1e-4)
        assert not torch.allclose(equations.subsequence_gradient(of, n).W, full.W, rtol=1e-4)
    assert_close(equations.truncated_gradient(of, T), full)
    assert_close(equations.subsequence_gradient(of, T), full)


def test_a_truncated_sum_is_finite_where_the_full_one_overflows():
    one = torch.ones(1, 1, dtype=F64)
    of = equations.forward(equations.Network(one, 10 * one, one, b=0 * one[0]), torch.zeros(400, 1), torch.ones(400, 1))
    assert not equations.gradient_by_recursion(of).b.isfinite()
    assert equations.truncated_gradient(of, 2).b.item() == pytest.approx(-1 - 399 * 11)
    assert equations.subsequence_gradient(of, 2).b.item() == pytest.approx(-200 * 12)


@pytest.mark.parametrize(("nonlinearity", "loss"), list(itertools.product(NONLINEARITIES, LOSSES)))
def test_artbp_by_pattern_is_the_engines(nonlinearity, loss):
    case = make(nonlinearity, loss, T=T)
    of, law = equations.forward(*case), LAWS["polynomial"]
    for cuts in PATTERNS[:: 1 if nonlinearity == "tanh" else 9]:
        pattern = equations.ARTBPPattern(T, cuts, law)
        assert_close(equations.artbp_gradient(of, pattern), engine(case, scripted(law, 1, cuts)))


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("every", [1, 2, 3])
def test_artbp_for_every_pattern(law, every):
    """Weights and probability are the oracle's; both algorithms and the definition agree; the mean is the full one."""
    case = make("sigmoid", T=T)
    of = equations.forward(*case)
    by_pair = autograd_by_pair(*case)
    probability, mean = 0.0, [torch.zeros_like(term) for term in equations.gradient_by_recursion(of)]
    for cuts in [cuts for cuts in PATTERNS if not any(cut % every for cut in cuts)]:
        pattern = equations.ARTBPPattern(T, cuts, law, every)
        windows, chance = oracle.randomised(law, every, T, cuts)
        expected = torch.ones(T, dtype=F64)
        for window in windows:
            for t, w in window.weights.items():
                expected[t] = w
        expected[list(cuts)] = 0
        assert_close(pattern.boundaries, expected)
        assert pattern.probability == pytest.approx(chance, rel=1e-12)
        gradient = equations.artbp_gradient(of, pattern)
        assert_close(equations.gradient_by_double_sum(of, pattern.weights), gradient)
        assert_close(gradient, [torch.einsum("tk,tk...->...", pattern.weights, term) for term in by_pair])
        for t, k in itertools.product(range(T), range(T)):
            crossed = [float(expected[j]) for j in range(k + 1, t + 1)]
            assert float(pattern.weights[t, k]) == pytest.approx(
                float(torch.tensor(crossed, dtype=F64).prod()) * (k <= t)
            )
        if every == 2 and len(cuts) == 1:
            assert_close(gradient, engine(case, scripted(law, every, cuts)))
        probability += pattern.probability
        mean = [m + pattern.probability * g for m, g in zip(mean, gradient, strict=True)]
    assert probability == pytest.approx(1, rel=1e-12)
    assert_close(mean, equations.gradient_by_recursion(of))


def test_a_pattern_as_numbers():
    pattern = equations.ARTBPPattern(steps=5, cuts=(3,), law=lambda k: {1: 0.5, 2: 0.2, 3: 0.75, 4: 0.9}[k])
    assert pattern.hazards == pytest.approx((0, 0.5, 0.2, 0.75, 0.5))
    assert pattern.boundaries.tolist() == pytest.approx([1, 2, 1.25, 0, 2])
    assert pattern.probability == pytest.approx(0.5 * 0.8 * 0.75 * 0.5)
    assert pattern.weights[2].tolist() == pytest.approx([2.5, 1.25, 1, 0, 0])
    assert pattern.weights[4].tolist() == pytest.approx([0, 0, 0, 2, 1])
