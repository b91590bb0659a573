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
