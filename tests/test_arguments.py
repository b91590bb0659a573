"""Impossible arguments: one clear line that says what was passed and what to do, at the call."""

import math

import pytest
import torch
from torch import nn

import bptt
from support.cases import make, square
from support.refusals import call, first, refused
from support.runs import engine

F64 = torch.float64


@pytest.fixture
def case():
    return make("gru", 5, B=3)


@pytest.mark.parametrize(("k1", "k2"), [(20, 5), (2, 1), (7, 6)])
def test_k2_below_k1(k1, k2):
    refused(lambda: bptt.TruncatedBPTT(k1=k1, k2=k2), f"k1={k1}", f"k2={k2}", f"Use k2={k1}")


@pytest.mark.parametrize("k1", [0, -1, 1.5, "3", None, True])
def test_k1_below_one(k1):
    refused(lambda: bptt.TruncatedBPTT(k1), "k1")


@pytest.mark.parametrize("k2", [0, -4, 2.5, "9"])
def test_k2_that_is_no_number_of_steps(k2):
    refused(lambda: bptt.TruncatedBPTT(1, k2), "k2")


@pytest.mark.parametrize("every", [0, -1, 1.5, None])
def test_every(every):
    refused(lambda: bptt.ARTBP(every=every), "every")


@pytest.mark.parametrize("p", [1.0, 1.5, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 3])
def test_a_law_outside_zero_to_one(case, p, at):
    strategy = bptt.ARTBP(law=lambda k: p if k == at else 0.0)
    message = refused(
        lambda: list(bptt.unroll(case.model, square, [(case.xs, case.ys)], strategy=strategy, reduction="sum")),
        "law",
        "[0, 1)",
    )
    assert str(at) in message


def test_a_law_that_is_no_function():
    refused(lambda: bptt.ARTBP(law=0.1), "law")


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_batch_first(case, cell):
    model = cell(3, 4, batch_first=True, dtype=F64)
    chunk = (case.xs, case.ys)
    for run in (
        call(model, square, [chunk]),
        lambda: bptt.backward(model, square, chunk),
        lambda: bptt.evaluate(model, square, [chunk]),
    ):
        refused(run, "batch_first", "time_dim=1")


def test_batch_first_of_a_users_module(case):
    class Mine(nn.Module):
        batch_first = True

        def forward(self, xs, state):
            return xs, state

    refused(call(Mine(), square, [(case.xs, case.ys)], case.zeros()), "batch_first", "time_dim=1")


def test_time_dim(case):
    for bad in (2, -1, "time", None):
        refused(call(case.model, square, [(case.xs, case.ys)], time_dim=bad), "time_dim")


@pytest.mark.parametrize("name", ["rnn", "gru2", "lstm"])
@pytest.mark.parametrize("entry", ["unroll", "backward", "evaluate"])
def test_state_of_the_wrong_batch_size(name, entry):
    case, other = make(name, 5, B=3), make(name, 5, B=2)
    chunk, state = (case.xs, case.ys), other.zeros()
    run = {
        "unroll": first(case.model, square, [chunk], state),
        "backward": lambda: bptt.backward(case.model, square, chunk, state),
        "evaluate": lambda: bptt.evaluate(case.model, square, [chunk], state),
    }[entry]
    refused(run, "state", "batch")


def test_state_of_the_wrong_structure_for_a_layer(case):
    h = case.zeros()
    refused(first(case.model, square, [(case.xs, case.ys)], (h, h)), "state")
    lstm = make("lstm", 5, B=3)
    refused(first(lstm.model, square, [(lstm.xs, lstm.ys)], h), "state")


def test_no_state_and_no_default():
    case = make("dict", 5)
    chunk = (case.xs, case.ys)
    for run in (
        call(engine(case), square, [chunk]),
        lambda: bptt.backward(engine(case), square, chunk),
        lambda: bptt.evaluate(engine(case), square, [chunk]),
    ):
        refused(run, "state=", "initial_state=")


def test_a_reset_without_an_initial_state():
    case = make("dict", 5)
    is_start = torch.ones(5, 2, dtype=torch.bool)
    stream = [(case.xs, case.ys, is_start)]
    refused(first(engine(case), square, stream, case.zeros(), state_batch_dim=0), "initial_state=")


def test_rows_without_state_batch_dim():
    case = make("dict", 5)
    stream = [(case.xs, case.ys, torch.eye(5, 2, dtype=torch.bool))]
    refused(first(engine(case), square, stream, initial_state=case.zeros), "state_batch_dim")
    refused(first(engine(case), square, [(case.xs, case.ys)], case.zeros(), clip_cotangent=1.0), "state_batch_dim")
    refused(first(engine(case), square, stream, initial_state=case.zeros, state_batch_dim=5), "state_batch_dim")


def test_state_with_a_graph_in_unroll(case):
    h = nn.Parameter(case.zeros()) * 1
    refused(call(case.model, square, [(case.xs, case.ys)], h), "state", "bptt.backward")
    deep = make("dict", 5)
    s = deep.zeros() | {"rest": [nn.Parameter(deep.zeros()["h"]) * 2, deep.zeros()["rest"][1]]}
    refused(call(engine(deep), square, [(deep.xs, deep.ys)], s), "state['rest'][0]")
    refused(call(engine(deep), square, [(deep.xs, deep.ys)], initial_state=s), "initial_state['rest'][0]", "function")


def test_arguments_of_the_wrong_kind(case):
    stream = [(case.xs, case.ys)]
    refused(call(case.model, square, stream, strategy=bptt.TruncatedBPTT), "strategy", "TruncatedBPTT(")
    refused(call(case.model, square, stream, strategy="tbptt"), "strategy")
    refused(call(case.model, square, stream, reduction="none"), "reduction", "sum")
    refused(call(None, square, stream), "model")
    refused(call(case.model, None, stream), "loss")
    refused(call(case.model, square, stream, params=case.model), "params")
    refused(call(case.model, square, stream, params=[torch.zeros(2)]), "params")
    refused(call(case.model, square, stream, scale="big"), "scale")
    refused(lambda: bptt.scan(3), "step")
    with pytest.raises(TypeError, match="strategy"):
        bptt.unroll(case.model, square, stream)


def test_bidirectional_layers_have_no_state_to_carry(case):
    model = nn.GRU(3, 4, bidirectional=True, dtype=F64)
    refused(call(model, square, [(case.xs, case.ys)]), "bidirectional")


def test_under_inference_mode(case):
    with torch.inference_mode():
        refused(call(case.model, square, [(case.xs, case.ys)]), "inference_mode")


def test_initial_states_of_another_structure():
    case = make("dict", 5)
    stream = [(case.xs, case.ys, torch.ones(5, 2, dtype=torch.bool))]
    for initial in (torch.zeros(2, 4, dtype=F64), lambda: (torch.zeros(2, 4, dtype=F64),)):
        run = first(engine(case), square, stream, case.zeros(), initial_state=initial, state_batch_dim=0)
        refused(run, "initial_state")
