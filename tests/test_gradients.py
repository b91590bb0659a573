"""Who gets a gradient: every leaf that `loss.backward()` would reach, an encoder once, or only `params=`."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import make, square
from support.runs import check, engine, expected, gradient, seed, unroll
from support.strategies_under_test import CUTTING, STRATEGIES, windows

T = 10
BUDGETS = {"stored": None, "1 slot": bptt.Checkpoints(1, 1), "2 slots of 3": bptt.Checkpoints(2, 3), "bytes": "1MiB"}
F64 = torch.float64


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_decoder_inside_the_loss(strategy, memory):
    case = make("lstm", T)
    decoder = nn.Linear(4, 4, dtype=F64)

    def loss(outputs, targets):
        return square(decoder(outputs), targets)

    check(case, strategy, tensors=[*case.parameters(), *decoder.parameters()], loss=loss, memory=memory, cuts=(3,))


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_input_leaves(strategy, memory):
    """Each chunk's inputs are leaves of their own; windows and segments cut them anywhere."""
    case = make("gru", T)
    pieces = [piece.clone().requires_grad_() for piece in case.xs.split([3, 1, 4, 2])]
    targets = case.ys.split([3, 1, 4, 2])
    updates = list(
        bptt.unroll(
            case.model,
            square,
            zip(pieces, targets, strict=True),
            strategy=strategy,
            reduction="sum",
            memory=memory,
            generator=seed(),
        )
    )
    tensors = [*pieces, *case.parameters()]
    got = oracle.gradients(tensors)
    case.xs = torch.cat(pieces)
    problem, want = case.problem(), None
    for window in windows(strategy, T, updates):
        carried = None if window.start == 0 else done.kept  # noqa: F821
        done = oracle.forward(problem, window, carried)
        parts = torch.autograd.grad(done.total, tensors, allow_unused=True, retain_graph=True)
        parts = [torch.zeros_like(t) if g is None else g for g, t in zip(parts, tensors, strict=True)]
        want = parts if want is None else [w + g for w, g in zip(want, parts, strict=True)]
    oracle.assert_close(got, want)


def test_frozen_model_with_input_leaves():
    """No parameter wants a gradient: the inputs get theirs all the same."""
    case = make("lstm", T)
    case.model.requires_grad_(False)
    for memory in (None, bptt.Checkpoints(2, 2)):
        leaf = case.xs.clone().requires_grad_()
        bptt.backward(case.model, square, (leaf, case.ys), reduction="sum", memory=memory)
        again = case.xs.clone().requires_grad_()
        square(case.model(again)[0], case.ys).mean((1, 2)).sum().backward()
        oracle.assert_close([leaf.grad], [again.grad])


class Encoder(nn.Module):
    """Makes the inputs and the state that `backward` starts from; counts how often it is pulled back through."""

    def __init__(self, layers: int):
        super().__init__()
        self.inputs, self.state = nn.Linear(3, 3, dtype=F64), nn.Linear(3, 4, dtype=F64)
        self.layers, self.pulls = layers, []

    def forward(self, raw):
        xs = self.inputs(raw).tanh()
        h = self.state(raw.mean(0)).expand(self.layers, -1, -1).sin()
        xs.register_hook(lambda g: self.pulls.append("inputs"))
        h.register_hook(lambda g: self.pulls.append("state"))
        return xs, h


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_encoder_gets_its_gradient_once(strategy, memory):
    case = make("gru2", T)
    encoder = Encoder(2)
    tensors = [*encoder.parameters(), *case.parameters()]
    raw = case.xs
    xs, h = encoder(raw)
    case.xs = xs.detach()
    cuts = _cuts(case, strategy, h.detach())
    bptt.backward(
        case.model, square, (xs, case.ys), h, strategy=strategy, memory=memory, reduction="sum", generator=seed()
    )
    assert sorted(encoder.pulls) == ["inputs", "state"]
    got = oracle.gradients(tensors)
    case.xs, h = encoder(raw)
    total = sum(done.total for done in _passes(case.problem(state=h), windows(strategy, T, cuts)))
    total.backward()
    oracle.assert_close(got, oracle.gradients(tensors))


def _cuts(case, strategy, state=None):
    """The updates of an unrolled run with the same seed: the cuts of random strategies, what adaptive ones found."""
    updates = list(unroll(case, strategy, state=state))
    oracle.gradients(case.parameters())
    return updates


def _passes(problem, table):
    carried = None
    for window in table:
        done = oracle.forward(problem, window, carried)
        carried = done.kept
        yield done


def test_encoder_for_a_step_with_dict_state():
    case = make("dict", 6)
    lift = nn.Parameter(torch.randn(4, dtype=F64))
    tensors = [lift, *case.parameters()]

    def state():
        s = case.zeros()
        return s | {"h": s["h"] + lift, "rest": [s["rest"][0] * 2 + lift.square(), s["rest"][1]]}

    for memory in BUDGETS.values():
        bptt.backward(engine(case), square, (case.xs, case.ys), state(), memory=memory, reduction="sum")
        got = oracle.gradients(tensors)
        (done,) = _passes(case.problem(state=state()), oracle.full(6))
        done.total.backward()
        oracle.assert_close(got, oracle.gradients(tensors))


