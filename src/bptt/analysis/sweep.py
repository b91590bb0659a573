"""One-step Jacobians by vjps, swept backward over a sequence: credit by lag, exponents, chains, what is dropped."""

import math

import torch
from torch import Tensor

from bptt import _errors, _loss, _tree
from bptt._jacobian import Pullback
from bptt._rows import Rows
from bptt._run import Run
from bptt._segment import Tape
from bptt._snapshot import isolated, renormalised
from bptt.analysis.spectrum import Spectrum


def tapes(run: Run) -> tuple[list[Tape], Rows]:
    """Each step of a sequence as a graph of its own, from fresh leaves, and the layout of the state."""
    span = run.start(math.inf)
    carried = begin = span.begin
    run.tell_axes_apart(begin)
    Rows.of(span.problem.model, span.problem.batch_dim, span.like, "diagnose")
    segments = span.segments(1, replays=False)
    found: list[Tape] = []

    def forward() -> None:
        with isolated(span.problem.model, _tree.leaves(begin)):
            after = begin
            for segment in segments:
                after = segment.advance(after).after

    with renormalised(span.problem.model, forward):
        for segment in segments:
            tape = segment.tape(_tree.tracked(carried))
            carried = tape.after
            found.append(tape)
    losses = [tape.found() for tape in found]
    _loss.check_finite(torch.stack([step.total() for step in losses]).sum(), (step.values for step in losses), 0)
    _loss.check_some_gradient(any(tape.losses is not None and tape.losses.requires_grad for tape in found))
    seen = _seen(found)
    if not seen:
        raise ValueError(
            f"no loss depends on the state of {_errors.named(span.problem.model)}, so no credit goes back through it: "
            f"there is nothing to diagnose."
        )
    return found, Rows.of(span.problem.model, span.problem.batch_dim, span.like, "diagnose", seen)


def _seen(found: list[Tape]) -> set[int]:
    """The floating leaves of the state, by number, that some loss depends on, at once or through later steps."""
    floating = [i for i, leaf in enumerate(_tree.leaves(found[0].end)) if _tree.carries_cotangent(leaf)]
    now: set[int] = set()
    seen: set[int] = set()
    for tape in reversed(found):
        if tape.begin is None:
            break
        end, begin = _tree.leaves(tape.end), _tree.leaves(tape.begin)
        roots = [root for root in (tape.losses, *(end[i] for i in now)) if root is not None and root.requires_grad]
        ones = [torch.ones_like(root) for root in roots]
        starts = [begin[i] for i in floating]
        reached = torch.autograd.grad(roots, starts, ones, retain_graph=True, allow_unused=True) if roots else []
        now = {i for i, cotangent in zip(floating, reached, strict=False) if cotangent is not None}
        seen |= now
        if len(seen) == len(floating):
            break
    return seen


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
        self.beyond = self._vectors(len(truncations))  # of those beyond this step's window of each length
        self.chain = torch.eye(rows.size if singular else 0, rows.size, dtype=rows.dtype, device=rows.device)
        self.chain = self.chain[:, None].repeat(1, rows.count, 1)
        self.chain_shift, self.passed = self.shifts.new_zeros(()), 0
        self.norms: list[list[Tensor]] = [[] for _ in range(lags)]
        self.singular_values: dict[int, Tensor] = {}
        self.gradients: list[Tensor | None] = [None] * len(params)

    def _vectors(self, n: int) -> Tensor:
        return torch.zeros(n, self.rows.count, self.rows.size, dtype=self.rows.dtype, device=self.rows.device)

    def step(self, t: int, tape: Tape, reset: Tensor | None) -> None:
        """Go back over step t. reset (B,) or 0-d: the rows that start anew before it."""
        if tape.begin is None:  # there is no state before it
            reset = torch.ones((), dtype=torch.bool)
        if self.params:
            self._gradients(tape)
        directions = self.qr.q.permute(2, 0, 1).to(self.rows.dtype)
        parts = [self._vectors(1), self.credit[: self.lags - 1], self.whole, directions, self.chain, self.beyond]
        sizes = [len(part) for part in parts]
        seeds = torch.zeros(sum(sizes), device=self.rows.device)
        seeds[0] = seeds[sizes[0] + sizes[1]] = 1
        pulled = self.pullback.to_state(tape, torch.cat(parts), seeds).split(sizes)
        self.whole, self.beyond = pulled[2], pulled[5].clone()
        for i, length in enumerate(self.truncations):
            if t % length == 0:  # a window begins here
                self.beyond[i] = self.whole[0]
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
        """Add what step t gives to the full gradient, and to what truncations, by losses and by windows, drop of it."""
        later = _times(self.credit, self.shifts)
        dropped = [self.whole[0] - later[: tau - 1].sum(0) for tau in self.truncations]
        vectors = torch.stack([self.whole[0], *dropped, *self.beyond])
        seeds = torch.zeros(len(vectors), device=self.rows.device)
        seeds[0] = 1
        for i, found in enumerate(self.pullback.to_params(tape, vectors, seeds, self.params)):
            if found is not None:
                total = self.gradients[i]
                self.gradients[i] = found if total is None else total + found

    def gradient_norms(self) -> list[float]:
        """Of the full gradient, of what truncations of each loss drop of it, and of what those by windows drop."""
        known = [g.reshape(len(g), -1) for g in self.gradients if g is not None]
        found = [g.abs().to(torch.float64).square().sum(1).cpu() for g in known]
        return torch.stack(found).sum(0).sqrt().tolist() if found else [0.0] * (1 + 2 * len(self.truncations))


def _exponent(values: Tensor) -> Tensor:
    """The whole e with values in [2^(e-1), 2^e), within what a factor can hold; 0 for what is zero or not finite."""
    e = torch.frexp(values).exponent.to(torch.int64).clamp(-100, 100)
    return torch.where(torch.isfinite(values), e, torch.zeros_like(e))


def _times(vectors: Tensor, shifts: Tensor) -> Tensor:
    """vectors · 2^shifts, exact but for under- and overflow; shifts (n,) for the first axis, or 0-d."""
    factors = torch.pow(2.0, shifts.to(torch.float64)).to(vectors.dtype)
    return vectors * factors.reshape(*shifts.shape, *[1] * (vectors.dim() - 1)) if shifts.dim() else vectors * factors
