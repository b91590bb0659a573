"""Adaptive truncation in a run: beside the other strategies, within a budget, what it reads, what its mean is."""

import pytest
import torch

import bptt
from support import oracle
from support.cases import make, square
from support.runs import engine, gradient, start
from support.strategies_under_test import windows

ADAPTIVE = bptt.AdaptiveTruncatedBPTT


@pytest.mark.parametrize("name", ["lstm", "dict", "complex"])
@pytest.mark.thin
def test_it_takes_part_in_backward_and_compare(name):
    case = make(name, 60)
    strategy = ADAPTIVE(tolerance=0.4, window=12, probe_every=2)
    summed, updates = gradient(case, strategy)
    assert updates[-1].t1 == sum(u.steps for u in updates) == 60
    update = bptt.backward(engine(case), square, (case.xs, case.ys), strategy=strategy, reduction="sum", **start(case))
    oracle.assert_close(oracle.gradients(case.parameters()), summed)
    assert update.t1 == 60
    (entry,) = bptt.compare(engine(case), square, (case.xs, case.ys), strategies=[strategy], **start(case)).entries
    exact, _ = gradient(case, bptt.FullBPTT())
    off = sum(((a - b).abs() ** 2).sum() for a, b in zip(summed, exact, strict=True))
    whole = sum((b.abs() ** 2).sum() for b in exact)
    assert entry.bias.value == pytest.approx((off / whole).sqrt().item(), rel=1e-9)


@pytest.mark.parametrize("memory", [bptt.Checkpoints(1, 1), bptt.Checkpoints(5, 3), 0.99, 0.7])
@pytest.mark.thin
def test_a_probe_keeps_within_the_budget_too(memory):
    """With the states in between run again, its answer and the gradient are the same; the least that is named works."""
    case = make("lstm", 200)
    want, free = gradient(case, ADAPTIVE(window=50))
    most = max(u.memory_bytes for u in free)
    assert most >= 57 * 2 * 2 * 4 * 8  # the states of a probe
    memory = int(memory * most) if isinstance(memory, float) else memory
    got, kept = gradient(case, ADAPTIVE(window=50), memory=memory)
    oracle.assert_close(got, want)
    assert [u.decision.k for u in kept] == [u.decision.k for u in free]
    assert kept[0].memory_bytes < most
    assert kept[0].forward_steps > free[0].forward_steps
    with pytest.raises(bptt.BudgetError, match=r"a probe of .*: the least that works here is memory=\d+\.$") as error:
        gradient(case, ADAPTIVE(window=50), memory=64)
    least = error.value.least
    with pytest.raises(bptt.BudgetError) as error:
        gradient(case, ADAPTIVE(window=50), memory=least - 1)
    assert error.value.least == least
    assert max(u.memory_bytes for u in gradient(case, ADAPTIVE(window=50), memory=least)[1]) <= least


def test_reads_no_further_than_a_probe():
    """In chunks of one step: from a window's start through the 10 lags and the 7 losses after, or as far as its K."""
    case, read, needed = make("gru", 80), [], 0
    stream = (read.append(t) or (case.xs[t : t + 1], case.ys[t : t + 1]) for t in range(80))
    strategy = ADAPTIVE(window=10, probe_every=3, k_max=6)
    for number, update in enumerate(bptt.unroll(case.model, square, stream, strategy=strategy)):
        needed = max(needed, update.t1, update.start + 17 if number % 3 == 0 else 0)
        assert len(read) == min(needed, 80)
    assert len(read) == update.t1 == 80


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_mean_divides_by_k(reduction):
    """By the K of each window, a short last block's too."""
    case = make("gru", 50)
    strategy = ADAPTIVE(tolerance=0.3, k_min=1, k_max=9, probe_every=2, window=4)
    got, updates = gradient(case, strategy, reduction=reduction)
    assert len({u.decision.k for u in updates}) > 1
    params, want = case.parameters(), [torch.zeros_like(g) for g in got]
    for update, _ in zip(updates, oracle.run(case.problem(), windows(strategy, 50, updates)), strict=True):
        divisor = update.decision.k if reduction == "mean" else 1
        want = [w + g / divisor for w, g in zip(want, oracle.gradients(params), strict=True)]
    oracle.assert_close(got, want)
