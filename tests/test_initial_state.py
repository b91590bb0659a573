"""Learned states: a leaf or a callable gets its gradient from the start and from every reset, window by window."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import make, some_resets, square
from support.runs import expected, gradient, unroll
from support.strategies_under_test import STRATEGIES, windows

T = 10
BUDGETS = {"stored": None, "1 slot": bptt.Checkpoints(1, 1), "2 slots of 3": bptt.Checkpoints(2, 3), "bytes": "1MiB"}
F64 = torch.float64


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("resets", [False, True], ids=["no resets", "resets"])
def test_learned_initial_state(strategy, memory, resets):
    """A callable: afresh for every window that uses it; its gradient comes from the start and from every reset."""
    case, calls = make("lstm", T), []
    h0, c0 = (torch.randn(1, 1, 4, dtype=F64, requires_grad=True) for _ in range(2))

    def initial():
        calls.append(1)
        return (h0.tanh().expand(1, 2, 4), c0.expand(1, 2, 4).sin())

    tensors, is_start = [h0, c0, *case.parameters()], some_resets(T, 2) if resets else None
    got, updates = gradient(
        case, strategy, tensors, initial_state=initial, is_start=is_start, memory=memory, cuts=(3, 7)
    )
    assert calls
    want = expected(case, strategy, updates, tensors, is_start=is_start, initial=initial)
    oracle.assert_close(got, want)


@pytest.mark.parametrize("name", ["tbptt-3-3", "tbptt-2-5", "full"])
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_learned_initial_state_as_a_leaf(name, memory):
    """A parameter carries no graph: as `initial_state` it needs no callable, and may change between updates."""
    case, strategy = make("gru", T), STRATEGIES[name]
    h0 = nn.Parameter(torch.randn(1, 2, 4, dtype=F64))
    tensors, is_start = [h0, *case.parameters()], some_resets(T, 2)
    got, _ = gradient(case, strategy, tensors, initial_state=h0, is_start=is_start, memory=memory, cuts=(3,))
    oracle.assert_close(got, expected(case, strategy, (), tensors, is_start=is_start, initial=lambda: h0))
    finals = []
    for by_hand in (True, False):
        case = make("gru", T)
        h0 = nn.Parameter(torch.ones(1, 2, 4, dtype=F64) / 3)
        optimizer = torch.optim.SGD([h0, *case.parameters()], lr=0.1)

        def update(optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()

        if by_hand:
            problem = case.problem(is_start=is_start, initial=lambda h0=h0: h0)
            list(oracle.run(problem, windows(strategy, T), 1, update))
        else:
            for _ in unroll(case, strategy, initial_state=h0, is_start=is_start, memory=memory):
                update()
        finals.append([h0.detach().clone(), *(p.detach().clone() for p in case.parameters())])
    oracle.assert_close(finals[1], finals[0], 1e-11)


def test_learned_state_in_backward():
    case = make("gru", T)
    h0 = nn.Parameter(torch.randn(1, 2, 4, dtype=F64))
    for memory in BUDGETS.values():
        bptt.backward(case.model, square, (case.xs, case.ys), h0, reduction="sum", memory=memory)
        got = oracle.gradients([h0, *case.parameters()])
        oracle.assert_close(got, expected(case, bptt.FullBPTT(), tensors=[h0, *case.parameters()], state=h0))


@pytest.mark.parametrize("name", ["tbptt-3-3", "tbptt-2-5", "full"])
def test_learned_state_in_unroll(name):
    """A leaf as `state` gets its gradient from every window that starts at the stream's start."""
    case, strategy = make("gru", T), STRATEGIES[name]
    h0 = nn.Parameter(torch.randn(1, 2, 4, dtype=F64))
    tensors = [h0, *case.parameters()]
    for memory in BUDGETS.values():
        got, _ = gradient(case, strategy, tensors, state=h0, memory=memory)
        oracle.assert_close(got, expected(case, strategy, (), tensors, state=h0))


def test_initial_state_is_called_for_the_windows_that_use_it():
    case, calls, is_start = make("gru", T), [], torch.zeros(T, 2, dtype=torch.bool)
    is_start[7, 0] = True

    def initial():
        calls.append(1)
        return case.zeros()

    for memory in BUDGETS.values():
        calls.clear()
        list(unroll(case, bptt.TruncatedBPTT(3), initial_state=initial, is_start=is_start, memory=memory))
        assert len(calls) == 2
        calls.clear()
        list(unroll(case, bptt.TruncatedBPTT(3), state=case.zeros(), initial_state=initial, memory=memory))
        assert not calls


def test_a_function_that_needs_arguments_is_refused_at_the_call():
    case = make("gru", T)

    def zeros(rows):
        return torch.zeros(1, rows, 4, dtype=F64)

    with pytest.raises(TypeError, match=r"^initial_state=zeros\(rows\) is called without arguments: .*lambda"):
        unroll(case, bptt.TruncatedBPTT(3), initial_state=zeros)
