"""Credit carried back a step: the state as one real vector a row, and many cotangents pulled back at once."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _boundary, _errors, _tree
from bptt._checkpoint import Checkpoints
from bptt._errors import BudgetError
from bptt._memory import Meter
from bptt._ranks import Ranks
from bptt._recurrence import default_batch_dim
from bptt._rewind import Rewind
from bptt._segment import Problem, Span, Tape
from bptt._snapshot import untouched
from bptt._torch import unwrapped
from bptt._tree import Tree
from bptt.strategies.windows import Credit, Probe


class Rows:
    """A state as (rows, size): each batch row's floating leaves in one real vector, a complex number being two."""

    def __init__(self, carried: Tree, batch_dim: Any, seen: set[int] | None = None) -> None:
        pairs = zip(_tree.leaves(carried), _tree.by_leaf(batch_dim, carried), strict=True)
        kept = [
            (i, x, d) for i, (x, d) in enumerate(pairs) if _tree.carries_cotangent(x) and (seen is None or i in seen)
        ]
        if any(d is None for _, _, d in kept):  # a leaf that all rows share ties them together
            kept = [(i, x, None) for i, x, _ in kept]
        self.which = [i for i, _, _ in kept]
        self.leaves = [(x.shape, x.dtype, None if d is None else d % x.dim()) for _, x, d in kept]
        self.sizes: list[int] = []
        self.count = 1
        self.dtype, self.device = torch.float32, None
        for _, x, d in kept:
            self.count = 1 if d is None else x.shape[d]
            self.sizes.append(x.numel() // max(1, self.count) * (2 if x.is_complex() else 1))
            self.dtype = torch.promote_types(self.dtype, x.dtype.to_real())
            self.device = x.device if self.device is None else self.device
        self.size = sum(self.sizes)

    @classmethod
    def of(cls, problem: Problem, carried: Tree, purpose: str, seen: set[int] | None = None) -> "Rows":
        """Those of a run's state, told apart where the axis of the batch is known; of the leaves `seen`, or of all."""
        axis = default_batch_dim(problem.model)
        unbatched = axis is not None and _tree.leaves(carried)[0].dim() < 2 + axis
        dims = None if unbatched else problem.batch_dim
        _boundary.batch_dim(dims, carried, None)
        rows = cls(carried, dims, seen)
        if not rows.size:
            raise ValueError(
                f"the state of {_errors.named(problem.model)} has no floating leaf, so no credit goes back through it: "
                f"there is nothing to {purpose}."
            )
        return rows

    def gather(self, values: Sequence[Tensor | None], n: int) -> Tensor:
        """(n, rows, size) from the n cotangents (n, *leaf) of each floating leaf; None is zero."""
        parts: list[Tensor] = []
        for value, (_, _, dim), size in zip(values, self.leaves, self.sizes, strict=True):
            if value is None:
                parts.append(torch.zeros(n, self.count, size, dtype=self.dtype, device=self.device))
                continue
            value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
            value = value if dim is None else value.movedim(1 + dim, 1)
            parts.append(value.reshape(n, self.count, size).to(self.device, self.dtype))
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]

    def scatter(self, vectors: Tensor) -> list[Tensor]:
        """The inverse of `gather`."""
        found: list[Tensor] = []
        for part, (sizes, dtype, dim) in zip(vectors.split(self.sizes, 2), self.leaves, strict=True):
            n, pair = len(part), [2] if dtype.is_complex else []
            if dim is None:
                value = part.reshape(n, *sizes, *pair)
            else:
                rest = [*sizes[:dim], *sizes[dim + 1 :]]
                value = part.reshape(n, self.count, *rest, *pair).movedim(1, 1 + dim)
            value = value.to(dtype.to_real())
            found.append(torch.view_as_complex(value.contiguous()) if pair else value)
        return found


class Vjps:
    """Many vjps of one graph, which is kept: one vectorised call while every operator allows it, else a loop."""

    def __init__(self) -> None:
        self.together = True

    def __call__(self, roots: list[Tensor], cotangents: list[Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
        """(n, *input) for each input, from cotangents (n, *root); None where nothing reaches an input."""
        given = [(root, c) for root, c in zip(roots, cotangents, strict=True) if root.requires_grad]
        if not given or not inputs:
            return [None] * len(inputs)
        n = len(given[0][1])
        kept = [root for root, _ in given]
        if self.together:
            try:
                return list(
                    torch.autograd.grad(
                        kept, inputs, [c for _, c in given], retain_graph=True, is_grads_batched=True, allow_unused=True
                    )
                )
            except RuntimeError:  # an operator without a rule for batches of cotangents; a real fault comes again
                self.together = False
        each = [
            torch.autograd.grad(kept, inputs, [c[i] for _, c in given], retain_graph=True, allow_unused=True)
            for i in range(n)
        ]
        return [
            None if column[0] is None else torch.stack([c.to_dense() for c in column])
            for column in zip(*each, strict=True)
        ]


class Pullback:
    """The vjp of one step: (1) of `diagnose` for many cotangents at once, and (2) of `backward` for parameters."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.vjps, self.vjps_of_params = Vjps(), Vjps()  # what forbids batches in the one need not be in the other

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


@contextmanager
def batchable(model: Callable[..., Any]) -> Iterator[None]:
    """torch.nn's layers without cuDNN and oneDNN: these take no batch of cotangents, nor cuDNN any in eval mode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap's own fallback to a loop
        if not (isinstance(model, nn.Module) and any(isinstance(m, nn.RNNBase) for m in model.modules())):
            yield
            return
        warnings.filterwarnings("ignore", message=".*TF32")  # what setting the flags says of other hardware
        with torch.backends.cudnn.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
            yield


def _states_of_probe(size: int, fixed: int, one: int, probe: Any) -> int:
    """How many states of `one` byte count a probe may keep beside what is fixed, within a budget of `size` bytes."""
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
    whose answers are one, as if one process had all rows: vectors are averaged before their norms are taken.
    Nothing but the answer stays: parameters, `.grad`, buffers and noise are as before. A bound on cotangents doesn't
    act here. Raises BudgetError where so many bytes don't hold one state.
    """
    begin, problem = span.like, replace(span.problem, clip=None, model=unwrapped(span.problem.model))
    rows = Rows.of(problem, span.like, "adapt to")
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
