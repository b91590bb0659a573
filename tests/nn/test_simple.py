"""SimpleRNN: the equations, as torch.nn.RNN where that has them; its first values; a recurrence like any other."""

import pickle

import pytest
import torch
from torch import nn

import bptt
from bptt.nn import SimpleRNN
from support import oracle
from support.cases import some_resets, square
from support.refusals import refused
from support.strategies_under_test import STRATEGIES, windows

F64 = torch.float64
NONLINEARITIES = {"identity": lambda a: a, "tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}


def make(nonlinearity="tanh", bias=True, dtype=F64):
    """A model of 3 inputs, 5 units and 2 outputs, biases not zero."""
    model = SimpleRNN(3, 5, 2, nonlinearity, bias, dtype=dtype)
    with torch.no_grad():
        for vector in (model.b, model.c):
            if vector is not None:
                vector.normal_()
    return model


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("bias", [False, True])
def test_forward_is_the_equations(nonlinearity, bias):
    model = make(nonlinearity, bias)
    xs, h = torch.randn(6, 4, 3, dtype=F64), torch.randn(4, 5, dtype=F64)
    outputs, state = model(xs, h)
    b, c = (model.b, model.c) if bias else (0, 0)
    for t in range(6):
        h = NONLINEARITIES[nonlinearity](xs[t] @ model.U.T + h @ model.W.T + b)
        torch.testing.assert_close(outputs[t], h @ model.V.T + c, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, h, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_it_is_torchs_with_a_linear_layer_on_top(nonlinearity):
    model, layer = make(nonlinearity), nn.RNN(3, 5, nonlinearity=nonlinearity, dtype=F64)
    with torch.no_grad():
        for name, value in (("weight_ih", model.U), ("weight_hh", model.W), ("bias_ih", model.b)):
            getattr(layer, f"{name}_l0").copy_(value)
        layer.bias_hh_l0.zero_()
    xs, h = torch.randn(6, 4, 3, dtype=F64), torch.randn(4, 5, dtype=F64)
    hidden, last = layer(xs, h[None])
    outputs, state = model(xs, h)
    torch.testing.assert_close(outputs, nn.functional.linear(hidden, model.V, model.c))
    torch.testing.assert_close(state, last[0])


def test_parameters():
    assert [(name, tuple(p.shape)) for name, p in make().named_parameters()] == [
        ("U", (5, 3)),
        ("W", (5, 5)),
        ("V", (2, 5)),
        ("b", (5,)),
        ("c", (2,)),
    ]
    plain = SimpleRNN(3, 5, 2)
    assert [name for name, _ in plain.named_parameters()] == ["U", "W", "V"]
    assert plain.b is None
    assert plain.c is None
    assert plain.nonlinearity == "identity"
    assert "3, 5, 2" in repr(plain)


def test_unbatched_rows_and_pieces_agree():
    model = make()
    xs, h = torch.randn(6, 4, 3, dtype=F64), torch.randn(4, 5, dtype=F64)
    outputs, state = model(xs, h)
    for row in range(4):
        one, last = model(xs[:, row], h[row])
        torch.testing.assert_close(one, outputs[:, row])
        torch.testing.assert_close(last, state[row])
    first, between = model(xs[:2], h)
    second, last = model(xs[2:], between)
    torch.testing.assert_close(torch.cat([first, second]), outputs)
    torch.testing.assert_close(last, state)


def test_no_state_is_zeros():
    model, xs = make(), torch.randn(6, 4, 3, dtype=F64)
    assert torch.equal(model(xs)[0], model(xs, torch.zeros(4, 5, dtype=F64))[0])
    assert torch.equal(model(xs[:, 0])[0], model(xs[:, 0], torch.zeros(5, dtype=F64))[0])
    assert model.zero_state(xs.float()).dtype == torch.float32


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("bias", [False, True])
def test_first_values_neither_stretch_nor_forget(nonlinearity, bias):
    """|D_t W| <= 1 at any state, and all singular values are 1 where the slope is largest."""
    model = SimpleRNN(3, 8, 2, nonlinearity, bias, dtype=F64)

    def singular_values(x, h):
        jacobian = torch.autograd.functional.jacobian(lambda h: model(x[None], h)[1], h)
        return torch.linalg.svdvals(jacobian)

    for _ in range(20):
        assert singular_values(3 * torch.randn(3, dtype=F64), torch.randn(8, dtype=F64)).max() <= 1 + 1e-12
    best = {"identity": torch.randn(8), "tanh": torch.zeros(8), "relu": torch.ones(8), "sigmoid": torch.zeros(8)}
    h = best[nonlinearity].double()
    if nonlinearity == "sigmoid" and bias:
        h = torch.full((8,), 0.5, dtype=F64)
        torch.testing.assert_close(model(torch.zeros(1, 3, dtype=F64), h)[1], h)
    values = singular_values(torch.zeros(3, dtype=F64), h)
    torch.testing.assert_close(values, torch.ones_like(values))


def test_first_values_follow_the_generator():
    def draw(seed):
        return SimpleRNN(3, 5, 2, generator=torch.Generator().manual_seed(seed)).state_dict()

    before = torch.get_rng_state()
    one, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(torch.get_rng_state(), before)
    for name in one:
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])


