"""Checkpoints: what they cost in steps, what they hold, and that replays run what they say."""

import gc

import pytest
import torch
from torch import nn

import bptt
from bptt._checkpoint import forward_steps
from support.cases import make, square
from support.meters import metered
from support.runs import unroll
from support.strategies_under_test import CUTTING

F64 = torch.float64


@pytest.mark.parametrize(("slots", "segment"), [(0, 1), (1, 0), (-1, 3), (2, -2), (1.5, 1), (1, "2")])
def test_checkpoints_that_are_none(slots, segment):
    with pytest.raises((ValueError, TypeError), match=r"slots|segment"):
        bptt.Checkpoints(slots, segment)


class Counted(nn.Module):
    """Counts the steps that are run, and holds what a replay must not change."""

    def __init__(self):
        super().__init__()
        self.inner, self.runs = nn.Linear(7, 4, dtype=F64), []

    def forward(self, x, state):
        h, t = state
        self.runs.append(int(t[0]))
        h = torch.tanh(self.inner(torch.cat([x, h], -1)))
        return h, (h, t + 1)


def counted(length: int, strategy, memory, cuts=()):
    case, step = make("gru", length), Counted()
    state = (torch.zeros(2, 4, dtype=F64), torch.zeros(2, dtype=torch.int64))
    stream = [(case.xs[a:b], case.ys[a:b]) for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
    run = bptt.unroll(bptt.scan(step), square, stream, state, strategy=strategy, memory=memory, reduction="sum")
    updates = list(run)
    return step, updates


def test_eleven_steps_with_two_slots_run_at_most_thirty_five_steps():
    for cuts in ((), (4,)):
        step, (update,) = counted(11, bptt.FullBPTT(), bptt.Checkpoints(2, 1), cuts)
        assert len(step.runs) <= 35
        assert update.forward_steps == len(step.runs)
        assert sorted(set(step.runs)) == list(range(11))


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("length", [1, 2, 7, 12])
def test_forward_steps_are_the_closed_form(slots, length):
    step, (update,) = counted(length, bptt.FullBPTT(), bptt.Checkpoints(slots, 1))
    assert update.forward_steps == len(step.runs) <= forward_steps(length, slots) + length


@pytest.mark.parametrize(("slots", "segment"), [(1, 2), (2, 3), (3, 2), (2, 5), (4, 4), (1, 50)])
def test_forward_steps_by_segments(slots, segment):
    length = 13
    step, (update,) = counted(length, bptt.FullBPTT(), bptt.Checkpoints(slots, segment))
    segments = -(-length // segment)
    assert update.forward_steps == len(step.runs) <= (forward_steps(segments, slots) + segments) * segment
    assert update.forward_steps >= length


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
def test_reported_steps_are_the_steps_that_ran(strategy):
    for memory in (None, bptt.Checkpoints(2, 2), bptt.Checkpoints(1, 1)):
        step, updates = counted(14, strategy, memory, (3, 4))
        assert updates[-1].t1 == 14
        assert sum(u.forward_steps for u in updates) == len(step.runs)
        if memory is None and not isinstance(strategy, bptt.AdaptiveTruncatedBPTT):
            assert len(step.runs) == sum(u.t1 - u.start for u in updates)


class States:
    """A recurrence that counts the states that are alive, among all tensors, whenever it is called."""

    def __init__(self, case, shape):
        self.model, self.shape, self.most = case.model, shape, 0

    def __call__(self, inputs, state):
        found = {
            t.untyped_storage().data_ptr()
            for t in gc.get_objects()
            if type(t) is torch.Tensor and t.shape == self.shape and t.untyped_storage().nbytes() == t.nbytes
        }
        self.most = max(self.most, len(found))
        return self.model(inputs, state)


@pytest.mark.parametrize("slots", [1, 2, 4, 9])
def test_slots_bound_the_states_that_are_alive(slots, small_heap):
    """Beside the slots: the working state, the last, two cotangents, and the one step's own outputs."""
    case = make("gru", 40, hidden=19)
    model = States(case, (1, 2, 19))
    list(unroll(case, bptt.FullBPTT(), model=model, state=case.zeros(), memory=bptt.Checkpoints(slots, 1)))
    assert slots <= model.most <= slots + 7


def test_saved_bytes_do_not_grow_with_the_length():
    peaks = [metered("gru", n, bptt.FullBPTT(), bptt.Checkpoints(4, 2))[1].peak for n in (20, 200)]
    assert peaks[0] == peaks[1] > 0
