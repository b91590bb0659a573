"""J with what a parameter does beyond a few steps left out: SnAp."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bptt import _recurrence, _tree
from bptt._influence.base import Influence, real
from bptt._influence.by_unit import ByUnit
from bptt._influence.exact import Exact
from bptt._jacobian import batchable
from bptt._options import Options
from bptt._segment import Segment, Span
from bptt._snapshot import Snapshot, isolated
from bptt._tree import Tree


class Masked(Exact):
    """J_t = M ∘ (D_t J_{t-1} + I_t) after every step, M = pattern((1 + S)^(order-1) M_1): SnAp.

    reaches, writes: S (size, size) and of each parameter M_1 (size, numbers), the same for all rows. They begin as
    random states and inputs show them, and grow where a step shows more: where a relu was off, a table's row not used.
    """

    DRAWS = 16
    """Random states and inputs; each relu that is off in one of them must be on in another."""

    def __init__(self, options: Options, order: int) -> None:
        super().__init__(options)
        self._order = order
        self.reaches: Tensor | None = None
        self.writes: list[Tensor | None] = []
        self._masks: list[Tensor | None] = []

    def _include(self, leaf: Tensor) -> None:
        super()._include(leaf)
        self.writes.append(None)
        self._masks.append(None)

    def settled(self, span: Span) -> Influence:
        """Unit by unit, where each parameter writes one unit and all beyond that is left out, or there is no more."""
        return ByUnit.of(self, span, alone=self._order > 1) or self

    def _written(self, i: int) -> Tensor:
        """M_1 of one parameter, as far as it is known."""
        found = self.writes[i]
        if found is None:
            found = self.writes[i] = torch.zeros_like(self.jacobian(i)[0], dtype=torch.bool)
        return found

    def absorb(self, span: Span, length: int | None, noise: Snapshot, end: Tree) -> None:
        """Equation (2) of `SnAp`, step by step whatever the length."""
        assert self.rows is not None
        if self.reaches is None:
            self.reaches = torch.zeros(self.rows.size, self.rows.size, dtype=torch.bool, device=self.rows.device)
            with isolated(self.problem.model, span.tensors), batchable(self.problem.model), torch.enable_grad():
                self._look(self.span(span))
        super().absorb(span, 1, noise, end)

    def _look(self, span: Span) -> None:
        """The patterns of one step at random states and inputs, the same ones in every process."""
        assert self.rows is not None
        p, generator, a = self.problem, torch.Generator().manual_seed(0), span.window.start
        step = Segment(replace(span, initial=None), a, a + 1)
        data = step.time.read(a, a + 1)
        n, count = self.rows.size, self.rows.count
        for draw in range(self.DRAWS):

            def drawn(leaf: Tensor, scale: float = (1.0, 0.1)[draw % 2]) -> Tensor:
                if not _tree.carries_cotangent(leaf):
                    return leaf
                numbers = torch.randn(leaf.shape, dtype=torch.float32, generator=generator)
                return (scale * numbers).to(leaf)

            begin = _tree.tracked(_tree.map_leaves(drawn, span.like))
            end = _recurrence.called(p.model, _tree.map_leaves(drawn, data.inputs), begin, {}, a, a + 1)[1]
            self.meet(step, begin, end)
            vectors = torch.zeros(n, count, n, dtype=self.rows.dtype, device=self.rows.device)
            vectors[:, 0] = torch.eye(n, dtype=self.rows.dtype, device=self.rows.device)
            ends, firsts = _tree.leaves(end), _tree.leaves(begin)
            own = [firsts[i] for i in self.rows.which]
            found = self.vjps([ends[i] for i in self.rows.which], self.rows.scatter(vectors), [*own, *self.theta])
            self._see(self.rows.gather(found[: len(own)], n)[:, 0], found[len(own) :])

    def _see(self, of_state: Tensor, of_theta: list[Tensor | None]) -> None:
        """Let the patterns have what is not zero here."""
        assert self.reaches is not None
        grown = _entries(of_state) & ~self.reaches
        if bool(grown.any()):
            self.reaches |= grown
            self._masks = [None] * len(self._masks)
        for i, new in enumerate(of_theta):
            if new is not None:
                written = self._written(i)
                grown = _entries(real(new, len(of_state))) & ~written
                if bool(grown.any()):
                    written |= grown
                    self._masks[i] = None

    def mask(self, i: int) -> Tensor:
        """M for one parameter."""
        assert self.reaches is not None
        found = self._masks[i]
        if found is None:
            reached = self._written(i).float()
            step = self.reaches.to(reached.device).float()
            for _ in range(self._order - 1):
                more = ((reached + step @ reached) > 0).float()
                if torch.equal(more, reached):
                    break
                reached = more
            found = self._masks[i] = reached > 0
        return found

    def _update(self, row: int, of_state: Tensor, of_theta: list[Tensor | None]) -> None:
        self._see(of_state, of_theta)
        super()._update(row, of_state, of_theta)
        for i in range(len(self.jacobians)):
            self.jacobian(i)[row].masked_fill_(~self.mask(i), 0)

    def parts(self) -> dict[str, Any]:
        """J and the patterns, those of parameters by name."""
        writes = {self.name_of(leaf): self._written(i).clone() for i, leaf in enumerate(self.theta)}
        return {**super().parts(), "writes": writes, "reaches": None if self.reaches is None else self.reaches.clone()}

    def take(self, parts: dict[str, Any]) -> None:
        """The inverse of `parts`."""
        super().take(parts)
        pairs = zip(parts["writes"].values(), self.theta, strict=True)
        self.writes, self._masks = [saved.to(leaf.device, copy=True) for saved, leaf in pairs], [None] * len(self.theta)
        assert self.rows is not None
        self.reaches = None if parts["reaches"] is None else parts["reaches"].to(self.rows.device)


def _entries(values: Tensor) -> Tensor:
    """Where something is that isn't zero; an infinite derivative says nothing."""
    return (values != 0) & values.isfinite()
