"""What a mask leaves out reaches no gradient, whatever it is: missing values, overflow, infinite derivatives."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt._masks import dead_steps
from support import oracle
from support.cases import TORCH, make, square
from support.runs import engine, start
from test_properties import Drawn, problems

BAD = [math.nan, math.inf, -math.inf, 1e38]
F64 = torch.float64


def dead_by_hand(mask, is_start, first):
    """Step by step: a step is dead unless a loss counts before the row's next reset."""
    alive, rows = torch.zeros(mask.shape, dtype=torch.bool), mask.shape[1]
    for b in range(rows):
        for t in range(len(mask)):
            for s in range(t, len(mask)):
                if s > t and is_start[s, b]:
                    break
                alive[t, b] |= mask[s, b] and s >= first
    return ~alive


@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 9), st.integers(0, 999))
def test_dead_steps(length, rows, first, number):
    g = torch.Generator().manual_seed(number)
    mask, is_start = torch.rand(length, rows, generator=g) < 0.5, torch.rand(length, rows, generator=g) < 0.3
    first = min(first, length - 1)
    assert dead_steps(mask, is_start, first).equal(dead_by_hand(mask, is_start, first))
    assert dead_steps(mask, None, first).equal(dead_by_hand(mask, torch.zeros_like(is_start), first))
    all_rows = is_start[:, :1].expand(-1, rows)
    assert dead_steps(mask, is_start[:, 0], first).equal(dead_by_hand(mask, all_rows, first))
    all_rows = mask[:, :1].expand(-1, rows)
    assert dead_steps(mask[:, 0], is_start, first).equal(dead_by_hand(all_rows, is_start, first))


def poisoned(value, where, g):
    """`value` with bad numbers in most of the entries (T, B) of `where`."""
    chosen = where & (torch.rand(where.shape, generator=g) < 0.7)
    bad = torch.tensor(BAD, dtype=value.dtype)[torch.randint(len(BAD), value.shape, generator=g)]
    return torch.where(chosen[..., None] & (torch.rand(value.shape, generator=g) < 0.7), bad, value)


def found(drawn: Drawn, leaves) -> tuple:
    if drawn.case.name in TORCH and drawn.number % 2:
        bptt.nn.convert(drawn.case.model)
    oracle.gradients(leaves)
    updates = list(drawn.unroll())
    return oracle.gradients(leaves), [u.loss for u in updates], [u.mean_loss for u in updates]


@given(problems(), st.integers(0, 999))
def test_bad_values_that_are_left_out_change_nothing(drawn, number):
    g = torch.Generator().manual_seed(number)
    shape = drawn.case.xs.shape[:2]
    drawn.mask, drawn.is_start = torch.rand(shape, generator=g) < 0.6, torch.rand(shape, generator=g) < 0.25
    dead = dead_by_hand(drawn.mask, drawn.is_start, 0)
    ys = poisoned(drawn.case.ys, ~drawn.mask, g)
    bad = replace(drawn, case=replace(drawn.case, xs=poisoned(drawn.case.xs, dead, g), ys=ys))
    parameters = drawn.case.parameters()
    good, losses, means = found(drawn, parameters)
    got, bad_losses, bad_means = found(bad, parameters)
    assert all(torch.isfinite(grad).all() for grad in got)
    oracle.assert_close(got, good, 1e-12)
    oracle.assert_close(bad_losses, losses, 1e-12)
    oracle.assert_close(bad_means, means, 1e-12)


BUDGETS = [None, bptt.Checkpoints(2, 3), "64KiB"]


@pytest.mark.parametrize("memory", BUDGETS, ids=str)
def test_states_are_those_of_the_data_as_it_is(memory):
    """A row that counts for nothing to the window's end goes on from what it was given, into the next window."""
    case, mask = make("gru", 12), torch.ones(12, 2, dtype=torch.bool)
    mask[2:8, 1] = mask[5:6, 0] = False
    updates = list(
        bptt.unroll(case.model, square, [(case.xs, case.ys, None, mask)], strategy=bptt.TruncatedBPTT(4), memory=memory)
    )
    assert [update.t1 for update in updates] == [4, 8, 12]
    with torch.no_grad():
        for update in updates:
            oracle.assert_close(update.state, case.model(case.xs[: update.t1])[1])


