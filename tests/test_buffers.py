"""Buffers under replays: updated once a step, seen by a replay as the first evaluation saw them, kept in place."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import make, square
from support.replays import BUDGETS, F64, T, by_hand, state


class Normed(nn.Module):
    """Batch norm on every step's output."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(7, 4, dtype=F64), nn.BatchNorm1d(4, dtype=F64)

    def forward(self, x, state):
        h, t = state
        h = torch.tanh(self.norm(self.inner(torch.cat([x, h], -1))))
        return h, (h, t + 1)


class Counting(nn.Module):
    """A buffer that grows with every call and steers the step; changed in place, or bound anew."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.inner, self.in_place = nn.Linear(7, 4, dtype=F64), in_place
        self.register_buffer("count", torch.zeros((), dtype=F64))

    def forward(self, x, state):
        h, t = state
        if self.in_place:
            self.count += 1
        else:
            self.count = self.count + 1
        h = torch.tanh(self.inner(torch.cat([x, h], -1)) * (1 + 0.1 * self.count.clone()))
        return h, (h, t + 1)


STEPS = {"batch norm": Normed, "in place": lambda: Counting(True), "bound anew": lambda: Counting(False)}


@pytest.mark.parametrize("make_step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("memory", [None, *BUDGETS.values()], ids=["stored", *BUDGETS])
@pytest.mark.parametrize("wrapped", [False, True], ids=["step", "inside another"])
def test_buffers_are_updated_once_a_step_and_replays_see_the_old_ones(make_step, memory, wrapped):
    case = make("gru", T)
    torch.manual_seed(1)
    plain, step = make_step(), make_step()
    step.load_state_dict(plain.state_dict())
    want, last = by_hand(plain, case)
    model = bptt.scan(step)
    if wrapped:
        model = Outer(model)
    update = bptt.backward(model, square, (case.xs, case.ys), state(), memory=memory, reduction="sum")
    oracle.assert_close(oracle.gradients(step.parameters()), want)
    oracle.assert_close(update.state, last)
    for (name, a), (_, b) in zip(step.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=0), name
    if isinstance(step, Normed):
        assert int(step.norm.num_batches_tracked) == T


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs, state):
        return self.inner(inputs, state)


@pytest.mark.parametrize("memory", [None, *BUDGETS.values()], ids=["stored", *BUDGETS])
def test_buffers_over_truncated_windows_with_training(memory):
    """k1 = k2: every step is evaluated in earnest once, so a training run's buffers are those of a plain loop."""
    results = []
    for engine in (False, True):
        case = make("gru", T)
        torch.manual_seed(1)
        step = Normed()
        optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
        if engine:
            stream = [(case.xs, case.ys)]
            for _ in bptt.unroll(
                bptt.scan(step), square, stream, state(), strategy=bptt.TruncatedBPTT(4), memory=memory
            ):
                optimizer.step()
                optimizer.zero_grad()
        else:
            s = state()
            for a in range(0, T, 4):
                total = 0.0
                for t in range(a, a + 4):
                    out, s = step(case.xs[t], s)
                    total = total + square(out, case.ys[t]).mean()
                (total / 4).backward()
                optimizer.step()
                optimizer.zero_grad()
                s = oracle.detach(s)
        results.append([v.clone() for v in step.state_dict().values()])
    oracle.assert_close(results[1], results[0], 1e-11)


def test_the_same_buffers_stay_in_place():
    """The module's own buffer tensors are the same objects after a run with replays (a user may hold them)."""
    case, step = make("gru", T), Normed()
    held = dict(step.named_buffers())
    bptt.backward(bptt.scan(step), square, (case.xs, case.ys), state(), memory=bptt.Checkpoints(1, 1))
    assert all(held[name] is b for name, b in step.named_buffers())
    assert int(held["norm.num_batches_tracked"]) == T


@pytest.mark.parametrize("at", [3, 15, 30])
def test_an_error_in_a_replay_leaves_the_module_as_it_was(at):
    """Its own buffers back in place, its mode and the random state of the caller's making."""
    case, step = make("gru", T), Normed()
    held, calls = dict(step.named_buffers()), []

    def failing(x, s):
        calls.append(1)
        if len(calls) == at:
            raise KeyError("mine")
        return step(x, s)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = step

        def forward(self, x, s):
            return failing(x, s)

    with pytest.raises(KeyError, match="mine"):
        bptt.backward(bptt.scan(Wrapped()), square, (case.xs, case.ys), state(), memory=bptt.Checkpoints(1, 1))
    assert all(held[name] is b for name, b in step.named_buffers())
    assert int(step.norm.num_batches_tracked) == min(at - 1, T)
    assert torch.is_grad_enabled()


class Normal(nn.Module):
    """A step whose weight has its largest singular value divided out, by one power iteration in buffers a call."""

    def __init__(self):
        super().__init__()
        self.inner = nn.utils.parametrizations.spectral_norm(nn.Linear(7, 4, dtype=F64))

    def forward(self, x, state):
        h, t = state
        h = torch.tanh(self.inner(torch.cat([x, h], -1)))
        return h, (h, t + 1)


@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_spectral_norm(memory):
    case = make("gru", T)
    torch.manual_seed(1)
    plain, step = Normal(), Normal()
    step.load_state_dict(plain.state_dict())
    want, _ = by_hand(plain, case)
    bptt.backward(bptt.scan(step), square, (case.xs, case.ys), state(), memory=memory, reduction="sum")
    oracle.assert_close(oracle.gradients(step.parameters()), want)
    for a, b in zip(step.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=0)
