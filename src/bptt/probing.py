"""A probe answered: how the credit of single losses fades with lag, for a strategy that decides by it."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from bptt import checks, state
from bptt.memory import Checkpoints, Meter
from bptt.pullback import Pullback, Rows, batchable, parameters_kept
from bptt.recurrence import unwrapped
from bptt.replay import isolated
from bptt.rewind import Rewind
from bptt.schedules.windows import Credit, Probe, Window
from bptt.segment import Initial, Problem, Segment
from bptt.state import Tree


def credit(
    problem: Problem, probe: Probe, begin: Tree, initial: Initial | None, meter: Meter, memory: Checkpoints | int | None
) -> tuple[Credit, int, Any]:
    """The answer to a probe, the steps that it ran, and the bytes that it held: states, cotangents, one step's graph.

    memory: how many states are kept, or the bytes to keep within; None keeps those of all steps.
    Nothing but the answer stays: parameters, `.grad`, buffers and noise are as before. A bound on cotangents doesn't
    act here. Raises ValueError where so many bytes don't hold one state.
    """
    problem = replace(problem, clip=None, model=unwrapped(problem.model))
    window = Window(probe.start, probe.start, probe.stop, probe.stop)
    rows = Rows.of(problem, begin, "adapt to")
    steps, losses, lags = probe.stop - probe.start, probe.losses, probe.lags
    vectors = torch.zeros(losses, rows.count, rows.size, dtype=rows.dtype, device=rows.device)
    tensors = [*state.leaves(begin), *state.leaves(problem.time.inputs_at(probe.start))]
    with ExitStack() as stack:
        stack.enter_context(isolated(problem.model, tensors))
        stack.enter_context(isolated(problem.loss.loss, []))
        stack.enter_context(parameters_kept(problem.model, problem.loss.loss))
        stack.enter_context(batchable(problem.model))
        segments: list[Segment] = []
        for t in range(probe.start, probe.stop):
            before = segments[-1] if segments else None
            segments.append(Segment(problem, window, initial, t, t + 1, before=before, replays=True))
        key, one, held = ("probe", rows.count, rows.size), state.nbytes(begin), 3 * vectors.nbytes
        slots = memory.slots if isinstance(memory, Checkpoints) else steps
        if isinstance(memory, int):  # 5 states lie apart, as they do in a window
            saved = meter.held(segments[0], begin, memory, key)
            slots = checks.probe_fits(memory, saved + held + 5 * one, one, probe)
        rewind = Rewind(segments, min(slots, steps), begin)
        pull, most = Pullback(rows), 0.0
        at = torch.arange(losses, device=rows.device) - losses  # of each loss, its step less that of the sweep
        so_far = torch.zeros(losses, rows.size, dtype=torch.float64, device=rows.device)
        norms, sums = so_far.new_zeros(lags), so_far.new_zeros(lags, rows.size)
        for segment, carried in rewind:
            at = at + 1
            tape, saved = meter.tape(segment, carried, key)
            most = max(saved + (rewind.states + 1) * one, most)  # NaN stays NaN
            vectors = pull.to_state(tape, vectors, (at == 0).to(vectors.dtype))
            seen = (at >= 0) & (at < lags)
            so_far = so_far + torch.where(seen[:, None], vectors.sum(1).double(), so_far.new_zeros(()))
            each = torch.linalg.vector_norm(vectors.double(), dim=2).sum(1)
            norms.index_add_(0, at[seen], each[seen])
            sums.index_add_(0, at[seen], so_far[seen])
        torch.clear_autocast_cache()
    kept = torch.linalg.vector_norm(sums, dim=1)
    answer = Credit((norms / losses).tolist(), (kept / losses).tolist())
    return answer, rewind.forward_steps + steps, held + most
