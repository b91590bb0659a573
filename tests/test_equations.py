"""The closed forms against autograd, finite differences and each other, for every activation and loss."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bptt import equations
from bptt.nn import SimpleRNN
from support.oracle import assert_close
from support.textbook import (
    EVERY_KIND,
    F64,
    NONLINEARITIES,
    autograd,
    autograd_by_pair,
    losses_and_states,
    make,
    total,
    trace,
)
from support.textbook import parameters as by_step

BOTH = [equations.gradient_by_double_sum, equations.gradient_by_recursion]


@pytest.mark.parametrize(("nonlinearity", "loss", "bias"), EVERY_KIND)
def test_gradients_are_autograds(nonlinearity, loss, bias):
    for T in range(1, 31):
        case = make(nonlinearity, loss, bias, T, seed=T)
        expected, of = autograd(*case), equations.forward(*case)
        assert (expected.b is not None) == (expected.c is not None) == bias
        for method in BOTH:
            assert_close(method(of), expected)


@pytest.mark.parametrize(("nonlinearity", "loss", "bias"), EVERY_KIND)
def test_every_term_is_autograds(nonlinearity, loss, bias):
    """Each loss's gradient with respect to the parameters of each single step."""
    for T in (1, 2, 7):
        case = make(nonlinearity, loss, bias, T)
        expected, of = autograd_by_pair(*case), equations.forward(*case)
        terms = equations.pair_terms(of)
        assert_close(terms, expected)
        assert all(
            not term[t, k].any() for term in terms if term is not None for t in range(T) for k in range(t + 1, T)
        )
        for t in range(T):
            for k in range(t + 1):
                one = equations.pair_term(of, t, k)
                assert_close(one, [term if term is None else term[t, k] for term in expected])
        lags = equations.lag_terms(of)
        for lag in range(T):
            by_hand = [term if term is None else sum(term[t, t - lag] for t in range(lag, T)) for term in expected]
            assert_close([term if term is None else term[lag] for term in lags], by_hand)
            assert_close(equations.lag_term(of, lag), by_hand)


@pytest.mark.parametrize(("nonlinearity", "loss", "bias"), EVERY_KIND)
def test_terms_sum_to_the_whole(nonlinearity, loss, bias):
    of = trace(nonlinearity, loss, bias, T=20)
    whole = equations.gradient_by_recursion(of)
    assert_close(total(equations.pair_terms(of), (0, 1)), whole)
    assert_close(total(equations.lag_terms(of), 0), whole)


@pytest.mark.parametrize("loss", ["squared_error", "softmax_cross_entropy"])
def test_finite_differences(loss):
    """Central differences of the loss: of no derivative that anybody wrote down."""
    network, x, y, h0 = make("sigmoid", loss, T=8)
    gradient, eps = equations.gradient_by_recursion(equations.forward(network, x, y, h0)), 1e-5
    for name in gradient._fields:
        value = getattr(network, name)
        for i in range(value.numel()):
            shift = torch.zeros(value.numel(), dtype=F64)
            shift[i] = eps
            up, down = (
                equations.forward(dataclasses.replace(network, **{name: value + s * shift.view_as(value)}), x, y, h0)
                for s in (1, -1)
            )
            assert float((up.loss - down.loss) / (2 * eps)) == pytest.approx(
                float(getattr(gradient, name).flatten()[i]), rel=1e-7, abs=1e-8
            )


@pytest.mark.parametrize(("nonlinearity", "loss", "bias"), EVERY_KIND)
def test_the_trace_is_the_forward_pass(nonlinearity, loss, bias):
    network, x, y, h0 = make(nonlinearity, loss, bias)
    of = equations.forward(network, x, y, h0)
    losses, states = losses_and_states(network, by_step(network, len(x)), x, y, h0)
    assert_close([of.l, of.h, of.loss], [torch.stack(losses), torch.stack(states), torch.stack(losses).sum()])
    assert_close(of.h_before, torch.cat([h0[None], of.h[:-1]]))
    o = of.o.clone().requires_grad_()
    equations.LOSSES[loss].value(o, y).sum().backward()
    assert_close(of.e, o.grad)
    a = of.a.clone().requires_grad_()
    equations.ACTIVATIONS[nonlinearity].value(a).sum().backward()
    assert_close(of.slopes, a.grad)
    assert of.steps == len(x)
    assert equations.forward(network, x, y).h_before[0].eq(0).all()


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_the_jacobian_chain_is_autograds(nonlinearity):
    network, x, y, h0 = make(nonlinearity, T=5)
    of, p = equations.forward(network, x, y, h0), by_step(network, 5)
    for k in range(-1, 5):
        start = h0 if k < 0 else of.h[k]
        assert_close(equations.jacobian(of, max(k, 0), max(k, 0)), torch.eye(3, dtype=F64))
        for t in range(k + 1, 5):

            def state(h, k=k, t=t):
                rest = {name: value[k + 1 : t + 1] for name, value in p.items()}
                return losses_and_states(network, rest, x[k + 1 : t + 1], y[k + 1 : t + 1], h)[1][-1]

            assert_close(equations.jacobian(of, t, k), torch.autograd.functional.jacobian(state, start))
        if k >= 0:
            assert_close(equations.step_jacobian(of, k), equations.jacobian(of, k, k - 1))


