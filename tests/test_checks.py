"""Impossible data: chunks, states, losses and what a recurrence returns; one clear line that names the leaf."""

import math

import pytest
import torch
from torch import nn

import bptt
from support.cases import make, square
from support.refusals import call, first, refused

F64 = torch.float64


@pytest.fixture
def case():
    return make("gru", 5, B=3)


REDUCED = {
    "mean": lambda o, y: square(o, y).mean(),
    "over time": lambda o, y: square(o, y).sum(0),
    "rows alone": lambda o, y: square(o, y).mean((0, 2)),
    "flattened": lambda o, y: square(o, y).flatten(0, 1),
    "torch's default": nn.MSELoss(),
}


@pytest.mark.parametrize("loss", REDUCED.values(), ids=REDUCED)
@pytest.mark.parametrize("rows", [3, 5], ids=["T != B", "T = B"])
@pytest.mark.parametrize("entry", ["unroll", "backward", "evaluate"])
def test_a_loss_without_time(loss, rows, entry):
    """Reduced or flattened, found by shape, and where T = B by a second length."""
    case = make("gru", 5, B=rows)
    chunk = (case.xs, case.ys)
    refused(
        {
            "unroll": first(case.model, loss, [chunk], strategy=bptt.TruncatedBPTT(5)),
            "backward": lambda: bptt.backward(case.model, loss, chunk),
            "evaluate": lambda: bptt.evaluate(case.model, loss, [chunk]),
        }[entry],
        "per_step",
    )
    assert all(p.grad is None for p in case.parameters())


@pytest.mark.parametrize("loss", list(REDUCED.values())[1:4], ids=list(REDUCED)[1:4])
def test_a_loss_without_time_under_a_budget_and_by_rows_of_time(loss):
    case = make("gru", 6, B=3)
    chunk = (case.xs, case.ys)
    refused(lambda: bptt.backward(case.model, loss, chunk, memory=bptt.Checkpoints(2, 3)), "per_step")
    refused(first(case.model, loss, [chunk], strategy=bptt.TruncatedBPTT(3)), "per_step")
    turned = make("gru", 5, B=5)
    layer = nn.GRU(3, 4, batch_first=True, dtype=F64)
    data = (turned.xs.transpose(0, 1), turned.ys.transpose(0, 1))
    wrong = {0: lambda o, y: square(o, y).sum(1)}[0]
    refused(lambda: bptt.backward(layer, wrong, data, time_dim=1), "per_step")


def test_a_loss_of_the_right_shape_is_not_refused():
    """T = B, and losses (T,), (T, B) and (T, B, H) that are what they should be."""
    case = make("gru", 4, B=4)
    for loss in (square, lambda o, y: square(o, y).mean(-1), lambda o, y: square(o, y).mean((1, 2))):
        assert bptt.backward(case.model, loss, (case.xs, case.ys)).steps == 4
    case = make("gru", 1, B=1)
    assert bptt.backward(case.model, square, (case.xs, case.ys)).steps == 1


@pytest.mark.parametrize("value", [None, 3.0, [1.0], "x"])
def test_a_loss_that_is_no_tensor(case, value):
    refused(first(case.model, lambda o, y: value, [(case.xs, case.ys)]), "loss")


def test_a_loss_of_integers(case):
    refused(first(case.model, lambda o, y: (o > y).sum(-1), [(case.xs, case.ys)]), "loss")


@pytest.mark.parametrize("entry", ["unroll", "backward", "evaluate"])
def test_targets_shorter_than_inputs(case, entry):
    chunk = (case.xs, case.ys[:4])
    run = {
        "unroll": first(case.model, square, [chunk]),
        "backward": lambda: bptt.backward(case.model, square, chunk),
        "evaluate": lambda: bptt.evaluate(case.model, square, [chunk]),
    }[entry]
    refused(run, "targets", "5", "4")


def test_targets_longer_in_a_later_chunk(case):
    stream = [(case.xs, case.ys), (case.xs[:2], case.ys)]
    refused(lambda: list(call(case.model, square, stream)()), "targets", "5", "2")


