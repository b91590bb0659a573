"""Replays are faithful: random numbers, buffers, autocast and integer counters are those of the first evaluation."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import make, square
from support.replays import BUDGETS, F64, T, by_hand, state


class Dropping(nn.Module):
    """Draws a mask each step and records it by step, so that a plain run can use the same."""

    def __init__(self):
        super().__init__()
        self.inner, self.masks, self.given = nn.Linear(7, 4, dtype=F64), {}, None

    def forward(self, x, state):
        h, t = state
        h = torch.tanh(self.inner(torch.cat([x, h], -1)))
        drawn = nn.functional.dropout(torch.ones(2, 4, dtype=F64), 0.5) if self.given is None else self.given[int(t[0])]
        self.masks.setdefault(int(t[0]), []).append(drawn)
        return h * drawn, (h * drawn, t + 1)


@pytest.mark.parametrize("memory", [None, *BUDGETS.values()], ids=["stored", *BUDGETS])
@pytest.mark.parametrize("strategy", [bptt.FullBPTT(), bptt.TruncatedBPTT(4), bptt.TruncatedBPTT(T, T + 3)], ids=str)
def test_dropout_replays_the_same_masks(memory, strategy):
    torch.manual_seed(3)
    case, step = make("gru", T), Dropping()
    torch.manual_seed(11)
    stream = [(case.xs[:5], case.ys[:5]), (case.xs[5:], case.ys[5:])]
    list(bptt.unroll(bptt.scan(step), square, stream, state(), strategy=strategy, memory=memory, reduction="sum"))
    got, masks = oracle.gradients(step.parameters()), step.masks
    assert sorted(masks) == list(range(T))
    for drawn in masks.values():
        assert isinstance(memory, str) or all(torch.equal(m, drawn[0]) for m in drawn)  # probes draw for themselves
    assert len({tuple(m[0].flatten().tolist()) for m in masks.values()}) > T // 2  # fresh at every step
    step.masks, step.given = {}, {t: drawn[-1] for t, drawn in masks.items()}
    if isinstance(strategy, bptt.FullBPTT) or strategy.k1 == T:
        oracle.assert_close(got, by_hand(step, case)[0])
    list(bptt.unroll(bptt.scan(step), square, stream, state(), strategy=strategy, reduction="sum"))
    oracle.assert_close(got, oracle.gradients(step.parameters()))


@pytest.mark.parametrize("memory", [None, *BUDGETS.values()], ids=["stored", *BUDGETS])
def test_the_generator_stands_where_one_run_would_leave_it(memory):
    """A step by step run over T steps draws T masks, replays or not, and the user's own draws go on from there."""
    case, step = make("gru", T), Dropping()
    torch.manual_seed(11)
    bptt.backward(bptt.scan(step), square, (case.xs, case.ys), state(), memory=memory)
    after = torch.get_rng_state()
    torch.manual_seed(11)
    by_hand(step, case)
    assert torch.equal(torch.get_rng_state(), after)


def test_windows_that_overlap_draw_afresh():
    case, step = make("gru", T), Dropping()
    for memory in (None, bptt.Checkpoints(1, 1)):
        step.masks = {}
        run = bptt.unroll(
            bptt.scan(step), square, [(case.xs, case.ys)], state(), strategy=bptt.TruncatedBPTT(2, 6), memory=memory
        )
        list(run)
        assert any(not torch.equal(drawn[0], drawn[-1]) for drawn in step.masks.values())


def test_dropout_of_a_layer_in_segments():
    """nn.LSTM's own dropout draws once a call: the same segments give the same masks, stored or replayed."""
    case = make("lstm2", T)
    case.model.dropout = 0.5
    results = []
    for memory in (bptt.Checkpoints(100, 3), bptt.Checkpoints(1, 3), bptt.Checkpoints(2, 3)):
        torch.manual_seed(5)
        bptt.backward(case.model, square, (case.xs, case.ys), memory=memory)
        results.append((oracle.gradients(case.parameters()), torch.get_rng_state()))
    torch.manual_seed(5)
    s, total = case.zeros(), 0.0
    for a in range(0, T, 3):
        out, s = case.model(case.xs[a : a + 3], s)
        total = total + square(out, case.ys[a : a + 3]).mean((1, 2)).sum() / T
    total.backward()
    want, after = oracle.gradients(case.parameters()), torch.get_rng_state()
    for got, rng in results:
        oracle.assert_close(got, want)
        assert torch.equal(rng, after)


@pytest.mark.parametrize("memory", list(BUDGETS.values()), ids=list(BUDGETS))
def test_state_dict_and_modes_are_left_alone(memory):
    case, step = make("gru", T), Dropping()
    before = {k: v.clone() for k, v in step.state_dict().items()}
    model = bptt.scan(step)
    run = bptt.unroll(model, square, [(case.xs, case.ys)], state(), strategy=bptt.TruncatedBPTT(4), memory=memory)
    assert [update.t1 for update in run] == [4, 8, 12]
    assert all(torch.equal(before[k], v) for k, v in step.state_dict().items())
    assert step.training
    assert all(p.requires_grad for p in step.parameters())


def test_counters_in_integer_leaves_are_replayed():
    """The step that runs is the one the counter says, replays included (the table of masks is by counter)."""
    case, step = make("gru", T), Dropping()
    bptt.backward(bptt.scan(step), square, (case.xs, case.ys), state(), memory=bptt.Checkpoints(2, 1))
    assert sorted(step.masks) == list(range(T))
    assert sum(len(m) for m in step.masks.values()) > T


@pytest.mark.parametrize("memory", [None, *BUDGETS.values()], ids=["stored", *BUDGETS])
@pytest.mark.parametrize("quiet", [True, False], ids=["quiet model", "noisy model"])
def test_noise_in_the_loss_is_fresh(memory, quiet):
    """A decoder's dropout: every segment and window draws numbers of its own, which the model doesn't see again."""
    case, drawn, step = make("gru", T), [], Dropping()
    lengths = {1, 3} if memory == BUDGETS["many"] else set()  # a second length, tried because there T = B
    step.given = {t: torch.ones(2, 4, dtype=F64) for t in range(T)} if quiet else None

    def loss(outputs, targets):
        noise = torch.rand(outputs.shape[-1], dtype=F64)
        if len(outputs) not in lengths:
            drawn.append(noise)
        return square(outputs * noise, targets)

    stream = [(case.xs, case.ys)]
    list(bptt.unroll(bptt.scan(step), loss, stream, state(), strategy=bptt.TruncatedBPTT(6), memory=memory))
    seen = [tuple(d.tolist()) for d in drawn]
    assert len(set(seen)) == len(seen) or isinstance(memory, str)  # probes may use what is drawn later
    assert len(set(seen[-2:])) == 2  # the last of one window and of the other