def test_with_the_identity_the_chain_is_a_power_of_w():
    of = trace("identity", T=30)
    for t, k in [(29, -1), (29, 0), (17, 4), (3, 2), (5, 5)]:
        assert_close(equations.jacobian(of, t, k), torch.linalg.matrix_power(of.network.W, t - k))


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_state_cotangents_are_the_chain_applied_to_the_error(nonlinearity):
    of = trace(nonlinearity, T=6)
    cotangents = equations.state_cotangents(of)
    for t in range(6):
        assert not cotangents[t, t + 1 :].any()
        for k in range(t + 1):
            assert_close(cotangents[t, k], equations.jacobian(of, t, k).T @ of.network.V.T @ of.e[t])


def test_nothing_carries_a_graph_or_follows_the_model():
    model = SimpleRNN(2, 3, 4, "tanh", bias=True, dtype=F64)
    network = equations.Network.of(model)
    of = equations.forward(network, torch.randn(4, 2, requires_grad=True), torch.randn(4, 4), torch.zeros(3))
    results = [
        of.a,
        of.l,
        *equations.pair_terms(of),
        *equations.gradient_by_recursion(of),
        equations.jacobian(of, 3, 0),
    ]
    assert not any(result.requires_grad for result in results)
    assert all(result.dtype == F64 for result in results)
    before = model.W.detach().clone()
    with torch.no_grad():
        model.W.zero_()
    assert torch.equal(network.W, before)


class Products(TorchDispatchMode):
    """Counts matrix-vector products with a matrix of the given shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mv.default and args[0].shape == self.shape:
            self.count += 1
        return func(*args, **(kwargs or {}))


class Reads:
    """An array that counts how often one of its rows is taken."""

    def __init__(self, array):
        self.array, self.count = array, 0

    def __getitem__(self, t):
        self.count += 1
        return self.array[t]

    def __len__(self):
        return len(self.array)

    def __getattr__(self, name):
        return getattr(self.array, name)


@pytest.mark.parametrize("steps", [1, 2, 13])
@pytest.mark.parametrize("method", BOTH)
def test_the_costs_are_what_is_executed(method, steps):
    of = trace(T=steps)  # 3 units, 4 outputs: W and V are told apart by shape
    cost = {cost.method: cost for cost in equations.costs(of.network, steps)}[method.__name__]
    read = {name: Reads(getattr(of, name)) for name in ("x", "h", "h_before", "slopes", "e")}
    watched = dataclasses.replace(of, x=read["x"], h=read["h"], h_before=read["h_before"])
    vars(watched).update(slopes=read["slopes"], e=read["e"])
    with Products((3, 3)) as products:
        method(watched)
    assert products.count == cost.products
    reads = {value.symbol: value.reads for value in cost.cached}
    assert read["x"].count == reads["x"] == cost.outer_products
    assert read["h"].count + read["h_before"].count == reads["h"]
    assert read["slopes"].count == reads["f'(a)"]
    assert read["e"].count == reads["e"]


def test_costs_as_numbers():
    """T²/2 against T, and the bytes of what is kept."""
    naive, recursion = equations.costs(make()[0], 1000)
    assert (naive.products, recursion.products) == (499_500, 999)
    assert naive.bytes == 8 * (1000 * 2 + 1001 * 3 + 1000 * 3 + 1000 * 4)
    assert recursion.bytes == naive.bytes + 8 * 3


def test_relu_has_no_slope_at_its_kink():
    """At a = 0 exactly, as autograd has it."""
    network, x, y, h0 = make("relu", bias=False)
    case = (network, 0 * x, y, 0 * h0)
    assert not equations.forward(*case).slopes.any()
    assert_close(equations.gradient_by_recursion(equations.forward(*case)), autograd(*case))