def test_pickle_and_state_dict():
    model, xs = make(), torch.randn(6, 4, 3, dtype=F64)
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(copy(xs)[0], model(xs)[0])
    fresh = SimpleRNN(3, 5, 2, "tanh", bias=True, dtype=F64)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(xs)[0], model(xs)[0])


@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(bias):
    model = make("sigmoid", bias)
    names = [name for name, _ in model.named_parameters()]

    def call(xs, h, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (xs, h))

    values = [p.detach().requires_grad_() for p in model.parameters()]
    xs, h = (torch.randn(*shape, dtype=F64, requires_grad=True) for shape in ((3, 2, 3), (2, 5)))
    assert torch.autograd.gradcheck(call, (xs, h, *values))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("resets", [False, True])
def test_a_recurrence_like_any_other(name, resets):
    """Under every strategy, with rows that reset, against the oracle."""
    model, strategy = make(), STRATEGIES[name]
    xs, ys = torch.randn(9, 4, 3, dtype=F64), torch.randn(9, 4, 2, dtype=F64)
    is_start = some_resets(9, 4) if resets else None
    more = {"initial_state": lambda: model.zero_state(xs), "state_batch_dim": model.state_batch_dim}
    chunks = [bptt.Chunk(xs[a:b], ys[a:b], is_start[a:b] if resets else None) for a, b in ((0, 4), (4, 9))]
    generator = torch.Generator().manual_seed(0)
    updates = list(bptt.unroll(model, square, chunks, strategy=strategy, reduction="sum", generator=generator, **more))
    got = oracle.gradients(list(model.parameters()))
    problem = oracle.Problem(
        model, square, xs, ys, initial=lambda: model.zero_state(xs), batch_dim=0, is_start=is_start
    )
    expected = oracle.gradient_of(problem, windows(strategy, 9, updates), list(model.parameters()))
    oracle.assert_close(got, expected)


def test_refusals():
    for size in (0, -1, 2.0, True):
        refused(lambda size=size: SimpleRNN(size, 2, 2), f"input_size={size!r}", kind=ValueError)
        refused(lambda size=size: SimpleRNN(2, size, 2), f"hidden_size={size!r}", kind=ValueError)
        refused(lambda size=size: SimpleRNN(2, 2, size), f"output_size={size!r}", kind=ValueError)
    refused(lambda: SimpleRNN(2, 2, 2, "gelu"), "'gelu'", '"identity", "tanh", "relu", "sigmoid"', kind=ValueError)
    model = make()
    for shape in ((6, 4, 2), (6,), (6, 4, 3, 3), (0, 4, 3)):
        refused(lambda shape=shape: model(torch.zeros(shape, dtype=F64)), str(shape), "(T, B, 3)", kind=ValueError)
    xs = torch.zeros(6, 4, 3, dtype=F64)
    for shape in ((5,), (3, 5), (4, 2), (1, 4, 5)):
        refused(lambda shape=shape: model(xs, torch.zeros(shape, dtype=F64)), str(shape), "(4, 5)", kind=ValueError)
