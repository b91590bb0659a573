"""One-step Jacobians by vjps: the state as one real vector a row, and many cotangents pulled back through a step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bptt import arguments, checks, state
from bptt.engine import Run
from bptt.recurrence import default_batch_dim
from bptt.schedules.windows import Window
from bptt.segment import Segment, Tape
from bptt.spectrum import Spectrum
from bptt.state import Tree


class Rows:
    """A state as (rows, size): each batch row's floating leaves in one real vector, a complex number being two."""

    def __init__(self, carried: Tree, batch_dim: Any) -> None:
        pairs = zip(state.leaves(carried), state.by_leaf(batch_dim, carried), strict=True)
        kept = [(i, x, d) for i, (x, d) in enumerate(pairs) if state.carries_cotangent(x)]
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


def tapes(run: Run, steps: int) -> tuple[list[Tape], Rows]:
    """Each step as a graph of its own, from fresh leaves, and the layout of the state."""
    window = Window(start=0, first=0, stop=steps, keep=steps)
    initial = run.initial(window, run.state)
    carried = run.begin(window, run.state, initial)
    axis = default_batch_dim(run.problem.model)
    unbatched = axis is not None and state.leaves(carried)[0].dim() < 2 + axis
    dims = None if unbatched else run.problem.batch_dim
    arguments.batch_dim(dims, carried, None)
    rows = Rows(carried, dims)
    if not rows.size:
        raise ValueError(
            f"the state of {checks.named(run.problem.model)} has no floating leaf, so no credit goes back through it: "
            f"there is nothing to diagnose."
        )
    found: list[Tape] = []
    for t in range(steps):
        tape = Segment(run.problem, window, initial, t, t + 1).tape(state.tracked(carried))
        carried = tape.after
        found.append(tape)
    losses = [tape.found() for tape in found]
    checks.finite(torch.stack([step.total() for step in losses]).sum(), (step.values for step in losses), 0)
    checks.some_gradient(any(tape.losses is not None and tape.losses.requires_grad for tape in found))
    return found, rows


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
                        kept,
                        inputs,
                        [c for _, c in given],
                        retain_graph=True,
                        is_grads_batched=True,
                        allow_unused=True,
                    )
                )
            except RuntimeError:  # an operator without a rule for batches of cotangents; a real fault comes again
                self.together = False
        each = [
            torch.autograd.grad(kept, inputs, [c[i] for _, c in given], retain_graph=True, allow_unused=True)
            for i in range(n)
        ]
        return [None if column[0] is None else torch.stack(column) for column in zip(*each, strict=True)]


