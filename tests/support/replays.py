"""What the tests of replays share: the budgets, a state with a counter, and one graph by hand."""

import torch

import bptt
from support import oracle
from support.cases import square

F64 = torch.float64
T = 12
BUDGETS = {
    "1 slot": bptt.Checkpoints(1, 1),
    "2 slots": bptt.Checkpoints(2, 1),
    "2 slots of 3": bptt.Checkpoints(2, 3),
    "many": bptt.Checkpoints(50, 2),
    "bytes": "4KiB",
}


def state():
    """Zeros for two rows, and a counter of steps in each."""
    return (torch.zeros(2, 4, dtype=F64), torch.zeros(2, dtype=torch.int64))


def by_hand(step, case):
    """(gradients, last state) of one graph over all T steps."""
    s, total = state(), 0.0
    for t in range(T):
        out, s = step(case.xs[t], s)
        total = total + square(out, case.ys[t]).mean()
    total.backward()
    return oracle.gradients(step.parameters()), s
