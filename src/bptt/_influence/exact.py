"""J itself, batch row by batch row: RTRL; and what SnAp's masks leave of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bptt import _recurrence, _tree
from bptt._influence.base import Influence, Source
from bptt._influence.masks import COLUMNS, Masks
from bptt._memory import Seen
from bptt._rows import batchable, numbers, real, shaped
from bptt._segment import Segment, Span
from bptt._snapshot import Snapshot, isolated
from bptt._stream import Data
from bptt._tree import Tree


class Exact(Influence):
    """J itself, (rows, size, numbers) for each parameter: each row has its own. With masks J_t = M ∘ (D_t J + I_t).

    masks: which entries are kept after every step, or None for all.
    """

    def __init__(self, source: Source, masks: Masks | None = None) -> None:
        super().__init__(source)
        self.masks = masks
        self.jacobians: list[Tensor | None] = []
        self._at_once: int | None = None

    def _include(self, leaf: Tensor) -> None:
        self.jacobians.append(None)  # zeros, once there is something to add
        if self.masks is not None:
            self.masks.include()

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
        assert self.rows is not None
        count = self.rows.count
        parts = [range(count)] if length is None else [range(row, row + 1) for row in range(count)]  # less at once
        if self.masks is not None:
            length = 1
            if self.masks.reaches is None:
                with isolated(self.problem.model, span.tensors), batchable(self.problem.model), torch.enable_grad():
                    self._look(span, self.masks)
        with noise.installed(), batchable(self.problem.model), torch.enable_grad():
            for segment in span.segments(min(length or steps, steps), replays=False):
                with self._fitting(segment):
                    begin, after, carried, data = self.unfolded(segment, carried)
                self._reset(data)
                for rows in parts:
                    self._step(segment, begin, after, rows)
        if length is not None and length < steps:
            check_same(carried, end)
        torch.clear_autocast_cache()

    @contextmanager
    def _fitting(self, segment: Segment) -> Iterator[None]:
        """A block that makes a segment's graph; after it, as many vjps are taken at once as the budget has room for.

        What one vjp needs while it is taken is left out, as in every window; of its gradients `nbytes` knows.
        """
        if self.room is None:
            yield
            return
        seen = Seen()
        with seen.watching():
            yield
        parameters = seen.parameters(segment)
        graph = sum(size for storage, size in seen.storages.items() if storage not in parameters)
        assert self.rows is not None
        state = self.rows.count * self.rows.size * self.rows.dtype.itemsize
        self._at_once = 1 + int(max(0, self.room - graph) // (graph + 3 * (state + self._numbers)))

    def _look(self, span: Span, masks: Masks) -> None:
        """Let the masks see one step at random states and inputs, the same ones in every process."""
        assert self.rows is not None
        p, generator, a = self.problem, torch.Generator("cpu").manual_seed(0), span.window.start
        step = Segment(replace(span, initial=None), a, a + 1)
        data = step.time.read(a, a + 1)
        for draw in range(masks.DRAWS):

            def drawn(leaf: Tensor, scale: float = (1.0, 0.1)[draw % 2]) -> Tensor:
                if not _tree.carries_cotangent(leaf):
                    return leaf
                kind = torch.complex64 if leaf.is_complex() else torch.float32
                return (scale * torch.randn(leaf.shape, dtype=kind, generator=generator, device="cpu")).to(leaf)

            begin = _tree.tracked(_tree.map_leaves(drawn, span.like))
            with self._fitting(step):
                end = _recurrence.called(p.model, _tree.map_leaves(drawn, data.inputs), begin, {}, a, a + 1)[1]
            self.meet(step, begin, end)
            masks.see(*self._of_rows(step, begin, end, range(1)))

    def _of_rows(self, segment: Segment, begin: Tree, end: Tree, rows: range) -> tuple[Tensor, list[Tensor | None]]:
        """Of some rows' new states: D by their own, (g, size, size), and I, (g, size, numbers) by parameter."""
        assert self.rows is not None
        n, every = self.rows.size, len(rows) * self.rows.size
        at_once = every if self._at_once is None else min(self._at_once, every)
        of_state = torch.zeros(every, n, dtype=self.rows.dtype, device=self.rows.device)
        of_theta: list[Tensor | None] = []
        for first in range(0, every, at_once):
            places = torch.arange(first, min(first + at_once, every), device=self.rows.device)
            own = rows.start + places // n, places % n
            vectors = torch.zeros(len(places), self.rows.count, n, dtype=self.rows.dtype, device=self.rows.device)
            vectors[(places - first, *own)] = 1
            moved, found = self.pulled(segment, begin, end, vectors)
            of_state[places] = moved[places - first, own[0]]
            if self.rows.count > 1:
                _check_apart(moved, own[0])
            of_theta += [None] * (len(found) - len(of_theta))
            for i, new in enumerate(found):
                if new is None:
                    continue
                new = real(new, len(places))
                if at_once < every:
                    whole = of_theta[i]
                    whole = new.new_zeros(every, new.shape[1]) if whole is None else whole
                    whole[first : first + len(places)] = new
                    new = whole
                of_theta[i] = new
        by_row = len(rows), n
        return of_state.unflatten(0, by_row), [None if new is None else new.unflatten(0, by_row) for new in of_theta]

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

    def _step(self, segment: Segment, begin: Tree, end: Tree, rows: range) -> None:
        """Equation (3) of one segment, for some rows."""
        assert self.rows is not None
        of_state, of_theta = self._of_rows(segment, begin, end, rows)
        if self.masks is not None:
            self.masks.see(of_state, of_theta)
        for i, new in enumerate(_own(of_theta, len(rows) * self.rows.size)):
            jacobian = self.jacobian(i)[rows.start : rows.stop]
            new = jacobian.new_zeros(jacobian.shape) if new is None else new.to(jacobian)
            new.baddbmm_(of_state.to(new), jacobian)
            if len(rows) == self.rows.count:
                self.jacobians[i] = jacobian = new  # instead of a copy: memory takes longer than the product
            else:
                jacobian.copy_(new)
            if self.masks is not None:
                self.masks.keep(i, jacobian)

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
            if at.all():
                found.append(shaped(here.reshape(-1) @ jacobian.flatten(0, 1), leaf))
            else:  # row by row, which copies none of it
                rows = at.nonzero().flatten().tolist()
                some = sum((here[row] @ jacobian[row] for row in rows), jacobian.new_zeros(jacobian.shape[2]))
                found.append(shaped(some, leaf))
        return found

    @property
    def _numbers(self) -> int:
        """Bytes of a number of the state by every parameter."""
        assert self.rows is not None
        return sum(map(numbers, self.theta)) * self.rows.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """J, of one row the new part, of one vjp the gradients; patterns, and columns of them that are compared."""
        if self.rows is None:
            return 0
        count = sum(map(numbers, self.theta))
        masks = 0 if self.masks is None else self.rows.size * (3 * count + 17 * min(COLUMNS, count))
        return self._numbers * (self.rows.size * (self.rows.count + 1) + 3) + masks

    def parts(self) -> dict[str, Any]:
        """J by parameter."""
        names = [self.name_of(leaf) for leaf in self.theta]
        found = {"jacobians": {name: self.jacobian(i).clone() for i, name in enumerate(names)}}
        return found if self.masks is None else {**found, **self.masks.parts(names)}

    def take(self, parts: dict[str, Any]) -> None:
        """The inverse of `parts`."""
        assert self.rows is not None
        pairs = [
            self.load_leaf(name, saved, (self.rows.count, self.rows.size)) for name, saved in parts["jacobians"].items()
        ]
        if self.masks is not None:
            places = [(name, leaf.device) for name, (leaf, _) in zip(parts["jacobians"], pairs, strict=True)]
            self.masks.take(parts, places, self.rows.device)
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


def _own(values: list[Tensor | None], vectors: int) -> list[Tensor | None]:
    """Gradients of so many cotangents, each in memory of its own to write to: it can be shared, or the model's."""
    found, seen = list[Tensor | None](), set[int]()
    for value in values:
        if value is not None:
            storage = value.untyped_storage()
            given = vectors > 1 and value.is_contiguous() and storage.nbytes() == value.nbytes  # one of many is no view
            if not given or storage.data_ptr() in seen:
                value = value.clone(memory_format=torch.contiguous_format)
            seen.add(storage.data_ptr())
        found.append(value)
    return found


def _check_apart(moved: Tensor, rows: Tensor) -> None:
    """ValueError where the state of a batch row depends on that of another; moved: D of one number each, of `rows`."""
    others = moved.clone()
    others[torch.arange(len(rows), device=rows.device), rows] = 0
    if bool(((others != 0) & others.isfinite()).any()):
        raise ValueError(
            "the state of a batch row depends on that of another row, as under batch norm, and ∂s/∂θ is carried row by "
            "row: use a batch of one row, bptt.UORO() or bptt.TruncatedBPTT(k1)."
        )
