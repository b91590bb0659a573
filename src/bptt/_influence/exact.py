"""J itself, batch row by batch row: RTRL."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bptt import _tree
from bptt._influence.base import Influence, numbers, real, shaped
from bptt._influence.by_unit import ByUnit
from bptt._jacobian import batchable
from bptt._options import Options
from bptt._segment import Segment, Span
from bptt._snapshot import Snapshot
from bptt._stream import Data
from bptt._tree import Tree


class Exact(Influence):
    """J itself, (rows, size, numbers) for each parameter: each batch row has its own."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.jacobians: list[Tensor | None] = []

    def settled(self, span: Span) -> Influence:
        """Unit by unit, where no unit depends on another."""
        return ByUnit.of(self, span, alone=True) or self

    def _include(self, leaf: Tensor) -> None:
        self.jacobians.append(None)  # zeros, once there is something to add

    def jacobian(self, i: int) -> Tensor:
        """J of one parameter."""
        found, rows, leaf = self.jacobians[i], self.rows, self.theta[i]
        if found is None:
            assert rows is not None
            shape = rows.count, rows.size, numbers(leaf)
            found = self.jacobians[i] = torch.zeros(shape, dtype=rows.dtype, device=leaf.device)
        return found

    def absorb(self, span: Span, length: int | None, noise: Snapshot, end: Tree) -> None:
        """Equation (3) over a window, graph by graph: J goes from one to the next."""
        span, carried = self.span(span), span.begin
        steps = span.window.stop - span.window.start
        with noise.installed(), batchable(self.problem.model), torch.enable_grad():
            for segment in span.segments(min(length or steps, steps), replays=False):
                begin, after, carried, data = self.unfolded(segment, carried)
                self._reset(data)
                self._step(segment, begin, after)
        if length is not None and length < steps:
            check_same(carried, end)
        torch.clear_autocast_cache()

    def _reset(self, data: Data) -> None:
        """Zeros for rows that reset within a segment: D has none for them, and 0 times an infinite J isn't 0."""
        assert self.rows is not None
        if data.is_start is None:
            return
        rows = data.is_start.any(0)
        for jacobian in (jacobian for jacobian in self.jacobians if jacobian is not None):
            if rows.dim() and self.rows.count > 1:
                jacobian[rows.to(jacobian.device)] = 0
            elif rows.all():
                jacobian.zero_()

    def _step(self, segment: Segment, begin: Tree, end: Tree) -> None:
        """Equation (3) of one segment, row by row."""
        assert self.rows is not None
        count, n = self.rows.count, self.rows.size
        for row in range(count):
            vectors = torch.zeros(n, count, n, dtype=self.rows.dtype, device=self.rows.device)
            vectors[:, row] = torch.eye(n, dtype=self.rows.dtype, device=self.rows.device)
            of_state, of_theta = self.pulled(segment, begin, end, vectors)
            if count > 1:
                _check_apart(of_state, row)
            self._update(row, of_state[:, row], of_theta)

    def _update(self, row: int, of_state: Tensor, of_theta: list[Tensor | None]) -> None:
        """J ← D J + I of one batch row."""
        for i, new in enumerate(of_theta):
            jacobian = self.jacobian(i)
            product = of_state.to(jacobian.device) @ jacobian[row]
            jacobian[row] = product if new is None else product.add_(real(new, len(product)))

    def pull(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """c · J, rows whose cotangent is zero left out."""
        assert self.rows is not None
        c = self.rows.gather([None if x is None else x[None] for x in cotangents], 1)[0]
        alive = (c != 0).any(1)
        found: list[Tensor | None] = []
        for jacobian, leaf in zip(self.jacobians, self.theta, strict=True):
            if jacobian is None:
                found.append(None)
                continue
            at, here = alive.to(jacobian.device), c.to(jacobian.device)
            if not at.all():
                jacobian, here = jacobian[at], here[at]
            found.append(shaped(here.reshape(-1) @ jacobian.flatten(0, 1), leaf))
        return found

    @property
    def nbytes(self) -> int:
        """J, and of one row the new part and a product."""
        if self.rows is None:
            return 0
        row = self.rows.size * sum(map(numbers, self.theta)) * self.rows.dtype.itemsize
        return row * (self.rows.count + 2)

    def parts(self) -> dict[str, Any]:
        """J by parameter."""
        return {"jacobians": {self.name_of(leaf): self.jacobian(i).clone() for i, leaf in enumerate(self.theta)}}

    def take(self, parts: dict[str, Any]) -> None:
        """The inverse of `parts`."""
        assert self.rows is not None
        pairs = [
            self.load_leaf(name, saved, (self.rows.count, self.rows.size)) for name, saved in parts["jacobians"].items()
        ]
        self.theta, self.jacobians = [leaf for leaf, _ in pairs], list[Tensor | None](saved for _, saved in pairs)


def check_same(carried: Tree, end: Tree) -> None:
    """ValueError where a window that is run again in shorter calls doesn't end in the state that it ended in."""
    for one, other in zip(_tree.leaves(carried), _tree.leaves(end), strict=True):
        if not _tree.carries_cotangent(one):
            continue
        known = one.isfinite() & other.isfinite()
        one, other = torch.where(known, one, 0), torch.where(known, other, 0)
        if not torch.allclose(one, other, 1e-2, 1e-2 * float(other.abs().max())):
            raise ValueError(
                "a window that is called in shorter parts, to carry ∂s/∂θ through it, ends in another state: the "
                "recurrence draws random numbers, or mixes the steps of a call. Use k1=1, or call model.eval()."
            )


def _check_apart(of_state: Tensor, row: int) -> None:
    """ValueError where the state of a batch row depends on that of another."""
    of_state = of_state.clone()
    of_state[:, row] = 0
    if bool(((of_state != 0) & of_state.isfinite()).any()):
        raise ValueError(
            "the state of a batch row depends on that of another row, as under batch norm, and ∂s/∂θ is carried row by "
            "row: use a batch of one row, bptt.UORO() or bptt.TruncatedBPTT(k1)."
        )
