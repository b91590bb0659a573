"""A probe answered: how the credit of single losses fades with lag, for a strategy that decides by it."""

from contextlib import ExitStack
from dataclasses import replace

import torch

from bptt import checks, state
from bptt.memory import Meter
from bptt.pullback import Pullback, Rows, batchable
from bptt.recurrence import unwrapped
from bptt.replay import isolated
from bptt.schedules.windows import Credit, Probe, Window
from bptt.segment import Initial, Problem, Segment
from bptt.state import Tree


def credit(
    problem: Problem, probe: Probe, begin: Tree, initial: Initial | None, meter: Meter, budget: int | None
) -> tuple[Credit, int]:
    """The answer to a probe, and the bytes that it held: the states of all its steps, and the graph of one.

    Nothing but the answer stays: parameters, `.grad`, buffers and noise are as before. A bound on cotangents doesn't
    act here. Raises ValueError where `budget` bytes don't hold it.
    """
    problem = replace(problem, clip=None, model=unwrapped(problem.model))
    window = Window(probe.start, probe.start, probe.stop, probe.stop)
    rows = Rows.of(problem, begin, "adapt to")
    steps, losses, lags = probe.stop - probe.start, probe.losses, probe.lags
    vectors = torch.zeros(losses, rows.count, rows.size, dtype=rows.dtype, device=rows.device)
    held = (steps + 1) * state.nbytes(begin) + 3 * vectors.nbytes
    checks.probe_fits(held, budget, probe)
    tensors = [*state.leaves(begin), *state.leaves(problem.time.inputs_at(probe.start))]
    with ExitStack() as stack:
        stack.enter_context(isolated(problem.model, tensors))
        stack.enter_context(isolated(problem.loss.loss, []))
        stack.enter_context(batchable(problem.model))
        states, segments = [begin], list[Segment]()
        for t in range(probe.start, probe.stop):
            before = segments[-1] if segments else None
            segments.append(Segment(problem, window, initial, t, t + 1, before=before, replays=True))
            states.append(segments[-1].advance(states[-1]))
        pull, most = Pullback(rows), 0
        at = torch.arange(losses, device=rows.device) - losses  # of each loss, its step less that of the sweep
        so_far = torch.zeros(losses, rows.size, dtype=torch.float64, device=rows.device)
        norms, sums = so_far.new_zeros(lags), so_far.new_zeros(lags, rows.size)
        for segment, carried in zip(reversed(segments), reversed(states[:-1]), strict=True):
            at = at + 1
            tape, saved = meter.tape(segment, carried, ("probe", rows.count, rows.size))
            most = max(most, saved)
            vectors = pull.to_state(tape, vectors, (at == 0).to(vectors.dtype))
            seen = (at >= 0) & (at < lags)
            so_far = so_far + torch.where(seen[:, None], vectors.sum(1).double(), so_far.new_zeros(()))
            each = torch.linalg.vector_norm(vectors.double(), dim=2).sum(1)
            norms.index_add_(0, at[seen], each[seen])
            sums.index_add_(0, at[seen], so_far[seen])
        torch.clear_autocast_cache()
    checks.probe_fits(held + most, budget, probe)
    kept = torch.linalg.vector_norm(sums, dim=1)
    return Credit((norms / losses).tolist(), (kept / losses).tolist()), held + most