@pytest.mark.parametrize("memory", BUDGETS[:2], ids=str)
@pytest.mark.parametrize("name", ["gru", "dict", "complex"])
def test_a_kept_state_is_that_of_the_data_as_it_is(name, memory):
    """k1 < k2: the next window starts inside this one, where a row may be dead."""
    case, mask = make(name, 12), torch.ones(12, 2, dtype=torch.bool)
    mask[1:7, 1] = False
    chunk = (case.xs, case.ys, None, mask)
    more = start(case) | {"strategy": bptt.TruncatedBPTT(3, 5), "memory": memory, "reduction": "sum"}
    list(bptt.unroll(engine(case), square, [chunk], **more))
    got = oracle.gradients(case.parameters())
    windows = oracle.truncated(3, 5, 12)
    oracle.assert_close(got, oracle.gradient_of(case.problem(mask=mask), windows, case.parameters()))


@pytest.mark.parametrize("memory", BUDGETS, ids=str)
def test_infinite_derivatives_under_a_mask(memory):
    """sqrt has one at 0: of the loss where outputs meet targets, and of the step on padding with zeros."""
    weight = nn.Parameter(torch.tensor(0.5, dtype=F64))

    def step(x, h):
        h = torch.tanh(weight * h) + weight * x.abs().sqrt()
        return h, h

    model, loss = bptt.scan(step), lambda o, y: (o - y).abs().sqrt()
    xs, mask = torch.rand(9, 2, dtype=F64) + 0.1, torch.ones(9, 2, dtype=torch.bool)
    mask[4:, 1] = mask[2, 0] = False
    zero, grads = torch.zeros(2, dtype=F64), []
    for padding, offset in ((0.7, 1.0), (0.0, 0.0)):
        xs[4:, 1] = padding
        with torch.no_grad():
            ys = torch.where(mask, 3.0, model(xs, zero)[0] + offset)
        chunk = bptt.Chunk(xs, ys, mask=mask)
        bptt.backward(model, loss, chunk, zero, initial_state=zero, state_batch_dim=0, memory=memory)
        grads.append(oracle.gradients([weight]))
    assert torch.isfinite(grads[1][0])
    oracle.assert_close(grads[1], grads[0])


def test_a_loss_with_parameters_sees_no_bad_target():
    case, mask = make("lstm", 8), torch.ones(8, 2, dtype=torch.bool)
    mask[3:5, 0] = mask[6, 1] = False

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros((), dtype=F64))

        def forward(self, outputs, targets):
            return torch.exp(-self.log_scale) * (outputs - targets).square() + self.log_scale

    loss, grads = Learned(), []
    for bad in (None, math.nan, math.inf, 1e200):
        ys = case.ys if bad is None else torch.where(mask[..., None], case.ys, bad)
        bptt.backward(case.model, loss, bptt.Chunk(case.xs, ys, mask=mask))
        grads.append(oracle.gradients([*case.parameters(), loss.log_scale]))
        oracle.assert_close(grads[-1], grads[0])


def test_aux_keeps_the_values_that_are_left_out():
    case, mask = make("gru", 6), torch.ones(6, 2, dtype=torch.bool)
    mask[2:4, 1] = False
    update = bptt.backward(case.model, lambda o, y: (square(o, y), (o, y)), bptt.Chunk(case.xs, case.ys, mask=mask))
    with torch.no_grad():
        oracle.assert_close(update.aux, (case.model(case.xs)[0], case.ys))


def test_a_window_without_a_counted_loss():
    case, mask = make("lstm2", 9), torch.zeros(9, 2, dtype=torch.bool)
    mask[6:] = True
    xs = case.xs.clone()
    updates = []
    for update in bptt.unroll(
        case.model, square, [bptt.Chunk(xs, case.ys, mask=mask)], strategy=bptt.TruncatedBPTT(3), reduction="sum"
    ):
        updates.append([p.grad.abs().sum().item() for p in case.parameters()])
        oracle.gradients(case.parameters())
        assert update.mean_loss.isfinite()
    assert updates[0] == updates[1] == [0.0] * len(updates[0])
    assert all(size > 0 for size in updates[2])


def test_two_axes_for_time_and_rows():
    """Batch-first data: the same gradient, the bad values in their transposed places."""
    case, mask = make("gru", 7, B=3), torch.ones(7, 3, dtype=torch.bool)
    mask[4:, 1] = mask[6:, 2] = False
    xs, ys = (torch.where(mask[..., None], v, math.nan) for v in (case.xs, case.ys))
    turned = nn.GRU(3, 4, batch_first=True, dtype=F64)
    turned.load_state_dict(case.model.state_dict())
    bptt.backward(case.model, square, bptt.Chunk(case.xs, case.ys, mask=mask))
    chunk = bptt.Chunk(*(v.transpose(0, 1) for v in (xs, ys)), mask=mask.T)
    bptt.backward(turned, square, chunk, time_dim=1)
    oracle.assert_close(oracle.gradients(turned.parameters()), oracle.gradients(case.parameters()))