class Pullback:
    """The vjp of one step: (1) of `diagnose` for many cotangents at once, and (2) of `backward` for parameters."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.vjps = Vjps()

    def _roots(self, tape: Tape, vectors: Tensor, seeds: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        ends = state.leaves(tape.end)
        roots, cotangents = [ends[i] for i in self.rows.which], self.rows.scatter(vectors)
        if tape.losses is not None:
            roots.append(tape.losses)
            seed = tape.seed()
            cotangents.append(seeds.to(seed).reshape(-1, *[1] * seed.dim()) * seed)
        return roots, cotangents

    def to_state(self, tape: Tape, vectors: Tensor, seeds: Tensor) -> Tensor:
        """vectors · ∂s_t/∂s_{t-1} + seeds · ∂l_t/∂s_{t-1}, as (n, rows, size)."""
        roots, cotangents = self._roots(tape, vectors, seeds)
        begin = state.leaves(tape.begin)
        found = self.vjps(roots, cotangents, [begin[i] for i in self.rows.which])
        return self.rows.gather(found, len(vectors))

    def to_params(self, tape: Tape, vectors: Tensor, seeds: Tensor, params: list[Tensor]) -> list[Tensor | None]:
        """vectors · ∂F_t/∂θ + seeds · ∂l_t/∂θ, one (n, *parameter) for each."""
        return self.vjps(*self._roots(tape, vectors, seeds), params)


class Sweep:
    """The pass backward over all steps: (1), (2) and (3) of `diagnose`, as rows of one batch of cotangents a step.

    A row of the credit is c · 2^-e with a whole e of its own, so that no norm under- or overflows, and none is rounded.
    """

    def __init__(
        self, rows: Rows, lags: int, truncations: list[int], params: list[Tensor], singular: list[int], qr: Spectrum
    ) -> None:
        self.rows, self.lags, self.truncations, self.params, self.singular = rows, lags, truncations, params, singular
        self.qr = qr
        self.pullback = Pullback(rows)
        self.credit = self._vectors(0)  # of l_{t+k} at s_t, k = 1, 2, ...; the exponents beside it
        self.shifts = torch.zeros(0, dtype=torch.int64, device=rows.device)
        self.whole = self._vectors(1)  # of all later losses together
        self.chain = torch.eye(rows.size if singular else 0, rows.size, dtype=rows.dtype, device=rows.device)
        self.chain = self.chain[:, None].repeat(1, rows.count, 1)
        self.chain_shift, self.passed = self.shifts.new_zeros(()), 0
        self.norms: list[list[Tensor]] = [[] for _ in range(lags)]
        self.singular_values: dict[int, Tensor] = {}
        self.gradients: list[Tensor | None] = [None] * len(params)

    def _vectors(self, n: int) -> Tensor:
        return torch.zeros(n, self.rows.count, self.rows.size, dtype=self.rows.dtype, device=self.rows.device)

    def step(self, tape: Tape, reset: Tensor | None) -> None:
        """Go back over one step. reset (B,) or 0-d: the rows that start anew before it."""
        if self.params:
            self._gradients(tape)
        directions = self.qr.q.permute(2, 0, 1).to(self.rows.dtype)
        parts = [self._vectors(1), self.credit[: self.lags - 1], self.whole, directions, self.chain]
        sizes = [len(part) for part in parts]
        seeds = torch.zeros(sum(sizes), device=self.rows.device)
        seeds[0] = seeds[sizes[0] + sizes[1]] = 1
        pulled = self.pullback.to_state(tape, torch.cat(parts), seeds).split(sizes)
        self.whole = pulled[2]
        self.qr.add(pulled[3].permute(1, 2, 0).to(torch.float64), reset)
        self._credit(torch.cat(pulled[:2]))
        self._chain(pulled[4])

    def _credit(self, credit: Tensor) -> None:
        self.shifts = torch.cat([self.shifts.new_zeros(1), self.shifts[: self.lags - 1]])
        moved = _exponent(credit.abs().amax((1, 2)))
        self.credit = _times(credit, -moved)
        self.shifts = self.shifts + moved
        norms = torch.linalg.vector_norm(self.credit.to(torch.float64), dim=2)
        for lag, values in enumerate(_times(norms, self.shifts)):
            self.norms[lag].append(values)

    def _chain(self, pulled: Tensor) -> None:
        if not len(self.chain):
            return
        moved = _exponent(pulled.abs().amax())
        self.chain, self.chain_shift = _times(pulled, -moved), self.chain_shift + moved
        self.passed += 1
        if self.passed in self.singular:
            values = torch.linalg.svdvals(self.chain.permute(1, 0, 2).to(torch.float64))
            self.singular_values[self.passed] = _times(values, self.chain_shift).cpu()
        if self.passed == max(self.singular):
            self.chain = self.chain[:0]

    def _gradients(self, tape: Tape) -> None:
        """Add what step t gives to the full gradient, and to what each truncation drops of it."""
        later = _times(self.credit, self.shifts)
        dropped = [self.whole[0] - later[: tau - 1].sum(0) for tau in self.truncations]
        vectors = torch.stack([self.whole[0], *dropped])
        seeds = torch.zeros(len(vectors), device=self.rows.device)
        seeds[0] = 1
        for i, found in enumerate(self.pullback.to_params(tape, vectors, seeds, self.params)):
            if found is not None:
                total = self.gradients[i]
                self.gradients[i] = found if total is None else total + found

    def gradient_norms(self) -> list[float]:
        """Of the full gradient, and of what each truncation drops of it."""
        found = [
            g.reshape(len(g), -1).abs().to(torch.float64).square().sum(1).cpu() for g in self.gradients if g is not None
        ]
        return torch.stack(found).sum(0).sqrt().tolist() if found else [0.0] * (1 + len(self.truncations))


def _exponent(values: Tensor) -> Tensor:
    """The whole e with values in [2^(e-1), 2^e), within what a factor can hold; 0 for what is zero or not finite."""
    e = torch.frexp(values).exponent.to(torch.int64).clamp(-100, 100)
    return torch.where(torch.isfinite(values), e, torch.zeros_like(e))


def _times(vectors: Tensor, shifts: Tensor) -> Tensor:
    """vectors · 2^shifts, exact but for under- and overflow; shifts (n,) for the first axis, or 0-d."""
    factors = torch.pow(2.0, shifts.to(torch.float64)).to(vectors.dtype)
    return vectors * factors.reshape(*shifts.shape, *[1] * (vectors.dim() - 1)) if shifts.dim() else vectors * factors