def nested(x, s):
    return x, {"a": [s["a"][0]], "b": (s["b"], s["b"])}


STRUCTURES = {
    "tuple for a tensor": (lambda x, s: (x, (s,)), torch.zeros(3, 4)),
    "tensor for a tuple": (lambda x, s: (x, s[0]), (torch.zeros(3, 4),)),
    "a key more": (lambda x, s: (x, s | {"n": s["h"]}), {"h": torch.zeros(3, 4)}),
    "list for a tuple": (lambda x, s: (x, list(s)), (torch.zeros(3, 4), torch.zeros(3))),
    "deep": (nested, {"a": [torch.zeros(3, 4)], "b": torch.zeros(3)}),
    "none": (lambda x, s: (x, None), torch.zeros(3, 4)),
}


@pytest.mark.parametrize(("step", "state"), STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("entry", ["unroll", "backward", "evaluate"])
def test_another_state_structure(case, step, state, entry):
    model, chunk = bptt.scan(step), (case.xs, case.xs)
    run = {
        "unroll": first(model, square, [chunk], state),
        "backward": lambda: bptt.backward(model, square, chunk, state, memory=bptt.Checkpoints(1, 1)),
        "evaluate": lambda: bptt.evaluate(model, square, [chunk], state),
    }[entry]
    refused(run, "state")


@pytest.mark.parametrize("result", [torch.zeros(5, 3, 4), (1, 2, 3), None], ids=["tensor", "three", "none"])
def test_a_recurrence_that_returns_no_pair(case, result):
    refused(first(lambda xs, s: result, square, [(case.xs, case.ys)], case.zeros()), "(outputs, state)")


def test_outputs_without_time(case):
    refused(first(lambda xs, s: (xs.sum(0), s), square, [(case.xs, case.ys)], case.zeros()), "outputs")


def test_inputs_with_a_graph_in_unroll(case):
    lift = nn.Linear(3, 3, dtype=F64)
    refused(first(case.model, square, [(lift(case.xs), case.ys)]), "inputs", "detach", "bptt.backward")
    model = bptt.scan(lambda x, s: (x["b"][0] + s, s))
    stream = [({"a": case.xs, "b": [lift(case.xs)]}, case.ys)]
    refused(first(model, square, stream, torch.zeros(3, 3, dtype=F64)), "inputs['b'][0]")
    late = [(case.xs, case.ys), (lift(case.xs), case.ys)]
    refused(lambda: list(call(case.model, square, late)()), "inputs")


class Bad:
    """A loss that is not finite at one step, counted by its targets."""

    def __init__(self, step: int, value: float):
        self.step, self.value = step, value

    def __call__(self, outputs, targets):
        return outputs.square() + torch.where(targets == self.step, self.value, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [0, 4, 7, 11])
@pytest.mark.parametrize("strategy", [bptt.TruncatedBPTT(3), bptt.TruncatedBPTT(2, 5), bptt.FullBPTT()], ids=str)
def test_a_loss_that_is_not_finite(value, step, strategy):
    case = make("gru", 12)
    ys = torch.arange(12, dtype=F64)[:, None, None].expand(12, 2, 4)
    stream = [(case.xs[a:b], ys[a:b]) for a, b in ((0, 5), (5, 6), (6, 12))]
    for memory in (None, bptt.Checkpoints(2, 2)):
        with pytest.raises(bptt.NonFiniteLossError) as info:
            list(bptt.unroll(case.model, Bad(step, value), stream, strategy=strategy, memory=memory))
        assert info.value.step == step
        assert str(step) in str(info.value)
        assert "\n" not in str(info.value)
    assert issubclass(bptt.NonFiniteLossError, ValueError)
    assert issubclass(bptt.NonFiniteLossError, FloatingPointError)


def test_a_bad_loss_leaves_the_gradient_alone():
    case = make("gru", 12)
    ys = torch.arange(12, dtype=F64)[:, None, None].expand(12, 2, 4)
    run = bptt.unroll(case.model, Bad(7, math.nan), [(case.xs, ys)], strategy=bptt.TruncatedBPTT(3))
    assert [next(run).t1, next(run).t1] == [3, 6]
    before = [p.grad.clone() for p in case.parameters()]
    with pytest.raises(bptt.NonFiniteLossError):
        next(run)
    assert all(torch.equal(p.grad, b) for p, b in zip(case.parameters(), before, strict=True))


def test_a_bad_loss_behind_a_mask_is_no_error():
    case = make("gru", 12)
    ys = torch.arange(12, dtype=F64)[:, None, None].expand(12, 2, 4)
    mask = torch.ones(12, 2, dtype=torch.bool)
    mask[7] = False
    run = bptt.unroll(case.model, Bad(7, math.nan), [(case.xs, ys, None, mask)], strategy=bptt.TruncatedBPTT(3))
    assert [bool(torch.isfinite(update.loss)) for update in run] == [True] * 4


@pytest.mark.parametrize("stream", [[], (), iter([]), (c for c in ())], ids=["list", "tuple", "iterator", "generator"])
def test_an_empty_stream(case, stream):
    stream = list(stream)
    for strategy in (bptt.TruncatedBPTT(2), bptt.FullBPTT(), bptt.ARTBP()):
        refused(first(case.model, square, iter(stream), strategy=strategy), "stream", "empty")
    refused(lambda: bptt.evaluate(case.model, square, iter(stream)), "stream", "empty")


def test_chunks_without_steps(case):
    refused(first(case.model, square, [(case.xs[:0], case.ys[:0])]), "empty")
    refused(lambda: bptt.backward(case.model, square, (case.xs[:0], case.ys[:0])))


def test_things_that_are_no_chunk_or_stream(case):
    refused(call(case.model, square, (case.xs, case.ys)), "stream", "[(inputs, targets)]")
    refused(call(case.model, square, case.xs), "stream")
    refused(call(case.model, square, 3), "stream")
    for chunk in (case.xs, (case.xs,), (case.xs,) * 5, {"x": case.xs}, None):
        refused(first(case.model, square, [chunk]), "chunk")
    packed = nn.utils.rnn.pack_padded_sequence(case.xs, [5, 4, 2])
    refused(first(case.model, square, [(packed, case.ys)]), "mask")


@pytest.mark.parametrize("name", ["is_start", "mask"])
def test_rows_of_the_wrong_kind(case, name):
    for rows in (-torch.ones(5, 3), torch.ones(4, 3, dtype=torch.bool), torch.ones(5, 3, 4, dtype=torch.bool), [True]):
        chunk = bptt.Chunk(case.xs, case.ys)._replace(**{name: rows})
        refused(first(case.model, square, [chunk]), name)
    rows = torch.ones(5, 2, dtype=torch.bool)
    refused(first(case.model, square, [bptt.Chunk(case.xs, case.ys)._replace(**{name: rows})]), name)


def test_an_error_of_the_model_keeps_its_own_kind(case):
    def model(xs, state):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        next(bptt.unroll(model, square, [(case.xs, case.ys)], case.zeros(), strategy=bptt.TruncatedBPTT(2)))


def test_a_state_changed_in_place_is_found_under_a_budget():
    """Replays need the states that were stored: a recurrence that overwrites its own is told so."""
    w = nn.Parameter(torch.tensor(0.9, dtype=F64))

    def step(x, s):
        out = w * s + x
        with torch.no_grad():
            s += 1
        return out, out

    def loss(outputs, targets):
        return outputs.mean(1)

    x, state = torch.randn(6, 2, dtype=F64), torch.zeros(2, dtype=F64)
    refused(
        lambda: bptt.backward(bptt.scan(step), loss, (x, None), state, memory=bptt.Checkpoints(2, 1)),
        "in place",
        kind=(ValueError, RuntimeError),
    )
