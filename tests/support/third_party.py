"""Models of other libraries in runs of `bptt` and in the same runs by hand; skips where a library is missing."""

import importlib
import random
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import bptt
from support import oracle

T, B = 20, 3
LOSS = bptt.per_step(nn.MSELoss())
RUNS = {
    "full": (bptt.FullBPTT(), None),
    "full-checkpoints": (bptt.FullBPTT(), bptt.Checkpoints(2, 3)),
    "full-bytes": (bptt.FullBPTT(), "1MiB"),
    "truncated": (bptt.TruncatedBPTT(4), None),
    "overlapping": (bptt.TruncatedBPTT(3, 7), None),
    "overlapping-checkpoints": (bptt.TruncatedBPTT(3, 7), bptt.Checkpoints(1, 2)),
}


def library(name):
    """The module of that name, or a skip that says how to get it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{error}: pip install 'bptt[third-party]'")


class Case(NamedTuple):
    """A recurrence, its data with time first or, under time_dim=1, second, and the state that it starts from."""

    model: nn.Module
    inputs: Any
    targets: torch.Tensor
    time_dim: int = 0
    loss: Callable = LOSS
    state: Any = None


def cut(tree, dim, a, b):
    return pytree.tree_map(lambda leaf: leaf.narrow(dim, a, b - a), tree)


def bare(tree):
    return pytree.tree_map(lambda leaf: leaf if leaf is None else leaf.detach(), tree)


def by_hand(case, optimizer, k1, k2):
    """Each window's loss: the model called step by step, autograd, a step of the optimiser."""
    states, length = {0: case.state}, case.targets.shape[case.time_dim]
    for a in range(0, length, k1):
        first, total = max(0, a + k1 - k2), 0.0
        state = bare(states[first])  # a copy: a model may write to lists
        for t in range(first, min(a + k1, length)):
            outputs, state = case.model(cut(case.inputs, case.time_dim, t, t + 1), state)
            states[t + 1] = bare(state)
            if t >= a:
                total = total + case.loss(outputs, cut(case.targets, case.time_dim, t, t + 1)).mean() / k1
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def trained(make, run):
    """The parameters after a run, or its gradient where there is one window."""
    torch.manual_seed(0)
    random.seed(0)  # some layers draw their first weights by it
    case = make()
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.05)
    run(case, optimizer)
    return [p.grad.detach().clone() for p in case.model.parameters() if p.grad is not None], [
        p.detach() for p in case.model.parameters()
    ]


def check_run(make, run, rtol=1e-9):
    """`unroll` with steps of an optimiser between the windows of a stream in two chunks, or `backward` of the whole."""
    strategy, memory = RUNS[run]
    k1, k2 = (strategy.k1, strategy.k2 or strategy.k1) if isinstance(strategy, bptt.TruncatedBPTT) else (T, T)

    def ours(case, optimizer):
        chunks = [
            tuple(cut(tree, case.time_dim, a, b) for tree in (case.inputs, case.targets)) for a, b in ((0, 13), (13, T))
        ]
        options = {"strategy": strategy, "memory": memory, "time_dim": case.time_dim}
        for _ in bptt.unroll(case.model, case.loss, chunks, case.state, **options):
            last = [None if p.grad is None else p.grad.clone() for p in case.model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
        for p, grad in zip(case.model.parameters(), last, strict=True):
            p.grad = grad

    want = trained(make, lambda case, optimizer: by_hand(case, optimizer, k1, k2))
    got = trained(make, ours)
    assert any(g.abs().max() > 0 for g in want[0])
    oracle.assert_close(got[0], want[0], rtol)
    oracle.assert_close(got[1], want[1], rtol)
    if k1 == T:

        def whole(case, _):
            bptt.backward(
                case.model, case.loss, (case.inputs, case.targets), case.state, memory=memory, time_dim=case.time_dim
            )

        oracle.assert_close(trained(make, whole)[0], want[0], rtol)


singles = pytest.mark.parametrize("run", RUNS)


def runs(test):
    """In double precision, so that what spikes does so on both sides and what is left over is small."""
    return pytest.mark.usefixtures("double")(pytest.mark.parametrize("run", RUNS)(test))
