"""Vector-Jacobian products of one step for many cotangents at once, and the answer to a probe made of them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bptt import _tree
from bptt._checkpoint import Checkpoints
from bptt._errors import BudgetError
from bptt._memory import Meter
from bptt._ranks import Ranks
from bptt._rewind import Rewind
from bptt._rows import Rows, Vjps, batchable
from bptt._segment import Span, Tape
from bptt._snapshot import untouched
from bptt._torch import unwrapped
from bptt.strategies.windows import Credit, Probe


class Pullback:
    """The vjp of one step: (1) of `diagnose` for many cotangents at once, and (2) of `backward` for parameters."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.vjps, self.vjps_of_params = Vjps(), Vjps()  # an operator that forbids batches may be in one of them alone

    def _roots(self, tape: Tape, vectors: Tensor, seeds: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        ends = _tree.leaves(tape.end)
        roots, cotangents = [ends[i] for i in self.rows.which], self.rows.scatter(vectors)
        if tape.losses is not None:
            roots.append(tape.losses)
            seed = tape.seed()
            cotangents.append(seeds.to(seed).reshape(-1, *[1] * seed.dim()) * seed)
        return roots, cotangents

    def to_state(self, tape: Tape, vectors: Tensor, seeds: Tensor) -> Tensor:
        """vectors · ∂s_t/∂s_{t-1} + seeds · ∂l_t/∂s_{t-1}, as (n, rows, size)."""
        roots, cotangents = self._roots(tape, vectors, seeds)
        begin = _tree.leaves(tape.begin)
        if tape.begin is None:
            return torch.zeros_like(vectors)
        found = self.vjps(roots, cotangents, [begin[i] for i in self.rows.which])
        return self.rows.gather(found, len(vectors))

    def to_params(self, tape: Tape, vectors: Tensor, seeds: Tensor, params: list[Tensor]) -> list[Tensor | None]:
        """vectors · ∂F_t/∂θ + seeds · ∂l_t/∂θ, one (n, *parameter) for each."""
        return self.vjps_of_params(*self._roots(tape, vectors, seeds), params)


def _states_of_probe(size: int, fixed: int, one: int, probe: Any) -> int:
    """How many states of `one` bytes a probe may keep beside what is fixed, within a budget of `size` bytes."""
    if (least := fixed + one) > size:
        raise BudgetError(
            f"memory={size} can't hold a probe of AdaptiveTruncatedBPTT, which pulls {probe.losses} losses back: the "
            f"least that works here is memory={least}.",
            least,
        )
    return (size - fixed) // one


def credit(
    span: Span, probe: Probe, meter: Meter, memory: Checkpoints | int | None, ranks: Ranks
) -> tuple[Credit, int, float]:
    """The answer to a probe, the steps that it ran, and the bytes that it held: states, cotangents, one step's graph.

    span: the steps of the probe. memory: how many states are kept, or the bytes to keep within; None keeps all. ranks:
    the processes that answer as one, as if one of them had all rows: vectors are averaged before their norms are taken.
    Nothing but the answer remains: parameters, `.grad`, buffers and noise are as before. `clip_cotangent` has no effect
    here. Raises BudgetError if the bytes don't hold one state.
    """
    begin, problem = span.like, replace(span.problem, clip=None, model=unwrapped(span.problem.model))
    rows = Rows.of(problem.model, problem.batch_dim, span.like, "adapt to")
    steps, losses, lags = probe.stop - probe.start, probe.losses, probe.lags
    vectors = torch.zeros(losses, rows.count, rows.size, dtype=rows.dtype, device=rows.device)
    with untouched(problem.model, problem.loss.loss, span.tensors), batchable(problem.model), ranks.quiet():
        segments = replace(span, problem=problem).segments(1, replays=True)
        key, one, held = ("probe", rows.count, rows.size), _tree.nbytes(begin), 3 * vectors.nbytes
        slots = memory.slots if isinstance(memory, Checkpoints) else steps
        if isinstance(memory, int):  # 5 states lie apart, as they do in a window
            saved = meter.held(segments[0], begin, memory, key)
            slots = _states_of_probe(memory, saved + held + 5 * one, one, probe)
        rewind = Rewind(segments, min(slots, steps), span.begin)
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
    ranks.settle()
    norms, sums = ranks.means([norms, sums])
    kept = torch.linalg.vector_norm(sums, dim=1)
    answer = Credit((norms / losses).tolist(), (kept / losses).tolist())
    return answer, rewind.forward_steps + steps, held + most
