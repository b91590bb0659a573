"""What is carried of ∂s/∂θ keeps within a budget, as the allocator sees it."""

import pytest
import torch
from torch import nn

import bptt

LOSS = bptt.per_step(nn.MSELoss())


class Wide(nn.Module):
    """A small state behind many numbers of few parameters, so that cotangents in a graph are larger than J."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3 + 4, 4)

    def forward(self, x, h):
        u = self.line(torch.cat([x, h], -1))
        h = torch.tanh(u[..., None] * torch.linspace(0.5, 1.5, 400)).mean(-1)
        return h, h


def allocated(run):
    """Bytes that torch's allocator had given out at most, beside those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("strategy", [bptt.RTRL(1), bptt.RTRL(4), bptt.SnAp(2, 4)], ids=str)
def test_a_budget_is_kept_while_many_vjps_are_taken(strategy):
    """What the allocator gave out is no more above the budget than one window's own backward pass without a budget.

    Of all vjps of a step at once it would be: four cotangents of each tensor of the graph.
    """
    model, chunk, state = bptt.scan(Wide()), (torch.randn(4, 2, 3), torch.randn(4, 2, 4)), torch.zeros(2, 4)

    def run(strategy, memory=None):
        def once():
            model.zero_grad()
            bptt.backward(model, LOSS, chunk, state, strategy=strategy, memory=memory, state_batch_dim=0)

        return once

    with pytest.raises(bptt.BudgetError) as info:
        run(strategy, "1B")()
    own = allocated(run(bptt.TruncatedBPTT(1)))
    for memory in (info.value.least, int(1.1 * info.value.least)):
        assert allocated(run(strategy, memory)) <= memory + own


@pytest.mark.parametrize("strategy", [bptt.RTRL(), bptt.SnAp(2), bptt.SnAp(1), bptt.UORO()], ids=str)
def test_more_than_the_machine_has_is_refused_before_it_is_filled(strategy, monkeypatch):
    """A GRU of 8 units has 312 parameters, so J of a row has 2,496 numbers: 20 kB for two rows, and more beside."""
    layer, stream = bptt.nn.GRU(3, 8), [(torch.randn(5, 2, 3), torch.randn(5, 2, 8))]
    monkeypatch.setattr(bptt._influence, "memory_here", lambda: 19_000)
    run = bptt.unroll(layer, LOSS, stream, strategy=strategy)
    if isinstance(strategy, bptt.UORO) or strategy == bptt.SnAp(1):  # a few times 312 numbers a row
        assert sum(update.steps for update in run) == 5
    else:
        with pytest.raises(ValueError, match=r"^∂s/∂θ, which is carried, would take 0.0 GiB, and .* can be had: carry"):
            next(run)
        assert all(p.grad is None for p in layer.parameters())