def test_inputs_that_share_an_encoder_within_a_pytree():
    """Two input leaves from one graph: it is walked once, and its own parameters get the sum."""
    case, lift = make("gru", 6), nn.Linear(3, 3, dtype=F64)
    pulls = []

    def encoded():
        hidden = lift(case.xs).tanh()
        hidden.register_hook(lambda g: pulls.append(1))
        return {"a": hidden[..., :2], "b": [hidden[..., 2:] * 2]}

    def model(inputs, state):
        return case.model(torch.cat([inputs["a"], inputs["b"][0]], -1), state)

    tensors = [*lift.parameters(), *case.parameters()]
    bptt.backward(model, square, (encoded(), case.ys), case.zeros(), reduction="sum", memory=bptt.Checkpoints(2, 1))
    got = oracle.gradients(tensors)
    assert len(pulls) == 1
    x = encoded()
    square(case.model(torch.cat([x["a"], x["b"][0]], -1))[0], case.ys).mean((1, 2)).sum().backward()
    oracle.assert_close(got, oracle.gradients(tensors))


def test_mean_divides_the_encoders_gradient_too():
    case, lift = make("gru", 5), nn.Linear(3, 3, dtype=F64)
    bptt.backward(case.model, square, (lift(case.xs), case.ys))
    got = oracle.gradients(lift.parameters())
    (square(case.model(lift(case.xs))[0], case.ys).mean((1, 2)).sum() / 5).backward()
    oracle.assert_close(got, oracle.gradients(lift.parameters()))


@pytest.mark.parametrize("strategy", list(STRATEGIES.values())[:7], ids=list(STRATEGIES)[:7])
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_params_restricts(strategy, memory):
    case, decoder = make("lstm", T), nn.Linear(4, 4, dtype=F64)
    h0 = torch.randn(1, 1, 4, dtype=F64, requires_grad=True)
    xs, case.xs = case.xs, case.xs.clone().requires_grad_()
    chosen = [case.model.weight_hh_l0, decoder.bias]
    others = [case.xs, h0, decoder.weight, case.model.weight_ih_l0]

    def loss(outputs, targets):
        return square(decoder(outputs), targets)

    def initial():
        return (h0.expand(1, 2, 4), torch.zeros(1, 2, 4, dtype=F64))

    got, updates = gradient(
        case, strategy, chosen, loss=loss, params=iter(chosen), memory=memory, initial_state=initial
    )
    assert all(t.grad is None for t in others)
    case.xs = xs
    oracle.assert_close(got, expected(case, strategy, updates, chosen, loss=loss, initial=initial))


def test_parameters_of_a_closure():
    a, b = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.5, 0.3))
    model = bptt.scan(lambda x, s: (a * s + x, torch.tanh(a * s + b * x)))
    x, y = torch.randn(6, 2, dtype=F64), torch.randn(6, 2, dtype=F64)
    for memory in (None, bptt.Checkpoints(2, 1)):
        bptt.backward(model, square, (x, y), torch.zeros(2, dtype=F64), reduction="sum", memory=memory)
        got = oracle.gradients([a, b])
        s, total = torch.zeros(2, dtype=F64), 0.0
        for t in range(6):
            out, s = a * s + x[t], torch.tanh(a * s + b * x[t])
            total = total + square(out, y[t]).mean()
        total.backward()
        oracle.assert_close(got, oracle.gradients([a, b]))


def test_tied_weights_get_one_sum():
    case = make("gru", 7, size=4)
    decoder = case.model.weight_ih_l0  # (12, 4), used as a decoder as well

    def loss(outputs, targets):
        return (outputs @ decoder.T).square()

    for memory in BUDGETS.values():
        check(case, bptt.TruncatedBPTT(2, 4), loss=loss, memory=memory)


@pytest.mark.parametrize("sparse", [False, True])
def test_embeddings(sparse):
    """Integer inputs, and sparse gradients that add up over windows and segments."""
    torch.manual_seed(0)
    embed, case = nn.Embedding(7, 3, sparse=sparse, dtype=F64), make("gru", T)
    ids = torch.randint(7, (T, 2))
    plain, case.xs = case.model, ids
    case.model = lambda xs, s: plain(embed(xs), s)
    for strategy in (bptt.FullBPTT(), bptt.TruncatedBPTT(2, 5)):
        for memory in BUDGETS.values():
            list(unroll(case, strategy, state=case.zeros(), memory=memory, cuts=(3,)))
            got = embed.weight.grad
            assert got.is_sparse == sparse
            embed.weight.grad = None
            (want,) = oracle.gradient_of(case.problem(), windows(strategy, T), [embed.weight])
            oracle.assert_close([got.to_dense()], [want.to_dense()])
