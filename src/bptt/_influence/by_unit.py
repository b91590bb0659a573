"""What each parameter of a layer does to its own unit, carried without the n x P matrix."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bptt import _tree, _units
from bptt._influence.base import Influence
from bptt._rows import numbers
from bptt._segment import Segment, Span
from bptt._snapshot import Snapshot, isolated
from bptt._stream import Data
from bptt._tree import Tree
from bptt._units import Passes, Units


class ByUnit(Influence):
    """E ← D_u E + I, D_u the block of each unit: of each parameter (B, d, numbers), d the numbers of a unit's state.

    It is SnAp-1 of a layer each of whose parameters writes one unit, and RTRL where no unit depends on another.
    """

    d: int
    units: int
    entries: list[Tensor]
    passes: Passes | None = None

    @classmethod
    def of(cls, other: Influence, span: Span, alone: bool) -> "ByUnit | None":
        """What goes on instead of another that carries nothing yet, where the model's state is that of one such layer.

        alone: whether no unit may depend on another.
        """
        one = cls.resumed(other)
        units = one._first(span)
        known = {id(part.parameter) for part in units.parts} if units else set()
        if (
            units is None
            or one.learned
            or (alone and not units.alone)
            or any(id(leaf) not in known for leaf in one.theta)
        ):
            return None
        _, rows, one.d, _, one.units = units.keep.shape
        one.passes = units.passes
        one.entries = [units.keep.new_zeros(rows, one.d, numbers(leaf)) for leaf in one.theta]
        return one

    @classmethod
    def resumed(cls, other: Influence) -> "ByUnit":
        """The same for a run that goes on, to be loaded."""
        one = cls.__new__(cls)
        vars(one).update(vars(other))
        return one

    def begin(self, span: Span) -> None:
        """The same; a run that goes on finds what does the work."""
        super().begin(span)
        if self.passes is None:
            self.passes = _checked(self._first(span), span.window.start, span.window.start + 1).passes

    def _first(self, span: Span) -> Units | None:
        """What the layer does in a window's first step, only looked at."""
        span = self.span(span)
        with isolated(self.problem.model, span.tensors), torch.no_grad():
            return self._of_calls(Segment(span, span.window.start, span.window.start + 1), span.begin)[0]

    def _include(self, leaf: Tensor) -> None:
        raise ValueError(
            "the state depends on a parameter that it didn't depend on before, and the influence is carried unit by "
            "unit for one layer: call unroll anew."
        )

    def _of_calls(self, segment: Segment, carried: Tree) -> tuple[Units | None, Tree]:
        """What the layer did in a segment, rows that start anew keeping nothing; None where it isn't one layer."""
        data = segment.time.read(segment.start, segment.stop)
        with _units.listening() as heard:
            done = segment.unfold(carried, data)
        calls = self._in_order(segment, data, carried, heard)
        if calls is None:
            return None, done.after
        ends = [leaf for leaf in _tree.leaves(done.end) if _tree.carries_cotangent(leaf)]
        begins = [leaf for leaf in _tree.leaves(carried) if _tree.carries_cotangent(leaf)]
        resets = data.is_start is not None and bool(data.is_start[0].any())
        if (calls[-1].end and not _same(calls[-1].end, ends)) or (
            begins and calls[0].begin and not resets and not _same(calls[0].begin, begins)
        ):
            return None, done.after
        units = calls[0] if len(calls) == 1 else _joined(calls)
        if data.is_start is not None:
            starts = data.is_start if data.is_start.dim() == 2 else data.is_start[:, None]
            keep = units.keep.masked_fill(starts.to(units.keep.device)[..., None, None, None], 0)
            units = units._replace(keep=keep)
        return units, done.after

    def _in_order(
        self, segment: Segment, data: Data, carried: Tree, heard: list[Callable[[], Units]]
    ) -> list[Units] | None:
        """What was heard, one for each call of the model: two where rows of a step are called from None beside."""
        p, calls, found = self.problem, iter(heard), list[Units]()
        try:
            for a, _ in segment.calls:
                units, rows = next(calls)(), None if data.is_start is None else data.is_start[a - segment.start]
                twice = p.from_none and not p.native_start and bool(found or carried is not None)
                if twice and rows is not None and bool(rows.any()) and not rows.all():
                    units = _selected(units, next(calls)(), rows)
                found.append(units)
        except StopIteration:
            return None
        return None if next(calls, None) is not None else found

    def absorb(self, span: Span, length: int | None, noise: Snapshot, end: Tree) -> None:
        """E over a window, all steps of a graph at once."""
        span, carried = self.span(span), span.begin
        steps = span.window.stop - span.window.start
        with noise.installed(), torch.no_grad():
            for segment in span.segments(min(length or steps, steps), replays=False):
                units, carried = self._of_calls(segment, carried)
                self._take(_checked(units, segment.start, segment.stop))

    def _take(self, units: Units) -> None:
        """E ← D E + I over a call."""
        parts = {id(part.parameter): part for part in units.parts}
        found = [parts[id(leaf)] for leaf in self.theta]
        units.passes.absorb(
            units.keep, [(E, part.factor, part.operand) for E, part in zip(self._by_row(), found, strict=True)]
        )

    def _by_row(self) -> list[Tensor]:
        """E of each parameter as (B, d, G, H, J)."""
        sizes = len(self.entries[0]), self.d, -1, self.units
        return [
            E.view(*sizes, leaf.shape[1] if leaf.dim() > 1 else 1)
            for E, leaf in zip(self.entries, self.theta, strict=True)
        ]

    def pull(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """c · E, entries whose cotangent is zero left out."""
        assert self.passes is not None
        found = self.passes.pull(self._by_unit(cotangents), self._by_row())
        return [x.reshape(leaf.shape).to(leaf.dtype) for x, leaf in zip(found, self.theta, strict=True)]

    def _by_unit(self, cotangents: Sequence[Tensor | None]) -> Tensor:
        """The cotangents of the state's leaves as (B, d, H): leaf after leaf, of a complex one both parts."""
        like, found = self.entries[0], list[Tensor]()
        shape = len(like), self.units
        for x in cotangents:
            if x is None:
                found += [like.new_zeros(shape)] * (self.d // len(cotangents))
            elif x.is_complex():
                found += [x.real.reshape(shape), x.imag.reshape(shape)]
            else:
                found.append(x.reshape(shape))
        return torch.stack(found, 1).to(like)

    @property
    def nbytes(self) -> int:
        """E, as it was and as it becomes."""
        return 2 * sum(entries.nbytes for entries in self.entries)

    def parts(self) -> dict[str, Any]:
        """E by parameter."""
        pairs = zip(self.theta, self.entries, strict=True)
        return {"units": {self.name_of(leaf): entries.clone() for leaf, entries in pairs}}

    def take(self, parts: dict[str, Any]) -> None:
        """The inverse of `parts`."""
        rows, self.d, _ = next(iter(parts["units"].values())).shape
        assert self.rows is not None
        self.units = self.rows.count * self.rows.size // (rows * self.d)
        pairs = [self.load_leaf(name, saved, (rows, self.d)) for name, saved in parts["units"].items()]
        self.theta, self.entries = [leaf for leaf, _ in pairs], [saved for _, saved in pairs]


def _checked(units: Units | None, start: int, stop: int) -> Units:
    if units is None:
        raise ValueError(
            f"steps {start} to {stop - 1}: the state is no longer that of one layer's call, by whose units ∂s/∂θ is "
            f"carried: call the layer once, on the state as it is given."
        )
    return units


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether they are the same numbers in the same memory."""
    return len(some) == len(others) and all(
        a.data_ptr() == b.data_ptr() and a.numel() == b.numel() for a, b in zip(some, others, strict=True)
    )


def _selected(units: Units, anew: Units, rows: Tensor) -> Units:
    """A step from a state, and the rows of it that start anew."""

    def rows_of(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(rows.to(one.device).reshape(1, -1, *[1] * (one.dim() - 2)), other, one)

    parts = [
        part._replace(
            factor=rows_of(part.factor, other.factor),
            operand=None if part.operand is None or other.operand is None else rows_of(part.operand, other.operand),
        )
        for part, other in zip(units.parts, anew.parts, strict=True)
    ]
    return units._replace(parts=parts, end=[])


def _joined(calls: list[Units]) -> Units:
    """Calls one after the other as one."""
    parts = []
    for column in zip(*(call.parts for call in calls), strict=True):
        operand = None if column[0].operand is None else torch.cat([part.operand for part in column])  # pyright: ignore[reportCallIssue, reportArgumentType]
        parts.append(column[0]._replace(factor=torch.cat([part.factor for part in column]), operand=operand))
    keep = torch.cat([call.keep for call in calls])
    return Units(keep, parts, calls[0].begin, calls[-1].end, calls[0].passes, all(call.alone for call in calls))
